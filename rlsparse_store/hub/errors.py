"""What went wrong on the Hub, in words of ours: one line with the remedy, and no secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import (
    GatedError,
    HubError,
    HubOfflineError,
    HubPermissionError,
    HubQuotaError,
    HubServerError,
    MovedBranchError,
    NotFoundError,
    RlsparseError,
)
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from rlsparse_store.hub.repo_id import RepoId

__all__ = ["is_passing", "redact_record", "redacted", "translated"]

_SECRETS: Final = re.compile(r"hf_\w{8,}|(?<=\?)\S+=\S+|(?i:bearer\s+\S+)")
_QUOTA: Final = re.compile(r"quota|storage limit|rate limit|too large|exceed", re.IGNORECASE)


def redacted(text: str) -> str:
    """Foreign text without access tokens and signed addresses, safe for a terminal.

    Example:
        >>> redacted("GET http://host/x?Signature=abc with hf_abcdefgh1234")
        'GET http://host/x?… with …'
    """
    return printable(_SECRETS.sub("…", text), 300)


def redact_record(record: logging.LogRecord) -> bool:
    """Keep secrets out of what is logged: the client names signed addresses when it tries again.

    Returns:
        True, for it is a filter, and every record may pass.
    """
    record.msg, record.args = redacted(record.getMessage()), ()
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it: the client wraps the answers of the Hub."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if the Hub answered."""
    for cause in _chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_network(error: BaseException) -> bool:
    """Whether the connection failed. The HTTP library differs between versions of the client."""
    modules = ("httpx", "httpcore", "h11", "requests")
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or type(cause).__module__.startswith(modules)
        for cause in _chain(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    from huggingface_hub import errors  # noqa: PLC0415 - after it was used

    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _chain(error)):
        return False
    status = _status(error)
    return _is_network(error) if status is None else status in {408, 429} or status >= 500


def translated(error: Exception, what: str, repo: RepoId) -> RlsparseError:
    """The error of ours for one of the Hub's client.

    Args:
        error: The client's error.
        what: What was asked for: the base or the delta.
        repo: The repository.
    """
    from huggingface_hub import constants, errors  # noqa: PLC0415 - after it was used

    chain = list(_chain(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    name = printable(str(repo))
    # A mistyped path with one slash looks like an id.
    nor_folder = "" if repo.revision else "no such folder here, and "
    if is_a(errors.GatedRepoError):
        msg = (
            f"the {what} is gated: accept its terms at {constants.ENDPOINT}/{repo.repo} "
            "and log in (hf auth login)"
        )
        return GatedError(msg, file=name)
    if is_a(errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        msg = (
            f"{nor_folder}no such repository or revision for the {what}, or it is private: check "
            "the name, and log in if it is yours (hf auth login)"
        )
        return NotFoundError(msg, file=name)
    status = _status(error)
    if status is not None:
        return _of_status(status, error, what, name)
    is_absent = is_a(errors.EntryNotFoundError) and not _is_network(error)
    if is_absent or is_a(errors.OfflineModeIsEnabled):
        return not_cached(what, name)
    if _is_network(error):
        msg = f"{nor_folder}the Hub cannot be reached for the {what}, or hung up; try again later"
        return HubOfflineError(msg, file=name)
    msg = f"the Hub's client failed on the {what}: {redacted(f'{type(error).__name__}: {error}')}"
    return HubError(msg, file=name)


def not_cached(what: str, name: str) -> HubOfflineError:
    """What to say of something that is not here while offline."""
    msg = (
        f"the {what} is not in the cache and the Hub cannot be reached: go online once, or "
        "give a local folder, which must exist (there is none of this name)"
    )
    return HubOfflineError(msg, file=name)


def _of_status(status: int, error: Exception, what: str, name: str) -> RlsparseError:
    said = next((str(m) for e in _chain(error) if (m := getattr(e, "server_message", None))), "")
    told = f" ({redacted(said)})" if said else ""
    if status in {402, 413, 429} or (status in {403, 422} and _QUOTA.search(said)):
        remedy = "wait a while" if status == 429 else "make room, or ask for more"
        msg = f"a limit of the Hub was hit on the {what}, status {status}{told}: {remedy}"
        return HubQuotaError(msg, file=name)
    if status in {401, 403}:
        msg = (
            f"your access token does not allow this for the {what}, status {status}{told}: log "
            "in with one that does (hf auth login)"
        )
        return HubPermissionError(msg, file=name)
    if status == 404:
        return NotFoundError(f"the Hub does not have this of the {what}{told}", file=name)
    if status in {409, 412}:
        msg = (
            "someone else wrote to the branch in the meantime, and nothing was published: "
            "look at what is there, and push again"
        )
        return MovedBranchError(msg, file=name)
    if status >= 500:
        msg = f"the Hub failed on the {what}, status {status}{told}; try again later"
        return HubServerError(msg, file=name)
    return HubError(f"the Hub refused the {what}, status {status}{told}", file=name)

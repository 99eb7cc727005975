"""Errors of ``huggingface_hub`` as errors of this package: one line, a remedy, no secrets."""

from __future__ import annotations

import errno
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

__all__ = ["is_transient", "not_cached", "redact", "redact_record", "translate_error"]

_ENDPOINT: Final = "https://huggingface.co"
"""The client's own endpoint, unless HF_ENDPOINT names another one."""

_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)
"""Errors of writing: the client writes only to its cache."""

_LOG_IN: Final = "log in with `hf auth login`"

_SECRETS: Final = re.compile(r"hf_\w{8,}|(?<=\?)\S+=\S+|(?<=://)[^\s/@]+(?=@)|(?i:bearer\s+\S+)")
"""Access tokens, signatures of URLs, users and passwords in URLs."""

_QUOTA: Final = re.compile(r"quota|storage limit|rate limit|too large|exceed", re.IGNORECASE)


def redact(text: str) -> str:
    """Remove access tokens, URL signatures and passwords from text, and make it safe to print.

    Example:
        >>> redact("GET http://host/x?Signature=abc with hf_abcdefgh1234")
        'GET http://host/x?… with …'
    """
    return printable(_SECRETS.sub("…", text), 300)


def redact_record(record: logging.LogRecord) -> bool:
    """Remove secrets from a log record: the client logs signed URLs when it retries.

    Returns:
        True: the filter passes every record.
    """
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: the client wraps HTTP errors."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, or ``None`` without a response."""
    for cause in _chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_network(error: BaseException) -> bool:
    """Return whether the connection failed. Versions of the client use different HTTP libraries."""
    modules = ("httpx", "httpcore", "h11", "requests")
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or type(cause).__module__.startswith(modules)
        for cause in _chain(error)
    )


def is_transient(error: BaseException) -> bool:
    """Return whether a retry of the request may succeed."""
    from huggingface_hub import errors  # noqa: PLC0415 - only for repository ids

    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in _chain(error)):
        return False
    status = _status(error)
    return _is_network(error) if status is None else status in {408, 429} or status >= 500


def translate_error(error: Exception, what: str, repo: RepoId) -> RlsparseError:
    """Translate an error of the Hub client.

    Args:
        error: The client's error.
        what: What the request was for, such as "base" or "delta".
        repo: The repository.
    """
    from huggingface_hub import constants, errors  # noqa: PLC0415 - only for repository ids

    chain = list(_chain(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    name = printable(str(repo))
    if is_a(errors.GatedRepoError):
        page = f"{redact(constants.ENDPOINT)}/{repo.repo}"
        msg = f"the {what} is gated: accept its terms at {page}, then {_LOG_IN}"
        return GatedError(msg, file=name)
    # A mistyped path with one slash looks like a repository id.
    no_folder = "" if repo.revision else "no such local folder, and "
    if is_a(errors.RevisionNotFoundError):
        msg = f"the repository has no such revision (the {what}): check its branches and tags"
        return NotFoundError(msg, file=name)
    if is_a(errors.RepositoryNotFoundError):
        msg = (
            f"{no_folder}no such Hub repository (the {what}): check the name; if the repository is "
            f"private, {_LOG_IN}"
        )
        return NotFoundError(msg, file=name)
    status = _status(error)
    if status is not None:
        return _http_error(status, error, what, name)
    is_absent = is_a(errors.EntryNotFoundError) and not _is_network(error)
    if is_absent or is_a(errors.OfflineModeIsEnabled):
        return not_cached(what, name)
    return _without_response(error, what, name, no_folder)


def _without_response(error: Exception, what: str, name: str, no_folder: str) -> RlsparseError:
    """Translate an error of the connection, of the cache, or of the client itself."""
    from huggingface_hub import constants  # noqa: PLC0415 - only for repository ids

    if _is_network(error):
        is_other = constants.ENDPOINT != _ENDPOINT
        remedy = f"check HF_ENDPOINT ({redact(constants.ENDPOINT)}), or " if is_other else ""
        msg = (
            f"{no_folder}the Hub is unreachable (the {what}); {remedy}try again later "
            "(--local-files-only reads the cache)"
        )
        return HubOfflineError(msg, file=name)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        place = f" at {redact(str(error.filename))}" if error.filename else ""
        msg = (
            f"the cache cannot be written{place} (the {what}): {error.strerror}; free space there, "
            "or choose another place (HF_HOME, or --cache-dir)"
        )
        return HubError(msg, file=name)
    cause = redact(f"{type(error).__name__}: {error}")
    return HubError(f"the Hub client failed (the {what}): {cause}", file=name)


def is_logged_in() -> bool:
    """Whether the client has an access token of its own."""
    from huggingface_hub import get_token  # noqa: PLC0415 - after it was used

    return bool(get_token())


def not_cached(what: str, name: str) -> HubOfflineError:
    """Return the error for a repository that is neither reachable nor cached."""
    msg = (
        f"no such local folder, and the {what} is not in the cache while offline: pass an existing "
        "folder, or download it once while online"
    )
    return HubOfflineError(msg, file=name)


def _http_error(status: int, error: Exception, what: str, name: str) -> RlsparseError:
    reason = next((str(m) for e in _chain(error) if (m := getattr(e, "server_message", None))), "")
    details = f"the {what}, HTTP {status}"
    if reason:
        details += f": {redact(reason)}"
    if status in {402, 413, 429} or (status in {403, 422} and _QUOTA.search(reason)):
        remedy = (
            "try again later" if status == 429 else "free storage on the Hub or raise the limit"
        )
        return HubQuotaError(f"a limit of the Hub is exceeded ({details}); {remedy}", file=name)
    if status in {401, 403}:
        msg = f"an access token is needed ({details}); log in: `hf auth login`"
        if is_logged_in():
            msg = (
                f"the access token does not allow this ({details}); log in with another token: "
                "`hf auth login`"
            )
        return HubPermissionError(msg, file=name)
    if status == 404:
        return NotFoundError(f"not found on the Hub ({details})", file=name)
    if status in {409, 412}:
        msg = (
            "someone else wrote to the branch and nothing was published: review the branch and "
            "push again"
        )
        return MovedBranchError(msg, file=name)
    if status >= 500:
        return HubServerError(f"the Hub failed ({details}); try again later", file=name)
    return HubError(f"the Hub refused the request ({details})", file=name)

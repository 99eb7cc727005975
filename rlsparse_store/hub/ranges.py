"""Ranges of bytes of files on the Hub, by HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.errors import HubServerError

if TYPE_CHECKING:
    from rlsparse_store.hub.access import HubAccess

__all__ = ["Part", "request_range"]

XET_HASH: Final = "X-Xet-Hash"
"""Header with the hash of a file's content."""


class Part(NamedTuple):
    """Bytes of a file.

    Attributes:
        data: The bytes.
        content: The hash of the whole file's content, if the Hub said it.
    """

    data: bytes
    content: str | None


def request_range(url: str, start: int, end: int, place: object, access: HubAccess) -> Part:
    """Request a range of bytes once. The client's errors are not translated.

    Args:
        url: URL of the file.
        start: First byte.
        end: The byte after the last one.
        place: The file, for errors.
        access: How to reach the Hub.

    Raises:
        HubServerError: The Hub sent fewer bytes.
    """
    from huggingface_hub import utils as exported  # noqa: PLC0415 - only for places on the Hub

    utils: Any = exported  # the functions below are not in its __all__

    headers = utils.build_hf_headers(token=access.token, library_name="rlsparse-store")
    headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    parts, received = [], 0
    with utils.get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        utils.hf_raise_for_status(response)
        # A server may ignore the range and send the whole file: skip and stop early.
        skip = start if response.status_code == 200 else 0
        for part in response.iter_bytes(1 << 16):
            parts.append(part[max(0, skip - received) :] if received < skip else part)
            received += len(part)
            if received >= skip + end - start:
                break
        hashes = [answer.headers.get(XET_HASH) for answer in (*response.history, response)]
    data = b"".join(parts)[: end - start]
    if len(data) != end - start:
        msg = f"the Hub sent {len(data)} of {end - start} bytes; try again later"
        raise HubServerError(msg, file=place)
    return Part(data, next(filter(None, hashes), None))

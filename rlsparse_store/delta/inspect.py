"""Inspecting: what a delta holds, from its manifest and index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta.report import DeltaReport, report_tensors
from rlsparse_store.delta.resolve import read_delta
from rlsparse_store.hub.access import HubAccess

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.files.delta_reader import DeltaReader

__all__ = ["inspect_delta", "report_delta"]


def inspect_delta(
    delta: str | PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> DeltaReport:
    """Report what a delta holds. Needs no base and decodes nothing.

    Of a delta on the Hub or in object storage, only manifest and index are read.

    Args:
        delta: Folder of the delta, its URL in object storage, or ``org/name[@revision]`` on the
            Hub.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        Sizes, densities and step counts, of the delta and of each tensor.

    Raises:
        NotFoundError: There is no such delta.
        FormatError: It is damaged.

    Example:
        >>> inspect_delta("qwen-grpo-delta").density  # doctest: +SKIP
        0.158
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with read_delta(delta, revision, subfolder, access) as reader:
        return report_delta(reader)


def report_delta(reader: DeltaReader) -> DeltaReport:
    """Report what an open delta holds."""
    return DeltaReport(**report_tensors(reader.index, reader.manifest, reader.nbytes))

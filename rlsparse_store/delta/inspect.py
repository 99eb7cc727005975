"""Inspecting: what a delta holds, from its index alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta.report import DeltaReport, report_tensors
from rlsparse_store.delta.resolve import read_delta
from rlsparse_store.hub.access import HubAccess

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.files.delta_reader import DeltaReader

__all__ = ["inspect_delta", "report_delta"]


def inspect_delta(
    delta: str | Path, *, subfolder: str = "", token: str | bool | None = None
) -> DeltaReport:
    """Report what a delta holds. Needs no base and decodes nothing.

    Of a delta on the Hub, only the front and the index are read.

    Args:
        delta: Folder of the delta, or ``org/name[@revision]`` on the Hub.
        subfolder: The delta's folder within, of a repository or folder with several.
        token: Access token for the Hub; by default the one that is stored.

    Raises:
        NotFoundError: There is no delta at this place.
        FormatError: It is damaged.

    Example:
        >>> inspect_delta("qwen-grpo-delta").density  # doctest: +SKIP
        0.158
    """
    with read_delta(delta, subfolder, HubAccess(token=token)) as reader:
        return report_delta(reader)


def report_delta(reader: DeltaReader) -> DeltaReport:
    """Report what an open delta holds."""
    return DeltaReport(**report_tensors(reader.index, reader.manifest, reader.nbytes))

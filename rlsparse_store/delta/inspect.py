"""Inspecting: what a delta holds, from its index alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta.locate import read_delta
from rlsparse_store.delta.report import DeltaReport, report_tensors
from rlsparse_store.hub import HubAccess

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["inspect_delta"]


def inspect_delta(delta: str | Path) -> DeltaReport:
    """Report what a delta holds. Needs no base and decodes nothing.

    Of a delta on the Hub, only the front and the index are read.

    Args:
        delta: Folder of the delta, or ``org/name[@revision]`` on the Hub.

    Raises:
        NotFoundError: There is no delta at this place.
        FormatError: It is damaged.

    Example:
        >>> inspect_delta("qwen-grpo-delta").density  # doctest: +SKIP
        0.158
    """
    with read_delta(delta, HubAccess()) as reader:
        return DeltaReport(**report_tensors(reader.index, reader.manifest, reader.nbytes))

"""Inspecting: what a delta holds, from its index alone."""

from __future__ import annotations

from pathlib import Path

from rlsparse_store.container import DeltaReader
from rlsparse_store.delta.report import DeltaReport, report_tensors

__all__ = ["inspect_delta"]


def inspect_delta(delta: str | Path) -> DeltaReport:
    """Report what a delta holds. Needs no base and decodes nothing.

    Args:
        delta: Folder of the delta.

    Raises:
        NotFoundError: There is no delta at this place.
        FormatError: It is damaged.

    Example:
        >>> inspect_delta("qwen-grpo-delta").density  # doctest: +SKIP
        0.158
    """
    with DeltaReader(Path(delta)) as reader:
        return DeltaReport(**report_tensors(reader.index, reader.manifest, reader.nbytes))

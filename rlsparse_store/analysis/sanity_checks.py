"""Checks for pairs that a reader of the figures should know about, such as a wrong base."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, TypeAlias

from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.measures import Measures
    from rlsparse_store.analysis.tensor_pairs import SharedTensor, Unmatched

__all__ = ["sanity_warnings"]

Measured: TypeAlias = "Sequence[tuple[SharedTensor, Measures]]"

UNRELATED: Final = 0.95
"""Median density above which the base is probably the wrong one."""

MERGED: Final = 0.3
"""Density from which a kind of matrix counts as changed throughout."""

_QUANTIZED: Final = re.compile(r"(qweight|qzeros|weight_packed|weight_scale|\.scales?)$")


def sanity_warnings(measured: Measured, unmatched: Sequence[Unmatched]) -> list[str]:
    """Warnings about a pair, one sentence each.

    Args:
        measured: The compared tensors and their counts.
        unmatched: The tensors that are not compared.
    """
    warnings = (
        _dtype_mismatch(unmatched),
        _resized(measured),
        _quantized(measured),
        _wrong_base(measured),
        _merged_adapter(measured),
        _untied(measured),
    )
    return [warning for warning in warnings if warning]


def _dtype_mismatch(unmatched: Sequence[Unmatched]) -> str:
    tensors = [u for u in unmatched if u.reason.startswith(("kept as", "cast"))]
    if not tensors:
        return ""
    return (
        f"dtype mismatch: {len(tensors)} tensors, such as {printable(tensors[0].name)}, have "
        "another dtype than in the base and are not compared (--cast bf16 rounds them first)"
    )


def _resized(measured: Measured) -> str:
    tensors = [t for t, _ in measured if t.is_resized]
    if not tensors:
        return ""
    return (
        f"resized: {printable(tensors[0].name)} has more or fewer rows than in the base, perhaps a "
        "padded vocabulary; only the shared rows are compared"
    )


def _quantized(measured: Measured) -> str:
    name = next((t.name for t, _ in measured if _QUANTIZED.search(t.name)), None)
    if name is None:
        return ""
    return f"quantized storage: {printable(name)} stores codes, not weights"


def _wrong_base(measured: Measured) -> str:
    densities = sorted(m.changed / m.words for _, m in measured if m.words)
    if not densities or densities[len(densities) // 2] <= UNRELATED:
        return ""
    median = format_percent(densities[len(densities) // 2])
    return (
        f"probably the wrong base: the median tensor has {median} of its words changed; full "
        "fine-tuning at a large learning rate looks the same"
    )


def _untied(measured: Measured) -> str:
    """Detects two tensors with one source."""
    names = {tensor.name for tensor, _ in measured}
    untied = [t for t, _ in measured if t.source != t.name and t.source in names]
    if not untied:
        return ""
    return (
        f"untied: {printable(untied[0].name)} and {printable(untied[0].source)} are one tensor in "
        "the base and two in the tuned checkpoint"
    )


def _merged_adapter(measured: Measured) -> str:
    """Detects that some kinds of matrix changed throughout and nothing else changed."""
    kinds: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for tensor, m in measured:
        kinds[tensor.module][0] += m.words
        kinds[tensor.module][1] += m.changed
        if m.changed and (len(tensor.shape) != 2 or tensor.layer == "other"):
            return ""
    dense = [name for name, (n, k) in kinds.items() if k and k / n >= MERGED]
    has_sparse = any(k and k / n < MERGED for n, k in kinds.values())
    if not dense or has_sparse or len(dense) == len(kinds):
        return ""
    return (
        f"probably a merged adapter (LoRA): only {printable(', '.join(sorted(dense)))} changed, "
        "almost everywhere; store the adapter instead"
    )

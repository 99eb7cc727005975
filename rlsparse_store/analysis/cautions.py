"""What to be wary of before trusting a figure."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.measures import Measures
    from rlsparse_store.analysis.tensor_pairs import SharedTensor, Unmatched

    Measured = Sequence[tuple[SharedTensor, Measures]]

__all__ = ["find_cautions"]

UNRELATED: Final = 0.95
"""Median share of changed words from which the base is probably another one."""

MERGED: Final = 0.3
"""Density from which a kind of matrix counts as changed throughout."""

_QUANTIZED: Final = re.compile(r"(qweight|qzeros|weight_packed|weight_scale|\.scales?)$")


def find_cautions(measured: Measured, unmatched: Sequence[Unmatched]) -> list[str]:
    """Warnings, each a sentence.

    Args:
        measured: The tensors that were compared, and what was counted.
        unmatched: Those that were not.
    """
    checks = (
        _dtypes(unmatched),
        _resized(measured),
        _quantized(measured),
        _unrelated(measured),
        _merged_adapter(measured),
        _untied(measured),
    )
    return [caution for caution in checks if caution]


def _dtypes(unmatched: Sequence[Unmatched]) -> str:
    found = [u for u in unmatched if u.reason.startswith(("kept as", "cast"))]
    if not found:
        return ""
    return (
        f"dtype mismatch: {len(found)} tensors, {printable(found[0].name)} among them, are "
        "saved in another dtype than the base's and were not compared (--cast bf16 rounds them "
        "first)"
    )


def _resized(measured: Measured) -> str:
    found = [t for t, _ in measured if t.is_resized]
    if not found:
        return ""
    return (
        f"resized: {printable(found[0].name)} has other rows than in the base, a padded vocabulary "
        "perhaps; only the rows that both have are compared"
    )


def _quantized(measured: Measured) -> str:
    found = next((t.name for t, _ in measured if _QUANTIZED.search(t.name)), None)
    if found is None:
        return ""
    return f"quantized storage ({printable(found)}): values are stored codes, not weights"


def _unrelated(measured: Measured) -> str:
    shares = sorted(m.changed / m.words for _, m in measured if m.words)
    if not shares or shares[len(shares) // 2] <= UNRELATED:
        return ""
    median = format_percent(shares[len(shares) // 2])
    return (
        f"probably another base: in the median tensor {median} of the words changed; full "
        "fine-tuning at a large learning rate looks like this, too"
    )


def _untied(measured: Measured) -> str:
    """Whether two tensors come from one of the base's, so that a tie was given up."""
    names = {tensor.name for tensor, _ in measured}
    found = [t for t, _ in measured if t.source != t.name and t.source in names]
    if not found:
        return ""
    return (
        f"a tie that came apart: {printable(found[0].name)} and {printable(found[0].source)} are "
        "one tensor in the base and two in the tuned checkpoint"
    )


def _merged_adapter(measured: Measured) -> str:
    """Whether some kinds of matrix changed throughout and everything else not at all."""
    kinds: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for tensor, m in measured:
        kinds[tensor.module][0] += m.words
        kinds[tensor.module][1] += m.changed
        if m.changed and (len(tensor.shape) != 2 or tensor.layer == "other"):
            return ""
    touched = [name for name, (n, k) in kinds.items() if k and k / n >= MERGED]
    some = any(k and k / n < MERGED for n, k in kinds.values())
    if not touched or some or len(touched) == len(kinds):
        return ""
    return (
        f"probably a merged adapter (LoRA): only {printable(', '.join(sorted(touched)))} changed, "
        "and those nearly everywhere; store the adapter instead"
    )

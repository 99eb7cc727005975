"""Sizes of an update under published encodings, computed from counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from rlsparse_store.delta.html_table import SummaryRepr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.analysis.measures import Measures
    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor
    from rlsparse_store.delta.html_table import Rows

__all__ = ["Encoding", "compressed_encodings", "encoding_sizes"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Encoding(SummaryRepr):
    """Size of the compared changes under one encoding.

    Attributes:
        name: What the encoding stores per change.
        used_by: Systems that use it.
        nbytes: Size in bytes, without headers.
        bits_per_changed: 8 * nbytes / changed; ``None`` if nothing changed.
        is_entropy: Whether this is an order-0 entropy of the counts, a bound for coders without
            a better model, and not a format.
    """

    name: str
    used_by: str
    nbytes: int
    bits_per_changed: float | None
    is_entropy: bool

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "nbytes", self.nbytes
        yield "bits_per_changed", self.bits_per_changed
        yield "used_by", self.used_by


def encoding_sizes(
    measured: Sequence[tuple[SharedTensor, Measures]], delta_bytes: int | None
) -> list[Encoding]:
    """Sizes under each encoding that counts determine; the delta comes first if its size is known.

    Args:
        measured: The tensors and their counts.
        delta_bytes: Size of the delta's files in bytes.
    """
    changed = sum(m.changed for _, m in measured)

    def encoding(name: str, used_by: str, nbytes: float, *, is_entropy: bool = False) -> Encoding:
        return Encoding(
            name=name,
            used_by=used_by,
            nbytes=math.ceil(nbytes),
            bits_per_changed=8 * nbytes / changed if changed else None,
            is_entropy=is_entropy,
        )

    values = sum(m.changed * t.dtype.coding.width / 8 for t, m in measured)
    bitmaps = sum(-(-m.words // 8) for _, m in measured if m.changed)
    gaps = sum(m.changed * (2 if m.largest_gap < 1 << 16 else 4) for _, m in measured)
    mask = sum(_mask_entropy(m.changed, m.words) for _, m in measured) / 8
    mask_given_exponent = sum(_mask_entropy_given_exponent(m) for _, m in measured) / 8
    steps = sum(_step_entropy(m.steps) for _, m in measured) / 8
    encodings = [
        encoding("int32 index, value", "TRL, vLLM, verl", 4 * changed + values),
        encoding("int64 index, value", "torch.sparse_coo", 8 * changed + values),
        encoding("gap of 16 or 32 bits, value", "NeMo-RL, PULSE; before zstd", gaps + values),
        encoding("bitmap, value", "BitDelta-like masks", bitmaps + values),
        encoding("entropy of mask, value", "order-0 bound", mask + values, is_entropy=True),
        encoding("entropy of mask and steps", "order-0 bound", mask + steps, is_entropy=True),
        encoding(
            "entropy of mask given base exponent, and of steps",
            "order-0 bound",
            mask_given_exponent + steps,
            is_entropy=True,
        ),
    ]
    if delta_bytes is not None:
        encodings.insert(0, encoding("rlsparse_store", "this delta, all files", delta_bytes))
    return encodings


def compressed_encodings(
    pair: Pair, measured: Sequence[tuple[SharedTensor, Measures]], threads: int
) -> list[Encoding]:
    """Sizes under encodings that end with zstd at level 1. Reads both sides again.

    Args:
        pair: The pair.
        measured: Its tensors and their counts.
        threads: Number of threads.
    """
    gaps = {t.name: m.largest_gap for t, m in measured}

    def compress(tensor: SharedTensor) -> tuple[int, int]:
        gap_type = np.uint16 if gaps[tensor.name] < 1 << 16 else np.uint32
        return _compressed_sizes(pair, tensor, gap_type)

    sizes = pair.map(compress, threads)
    changed = sum(m.changed for _, m in measured)
    names = (
        ("XOR, zstd-1", "slime, SkyRL"),
        ("gap of 16 or 32 bits, value, zstd-1", "PULSE, NeMo-RL with overwriting"),
    )
    return [
        Encoding(
            name=name,
            used_by=used_by,
            nbytes=(nbytes := sum(size[i] for size in sizes)),
            bits_per_changed=8 * nbytes / changed if changed else None,
            is_entropy=False,
        )
        for i, (name, used_by) in enumerate(names)
    ]


def _compressed_sizes(
    pair: Pair, tensor: SharedTensor, gap_type: type[np.unsignedinteger[Any]]
) -> tuple[int, int]:
    """Compressed bytes of a tensor's XOR, and of its gaps and values, one zstd frame each."""
    xor, gaps, values = (zstandard.ZstdCompressor(level=1).compressobj() for _ in range(3))
    sizes, last = [0, 0], -1
    for block in pair.blocks(tensor.name):
        sizes[0] += len(xor.compress((block.base ^ block.tuned).tobytes()))
        changed = np.flatnonzero(block.base != block.tuned)
        if changed.size:
            distances = np.diff(changed, prepend=last - block.first) - 1
            sizes[1] += len(gaps.compress(distances.astype(gap_type).tobytes()))
            sizes[1] += len(values.compress(block.tuned[changed].tobytes()))
            last = block.first + int(changed[-1])
    sizes[0] += len(xor.flush())
    sizes[1] += len(gaps.flush()) + len(values.flush())
    # These formats omit tensors without changes.
    return (sizes[0], sizes[1]) if last >= 0 else (0, 0)


def _mask_entropy(k: int, n: int) -> float:
    """Bits of a mask of n words, each of which changes independently with probability k / n."""
    if k in (0, n):
        return 0.0
    p = k / n
    return -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _mask_entropy_given_exponent(m: Measures) -> float:
    if m.by_exponent is None:
        return _mask_entropy(m.changed, m.words)
    words, changed = m.by_exponent.tolist()
    return sum(_mask_entropy(k, n) for n, k in zip(words, changed, strict=True))


def _step_entropy(steps: NDArray[np.int64]) -> float:
    """Bits of the step classes. Differences within a class do not count."""
    counts = [count for count in steps.tolist() if count]
    total = sum(counts)
    return -sum(float(count) * math.log2(count / total) for count in counts)

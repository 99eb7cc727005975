"""What the changes would take under encodings that others have published, from counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.analysis.measures import Measures
    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor

__all__ = ["Encoding", "compressed_encodings", "encodings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One way to store the changes of what is compared.

    Attributes:
        name: What is stored of a change.
        used_by: Who stores it so.
        nbytes: Bytes of it, without headers.
        bits_per_changed: 8 * nbytes / changed, or ``None`` if nothing changed.
        is_entropy: Whether it is an order-0 entropy of these counts, and not a format: what a coder
            with no better model and no tables would need.
    """

    name: str
    used_by: str
    nbytes: int
    bits_per_changed: float | None
    is_entropy: bool


def encodings_of(
    measured: Sequence[tuple[SharedTensor, Measures]], delta_bytes: int | None
) -> list[Encoding]:
    """Sizes under each encoding, ours first if it is known.

    Args:
        measured: The tensors and what was counted of them.
        delta_bytes: Bytes of the delta's files.
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
    masks = sum(-(-m.words // 8) for _, m in measured if m.changed)
    gaps = sum(m.changed * (2 if m.largest_gap < 1 << 16 else 4) for _, m in measured)
    flat = sum(_entropy(m.changed, m.words) for _, m in measured) / 8
    known = sum(_entropy_by_exponent(m) for _, m in measured) / 8
    signed = sum(_step_entropy(m.steps) for _, m in measured) / 8
    found = [
        encoding("int32 index, value", "TRL, vLLM, verl", 4 * changed + values),
        encoding("int64 index, value", "torch.sparse_coo", 8 * changed + values),
        encoding("gap of 16 or 32 bits, value", "NeMo-RL, PULSE; before zstd", gaps + values),
        encoding("bitmap, value", "BitDelta-like masks", masks + values),
        encoding("entropy of the mask, value", "an entropy", flat + values, is_entropy=True),
        encoding("entropy of mask and steps", "an entropy", flat + signed, is_entropy=True),
        encoding(
            "entropy given the base's exponent, and of steps",
            "an entropy",
            known + signed,
            is_entropy=True,
        ),
    ]
    if delta_bytes is not None:
        found.insert(0, encoding("rlsparse_store", "this delta, all of it", delta_bytes))
    return found


def compressed_encodings(
    pair: Pair, measured: Sequence[tuple[SharedTensor, Measures]], threads: int
) -> list[Encoding]:
    """Sizes under encodings that end with zstd at level 1, for which both sides are read again.

    Args:
        pair: Base and tuned.
        measured: The tensors and what was counted of them.
        threads: Threads to compress on.
    """
    gaps = {t.name: m.largest_gap for t, m in measured}

    def compress(tensor: SharedTensor) -> tuple[int, int]:
        return _compressed(pair, tensor, np.uint16 if gaps[tensor.name] < 1 << 16 else np.uint32)

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
            nbytes=(nbytes := sum(size[place] for size in sizes)),
            bits_per_changed=8 * nbytes / changed if changed else None,
            is_entropy=False,
        )
        for place, (name, used_by) in enumerate(names)
    ]


def _compressed(
    pair: Pair, tensor: SharedTensor, gap: type[np.unsignedinteger[Any]]
) -> tuple[int, int]:
    """Bytes of a tensor's XOR, and of its gaps and values, each through zstd as one frame."""
    xor, gaps, values = (zstandard.ZstdCompressor(level=1).compressobj() for _ in range(3))
    sizes, last = [0, 0], -1
    for block in pair.blocks(tensor.name):
        sizes[0] += len(xor.compress((block.base ^ block.tuned).tobytes()))
        places = np.flatnonzero(block.base != block.tuned)
        if places.size:
            between = np.diff(places, prepend=last - block.first) - 1
            sizes[1] += len(gaps.compress(between.astype(gap).tobytes()))
            sizes[1] += len(values.compress(block.tuned[places].tobytes()))
            last = block.first + int(places[-1])
    sizes[0] += len(xor.flush())
    sizes[1] += len(gaps.flush()) + len(values.flush())
    # A tensor without changes is left out of a file.
    return (sizes[0], sizes[1]) if last >= 0 else (0, 0)


def _entropy(k: int, n: int) -> float:
    """Bits to tell which k of n changed, if all choices were equally likely and independent."""
    if k in (0, n):
        return 0.0
    p = k / n
    return -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _entropy_by_exponent(m: Measures) -> float:
    if m.by_exponent is None:
        return _entropy(m.changed, m.words)
    words, changed = m.by_exponent.tolist()
    return sum(_entropy(k, n) for n, k in zip(words, changed, strict=True))


def _step_entropy(steps: NDArray[np.int64]) -> float:
    """Bits for the classes of steps; what is told within a class is not counted."""
    counts = [count for count in steps.tolist() if count]
    total = sum(counts)
    return -sum(float(count) * math.log2(count / total) for count in counts)

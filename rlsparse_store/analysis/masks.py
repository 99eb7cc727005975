"""Masks: which weights of a model to train, one bit each."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.analysis.numeric import as_floats
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.files.output import new_file, require_new
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.header import HeaderEntry, frame_header, header_text
from rlsparse_store.format.order import keys
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from rlsparse_store.analysis.aligned_deltas import AlignedBlock
    from rlsparse_store.analysis.tensor_pairs import SharedTensor
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.words import Words

__all__ = [
    "COMBINATIONS",
    "CONTROLS",
    "MASK_KEY",
    "Combination",
    "Control",
    "MaskReport",
    "count_ones",
    "write_mask",
]

MASK_KEY: Final = "rlsparse_mask"
"""Metadata key of the mask's JSON in its file."""

VERSION: Final = 1
_ONES: Final = np.array([byte.bit_count() for byte in range(256)])

Combination: TypeAlias = Literal["union", "intersection", "majority"]
COMBINATIONS: Final[tuple[Combination, ...]] = get_args(Combination)

Control: TypeAlias = Literal["random", "magnitude"]
"""Random masks with the same number of ones: per tensor, or per tensor and exponent."""

CONTROLS: Final[tuple[Control, ...]] = get_args(Control)

_EXPONENTS: Final = 1 << 16
"""Upper bound on the exponents of a dtype."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MaskReport(SummaryRepr):
    """A written mask.

    Attributes:
        words: Weights of the base that the mask covers.
        trainable: Weights whose bit is 1.
        density: trainable / words.
        base_digest: State digest of the base.
        tensors: Trainable weights by tensor.
        unmatched: Tensors without a mask, which stay frozen: some delta lacks them, or their
            dtype does not store one word per weight.
    """

    words: int
    trainable: int
    density: float
    base_digest: str
    tensors: dict[str, int]
    unmatched: list[str]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"schema_version": VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "trainable", self.trainable
        yield "words", self.words
        yield "density", self.density
        yield "tensors", len(self.tensors)
        yield "unmatched", len(self.unmatched)
        yield from self.tensors.items()


def write_mask(  # noqa: PLR0913 - options of the mask, and access to the Hub
    deltas: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    combine: Combination = "union",
    tolerance: float = 0.0,
    complement: bool = False,
    control: Control | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = no_progress,
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> MaskReport:
    """Write the weights that deltas changed as a mask for training.

    The file is safetensors. Each tensor is U8 with one bit per weight of the base, in row-major
    order, least significant bit first; 1 means trainable. The metadata holds the digest of the
    base and the counts. Rows of the base that a delta does not have get zeros.

    Args:
        deltas: One or more deltas of one base, or one run: folders or ``org/name[@revision]``.
        out: The file to write, which must not exist.
        base: Their base: a folder, a file or ``org/name[@revision]``; by default the one that
            they name.
        combine: Selects the weights changed by at least one delta (``"union"``), by all of them
            (``"intersection"``), or by more than half (``"majority"``).
        tolerance: Largest difference of floats that counts as unchanged; 0 compares bits.
        complement: Whether to invert the mask.
        control: Replaces the mask by a random one. ``"random"`` keeps the number of ones in each
            tensor, ``"magnitude"`` also that at each exponent of the base.
        seed: Seed of the control, below 2**63. The same seed gives the same mask.
        threads: Number of threads; by default one per processor.
        progress: Called with the bytes done and the bytes in total.
        revision: Branch, tag or commit of the deltas on the Hub, if their ids do not name one.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: A delta or the base does not exist.
        BaseMismatchError: The deltas have different bases.
        OutputError: The file exists or cannot be written.
        ValueError: An option is out of range.

    Example:
        >>> write_mask(["qwen-grpo-delta"], "mask.safetensors").density  # doctest: +SKIP
        0.158
    """
    _check_options(combine, tolerance, control, seed)
    out = Path(out)
    require_new(out)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    opened = AlignedDeltas(
        deltas, base, access, revision=revision, base_revision=base_revision, min_count=1
    )
    with opened as aligned:
        aligned.exclude(lambda tensor: tensor.dtype.bits != tensor.dtype.coding.width)
        selection = _Selection(combine, tolerance, complement=complement)

        def pack(tensor: SharedTensor) -> NDArray[np.uint8]:
            draw = None if control is None else _ControlDraw(control, seed, tensor)
            return _packed_mask(aligned, tensor, selection, draw)

        masks = aligned.map(pack, threads, progress)
        report = _report(aligned, masks)
    description = {
        "version": VERSION,
        "polarity": "1 = trainable",
        "base": report.base_digest,
        "made": {"combine": combine, "tolerance": tolerance, "complement": complement}
        | ({} if control is None else {"control": control, "seed": seed}),
        "tensors": {
            tensor.name: {
                "shape": list(tensor.source_shape),
                "trainable": report.tensors[tensor.name],
            }
            for tensor, _ in masks
        },
    }
    packed = {tensor.name: bits for tensor, bits in masks}
    _write(out, packed, json.dumps(description, sort_keys=True, separators=(",", ":")))
    return report


def _check_options(combine: str, tolerance: float, control: str | None, seed: int) -> None:
    """Reject options that the reader of the file would reject.

    Raises:
        ValueError: One is out of range.
    """
    if combine not in COMBINATIONS:
        msg = f"combine={combine!r}: choose one of {', '.join(COMBINATIONS)}"
        raise ValueError(msg)
    if control not in (None, *CONTROLS):
        msg = f"control={control!r}: choose None or one of {', '.join(CONTROLS)}"
        raise ValueError(msg)
    if not 0 <= tolerance < math.inf:
        msg = f"tolerance={tolerance!r}: it must be finite and not negative"
        raise ValueError(msg)
    if not 0 <= seed < 1 << 63:
        msg = f"seed={seed!r}: it must be from 0 to 2**63 - 1"
        raise ValueError(msg)


class _Selection:
    """Selects the words of a block that the deltas changed."""

    def __init__(self, combine: Combination, tolerance: float, *, complement: bool) -> None:
        self._combine = combine
        self._tolerance = tolerance
        self._complement = complement

    def __call__(self, block: AlignedBlock, tensor: SharedTensor) -> NDArray[np.bool_]:
        changed = [self._changed(block.base, tuned, tensor) for tuned in block.tuned]
        votes = np.sum(changed, axis=0, dtype=np.int64)
        required = {"union": 1, "intersection": len(changed), "majority": len(changed) // 2 + 1}
        selected: NDArray[np.bool_] = np.greater_equal(votes, required[self._combine])
        return np.logical_not(selected) if self._complement else selected

    def _changed(self, base: Words, tuned: Words, tensor: SharedTensor) -> NDArray[np.bool_]:
        changed = np.not_equal(base, tuned)
        if self._tolerance and tensor.dtype.mantissa_bits is not None:
            with np.errstate(all="ignore"):
                before = as_floats(base[changed], tensor.dtype).astype(np.float64)
                after = as_floats(tuned[changed], tensor.dtype)
                # Negated, so that a NaN counts as changed.
                changed[changed] = ~(np.abs(after - before) <= self._tolerance)
        return changed


class _ControlDraw:
    """Draws as many words at random as were selected, in each tensor or exponent of a tensor."""

    def __init__(self, control: Control, seed: int, tensor: SharedTensor) -> None:
        digest = hashlib.sha256(tensor.name.encode()).digest()
        self._rng = np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])
        self._coding = tensor.dtype.coding
        self._mantissa_bits = tensor.dtype.mantissa_bits if control == "magnitude" else None

    def bins(self, block: AlignedBlock) -> NDArray[np.int64]:
        """The bin of each word: its exponent, or 0."""
        if self._mantissa_bits is None:
            return np.zeros(block.base.size, np.int64)
        key = keys(block.base, self._coding)
        return (key >> key.dtype.type(self._mantissa_bits)).astype(np.int64)

    def draw(
        self, bins: NDArray[np.int64], population: NDArray[np.int64], quota: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Draw words of a block without replacement.

        Args:
            bins: Bin of each word.
            population: Words by bin from this block on; updated in place.
            quota: Words by bin still to be drawn; updated in place.
        """
        drawn = np.zeros(bins.size, np.bool_)
        for key in np.unique(bins).tolist():
            members = np.flatnonzero(bins == key)
            others = int(population[key] - quota[key])
            count = int(self._rng.hypergeometric(int(quota[key]), others, members.size))
            drawn[self._rng.choice(members, count, replace=False)] = True
            population[key] -= members.size
            quota[key] -= count
        return drawn


def _packed_mask(
    deltas: AlignedDeltas, tensor: SharedTensor, selection: _Selection, control: _ControlDraw | None
) -> NDArray[np.uint8]:
    """The mask of a tensor, eight words per byte. Blocks start at multiples of eight words."""
    blocks = deltas.blocks(tensor)
    if control is None:
        return _join(tensor, [_pack(selection(block, tensor)) for block in blocks])
    population, quota = np.zeros(_EXPONENTS, np.int64), np.zeros(_EXPONENTS, np.int64)
    for block in blocks:
        bins, mask = control.bins(block), selection(block, tensor)
        population += np.bincount(bins, minlength=_EXPONENTS)
        quota += np.bincount(bins[mask], minlength=_EXPONENTS)
    parts = [
        _pack(control.draw(control.bins(block), population, quota))
        for block in deltas.blocks(tensor)
    ]
    return _join(tensor, parts)


def _join(tensor: SharedTensor, parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The mask of all words of the source; words that some delta lacks get zeros."""
    mask = np.zeros(-(-tensor.source_words // 8), np.uint8)
    shared = np.concatenate([np.zeros(0, np.uint8), *parts])
    mask[: shared.size] = shared
    return mask


def _pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(mask, bitorder="little")


def count_ones(bits: NDArray[np.uint8]) -> int:
    """Number of bits that are 1.

    Example:
        >>> count_ones(np.array([255, 1], np.uint8))
        9
    """
    return int(_ONES[bits].sum())


def _report(
    deltas: AlignedDeltas, masks: list[tuple[SharedTensor, NDArray[np.uint8]]]
) -> MaskReport:
    counts = {tensor.name: count_ones(bits) for tensor, bits in masks}
    words = sum(tensor.source_words for tensor, _ in masks)
    trainable = sum(counts.values())
    return MaskReport(
        words=words,
        trainable=trainable,
        density=trainable / words if words else 0.0,
        base_digest=deltas.base_digest,
        tensors=counts,
        unmatched=deltas.unmatched,
    )


def _write(out: Path, packed: dict[str, NDArray[np.uint8]], description: str) -> None:
    """Write the safetensors file. It appears under its name once it is complete."""
    entries, offset = [], 0
    for name in sorted(packed, key=str.encode):
        nbytes = packed[name].size
        entries.append(HeaderEntry(name, DTYPES["U8"], (nbytes,), offset, offset + nbytes))
        offset += nbytes
    metadata = json.dumps({MASK_KEY: description}, separators=(",", ":"))
    framed = frame_header(header_text(entries, metadata))
    with new_file(out) as file:
        file.write(framed, 0)
        for entry in entries:
            file.write(packed[entry.name].data, len(framed) + entry.start)

"""Masks: which weights of a model are to be trained, as one bit each."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.analysis.values import values_of
from rlsparse_store.files.output import new_file, require_new
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.header import HeaderEntry, frame_header, header_text
from rlsparse_store.format.order import keys
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rlsparse_store.analysis.aligned_deltas import AlignedBlock
    from rlsparse_store.analysis.tensor_pairs import SharedTensor

__all__ = ["COMBINATIONS", "CONTROLS", "MASK_KEY", "MaskReport", "count_ones", "write_mask"]

MASK_KEY: Final = "rlsparse_mask"
"""The key of the file's metadata under which its JSON is."""

VERSION: Final = 1
_ONES: Final = np.array([byte.bit_count() for byte in range(256)])
COMBINATIONS: Final = ("union", "intersection", "majority")
CONTROLS: Final = ("random", "magnitude")
"""Masks of as many weights by chance: of each tensor, or of each tensor at each exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskReport:
    """A mask that was written.

    Attributes:
        words: Weights of the base that the mask is about.
        trainable: Weights with a one.
        density: trainable / words.
        base_digest: State digest of the base that the deltas are of.
        tensors: Trainable weights by tensor.
        unmatched: Tensors that not all deltas have, or whose dtype has no word for each weight;
            they have no mask, and so are not trained.
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


def write_mask(  # noqa: PLR0913 - each says one thing of the mask
    deltas: Sequence[str | Path],
    out: str | Path,
    *,
    base: str | Path | None = None,
    combine: str = "union",
    tolerance: float = 0.0,
    complement: bool = False,
    control: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> MaskReport:
    """Write which weights deltas changed, as a mask to train by.

    The file is safetensors: for each tensor U8 with one bit per weight of the base, row by row, the
    least significant first, 1 for what is to be trained. Its metadata name the base and the counts.
    Of a tensor that was resized, rows that a delta lost are not trained.

    Args:
        deltas: One or more deltas of one base, or one run of them.
        out: The file, which must not exist.
        base: Their base; by default the one that they name.
        combine: Of several deltas, what any, all or more than half of them changed.
        tolerance: Floats that differ by at most this do not count as changed; 0 compares bits.
        complement: Whether the mask is turned round.
        control: ``"random"`` chooses as many weights of each tensor by chance, ``"magnitude"`` as
            many of each tensor at each exponent of the base.
        seed: Of the choice, below 2**63. The same seed gives the same mask.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError: A delta or the base is not there.
        BaseMismatchError: The deltas are not of one base.
        OutputError: The file is there already, or cannot be written.
        ValueError: An option is unknown.

    Example:
        >>> write_mask(["qwen-grpo-delta"], "mask.safetensors").density  # doctest: +SKIP
        0.158
    """
    if combine not in COMBINATIONS or control not in (None, *CONTROLS):
        msg = f"combine={combine!r}, control={control!r}: choose one of those documented"
        raise ValueError(msg)
    # What is refused here could be written, and would be refused as the JSON of strangers.
    if not 0 <= tolerance < math.inf:
        msg = f"tolerance={tolerance!r}: it must be finite, and not negative"
        raise ValueError(msg)
    if not 0 <= seed < 1 << 63:
        msg = f"seed={seed!r}: it must be from 0 to 2**63 - 1"
        raise ValueError(msg)
    out = Path(out)
    require_new(out)
    with AlignedDeltas(deltas, base, least=1) as opened:
        opened.leave_out(lambda tensor: tensor.dtype.bits != tensor.dtype.coding.width)
        choose = _Chooser(combine, tolerance, complement=complement)

        def make(tensor: SharedTensor) -> NDArray[np.uint8]:
            make_control = None if control is None else _Control(control, seed, tensor)
            return _packed(opened, tensor, choose, make_control)

        made = opened.map(make, threads, progress)
        packed = {tensor.name: bits for tensor, bits in made}
        report = _report(opened, made)
    told = {
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
            for tensor, _ in made
        },
    }
    _write(out, packed, json.dumps(told, sort_keys=True, separators=(",", ":")))
    return report


class _Chooser:
    """Which words of a block are chosen."""

    def __init__(self, combine: str, tolerance: float, *, complement: bool) -> None:
        self._combine = combine
        self._tolerance = tolerance
        self._complement = complement

    def __call__(self, block: AlignedBlock, tensor: SharedTensor) -> NDArray[np.bool_]:
        changed = [self._changed(block, place, tensor) for place in range(len(block.tuned))]
        times = np.sum(changed, axis=0, dtype=np.int64)
        needed = {"union": 1, "intersection": len(changed), "majority": len(changed) // 2 + 1}
        chosen: NDArray[np.bool_] = np.greater_equal(times, needed[self._combine])
        return np.logical_not(chosen) if self._complement else chosen

    def _changed(self, block: AlignedBlock, place: int, tensor: SharedTensor) -> NDArray[np.bool_]:
        differs = np.not_equal(block.base, block.tuned[place])
        if self._tolerance and tensor.dtype.mantissa_bits is not None:
            with np.errstate(all="ignore"):
                before = values_of(block.base[differs], tensor.dtype).astype(np.float64)
                after = values_of(block.tuned[place][differs], tensor.dtype)
                # What is not a number is near nothing.
                differs[differs] = ~(np.abs(after - before) <= self._tolerance)
        return differs


class _Control:
    """As many words as were chosen, by chance: within a tensor, or within each exponent of it."""

    def __init__(self, kind: str, seed: int, tensor: SharedTensor) -> None:
        name = hashlib.sha256(tensor.name.encode()).digest()
        self._random = np.random.default_rng([seed, *np.frombuffer(name, np.uint32).tolist()])
        self._by_magnitude = kind == "magnitude" and tensor.dtype.mantissa_bits is not None
        self._tensor = tensor

    def bins(self, block: AlignedBlock) -> NDArray[np.int64]:
        """Which words may stand in for each other."""
        if not self._by_magnitude:
            return np.zeros(block.base.size, np.int64)
        assert self._tensor.dtype.mantissa_bits is not None  # noqa: S101 - as above
        key = keys(block.base, self._tensor.dtype.coding)
        return (key >> key.dtype.type(self._tensor.dtype.mantissa_bits)).astype(np.int64)

    def draw(
        self, bins: NDArray[np.int64], left: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Choose words of a block.

        Args:
            bins: The bin of each word.
            left: Words of each bin that are left of the tensor, which shrink.
            chosen: Words of each bin that are still to be chosen, which shrink.
        """
        drawn = np.zeros(bins.size, np.bool_)
        for one in np.unique(bins).tolist():
            places = np.flatnonzero(bins == one)
            rest = int(left[one] - chosen[one])
            number = int(self._random.hypergeometric(int(chosen[one]), rest, places.size))
            drawn[self._random.choice(places, number, replace=False)] = True
            left[one] -= places.size
            chosen[one] -= number
        return drawn


def _packed(
    deltas: AlignedDeltas,
    tensor: SharedTensor,
    choose: Callable[[AlignedBlock, SharedTensor], NDArray[np.bool_]],
    control: _Control | None,
) -> NDArray[np.uint8]:
    """The mask of a tensor, eight words a byte. Blocks begin at multiples of eight words."""
    if control is None:
        return _joined(tensor, [_pack(choose(block, tensor)) for block in deltas.blocks(tensor)])
    size = 1 << 16
    left, chosen = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for block in deltas.blocks(tensor):
        bins, mask = control.bins(block), choose(block, tensor)
        left += np.bincount(bins, minlength=size)
        chosen += np.bincount(bins[mask], minlength=size)
    parts = [
        _pack(control.draw(control.bins(block), left, chosen)) for block in deltas.blocks(tensor)
    ]
    return _joined(tensor, parts)


def _joined(tensor: SharedTensor, parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The mask of all of the base's words: zeros where not every delta has them."""
    whole = np.zeros(-(-tensor.source_words // 8), np.uint8)
    known = np.concatenate([np.zeros(0, np.uint8), *parts])
    whole[: known.size] = known
    return whole


def _pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(mask, bitorder="little")


def count_ones(bits: NDArray[np.uint8]) -> int:
    """How many bits are set.

    Example:
        >>> count_ones(np.array([255, 1], np.uint8))
        9
    """
    return int(_ONES[bits].sum())


def _report(
    deltas: AlignedDeltas, made: list[tuple[SharedTensor, NDArray[np.uint8]]]
) -> MaskReport:
    counts = {t.name: count_ones(bits) for t, bits in made}
    words = sum(tensor.source_words for tensor, _ in made)
    trainable = sum(counts.values())
    return MaskReport(
        words=words,
        trainable=trainable,
        density=trainable / words if words else 0.0,
        base_digest=deltas.base_digest,
        tensors=counts,
        unmatched=deltas.unmatched,
    )


def _write(out: Path, packed: dict[str, NDArray[np.uint8]], told: str) -> None:
    """Write a safetensors file, which is there completely or not at all."""
    entries, place = [], 0
    for name in sorted(packed, key=str.encode):
        nbytes = packed[name].size
        entries.append(HeaderEntry(name, DTYPES["U8"], (nbytes,), place, place + nbytes))
        place += nbytes
    metadata = json.dumps({MASK_KEY: told}, separators=(",", ":"))
    framed = frame_header(header_text(entries, metadata))
    with new_file(out) as file:
        file.write(framed, 0)
        for entry in entries:
            file.write(packed[entry.name].data, len(framed) + entry.start)

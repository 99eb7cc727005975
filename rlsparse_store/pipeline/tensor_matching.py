"""Matching tuned tensors with the base tensors that they came from."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.errors import DtypeMismatchError
from rlsparse_store.format.dtypes import DTYPES, Dtype
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import Widening, as_words, narrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef

__all__ = [
    "PIECE_BYTES",
    "DtypePolicy",
    "TensorPlan",
    "find_sources",
    "is_wrapped",
    "plain_name",
    "plan_tensors",
    "require_exact",
    "shared_elements",
    "suffixes",
]

PIECE_BYTES: Final = 4 << 20
"""Bytes compared or hashed per read, outside of chunks."""

SAMPLE_BYTES: Final = 512
"""Bytes of each of the three samples by which tensors are recognized."""

SMALLEST_ALIAS: Final = 4096
"""Bytes of the smallest tensor for which aliases and renamed sources are searched by content."""

MOST_COMPARISONS: Final = 1 << 20
"""Pairs of samples to compare at most; tensors beyond count as added."""

ALIKE: Final = 0.05
"""Share of sampled words that must agree for two tensors to count as related; by chance it is
well under one percent."""

_TRAINED: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""The dtypes that models are trained in, by torch's names."""

_QUANTIZED: Final = frozenset({"F4", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8"})
"""The dtypes of quantized weights that keep their shape."""

_KEEP: Final = "--keep-dtype (keep_dtype=True)"
"""The option that stores a tensor whole whose dtype does not match."""

_WRAPPERS: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Components of names that wrappers of layers add: torch.compile, checkpointing, FSDP1."""


@dataclass(frozen=True, slots=True)
class DtypePolicy:
    """What to do where dtypes of base and tuned do not match.

    Attributes:
        cast: Round float32 tensors of bfloat16 sources to bfloat16. Lossy.
        keep: Store tensors whole, in their own dtype, where it does not match.
    """

    cast: bool = False
    keep: bool = False


class TensorPlan(NamedTuple):
    """How one tuned tensor will be stored.

    Attributes:
        tuned: The tensor.
        dtype: The dtype of the stored tensor; differs from its own only if it is cast.
        source: The base tensor that it is coded against; ``None`` stores it whole.
        widening: From the source's words to its own.
        shared_bytes: Leading bytes of the source that it shares.
        alias_of: Name of the tuned tensor that has the same bytes, if it is stored as its alias.
        reason: Why all or a part of it has no source.
    """

    tuned: TensorRef
    dtype: Dtype
    source: TensorRef | None = None
    widening: Widening = Widening.NONE
    shared_bytes: int = 0
    alias_of: str | None = None
    reason: str = ""

    @property
    def is_cast(self) -> bool:
        """Whether it is rounded before it is stored."""
        return self.dtype is not self.tuned.dtype

    @property
    def coded_dtype(self) -> Dtype:
        """The dtype of the coded words: the source's, if there is one."""
        return self.dtype if self.source is None else self.source.dtype

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the stored tensor."""
        if self.dtype is self.tuned.dtype:
            return self.tuned.nbytes
        return self.dtype.nbytes(self.tuned.shape) or 0

    @property
    def coded_nbytes(self) -> int:
        """Bytes of the coded words, which may be widened to the stored dtype."""
        return self.stored_nbytes // 2 if self.widening else self.stored_nbytes

    @property
    def end(self) -> int:
        """Bytes of the coded words or of the source, whichever are more."""
        return max(0 if self.source is None else self.source.nbytes, self.coded_nbytes)


def plan_tensors(
    base: Checkpoint,
    tuned: Checkpoint,
    policy: DtypePolicy,
    sources: Mapping[str, TensorRef] | None = None,
    *,
    by_content: bool = True,
) -> list[TensorPlan]:
    """Plan every tuned tensor, in ascending order of names.

    Args:
        base: The base.
        tuned: The tuned checkpoint.
        policy: What to do where dtypes do not match.
        sources: What :func:`find_sources` found, if that is known.
        by_content: Whether to read the tuned checkpoint. Otherwise no alias is found, and a
            widening is planned without proof: see :func:`require_exact`.

    Raises:
        DtypeMismatchError: A dtype does not match and the policy does not say what to do.
    """
    if sources is None:
        sources = find_sources(base, tuned, by_content=by_content)
    plans = [
        _plan(tuned, t, sources.get(t.name), policy, by_content=by_content)
        for t in tuned.tensors.values()
    ]
    if not by_content:
        return plans
    aliases = _find_aliases(base, tuned, plans)
    return [
        TensorPlan(p.tuned, p.dtype, alias_of=aliases[p.tuned.name])
        if p.tuned.name in aliases
        else p
        for p in plans
    ]


# --- which base tensor -----------------------------------------------------------------------


def find_sources(
    base: Checkpoint, tuned: Checkpoint, *, by_content: bool = True
) -> dict[str, TensorRef]:
    """The base tensor of each tuned tensor that has one: by name, then suffix, then content.

    Args:
        base: The base.
        tuned: The tuned checkpoint.
        by_content: Whether to compare also the content of those that names do not match.

    Returns:
        Base tensors by the names of tuned ones. Dimensions may differ where the names are equal.
    """
    sources = {name: base.tensors[name] for name in tuned.tensors if name in base.tensors}
    lost = [t for name, t in tuned.tensors.items() if name not in sources]
    if not lost:
        return sources
    free = [t for name, t in base.tensors.items() if name not in tuned.tensors]
    # Once the tensors of one tower are matched, a suffix may identify those of another one.
    while lost and (renamed := _match_suffixes(lost, free)):
        sources |= renamed
        claimed = {source.name for source in renamed.values()}
        lost = [t for t in lost if t.name not in renamed]
        free = [t for t in free if t.name not in claimed]
    if not by_content:
        return sources
    recognized = _match_content(tuned, lost, base, free)
    sources |= recognized
    # A newly stored tie shares its source with the tensor of that name.
    lost = [t for t in lost if t.name not in recognized]
    return sources | _match_content(tuned, lost, base, list(base.tensors.values()))


def is_wrapped(name: str) -> bool:
    """Whether a name has a component that a wrapper of a layer added.

    Example:
        >>> is_wrapped("model.layers.0._orig_mod.mlp.up_proj.weight")
        True
    """
    return not _WRAPPERS.isdisjoint(name.split("."))


def plain_name(name: str) -> str:
    """A name without the components that wrappers of layers added.

    Example:
        >>> plain_name("model.layers.0._orig_mod.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def suffixes(name: str) -> Iterator[str]:
    """A name without its first 0, 1, 2 … dotted components.

    Example:
        >>> list(suffixes("model.norm.weight"))
        ['model.norm.weight', 'norm.weight', 'weight']
    """
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _match_suffixes(lost: list[TensorRef], free: list[TensorRef]) -> dict[str, TensorRef]:
    """Match by the longest common dotted suffix that only one base tensor of that shape has.

    Names are compared without the components that wrappers added.
    """
    owners: defaultdict[tuple[str, tuple[int, ...]], list[TensorRef]] = defaultdict(list)
    for candidate in free:
        for suffix in suffixes(plain_name(candidate.name)):
            owners[suffix, candidate.shape].append(candidate)
    matched: dict[str, TensorRef] = {}
    claimed: set[str] = set()
    for tensor in lost:
        plain = plain_name(tensor.name)
        for suffix in suffixes(plain):
            found = owners.get((suffix, tensor.shape), [])
            if found:
                # A single component such as "weight" does not identify a tensor.
                telling = "." in suffix or suffix in (plain, plain_name(found[0].name))
                if len(found) == 1 and telling and found[0].name not in claimed:
                    matched[tensor.name] = found[0]
                    claimed.add(found[0].name)
                break
    return matched


def _sample(checkpoint: Checkpoint, tensor: TensorRef) -> NDArray[np.uint8]:
    """Bytes from the start, the middle and the end of a tensor."""
    size = min(SAMPLE_BYTES, tensor.nbytes) // 8 * 8
    middle = (tensor.nbytes - size) // 2 // 8 * 8
    places = (0, middle, (tensor.nbytes - size) // 8 * 8)
    return np.concatenate([checkpoint.read(tensor, place, size) for place in places])


def _match_content(
    tuned: Checkpoint, lost: list[TensorRef], base: Checkpoint, free: list[TensorRef]
) -> dict[str, TensorRef]:
    """Match tensors of one dtype and shape by how many of their sampled words agree."""
    candidates: defaultdict[tuple[str, tuple[int, ...]], list[TensorRef]] = defaultdict(list)
    for candidate in free:
        candidates[candidate.dtype.code, candidate.shape].append(candidate)
    matched = {}
    comparisons = 0
    samples: dict[str, NDArray[np.uint8]] = {}
    for tensor in lost:
        found = candidates.get((tensor.dtype.code, tensor.shape), [])
        comparisons += len(found)
        if not found or tensor.nbytes < SMALLEST_ALIAS or comparisons > MOST_COMPARISONS:
            continue
        width = tensor.dtype.coding.width
        mine = as_words(_sample(tuned, tensor), width)
        agreement = []
        for candidate in found:
            if candidate.name not in samples:
                samples[candidate.name] = _sample(base, candidate)
            theirs = as_words(samples[candidate.name], width)
            agreement.append(float(np.mean(mine == theirs)))
        best = int(np.argmax(agreement))
        if agreement[best] >= ALIKE:
            matched[tensor.name] = found[best]
    return matched


# --- how much of it, in which dtype ----------------------------------------------------------


def _plan(
    tuned: Checkpoint,
    tensor: TensorRef,
    source: TensorRef | None,
    policy: DtypePolicy,
    *,
    by_content: bool,
) -> TensorPlan:
    if source is None:
        return TensorPlan(tensor, tensor.dtype, reason="added")
    elements = shared_elements(tensor.shape, source.shape)
    if elements is None:
        shapes = f"{list(source.shape)} became {list(tensor.shape)}"
        return TensorPlan(tensor, tensor.dtype, reason=f"reshaped: {shapes}")
    dtype, widening = _fit_dtype(tuned, tensor, source, policy, by_content=by_content)
    if dtype is None:
        reason = f"kept as {tensor.dtype.code}, the base has {source.dtype.code}"
        return TensorPlan(tensor, tensor.dtype, reason=reason)
    partial = elements < math.prod(tensor.shape)
    shared_bytes = elements * source.dtype.bits // 8
    reason = f"grown: {list(source.shape)} became {list(tensor.shape)}" if partial else ""
    return TensorPlan(tensor, dtype, source, widening, shared_bytes, reason=reason)


def shared_elements(shape: tuple[int, ...], source: tuple[int, ...]) -> int | None:
    """Leading elements that two shapes share in the same order, or ``None`` if none do."""
    if math.prod(shape) == math.prod(source) and _is_reshape(shape, source):
        return math.prod(shape)
    if shape and source and shape[1:] == source[1:]:
        return min(math.prod(shape), math.prod(source)) or None
    return None


def _is_reshape(shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Whether the flat order can be the same; that of a transposed matrix is not."""
    return shape == source or sorted(shape) != sorted(source)


def _fit_dtype(
    tuned: Checkpoint,
    tensor: TensorRef,
    source: TensorRef,
    policy: DtypePolicy,
    *,
    by_content: bool,
) -> tuple[Dtype | None, Widening]:
    """The stored dtype and the widening; no dtype if the tensor is kept whole."""
    if tensor.dtype is source.dtype:
        return tensor.dtype, Widening.NONE
    if tensor.dtype.code == "F32" and source.dtype.code in ("BF16", "F16"):
        bf16 = source.dtype.code == "BF16"
        if bf16 and policy.cast:
            return DTYPES["BF16"], Widening.NONE
        widening = Widening.BF16_TO_F32 if bf16 else Widening.F16_TO_F32
        if not by_content and not policy.keep:
            return tensor.dtype, widening
        if by_content and _widens(tuned, tensor, widening):
            return tensor.dtype, widening
        if not policy.keep:
            raise _inexact(tuned, tensor, source)
    if policy.keep:
        return None, Widening.NONE
    msg = (
        f"its dtype is {tensor.dtype.code}, the base's is {source.dtype.code}; "
        f"{_other_dtype(tensor.dtype, source.dtype)}, or use {_KEEP} to store it whole"
    )
    raise DtypeMismatchError(msg, file=tuned.path, tensor=printable(tensor.name))


def _other_dtype(tuned: Dtype, base: Dtype) -> str:
    """The remedy for a tuned tensor whose dtype is neither the base's nor widens it."""
    if tuned.code in _TRAINED and base.code in _TRAINED:
        return (
            f"if it was trained in {tuned.code}, give the base in {tuned.code}, too: load it with "
            f'dtype="{_TRAINED[tuned.code]}" and save it; otherwise save this in the base\'s dtype'
        )
    if tuned.code in _TRAINED and base.code in _QUANTIZED:
        return "the base is quantized: give the one that it was made from"
    return "save it in the base's dtype"


def require_exact(tuned: Checkpoint, part: TensorRef, plan: TensorPlan) -> None:
    """Require that a part of a tensor is exactly the widening that was planned without reading it.

    Raises:
        DtypeMismatchError: It is not.
    """
    if plan.widening and plan.source is not None and not _widens(tuned, part, plan.widening):
        raise _inexact(tuned, plan.tuned, plan.source)


def _inexact(tuned: Checkpoint, tensor: TensorRef, source: TensorRef) -> DtypeMismatchError:
    round_it = '--cast bf16 (cast="bf16") to round it (lossy), or '
    remedy = round_it if source.dtype.code == "BF16" else ""
    msg = (
        f"its F32 values are not all exactly {source.dtype.code}, the base's dtype; "
        f"use {remedy}{_KEEP} to store it whole"
    )
    return DtypeMismatchError(msg, file=tuned.path, tensor=printable(tensor.name))


def _widens(tuned: Checkpoint, tensor: TensorRef, widening: Widening) -> bool:
    return all(
        narrow(piece.view(np.uint32), widening) is not None for piece in _pieces(tuned, tensor)
    )


def _pieces(checkpoint: Checkpoint, tensor: TensorRef) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, tensor.nbytes, PIECE_BYTES):
        yield checkpoint.read(tensor, start, min(PIECE_BYTES, tensor.nbytes - start))


# --- the same data twice ---------------------------------------------------------------------


def _find_aliases(
    base: Checkpoint, tuned: Checkpoint, plans: Iterable[TensorPlan]
) -> dict[str, str]:
    """Changed tuned tensors that repeat another one."""
    groups: defaultdict[tuple[str, tuple[int, ...], bytes], list[TensorPlan]] = defaultdict(list)
    shapes: defaultdict[tuple[str, tuple[int, ...]], list[TensorPlan]] = defaultdict(list)
    for plan in plans:
        if plan.tuned.nbytes >= SMALLEST_ALIAS:
            shapes[plan.tuned.dtype.code, plan.tuned.shape].append(plan)
    for (code, shape), alike in shapes.items():
        for plan in alike if len(alike) > 1 else []:
            groups[code, shape, _sample(tuned, plan.tuned).tobytes()].append(plan)
    aliases: dict[str, str] = {}
    for group in groups.values():
        first, *others = group
        for plan in others:
            same_dtype = plan.dtype is first.dtype
            if same_dtype and _equal(tuned, first.tuned, tuned, plan.tuned):
                unchanged = (
                    plan.source is not None
                    and plan.source.nbytes == plan.tuned.nbytes
                    and _equal(base, plan.source, tuned, plan.tuned)
                )
                if not unchanged:
                    aliases[plan.tuned.name] = first.tuned.name
    return aliases


def _equal(left: Checkpoint, a: TensorRef, right: Checkpoint, b: TensorRef) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(_pieces(left, a), _pieces(right, b), strict=True)
    )

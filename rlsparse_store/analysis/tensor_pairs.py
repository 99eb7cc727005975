"""Base and tuned side by side, block by block: of two checkpoints, or of a delta over its base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlsparse_store.delta.encode import dtype_policy
from rlsparse_store.delta.module_names import layer_of, module_of
from rlsparse_store.delta.resolve import find_base, find_checkpoint, find_delta
from rlsparse_store.files.checkpoint import Checkpoint, TensorRef, open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.records import Kind, TensorRecord
from rlsparse_store.format.words import Widening, as_words, narrow
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_sources
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.tensor_matching import TensorPlan, plan_tensors
from rlsparse_store.pipeline.tensor_reader import TensorReader
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = [
    "Block",
    "Pair",
    "SharedTensor",
    "Unmatched",
    "open_pair",
    "over_base",
    "overlay",
]

Read = Callable[[int, NDArray[np.uint8]], None]
"""Fills an array with bytes of a tensor from a byte on; calls go from front to back."""

Result = TypeVar("Result")

BLOCK_WORDS: Final = 1 << 19
"""Words of a block: what is held of a tensor besides a chunk of a delta."""


class Block(NamedTuple):
    """A run of words that base and tuned share.

    Attributes:
        first: Place of its first word in the tensor.
        base: Words of the base.
        tuned: Words of the tuned checkpoint, in the base's dtype.
    """

    first: int
    base: Words
    tuned: Words


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor of the tuned checkpoint and what it comes from.

    Attributes:
        name: Its name.
        dtype: The dtype that is compared: the source's.
        shape: Its dimensions, in elements.
        words: Leading words that both have, in the dtype's default coding.
        tail: Words that only the tuned one has.
        source_words: Words of its source.
        source_shape: The source's dimensions, in elements.
        source: Its source's name in the base.
        layer: Its layer, or ``other``.
        module: Its kind of module.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    words: int
    tail: int
    source_words: int
    source_shape: tuple[int, ...]
    source: str
    layer: str
    module: str

    @property
    def is_resized(self) -> bool:
        """Whether one side has rows that the other does not."""
        return self.tail > 0 or self.source_words > self.words

    @property
    def nbytes(self) -> int:
        """Bytes of both sides, for sharing out work."""
        return 2 * self.dtype.coding.nbytes(self.words)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A tensor that only one side has, or that cannot be compared.

    Attributes:
        name: Its name.
        elements: Its elements.
        reason: Why.
    """

    name: str
    elements: int
    reason: str


class Pair(Closeable):
    """A base and what tuning made of it.

    Attributes:
        path: Where the tuned side lies.
        tensors: What is compared, by name.
        unmatched: What is not, and why.
        tied: Names of tensors that are others' bytes again, which count once, there.
    """

    def __init__(
        self,
        path: Path,
        base: Checkpoint,
        tensors: dict[str, tuple[SharedTensor, Widening]],
        unmatched: list[Unmatched],
        tied: list[str],
        reader: Callable[[str], Read],
        stack: ExitStack,
    ) -> None:
        self.path = path
        self.tensors = {name: tensor for name, (tensor, _) in tensors.items()}
        self.unmatched = unmatched
        self.tied = tied
        self._widenings = {name: widening for name, (_, widening) in tensors.items()}
        self._base = base
        self._reader = reader
        self._stack = stack

    @property
    def names(self) -> set[str]:
        """Names of what is compared and of what is not."""
        return {*self.tensors, *(one.name for one in self.unmatched)}

    def keep_only(self, why_not: Callable[[SharedTensor], str]) -> None:
        """Compare fewer tensors; the others are listed as unmatched.

        Args:
            why_not: Why a tensor is left out, or an empty text.
        """
        for name, tensor in list(self.tensors.items()):
            if reason := why_not(tensor):
                del self.tensors[name]
                self.unmatched.append(Unmatched(name, tensor.words + tensor.tail, reason))

    def blocks(self, name: str, words: int = BLOCK_WORDS) -> Iterator[Block]:
        """The blocks of a tensor, from front to back, each overwritten by the next.

        Args:
            name: The tensor.
            words: Words of a block, even.

        Raises:
            FormatError: The delta is damaged, or the base is not the right one.
            RlsparseError: A file was cut short or cannot be read.
        """
        tensor = self.tensors[name]
        source = self._base.tensors[tensor.source]
        coding, widening = tensor.dtype.coding, self._widenings[name]
        read = self._reader(name)
        # Fresh memory for each block would cost more than what is done with it.
        room = np.empty((2, -(-min(words, tensor.words) * coding.width // 8)), np.uint8)
        for first in range(0, tensor.words, words):
            number = min(words, tensor.words - first)
            start, nbytes = coding.nbytes(first), -(-number * coding.width // 8)
            old = room[0, :nbytes]
            self._base.read_into(source, start, old)
            new = np.empty(2 * nbytes, np.uint8) if widening else room[1, :nbytes]
            read(start * (2 if widening else 1), new)
            tuned = as_words(new, coding.width)
            if widening:
                narrowed = narrow(new.view(np.uint32), widening)
                assert narrowed is not None  # noqa: S101 - what widens exactly was checked
                tuned = narrowed
            yield Block(first, as_words(old, coding.width)[:number], tuned[:number])

    def map(
        self,
        function: Callable[[SharedTensor], Result],
        threads: int,
        progress: Progress = no_progress,
    ) -> list[Result]:
        """Apply a function to every tensor, on several threads, in order of names."""
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        done, results = 0, {}
        # The largest first, so that no thread is left alone with one at the end.
        tensors = sorted(self.tensors.values(), key=lambda tensor: -tensor.nbytes)
        for tensor, result in zip(tensors, ordered_map(function, tensors, threads), strict=True):
            results[tensor.name] = result
            done += tensor.nbytes
            progress(done, total)
        return [results[name] for name in self.tensors]

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


def open_pair(
    base: str | Path, tuned: str | Path, *, cast: str | None = None, access: HubAccess | None = None
) -> Pair:
    """Two checkpoints, their tensors matched as encoding matches them.

    Args:
        base: The base: a folder, a file or ``org/name[@revision]``.
        tuned: The tuned checkpoint, likewise.
        cast: ``"bf16"`` compares float32 tensors of a bfloat16 base after rounding. Without it,
            float32 tensors that are not exactly the base's dtype are listed as unmatched.
        access: How to reach the Hub.

    Raises:
        NotFoundError: One is not there.
        CheckpointError: One is broken.
        ValueError: ``cast`` is unknown.

    Example:
        >>> with open_pair("qwen-base", "qwen-grpo") as pair:  # doctest: +SKIP
        ...     pair.tensors["model.embed_tokens.weight"].shape
        (151936, 3584)
    """
    access = access or HubAccess()
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(find_checkpoint(base, "base", access)))
        found = find_checkpoint(tuned, "tuned checkpoint", access)
        after = stack.enter_context(open_checkpoint(found))
        plans = plan_tensors(before, after, dtype_policy(cast, keep=True))
        tensors: dict[str, tuple[SharedTensor, Widening]] = {}
        unmatched: list[Unmatched] = []
        for plan in plans:
            if plan.alias_of is None and plan.source is not None and not plan.is_cast:
                tensors[plan.tuned.name] = _planned(plan, plan.source)
            elif plan.alias_of is None:
                unmatched.append(_not_compared(plan))
        used = {tensor.source for tensor, _ in tensors.values()}
        unmatched += [
            Unmatched(name, ref.nbytes * 8 // ref.dtype.bits, "removed")
            for name, ref in before.tensors.items()
            if name not in used and name not in after.tensors
        ]
        tied = [plan.tuned.name for plan in plans if plan.alias_of is not None]

        def reader(name: str) -> Read:
            ref = after.tensors[name]
            return lambda start, out: after.read_into(ref, start, out)

        return Pair(after.path, before, tensors, unmatched, tied, reader, stack.pop_all())


def _planned(plan: TensorPlan, source: TensorRef) -> tuple[SharedTensor, Widening]:
    words = source.dtype.coding.num_words(plan.shared_bytes)
    tail = source.dtype.coding.num_words(plan.coded_nbytes) - words
    return _shared(plan.tuned.name, source, plan.tuned.shape, words, tail), plan.widening


def _shared(
    name: str, source: TensorRef, shape: tuple[int, ...], words: int, tail: int
) -> SharedTensor:
    return SharedTensor(
        name=name,
        dtype=source.dtype,
        shape=shape,
        words=words,
        tail=tail,
        source_words=source.dtype.coding.num_words(source.nbytes),
        source_shape=source.shape,
        source=source.name,
        layer=layer_of(name),
        module=module_of(name),
    )


def _not_compared(plan: TensorPlan) -> Unmatched:
    elements = plan.tuned.nbytes * 8 // plan.tuned.dtype.bits
    return Unmatched(plan.tuned.name, elements, plan.reason or "cast: encode it to compare it")


def over_base(
    delta: str | Path,
    base: str | Path | None = None,
    *,
    subfolder: str = "",
    access: HubAccess | None = None,
) -> Pair:
    """A delta over its base. What is read is checked as it is decoded.

    Args:
        delta: Folder of the delta, or ``org/name[@revision]`` on the Hub.
        base: Its base; by default the commit that the delta names.
        subfolder: The delta's folder within, of a repository or folder with several.
        access: How to reach the Hub.

    Raises:
        NotFoundError: One is not there.
        FormatError: The delta is damaged.
        BaseMismatchError: The base is not the right one.

    Example:
        >>> with over_base("qwen-grpo-delta", "qwen-base") as pair:  # doctest: +SKIP
        ...     sum(tensor.words for tensor in pair.tensors.values())
        7615616512
    """
    access = access or HubAccess()
    with ExitStack() as stack:
        reader = stack.enter_context(DeltaReader(find_delta(delta, None, subfolder, access)))
        found = find_base(reader, base, None, access)
        checkpoint = stack.enter_context(open_checkpoint(found))
        return overlay(reader, checkpoint, stack)


def overlay(reader: DeltaReader, base: Checkpoint, stack: ExitStack) -> Pair:
    """An open delta over its open base, as :func:`over_base` gives it.

    Args:
        reader: The delta.
        base: Its base.
        stack: Holds what the pair is to close, and nothing once there is a pair.

    Raises:
        BaseMismatchError: The base is not the right one.
    """
    check_sources(reader, base)
    records = {t.name: t for t in reader.index.tensors}
    tensors = {
        t.name: _recorded(t, base.tensors[t.origin])
        for t in records.values()
        if t.kind in (Kind.SAME, Kind.DELTA)
    }
    unmatched = [
        Unmatched(t.name, t.words, "stored whole") for t in records.values() if t.kind is Kind.WHOLE
    ]
    unmatched += [
        Unmatched(name, ref.nbytes * 8 // ref.dtype.bits, "removed")
        for name in reader.index.removed
        if (ref := base.tensors.get(name)) is not None
    ]
    tied = [t.name for t in records.values() if t.kind is Kind.ALIAS]
    chunks = reader.index.chunks_of_tensors()
    decoder = ChunkDecoder(reader, base.path)

    def read(name: str) -> Read:
        t = records[name]
        source = base.tensors[t.origin]
        cursor = TensorReader(t, chunks.get(name, []), base, source, decoder)
        return cursor.read_into

    return Pair(reader.path, base, tensors, unmatched, tied, read, stack.pop_all())


def _recorded(t: TensorRecord, source: TensorRef) -> tuple[SharedTensor, Widening]:
    coding = t.coding or t.dtype.coding
    shared = source.dtype.coding.num_words(coding.nbytes(t.shared))
    tail = source.dtype.coding.num_words(coding.nbytes(t.tail))
    return _shared(t.name, source, t.shape, shared, tail), t.widening

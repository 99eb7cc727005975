"""Base and tuned tensors in aligned blocks, from two checkpoints or from a delta and its base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlsparse_store.delta.encode import dtype_policy
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.module_names import layer_of, module_of
from rlsparse_store.delta.resolve import find_base, find_checkpoint, find_delta
from rlsparse_store.files.checkpoint import Checkpoint, TensorRef, open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.records import Kind, TensorRecord
from rlsparse_store.format.words import Widening, as_words, narrow
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_sources
from rlsparse_store.pipeline.overlay import CheckpointTensor, Overlay
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.scratch import Scratch, ScratchBuffer
from rlsparse_store.pipeline.tensor_matching import TensorPlan, plan_tensors
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = [
    "Block",
    "Pair",
    "SharedTensor",
    "Unmatched",
    "aligned_blocks",
    "open_pair",
    "over_base",
    "overlay",
]

View = Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]]
"""Returns the tuned bytes of a tensor in the source's dtype, from an offset on.

Takes the offset and the source's bytes, of which it returns the counterpart: read-only, valid until
the next call, and the source's bytes themselves where a delta has no chunk.
"""

Result = TypeVar("Result")

BLOCK_WORDS: Final = 1 << 19
"""Words per block, an even number. It bounds the memory per tensor besides one chunk of a delta."""


class Block(NamedTuple):
    """Consecutive words that base and tuned share.

    Attributes:
        first: Index of the first word in the tensor.
        base: Words of the base.
        tuned: Words of the tuned checkpoint, in the base's dtype.
    """

    first: int
    base: Words
    tuned: Words


@dataclass(frozen=True, slots=True, repr=False)
class SharedTensor(SummaryRepr):
    """A tensor of the tuned checkpoint and its source in the base.

    Attributes:
        name: Name in the tuned checkpoint.
        dtype: Dtype of the comparison: the source's.
        shape: Dimensions in elements.
        words: Leading words that both sides have, in the dtype's default coding.
        tail: Words that only the tuned tensor has.
        source_words: Words of the source.
        source_shape: Dimensions of the source in elements.
        source: Name of the source.
        layer: Layer number, or ``other``.
        module: Kind of module.
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
        """Whether one side has rows that the other lacks."""
        return self.tail > 0 or self.source_words > self.words

    @property
    def nbytes(self) -> int:
        """Bytes of both sides. Work is scheduled by them."""
        return 2 * self.dtype.coding.nbytes(self.words)

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "dtype", self.dtype.code
        yield "shape", str(self.shape)
        yield "words", self.words
        yield "tail", self.tail
        yield "source", self.source


@dataclass(frozen=True, slots=True, repr=False)
class Unmatched(SummaryRepr):
    """A tensor without a counterpart, or one that cannot be compared.

    Attributes:
        name: Name of the tensor.
        elements: Number of elements.
        reason: Why it is not compared.
    """

    name: str
    elements: int
    reason: str

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "elements", self.elements
        yield "reason", self.reason


class Pair(Closeable, SummaryRepr):
    """A base and a tuned checkpoint, matched tensor by tensor.

    Attributes:
        path: Path of the tuned checkpoint, or of the delta that stores it.
        base: The base.
        tensors: Tensors that are compared, by name.
        unmatched: Tensors that are not, with reasons.
        tied: Names of tensors that alias another one. Their words count once, with the other.
    """

    def __init__(
        self,
        path: Path,
        base: Checkpoint,
        tensors: dict[str, SharedTensor],
        unmatched: list[Unmatched],
        tied: list[str],
        viewer: Callable[[str], View],
        stack: ExitStack,
    ) -> None:
        self.path = path
        self.tensors = tensors
        self.unmatched = unmatched
        self.tied = tied
        self.base = base
        self._viewer = viewer
        self._stack = stack

    @property
    def names(self) -> set[str]:
        """Names of all tensors, compared or not."""
        return {*self.tensors, *(tensor.name for tensor in self.unmatched)}

    def keep_only(self, reason_against: Callable[[SharedTensor], str]) -> None:
        """Restrict the comparison; excluded tensors become unmatched.

        Args:
            reason_against: The reason to exclude a tensor, or an empty string to keep it.
        """
        for name, tensor in list(self.tensors.items()):
            if reason := reason_against(tensor):
                del self.tensors[name]
                self.unmatched.append(Unmatched(name, tensor.words + tensor.tail, reason))

    def blocks(self, name: str) -> Iterator[Block]:
        """The blocks of a tensor, in order. Each block reuses the memory of the one before.

        Args:
            name: Name of the tensor.

        Raises:
            FormatError: The delta is damaged, or the base is the wrong one.
            RlsparseError: A file is truncated or unreadable.
        """
        tensor = self.tensors[name]
        for first, base, (tuned,) in aligned_blocks(self.base, tensor, [self.view(name)]):
            yield Block(first, base, tuned)

    def view(self, name: str) -> View:
        """Return a function that returns the tuned bytes of a tensor, for one thread."""
        return self._viewer(name)

    def map(
        self,
        function: Callable[[SharedTensor], Result],
        threads: int,
        progress: Progress = no_progress,
    ) -> list[Result]:
        """Apply a function to every tensor on several threads; results are in order of names."""
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        done, results = 0, {}
        # Largest first, so that no thread ends alone with a large one.
        tensors = sorted(self.tensors.values(), key=lambda tensor: -tensor.nbytes)
        for tensor, result in zip(tensors, ordered_map(function, tensors, threads), strict=True):
            results[tensor.name] = result
            done += tensor.nbytes
            progress(done, total)
        return [results[name] for name in self.tensors]

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def _summary(self) -> Rows:
        yield "path", str(self.path)
        yield "tensors", len(self.tensors)
        yield "unmatched", len(self.unmatched)
        yield "tied", len(self.tied)


def aligned_blocks(
    base: Checkpoint, tensor: SharedTensor, views: list[View]
) -> Iterator[tuple[int, Words, list[Words]]]:
    """Walk a tensor's source and several tuned versions of it, block by block.

    Each block reuses the memory of the one before.

    Args:
        base: The base.
        tensor: The tensor. The words that it shares with its source are read.
        views: The tuned versions.

    Yields:
        The first word of the block, the words of the source, and those of each version. Where a
        delta has no chunk, these are the source's words themselves.
    """
    source, coding = base.tensors[tensor.source], tensor.dtype.coding
    # Allocating per block would cost more than the comparison.
    buffer = ScratchBuffer()
    for first in range(0, tensor.words, BLOCK_WORDS):
        size = min(BLOCK_WORDS, tensor.words - first)
        start = coding.nbytes(first)
        # The last byte of 4-bit words may hold one word more.
        data = buffer.take(-(-size * coding.width // 8))
        base.read_into(source, start, data)
        words = as_words(data, coding.width)[:size]
        tuned = [view(start, data) for view in views]
        yield (
            first,
            words,
            [words if t is data else as_words(t, coding.width)[:size] for t in tuned],
        )


def open_pair(
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    *,
    cast: Literal["bf16"] | None = None,
    base_revision: str | None = None,
    tuned_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Pair:
    """Open two checkpoints and match their tensors as encoding does.

    Args:
        base: The base: a folder, a file or ``org/name[@revision]``.
        tuned: The tuned checkpoint, likewise.
        cast: ``"bf16"`` rounds float32 tensors to the bfloat16 of their base before the
            comparison. By default, float32 tensors that are no exact widening are unmatched.
        base_revision: Branch, tag or commit of the base on the Hub, if its id does not name one.
        tuned_revision: The same of the tuned checkpoint.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: A checkpoint does not exist.
        CheckpointError: A checkpoint is damaged.
        ValueError: ``cast`` is unknown.

    Example:
        >>> with open_pair("qwen-base", "qwen-grpo") as pair:  # doctest: +SKIP
        ...     pair.tensors["model.embed_tokens.weight"].shape
        (151936, 3584)
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with ExitStack() as stack:
        base_path = find_checkpoint(base, "base", access, base_revision)
        before = stack.enter_context(open_checkpoint(base_path))
        tuned_path = find_checkpoint(tuned, "tuned checkpoint", access, tuned_revision)
        after = stack.enter_context(open_checkpoint(tuned_path))
        plans = plan_tensors(before, after, dtype_policy(cast, keep=True))
        tensors: dict[str, SharedTensor] = {}
        widenings: dict[str, Widening] = {}
        unmatched: list[Unmatched] = []
        for plan in plans:
            if plan.alias_of is None and plan.source is not None and not plan.is_cast:
                tensors[plan.tuned.name] = _from_plan(plan, plan.source)
                widenings[plan.tuned.name] = plan.widening
            elif plan.alias_of is None:
                unmatched.append(_unmatched_plan(plan))
        used = {tensor.source for tensor in tensors.values()}
        unmatched += [
            Unmatched(name, ref.nbytes * 8 // ref.dtype.bits, "removed")
            for name, ref in before.tensors.items()
            if name not in used and name not in after.tensors
        ]
        tied = [plan.tuned.name for plan in plans if plan.alias_of is not None]

        def viewer(name: str) -> View:
            return _view_of_checkpoint(after, after.tensors[name], widenings[name])

        return Pair(after.path, before, tensors, unmatched, tied, viewer, stack.pop_all())


def _view_of_checkpoint(checkpoint: Checkpoint, ref: TensorRef, widening: Widening) -> View:
    buffer = ScratchBuffer()

    def view(start: int, base: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scale = 2 if widening else 1
        data = buffer.take(scale * base.size)
        checkpoint.read_into(ref, scale * start, data)
        if not widening:
            return data
        words = narrow(data.view(np.uint32), widening)
        assert words is not None  # noqa: S101 - matching accepts exact widenings only
        return words.view(np.uint8)

    return view


def _from_plan(plan: TensorPlan, source: TensorRef) -> SharedTensor:
    words = source.dtype.coding.num_words(plan.shared_bytes)
    tail = source.dtype.coding.num_words(plan.coded_nbytes) - words
    return _shared_tensor(plan.tuned.name, source, plan.tuned.shape, words, tail)


def _shared_tensor(
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


def _unmatched_plan(plan: TensorPlan) -> Unmatched:
    elements = plan.tuned.nbytes * 8 // plan.tuned.dtype.bits
    return Unmatched(plan.tuned.name, elements, plan.reason or "cast: encode it to compare it")


def over_base(
    delta: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    subfolder: str = "",
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Pair:
    """Open a delta and its base. Every chunk is checked when it is decoded.

    Args:
        delta: The delta: a folder or ``org/name[@revision]``.
        base: The base: a folder, a file or ``org/name[@revision]``; by default the commit that
            the delta names.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        revision: Branch, tag or commit of the delta on the Hub, if its id does not name one.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: The delta or the base does not exist.
        FormatError: The delta is damaged.
        BaseMismatchError: The base is the wrong one.

    Example:
        >>> with over_base("qwen-grpo-delta", base="qwen-base") as pair:  # doctest: +SKIP
        ...     sum(tensor.words for tensor in pair.tensors.values())
        7615616512
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with ExitStack() as stack:
        reader = stack.enter_context(DeltaReader(find_delta(delta, revision, subfolder, access)))
        base_path = find_base(reader, base, base_revision, access)
        checkpoint = stack.enter_context(open_checkpoint(base_path))
        return overlay(reader, checkpoint, stack)


def overlay(reader: DeltaReader, base: Checkpoint, stack: ExitStack) -> Pair:
    """The pair of an open delta and its open base.

    Args:
        reader: The delta.
        base: The base.
        stack: Resources that the pair takes over and closes.

    Raises:
        BaseMismatchError: The base is the wrong one.
    """
    check_sources(reader, base)
    records = {t.name: t for t in reader.index.tensors}
    tensors = {
        t.name: _from_record(t, base.tensors[t.origin])
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
    decoder, scratch = ChunkDecoder(reader, base.path), Scratch()

    def viewer(name: str) -> View:
        t = records[name]
        source = CheckpointTensor(base, base.tensors[t.origin])
        tensor = Overlay(t, chunks.get(name, []), source, decoder, scratch.tuned)
        return lambda start, base: tensor.view(start, start + base.size, base)

    return Pair(reader.path, base, tensors, unmatched, tied, viewer, stack.pop_all())


def _from_record(t: TensorRecord, source: TensorRef) -> SharedTensor:
    coding = t.coding or t.dtype.coding
    shared = source.dtype.coding.num_words(coding.nbytes(t.shared))
    tail = source.dtype.coding.num_words(coding.nbytes(t.tail))
    return _shared_tensor(t.name, source, t.shape, shared, tail)

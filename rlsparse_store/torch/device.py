"""Coding spans on a device: words, contexts, streams and hashes there, entropy coding here."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.backends import CodedWords, get_backend
from rlsparse_store.backends.gpu import WIDTHS, GpuBackend, hash_all_on_device, hash_on_device
from rlsparse_store.checkpoint import TensorsSource
from rlsparse_store.codec import (
    DeltaChunk,
    as_words,
    decode_whole,
    draft_chunks,
    encode_whole,
    may_be_whole,
    open_chunk,
    store_draft,
    to_bytes,
)
from rlsparse_store.delta import (
    BLOCK_WORDS,
    ChunkCutter,
    Coded,
    CodedSpan,
    CodedTask,
    CpuCoder,
    Span,
    Stretch,
    proof_failed,
)
from rlsparse_store.digest import LEAF_BYTES, leaf_hashes, leaves_check
from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.frameworks.device import words_of
from rlsparse_store.torch.gathered import SplitTensor
from rlsparse_store.torch.tensors import LiveTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rlsparse_store.backends import ChunkWords, Rows
    from rlsparse_store.backends.gpu.survey import Survey
    from rlsparse_store.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.codec import Draft, WholeChunk
    from rlsparse_store.delta import SpanTask
    from rlsparse_store.dtypes import WordCoding

__all__ = ["DeviceCoder", "require_kernels"]

GROUP_BYTES: Final = 1 << 26
"""Bytes of small tensors that are worked on at a time, so that few launches do for many."""

GROUP_MEMORY: Final = 448 << 20
"""Bytes of device memory that a group takes at most: its words and what is made of them."""

BATCH_CHANGES: Final = 1 << 23
"""Changed words of the chunks that are split into streams at a time, each taking some 12 bytes."""

FEW_CHANGES: Final = 1 << 19
"""The same, once memory has run out."""

CAST_WORDS: Final = 1 << 21
"""Words that are rounded at a time, each taking some 40 bytes."""


class DeviceCoder:
    """Codes spans on a device, giving the bytes that the CPU gives.

    Spans are compared, split into streams and proven on the device, many of their chunks at a
    time. Then their memory there is given back, and the streams are compressed on the calling
    thread, while other threads' spans are on the device.

    What the kernels do not take (4-bit and 64-bit words, exact widening, what is stored whole) is
    coded on the CPU. So is what does not fit into the device's memory, with a warning.

    Args:
        device: A CUDA device; under Triton's interpreter, ``"cpu"``.
        memory: Bytes of device memory to use besides what is there, for spans under way.

    Raises:
        MissingDependencyError: There is no such device, or nothing that runs kernels on it.

    Example:
        >>> encode_delta("base", "tuned", "delta", coder=DeviceCoder("cuda"))  # doctest: +SKIP
    """

    group_bytes: Final = GROUP_BYTES

    def __init__(self, device: Any = "cuda", *, memory: int = 1 << 30) -> None:  # noqa: ANN401
        self._device = torch.device(device)
        require_kernels(self._device)
        self._backend = GpuBackend()
        self._cpu = CpuCoder()
        self._together = self._streams(max(1, memory // GROUP_MEMORY))
        self._alone = self._streams(1)

    def code(self, tasks: Sequence[SpanTask], base: Checkpoint) -> list[CodedTask]:
        """Code tasks.

        Raises:
            RlsparseError: A checkpoint cannot be read, or what was coded does not decode.
        """
        mine = [i for i, task in enumerate(tasks) if all(map(_fits, task.spans))]
        drafted = self._draft([tasks[i] for i in mine], base)
        done = {i: draft.store() for i, draft in zip(mine, drafted, strict=False)}
        others = [i for i in range(len(tasks)) if i not in done]
        done |= zip(others, self._cpu.code([tasks[i] for i in others], base), strict=True)
        return [done[i] for i in range(len(tasks))]

    def _draft(self, tasks: list[SpanTask], base: Checkpoint) -> list[_DraftedTask]:
        """What is made of tasks on the device: of as many as its memory allows, from the first."""
        try:
            with _on_one_of(self._together):
                return self._draft_together(tasks, base, BATCH_CHANGES)
        except torch.OutOfMemoryError:
            pass
        # One after the other and in smaller steps, while no other such span is tried.
        drafted: list[_DraftedTask] = []
        try:
            with _on_one_of(self._alone):
                for task in tasks:
                    torch.cuda.empty_cache()
                    drafted += self._draft_together([task], base, FEW_CHANGES)
        except torch.OutOfMemoryError:
            msg = f"no memory left on {self._device}: a part is encoded on the CPU, more slowly"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return drafted

    def _streams(self, number: int) -> LifoQueue[Any]:
        """Streams for so many threads at a time, so that spans do not wait for each other.

        A thread takes the one that was given back last: what torch keeps of a stream's memory, it
        only keeps for that stream. They are made on the thread that chose the device: on new ones,
        the first device is the current one.
        """
        streams: LifoQueue[Any] = LifoQueue()
        for _ in range(number):
            is_cuda = self._device.type == "cuda"
            streams.put(torch.cuda.Stream(self._device) if is_cuda else None)  # type: ignore[no-untyped-call]
        return streams

    def _draft_together(
        self, tasks: list[SpanTask], base: Checkpoint, most: int
    ) -> list[_DraftedTask]:
        """Draft tasks, so many changed words at a time.

        Raises:
            OutOfMemoryError: The device's memory does not suffice.
        """
        spans = [self._placed(task, base) for task in tasks]
        _hash_all(spans)
        alike: defaultdict[tuple[WordCoding, int | None], list[_DeviceSpan]] = defaultdict(list)
        for placed in spans:
            for span in placed:
                alike[span.span.coding, span.span.mantissa_bits].append(span)
        for (coding, mantissa_bits), several in alike.items():
            _Drafting(self._backend, several, coding, mantissa_bits).run(most)
        return [
            _DraftedTask([span.drafted() for span in placed], placed[0].old_leaves)
            for placed in spans
        ]

    def _placed(self, task: SpanTask, base: Checkpoint) -> list[_DeviceSpan]:
        """The words of a task's spans, on the device."""
        first = task.spans[0]
        source = first.plan.source
        assert source is not None  # noqa: S101 - _fits asked for one
        old = self._bytes(base, source, first.start, min(first.stop, source.nbytes))
        return [
            _DeviceSpan(span, old, self._tuned_bytes(checkpoint, span))
            for span, checkpoint in zip(task.spans, task.tuned, strict=True)
        ]

    def _tuned_bytes(self, checkpoint: Checkpoint, span: Span) -> torch.Tensor:
        """The span's tuned bytes, rounded first if they are to be."""
        plan = span.plan
        if not plan.is_cast:
            return self._bytes(checkpoint, plan.tuned, span.start, span.tuned_stop)
        wide = self._bytes(checkpoint, plan.tuned, 2 * span.start, 2 * span.tuned_stop)
        return _cast_to_bf16(wide.view(torch.int32)).view(torch.uint8)

    def _bytes(
        self, checkpoint: Checkpoint, tensor: TensorRef, start: int, stop: int
    ) -> torch.Tensor:
        """Bytes of a tensor on the device: a view where it is there already."""
        source = checkpoint.files[tensor.file].source
        live = source.tensors.get(tensor.name) if isinstance(source, TensorsSource) else None
        if isinstance(live, LiveTensor | SplitTensor):
            return live.data[start:stop].to(self._device, non_blocking=True)
        is_cuda = self._device.type == "cuda"
        host = torch.empty(max(0, stop - start), dtype=torch.uint8, pin_memory=is_cuda)
        checkpoint.read_into(tensor, start, host.numpy())
        return host.to(self._device, non_blocking=True)


@contextmanager
def _on_one_of(streams: LifoQueue[Any]) -> Iterator[None]:
    """Work on a stream that no other thread works on, once there is one."""
    stream = streams.get()
    try:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            yield
    finally:
        streams.put(stream)


def require_kernels(device: torch.device) -> None:
    """Require that kernels run on a device.

    Raises:
        MissingDependencyError: They do not.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = "torch finds no CUDA device here; leave --device out to encode on the CPU"
        raise MissingDependencyError(msg)
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        msg = f"the kernels run on CUDA devices, not on {device.type}; leave --device out"
        raise MissingDependencyError(msg)


def _fits(span: Span) -> bool:
    """Whether the kernels take a span."""
    plan = span.plan
    return plan.source is not None and not plan.widening and span.coding.width in WIDTHS


def _cast_to_bf16(words: torch.Tensor) -> torch.Tensor:
    """Round float32 words to the nearest bfloat16, ties to even; a NaN stays a NaN."""
    narrow = torch.empty(words.shape, dtype=torch.int16, device=words.device)
    for start in range(0, len(words), CAST_WORDS):
        part = slice(start, start + CAST_WORDS)
        wide = words[part].to(torch.int64) & 0xFFFFFFFF
        rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        is_nan = (wide & 0x7FFFFFFF) > 0x7F800000
        narrow[part] = torch.where(is_nan, (wide >> 16) | 0x40, rounded)
    return narrow


_NO_BYTES: Final = np.zeros(0, np.uint8)


def _no_leaves() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


def _hash_all(tasks: list[list[_DeviceSpan]]) -> None:
    """Take the leaf hashes of all words, and of the base's once for all spans of it."""
    data = [part for spans in tasks for part in (spans[0].old, *(span.new for span in spans))]
    found = iter(hash_all_on_device(data))
    for spans in tasks:
        old_leaves = next(found)
        for span in spans:
            span.old_leaves, span.new_leaves = old_leaves, next(found)


@dataclass(frozen=True, slots=True)
class _DraftedChunk:
    """A chunk as it came from the device.

    Attributes:
        stretch: Where it lies, in bytes of its span.
        words: How many words it has.
        draft: Its streams.
        base_check: Check of its base words.
        leaves: Leaf hashes of its result.
        tuned: Its tuned bytes, if it may be smaller whole.
    """

    stretch: Stretch
    words: int
    draft: Draft
    base_check: int
    leaves: NDArray[np.uint64]
    tuned: NDArray[np.uint8]

    def store(self, span: Span) -> Coded:
        """Compress it, and prove that it decompresses to what the device proved."""
        coding, tuned = span.coding, as_words(self.tuned, span.coding.width)
        first = coding.num_words(span.start + self.stretch.start)
        stored = store_draft(get_backend(), self.draft, coding, self.words, tuned)
        if isinstance(stored, DeltaChunk):
            row = None if span.row is None else (span.row, first % span.row)
            rows, content = open_chunk(stored, self.words, coding, row)
            if content != self.draft.content or not _same_flags(rows, self.draft.rows):
                raise proof_failed(span.plan)
            base_check = self.base_check
        else:
            _require_whole(stored, self.words, span, self.leaves)
            base_check = 0
        check, number = leaves_check(self.leaves), self.stretch.changes.number
        return Coded(first, self.words, stored, base_check, check, number)


def _same_flags(one: Rows | None, other: Rows | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.active, other.active)


def _require_whole(chunk: WholeChunk, words: int, span: Span, leaves: NDArray[np.uint64]) -> None:
    """Require that a chunk that is stored whole has these leaf hashes when it is decoded."""
    decoded = to_bytes(decode_whole(chunk.stored, words, span.coding), span.coding.width)
    if not np.array_equal(leaf_hashes(decoded), leaves):
        raise proof_failed(span.plan)


@dataclass(slots=True, eq=False)
class _DeviceSpan:
    """A span whose words are on the device.

    Attributes:
        span: The span.
        old: The base's bytes of it.
        new: The tuned bytes.
        old_leaves: Leaf hashes of ``old``.
        new_leaves: Leaf hashes of ``new``.
        chunks: What was drafted of it.
    """

    span: Span
    old: torch.Tensor
    new: torch.Tensor
    old_leaves: NDArray[np.uint64] = field(default_factory=_no_leaves)
    new_leaves: NDArray[np.uint64] = field(default_factory=_no_leaves)
    chunks: list[_DraftedChunk] = field(default_factory=list)

    @property
    def shared(self) -> int:
        """Bytes of it that base and tuned both have."""
        return self.span.shared_stop - self.span.start

    @property
    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The words that base and tuned both have."""
        width = self.span.coding.width
        return words_of(self.old[: self.shared], width), words_of(self.new[: self.shared], width)

    def stretches(self, survey: Survey, run: int) -> Iterator[Stretch]:
        """What becomes chunks, in bytes of the span."""
        size = self.span.coding.nbytes(BLOCK_WORDS)
        cutter = ChunkCutter()
        for number, changes in enumerate(survey.blocks(run, BLOCK_WORDS)):
            cutter.add(number * size, min((number + 1) * size, self.shared), changes)
            if cutter.is_full and (full := cutter.close()) is not None:
                yield full
        if (last := cutter.close()) is not None:
            yield last

    def add(self, stretch: Stretch, words: int, draft: Draft) -> None:
        """Take a chunk that was drafted, with what storing it needs of the device."""
        base_check = leaves_check(_leaves(self.old, self.old_leaves, stretch))
        leaves = _leaves(self.new, self.new_leaves, stretch)
        tuned = _NO_BYTES
        if may_be_whole(draft, self.span.coding.nbytes(words)):
            tuned = self.new[stretch.start : stretch.stop].cpu().numpy()
        self.chunks.append(_DraftedChunk(stretch, words, draft, base_check, leaves, tuned))

    def drafted(self) -> _DraftedSpan:
        """What is left to be done once its words are no longer on the device."""
        rest = self.new[self.shared :].cpu().numpy()
        return _DraftedSpan(self.span, self.chunks, rest, self.shared, self.new_leaves)


def _leaves(data: torch.Tensor, leaves: NDArray[np.uint64], part: Stretch) -> NDArray[np.uint64]:
    """The leaf hashes of a part that begins with a leaf, from those of the whole."""
    if part.stop % LEAF_BYTES == 0 or part.stop == data.numel():
        return leaves[part.start // LEAF_BYTES : -(-part.stop // LEAF_BYTES)]
    last = part.stop // LEAF_BYTES
    short = hash_on_device(data[last * LEAF_BYTES : part.stop])
    return np.concatenate([leaves[part.start // LEAF_BYTES : last], short])


class _Drafting:
    """Spans of one word coding, whose chunks are drafted together.

    Args:
        backend: Runs the loops.
        spans: The spans.
        coding: Their word coding.
        mantissa_bits: Of a floating-point dtype.
    """

    def __init__(
        self,
        backend: GpuBackend,
        spans: list[_DeviceSpan],
        coding: WordCoding,
        mantissa_bits: int | None,
    ) -> None:
        self._backend = backend
        self._spans = [span for span in spans if span.shared]
        self._coding = coding
        self._mantissa_bits = mantissa_bits

    def run(self, most: int) -> None:
        """Draft all chunks, so many changed words at a time."""
        if not self._spans:
            return
        survey = self._backend.survey([span.run for span in self._spans], self._coding)
        batch: list[tuple[_DeviceSpan, Stretch, ChunkWords]] = []
        changed = 0
        for number, span in enumerate(self._spans):
            for stretch in span.stretches(survey, number):
                batch.append((span, stretch, self._words(survey, number, stretch)))
                changed += stretch.changes.number
                if changed >= most:
                    self._draft(batch)
                    batch, changed = [], 0
        self._draft(batch)

    def _words(self, survey: Survey, number: int, stretch: Stretch) -> ChunkWords:
        span = self._spans[number].span
        start, stop = (self._coding.num_words(place) for place in (stretch.start, stretch.stop))
        first = self._coding.num_words(span.start) + start
        row = None if span.row is None else (span.row, first % span.row)
        return survey.chunk(number, slice(start, stop), row, stretch.changes)

    def _draft(self, batch: list[tuple[_DeviceSpan, Stretch, ChunkWords]]) -> None:
        """Split chunks into streams, and prove that they join to the same words."""
        chunks = [words for _, _, words in batch]
        drafts = draft_chunks(self._backend, chunks, self._coding, self._mantissa_bits)
        coded = [
            CodedWords(words.base, d.bounds, d.rows, d.streams.changed, d.content)
            for words, d in zip(chunks, drafts, strict=True)
        ]
        problems = self._backend.prove(coded, [words.tuned for words in chunks], self._coding)
        for (span, stretch, words), draft, problem in zip(batch, drafts, problems, strict=True):
            if problem is not None:
                raise proof_failed(span.span.plan) from problem
            span.add(stretch, len(words.base), draft)


@dataclass(frozen=True, slots=True)
class _DraftedSpan:
    """A span as it came from the device.

    Attributes:
        span: The span.
        chunks: What becomes its chunks of changes.
        rest: The tuned bytes that the base does not have.
        start: Where they begin, in bytes of the span.
        leaves: Leaf hashes of all tuned bytes.
    """

    span: Span
    chunks: list[_DraftedChunk]
    rest: NDArray[np.uint8]
    start: int
    leaves: NDArray[np.uint64]

    def store(self) -> CodedSpan:
        """Compress it: what is shared as changes, the rest whole."""
        chunks = [chunk.store(self.span) for chunk in self.chunks]
        size = self.span.coding.nbytes(BLOCK_WORDS)
        place, end = self.start, self.start + self.rest.size
        while place < end:
            stop = min(place // size * size + size, end)
            chunks.append(self._whole(place, stop))
            place = stop
        return CodedSpan(self.span, chunks, self.leaves)

    def _whole(self, start: int, stop: int) -> Coded:
        coding = self.span.coding
        data = self.rest[start - self.start : stop - self.start]
        words = as_words(data, coding.width)
        chunk, leaves = encode_whole(get_backend(), words, coding), leaf_hashes(data)
        _require_whole(chunk, words.size, self.span, leaves)
        first = coding.num_words(self.span.start + start)
        return Coded(first, words.size, chunk, 0, leaves_check(leaves), 0)


@dataclass(frozen=True, slots=True)
class _DraftedTask:
    """A task as it came from the device."""

    spans: list[_DraftedSpan]
    base_leaves: NDArray[np.uint64]

    def store(self) -> CodedTask:
        """Compress it."""
        return CodedTask([span.store() for span in self.spans], self.base_leaves)

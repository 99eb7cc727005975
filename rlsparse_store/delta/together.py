"""Encoding several checkpoints against one base, which is read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from rlsparse_store.backends import get_backend
from rlsparse_store.delta.identity import checkpoint_state
from rlsparse_store.delta.pipeline import Several, ordered_map, several
from rlsparse_store.delta.room import Rooms
from rlsparse_store.delta.scan import BaseWindow, CodedSpan, Span, code_span
from rlsparse_store.delta.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.backends import CpuBackend
    from rlsparse_store.checkpoint import Checkpoint
    from rlsparse_store.container import ChunkSink
    from rlsparse_store.delta.encoder import Encoder
    from rlsparse_store.delta.progress import Progress

__all__ = ["CodedTask", "CpuCoder", "SpanCoder", "SpanTask", "encode_together"]


@dataclass(frozen=True, slots=True)
class SpanTask:
    """Spans of the same bytes of the base, each of a tuned checkpoint.

    Attributes:
        spans: The spans.
        tuned: Their checkpoints.
        places: Which encoding each is of.
    """

    spans: list[Span] = field(default_factory=list)
    tuned: list[Checkpoint] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""
        return sum(span.nbytes for span in self.spans)

    def parts(self, nbytes: int) -> Iterator[SpanTask]:
        """Tasks of some of its spans each, which read so many bytes at most, or are of one."""
        triples = zip(self.spans, self.tuned, self.places, strict=True)
        for some in several(((triple, triple[0].nbytes) for triple in triples), nbytes):
            spans, tuned, places = map(list, zip(*some.items, strict=True))
            yield SpanTask(spans, tuned, places)


@dataclass(frozen=True, slots=True)
class CodedTask:
    """What became of a task.

    Attributes:
        spans: The coded spans.
        base_leaves: Leaf hashes of the base's bytes.
    """

    spans: list[CodedSpan]
    base_leaves: NDArray[np.uint64]


class SpanCoder(Protocol):
    """Codes spans, on any thread."""

    @property
    def group_bytes(self) -> int:
        """Bytes that it is best given at a time, as it weighs tasks."""

    def weigh(self, task: SpanTask, base: Checkpoint) -> int:
        """What a task counts in a group, in bytes."""

    def code(self, tasks: Sequence[SpanTask], base: Checkpoint) -> list[CodedTask]:
        """Code tasks.

        Args:
            tasks: The tasks.
            base: The base.

        Returns:
            What became of each.

        Raises:
            RlsparseError: A checkpoint cannot be read, or what was coded does not decode.
        """


class CpuCoder:
    """Codes spans on the CPU."""

    group_bytes: Final = 0

    def __init__(self) -> None:
        self._backend = get_backend()
        self._rooms = Rooms()

    def weigh(self, task: SpanTask, base: Checkpoint) -> int:  # noqa: ARG002 - a device asks
        """Bytes that it reads: it is coded alone."""
        return task.nbytes

    def code(self, tasks: Sequence[SpanTask], base: Checkpoint) -> list[CodedTask]:
        """Code tasks one after the other, as :class:`SpanCoder` says."""
        return [self._code(task, base) for task in tasks]

    def _code(self, task: SpanTask, base: Checkpoint) -> CodedTask:
        window = BaseWindow(base, task.spans[0], self._rooms.base, keep=len(task.spans) > 1)
        coded = [
            code_span(self._backend, span, window, checkpoint, self._rooms)
            for span, checkpoint in zip(task.spans, task.tuned, strict=True)
        ]
        return CodedTask(coded, window.leaves())


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a group."""

    group: Several[SpanTask]
    coded: list[CodedTask]


def encode_together(
    base: Checkpoint,
    encodings: list[tuple[Encoder, ChunkSink]],
    threads: int | None,
    progress: Progress,
    coder: SpanCoder | None = None,
) -> list[int]:
    """Encode several tuned checkpoints, each into its own sink.

    Args:
        base: The base of all.
        encodings: One or more encoders of that base, and where their chunks go.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.
        coder: Codes the spans; the CPU by default.

    Returns:
        The bytes of each delta's files.

    Raises:
        RlsparseError: A checkpoint changed or cannot be read, or a delta cannot be written.
    """
    workers = resolve_threads(threads)
    chosen = coder or CpuCoder()

    def work(group: Several[SpanTask]) -> _Done:
        return _Done(group, chosen.code(group.items, base))

    total = sum(encoder.nbytes for encoder, _ in encodings)
    done = 0
    tasks = ((task, chosen.weigh(task, base)) for task in _tasks(encodings, get_backend()))
    for result in ordered_map(work, several(tasks, chosen.group_bytes), workers):
        for task, coded in zip(result.group.items, result.coded, strict=True):
            for place, span in zip(task.places, coded.spans, strict=True):
                encoder, sink = encodings[place]
                encoder.add(span, coded.base_leaves, sink)
            done += task.nbytes
        progress(min(done, total), total)
    progress(total, total)
    base.check_unchanged()
    known: dict[str, bytes] = {}
    for encoder, _ in encodings:
        encoder.tuned.check_unchanged()
        known |= encoder.base_digests()
    # Tensors that nothing was coded against are read for it.
    base_state = checkpoint_state(base, known)
    return [encoder.finish(base_state, sink) for encoder, sink in encodings]


def _tasks(encodings: list[tuple[Encoder, ChunkSink]], backend: CpuBackend) -> Iterator[SpanTask]:
    """The spans of all encodings, those of the same bytes of the base together.

    Of each encoding, they come in the order of its tensors' names.
    """
    remaining = [encoder.spans(backend) for encoder, _ in encodings]
    ahead = [next(spans, None) for spans in remaining]
    while any(entry is not None for entry in ahead):
        name = min((entry[0] for entry in ahead if entry is not None), key=str.encode)
        groups: dict[tuple[object, ...], SpanTask] = {}
        for place, entry in enumerate(ahead):
            if entry is None or entry[0] != name:
                continue
            ahead[place] = next(remaining[place], None)
            for span in entry[1]:
                source = span.plan.source
                # What is stored whole shares nothing.
                key = (place,) if source is None else (source.name, span.coding, span.stop)
                task = groups.setdefault((*key, span.start), SpanTask())
                task.spans.append(span)
                task.tuned.append(encodings[place][0].tuned)
                task.places.append(place)
        # Of one encoding, spans are in order: no group holds an earlier one than the group before.
        yield from groups.values()

"""Encoding several checkpoints against one base, which is read and hashed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlsparse_store.backends import get_backend
from rlsparse_store.delta.identity import checkpoint_state
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.room import Rooms
from rlsparse_store.delta.scan import BaseWindow, CodedSpan, Span, code_span
from rlsparse_store.delta.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.backends import Backend
    from rlsparse_store.checkpoint import Checkpoint
    from rlsparse_store.container import ChunkSink
    from rlsparse_store.delta.encoder import Encoder
    from rlsparse_store.delta.progress import Progress

__all__ = ["CpuCoder", "SpanCoder", "encode_together"]


class SpanCoder(Protocol):
    """Codes spans, on any thread."""

    def code(
        self, spans: Sequence[Span], base: Checkpoint, tuned: Sequence[Checkpoint]
    ) -> tuple[list[CodedSpan], NDArray[np.uint64]]:
        """Code spans of the same bytes of the base.

        Args:
            spans: The spans, each of a tuned checkpoint.
            base: The base.
            tuned: The tuned checkpoints, in the order of the spans.

        Returns:
            The coded spans, and the leaf hashes of the base's bytes.

        Raises:
            RlsparseError: A checkpoint cannot be read, or what was coded does not decode.
        """


class CpuCoder:
    """Codes spans on the CPU."""

    def __init__(self) -> None:
        self._backend = get_backend()
        self._rooms = Rooms()

    def code(
        self, spans: Sequence[Span], base: Checkpoint, tuned: Sequence[Checkpoint]
    ) -> tuple[list[CodedSpan], NDArray[np.uint64]]:
        """Code spans of the same bytes of the base, as :class:`SpanCoder` says."""
        window = BaseWindow(base, spans[0], self._rooms.base, keep=len(spans) > 1)
        coded = [
            code_span(self._backend, span, window, checkpoint, self._rooms)
            for span, checkpoint in zip(spans, tuned, strict=True)
        ]
        return coded, window.leaves()


@dataclass(frozen=True, slots=True)
class _Task:
    """Spans of the same bytes of the base, each with the place of its encoding."""

    spans: list[tuple[int, Span]]

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""
        return sum(span.nbytes for _, span in self.spans)


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a task."""

    spans: list[tuple[int, CodedSpan]]
    base_leaves: NDArray[np.uint64]
    nbytes: int


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

    def work(task: _Task) -> _Done:
        tuned = [encodings[place][0].tuned for place, _ in task.spans]
        coded, leaves = chosen.code([span for _, span in task.spans], base, tuned)
        places = [place for place, _ in task.spans]
        return _Done(list(zip(places, coded, strict=True)), leaves, task.nbytes)

    total = sum(encoder.nbytes for encoder, _ in encodings)
    done = 0
    for result in ordered_map(work, _tasks(encodings, get_backend()), workers):
        for place, coded in result.spans:
            encoder, sink = encodings[place]
            encoder.add(coded, result.base_leaves, sink)
        done += result.nbytes
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


def _tasks(encodings: list[tuple[Encoder, ChunkSink]], backend: Backend) -> Iterator[_Task]:
    """The spans of all encodings, those of the same bytes of the base together.

    Of each encoding, they come in the order of its tensors' names.
    """
    remaining = [encoder.spans(backend) for encoder, _ in encodings]
    ahead = [next(spans, None) for spans in remaining]
    while any(entry is not None for entry in ahead):
        name = min((entry[0] for entry in ahead if entry is not None), key=str.encode)
        groups: dict[tuple[object, ...], _Task] = {}
        for place, entry in enumerate(ahead):
            if entry is None or entry[0] != name:
                continue
            ahead[place] = next(remaining[place], None)
            for span in entry[1]:
                source = span.plan.source
                # What is stored whole shares nothing.
                key = (place,) if source is None else (source.name, span.coding, span.stop)
                groups.setdefault((*key, span.start), _Task([])).spans.append((place, span))
        # Of one encoding, spans are in order: no group holds an earlier one than the group before.
        yield from groups.values()

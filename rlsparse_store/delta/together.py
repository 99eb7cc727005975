"""Encoding several checkpoints against one base, which is read and hashed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.backends import get_backend
from rlsparse_store.delta.identity import checkpoint_state
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.room import Rooms
from rlsparse_store.delta.scan import BaseWindow, CodedSpan, Span, code_span
from rlsparse_store.delta.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.backends import Backend
    from rlsparse_store.checkpoint import Checkpoint
    from rlsparse_store.container import ChunkSink
    from rlsparse_store.delta.encoder import Encoder
    from rlsparse_store.delta.progress import Progress

__all__ = ["encode_together"]


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
) -> list[int]:
    """Encode several tuned checkpoints, each into its own sink.

    Args:
        base: The base of all.
        encodings: One or more encoders of that base, and where their chunks go.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Returns:
        The bytes of each delta's files.

    Raises:
        RlsparseError: A checkpoint changed or cannot be read, or a delta cannot be written.
    """
    workers = resolve_threads(threads)
    backend = get_backend()
    rooms = Rooms()

    def work(task: _Task) -> _Done:
        first = task.spans[0][1]
        window = BaseWindow(base, first, rooms.base, keep=len(task.spans) > 1)
        coded = [
            (place, code_span(backend, span, window, encodings[place][0].tuned, rooms))
            for place, span in task.spans
        ]
        return _Done(coded, window.leaves(), task.nbytes)

    total = sum(encoder.nbytes for encoder, _ in encodings)
    done = 0
    for result in ordered_map(work, _tasks(encodings, backend), workers):
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

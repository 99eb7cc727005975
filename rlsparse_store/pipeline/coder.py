"""Coding spans: what a coder is given, what it gives back, and the coder of the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.spans import BaseWindow, CodedSpan, Span, encode_span
from rlsparse_store.pipeline.threads import batched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint

__all__ = ["CodedTask", "CpuCoder", "SpanCoder", "SpanTask"]


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
        for some in batched(((triple, triple[0].nbytes) for triple in triples), nbytes):
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
        self._scratch = Scratch()

    def weigh(self, task: SpanTask, base: Checkpoint) -> int:  # noqa: ARG002 - a device asks
        """Bytes that it reads: it is coded alone."""
        return task.nbytes

    def code(self, tasks: Sequence[SpanTask], base: Checkpoint) -> list[CodedTask]:
        """Code tasks one after the other, as :class:`SpanCoder` says."""
        return [self._code(task, base) for task in tasks]

    def _code(self, task: SpanTask, base: Checkpoint) -> CodedTask:
        window = BaseWindow(base, task.spans[0], self._scratch.base, keep=len(task.spans) > 1)
        coded = [
            encode_span(self._backend, span, window, checkpoint, self._scratch)
            for span, checkpoint in zip(task.spans, task.tuned, strict=True)
        ]
        return CodedTask(coded, window.leaves())

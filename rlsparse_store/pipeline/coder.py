"""Coders: the protocol, and the coder of the CPU."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol

from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.encode_small import encode_small_spans, small_coding
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.spans import CodedSpan, Span, encode_span
from rlsparse_store.pipeline.threads import SMALL_TASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.files.checkpoint import Checkpoint

__all__ = ["CpuCoder", "SpanCoder"]


class SpanCoder(Protocol):
    """Encodes spans, on any thread."""

    @property
    def batch_bytes(self) -> int:
        """Maximum size of a batch for :meth:`code`, in the bytes that :meth:`weigh` returns."""

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:
        """Return how many bytes a span counts towards :attr:`batch_bytes`."""

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode spans of one tuned checkpoint, and verify that each decodes to its words.

        Args:
            spans: The spans.
            base: The base.
            tuned: The tuned checkpoint.

        Returns:
            The encoded spans, in order.

        Raises:
            RlsparseError: A checkpoint cannot be read, or a chunk does not decode to its words.
        """


class CpuCoder:
    """Encodes spans on the CPU: a large one per call, or several small ones."""

    batch_bytes: Final = SMALL_TASK

    def __init__(self) -> None:
        self._backend = get_backend()
        self._scratch = Scratch()

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:  # noqa: ARG002 - a device needs them
        """Return the bytes that the span reads."""
        return span.nbytes

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode small tensors of one coding together, and other spans one by one."""
        backend, scratch = self._backend, self._scratch
        coded: list[CodedSpan] = []
        for coding, group in groupby(spans, small_coding):
            if coding is None:
                coded += [encode_span(backend, span, base, tuned, scratch) for span in group]
            else:
                coded += encode_small_spans(backend, list(group), base, tuned, scratch)
        return coded

"""``DeviceCoder``: encodes spans on a device and compresses their streams on the CPU."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.gpu.chunk_words import WIDTHS
from rlsparse_store.gpu.drafter import DeviceSpan, draft_all, hash_all
from rlsparse_store.gpu.drafts import SpanDraft, store_drafts
from rlsparse_store.gpu.stream_pool import StreamPool
from rlsparse_store.gpu.upload import HostSpan, is_on_device
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.spans import SPAN_BYTES, Span
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.pipeline.spans import CodedSpan

__all__ = ["DeviceCoder", "require_kernels"]

BATCH_BYTES: Final = 2 * SPAN_BYTES
"""Bytes of base and tuned words in a batch of spans: one large span or many small ones. A batch
costs a few milliseconds of Python, whatever its size."""

BATCH_MEMORY: Final = 1 << 29
"""Approximate bytes of device memory of a batch: its words, streams and intermediate results."""

BATCHES_IN_MEMORY: Final = 3
"""Batches in main memory for each batch on the device: one being read, one on the device, and one
being compressed."""

RESIDENT_WEIGHT: Final = 6
"""Divides the size, within a batch, of words that are already on the device."""

MIN_MEMORY: Final = 1 << 23
"""Bytes of device memory of a batch of chunks after memory ran out."""


class DeviceCoder:
    """Encodes spans on a device, with the same bytes as the CPU.

    Experimental: never run on a GPU. The tests run the kernels under Triton's interpreter.

    The device compares the words, splits chunks into streams and verifies that they decode, many
    chunks at once. CPU threads compress the streams while the device works on the next spans.

    The CPU encodes what the kernels do not support: 4-bit and 64-bit words, exact widening, and
    tensors without a source in the base. It also encodes, with a warning, what does not fit into
    the device's memory.

    Args:
        device: A CUDA device; ``"cpu"`` under Triton's interpreter.
        memory: Bytes of device memory for spans in progress, in addition to the memory in use. At
            least one span is on the device, with up to 256 MiB of words.
        threads: Number of compression threads; defaults to all processors.

    Raises:
        MissingDependencyError: The device does not exist or cannot run the kernels.

    Example:
        >>> encode_delta("base", "tuned", "delta", coder=DeviceCoder("cuda"))  # doctest: +SKIP
    """

    batch_bytes: Final = BATCH_BYTES

    def __init__(
        self,
        device: Any = "cuda",  # noqa: ANN401 - anything that torch.device accepts
        *,
        memory: int = 1 << 30,
        threads: int | None = None,
    ) -> None:
        require_kernels(torch.device(device))
        # With its index, as tensors have it: on other threads, another device may be current.
        self._device = torch.empty(0, device=device).device
        self._cpu = CpuCoder()
        batches = max(1, memory // BATCH_MEMORY)
        self._memory = min(memory, BATCH_MEMORY)
        self._streams = _stream_pool(self._device, batches)
        self._in_memory = BoundedSemaphore(BATCHES_IN_MEMORY * batches)
        self._compressors = ThreadPoolExecutor(resolve_threads(threads), "rlsparse-compress")

    def __repr__(self) -> str:
        return f"DeviceCoder('{self._device}')"

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:
        """Return the bytes to copy to the device, or a fraction of them for resident words."""
        source = span.plan.source
        is_resident = (
            source is not None
            and is_on_device(self._device, base, source)
            and is_on_device(self._device, tuned, span.plan.tuned)
        )
        # A cast allocates new words on the device.
        needs_no_copy = is_resident and _is_supported(span) and not span.plan.is_cast
        return span.nbytes // (RESIDENT_WEIGHT if needs_no_copy else 1)

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode spans, as :class:`~rlsparse_store.pipeline.coder.SpanCoder` says.

        Raises:
            RlsparseError: A checkpoint cannot be read, or a chunk does not decode to itself.
        """
        supported = [i for i, span in enumerate(spans) if _is_supported(span)]
        done: dict[int, CodedSpan] = {}
        if supported:
            with self._in_memory:
                drafts = self._draft([spans[i] for i in supported], base, tuned)
                done = dict(zip(supported, store_drafts(drafts, self._compressors), strict=False))
        if len(done) < len(supported):
            msg = f"{self._device} is out of memory: encoding part of the tensors on the CPU"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        others = [i for i in range(len(spans)) if i not in done]
        done |= zip(others, self._cpu.code([spans[i] for i in others], base, tuned), strict=True)
        return [done[i] for i in range(len(spans))]

    def _draft(self, spans: list[Span], base: Checkpoint, tuned: Checkpoint) -> list[SpanDraft]:
        """Draft the first spans, as many as the device has memory for."""
        try:
            host_spans = [HostSpan.read(span, base, tuned, self._device) for span in spans]
        except torch.OutOfMemoryError:
            return []
        try:
            with self._streams.acquire():
                return self._draft_batch(host_spans, self._memory)
        except torch.OutOfMemoryError:
            pass
        # Retry span by span with little memory, while the device has no other batch.
        drafts: list[SpanDraft] = []
        with self._streams.acquire_all():
            for span in host_spans:
                torch.cuda.empty_cache()
                try:
                    drafts += self._draft_batch([span], MIN_MEMORY)
                except torch.OutOfMemoryError:
                    break
        return drafts

    def _draft_batch(self, spans: list[HostSpan], memory: int) -> list[SpanDraft]:
        """Draft spans in about ``memory`` bytes of the device, at least their words plus a minimum.

        Raises:
            OutOfMemoryError: The device is out of memory.
        """
        left = max(memory - sum(span.upload_bytes(self._device) for span in spans), MIN_MEMORY)
        device_spans = [span.upload(self._device) for span in spans]
        hash_all(device_spans)
        by_coding: defaultdict[tuple[WordCoding, int | None], list[DeviceSpan]] = defaultdict(list)
        for span in device_spans:
            by_coding[span.span.coding, span.span.mantissa_bits].append(span)
        for (coding, mantissa_bits), same_coding in by_coding.items():
            draft_all(same_coding, coding, mantissa_bits, left)
        return [span.to_draft() for span in device_spans]


@cache
def _stream_pool(device: torch.device, number: int) -> StreamPool:
    """Return the streams that all coders of a device share."""
    return StreamPool(device, number)


def require_kernels(device: torch.device) -> None:
    """Require that the kernels run on a device.

    Raises:
        MissingDependencyError: The kernels do not run on it.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = "torch finds no CUDA device; encode on the CPU (omit --device)"
        raise MissingDependencyError(msg)
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        msg = (
            f"the kernels need a CUDA device, not {device.type}; encode on the CPU (omit --device)"
        )
        raise MissingDependencyError(msg)


def _is_supported(span: Span) -> bool:
    """Return whether the kernels support a span."""
    plan = span.plan
    return plan.source is not None and not plan.widening and span.coding.width in WIDTHS

"""Coding spans on a device: words, contexts, streams and hashes there, entropy coding here."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.backends.gpu import WIDTHS, GpuBackend, main_memory
from rlsparse_store.checkpoint import TensorsSource
from rlsparse_store.delta import SPAN_BYTES, CodedTask, CpuCoder, Span
from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.torch.drafted import DraftedTask
from rlsparse_store.torch.drafting import DeviceSpan, Drafting, hash_all
from rlsparse_store.torch.gathered import SplitTensor
from rlsparse_store.torch.tensors import LiveTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlsparse_store.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.delta import SpanTask
    from rlsparse_store.dtypes import WordCoding

__all__ = ["DeviceCoder", "require_kernels"]

GROUP_BYTES: Final = 2 * SPAN_BYTES
"""Bytes of base and tuned that are worked on at a time: one large span, or many small ones. What
Python does for a group takes some milliseconds, whatever its size."""

GROUP_MEMORY: Final = 1 << 29
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
        drafted = self._draft([tasks[i] for i in mine], base) if mine else []
        done = {i: draft.store() for i, draft in zip(mine, drafted, strict=False)}
        others = [i for i in range(len(tasks)) if i not in done]
        done |= zip(others, self._cpu.code([tasks[i] for i in others], base), strict=True)
        return [done[i] for i in range(len(tasks))]

    def _draft(self, tasks: list[SpanTask], base: Checkpoint) -> list[DraftedTask]:
        """What is made of tasks on the device: of as many as its memory allows, from the first."""
        try:
            with _on_one_of(self._together):
                return self._draft_together(tasks, base, BATCH_CHANGES)
        except torch.OutOfMemoryError:
            pass
        # One after the other and in smaller steps, while no other such span is tried.
        drafted: list[DraftedTask] = []
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
    ) -> list[DraftedTask]:
        """Draft tasks, so many changed words at a time.

        Raises:
            OutOfMemoryError: The device's memory does not suffice.
        """
        spans = [self._placed(task, base) for task in tasks]
        hash_all(spans)
        alike: defaultdict[tuple[WordCoding, int | None], list[DeviceSpan]] = defaultdict(list)
        for placed in spans:
            for span in placed:
                alike[span.span.coding, span.span.mantissa_bits].append(span)
        for (coding, mantissa_bits), several in alike.items():
            Drafting(self._backend, several, coding, mantissa_bits).run(most)
        return [
            DraftedTask([span.drafted() for span in placed], placed[0].old_leaves)
            for placed in spans
        ]

    def _placed(self, task: SpanTask, base: Checkpoint) -> list[DeviceSpan]:
        """The words of a task's spans, on the device."""
        first = task.spans[0]
        source = first.plan.source
        assert source is not None  # noqa: S101 - _fits asked for one
        old = self._bytes(base, source, first.start, min(first.stop, source.nbytes))
        return [
            DeviceSpan(span, old, self._tuned_bytes(checkpoint, span))
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
        host = main_memory(max(0, stop - start), self._device)
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

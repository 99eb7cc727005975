"""Coding spans on a device: words, contexts, streams and hashes there, entropy coding here."""

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
from rlsparse_store.gpu.backend import WIDTHS, GpuBackend
from rlsparse_store.gpu.drafter import DeviceSpan, Drafter, hash_all
from rlsparse_store.gpu.drafts import SpanDraft, store_drafts
from rlsparse_store.gpu.streams import DeviceStreams
from rlsparse_store.gpu.upload import HostSpan, lies_on
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.spans import SPAN_BYTES, Span
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.pipeline.spans import CodedSpan

__all__ = ["DeviceCoder", "require_kernels"]

GROUP_BYTES: Final = 2 * SPAN_BYTES
"""Bytes of base and tuned that are brought to the device at a time: one large span, or many small
ones. What Python does for a group takes some milliseconds, whatever its size."""

GROUP_MEMORY: Final = 1 << 29
"""Bytes of device memory that a group takes, or little more: its words and what is made of them."""

GROUPS_EACH: Final = 3
"""Groups in main memory for each that is on the device: one is read, and one compressed."""

HERE_WEIGHT: Final = 6
"""Words that are on the device already count as one in so many bytes of a group."""

LITTLE_MEMORY: Final = 1 << 23
"""Bytes that chunks take at a time, once memory has run out."""


class DeviceCoder:
    """Codes spans on a device, giving the bytes that the CPU gives.

    Spans are compared, split into streams and proven on the device, many of their chunks at a
    time. Then their memory there is given back, and the streams are compressed on threads, while
    the next spans are on the device.

    What the kernels do not take (4-bit and 64-bit words, exact widening, what is stored whole) is
    coded on the CPU. So is what does not fit into the device's memory, with a warning.

    Args:
        device: A CUDA device; under Triton's interpreter, ``"cpu"``.
        memory: Bytes of device memory to use besides what is there, for spans under way. One of
            them, whose words take up to 256 MiB, is there whatever this says.
        threads: Threads that compress; all processors by default.

    Raises:
        MissingDependencyError: There is no such device, or nothing that runs kernels on it.

    Example:
        >>> encode_delta("base", "tuned", "delta", coder=DeviceCoder("cuda"))  # doctest: +SKIP
    """

    group_bytes: Final = GROUP_BYTES

    def __init__(
        self,
        device: Any = "cuda",  # noqa: ANN401 - whatever torch takes
        *,
        memory: int = 1 << 30,
        threads: int | None = None,
    ) -> None:
        require_kernels(torch.device(device))
        # With its number: tensors name theirs, and on other threads another one may be current.
        self._device = torch.empty(0, device=device).device
        self._backend = GpuBackend()
        self._cpu = CpuCoder()
        groups = max(1, memory // GROUP_MEMORY)
        self._memory = min(memory, GROUP_MEMORY)
        self._streams = _streams(self._device, groups)
        self._under_way = BoundedSemaphore(GROUPS_EACH * groups)
        self._storing = ThreadPoolExecutor(resolve_threads(threads), "rlsparse-storing")

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:
        """Bytes to copy to the device, and few for words that are there."""
        source = span.plan.source
        is_here = (
            source is not None
            and lies_on(self._device, base, source)
            and lies_on(self._device, tuned, span.plan.tuned)
        )
        # What is rounded is made there anew.
        stays = _fits(span) and not span.plan.is_cast
        return span.nbytes // (HERE_WEIGHT if is_here and stays else 1)

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode spans, as :class:`~rlsparse_store.pipeline.coder.SpanCoder` says.

        Raises:
            RlsparseError: A checkpoint cannot be read, or a chunk does not decode to itself.
        """
        mine = [i for i, span in enumerate(spans) if _fits(span)]
        done: dict[int, CodedSpan] = {}
        if mine:
            with self._under_way:
                drafts = self._draft([spans[i] for i in mine], base, tuned)
                done = dict(zip(mine, store_drafts(drafts, self._storing), strict=False))
        if len(done) < len(mine):
            msg = f"no memory left on {self._device}: a part is encoded on the CPU, more slowly"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        others = [i for i in range(len(spans)) if i not in done]
        done |= zip(others, self._cpu.code([spans[i] for i in others], base, tuned), strict=True)
        return [done[i] for i in range(len(spans))]

    def _draft(self, spans: list[Span], base: Checkpoint, tuned: Checkpoint) -> list[SpanDraft]:
        """Drafts of spans: of those that the device has memory for, from the first."""
        try:
            read = [HostSpan.read(span, base, tuned, self._device) for span in spans]
        except torch.OutOfMemoryError:
            return []
        try:
            with self._streams.one():
                return self._draft_together(read, self._memory)
        except torch.OutOfMemoryError:
            pass
        # One by one and in smaller steps, while no other group is there.
        drafts: list[SpanDraft] = []
        with self._streams.all():
            for span in read:
                torch.cuda.empty_cache()
                try:
                    drafts += self._draft_together([span], LITTLE_MEMORY)
                except torch.OutOfMemoryError:
                    break
        return drafts

    def _draft_together(self, spans: list[HostSpan], memory: int) -> list[SpanDraft]:
        """Draft spans in about ``memory`` bytes of the device, or in little besides their words.

        Raises:
            OutOfMemoryError: The device's memory does not suffice.
        """
        left = max(memory - sum(span.upload_bytes(self._device) for span in spans), LITTLE_MEMORY)
        there = [span.upload(self._device) for span in spans]
        hash_all(there)
        alike: defaultdict[tuple[WordCoding, int | None], list[DeviceSpan]] = defaultdict(list)
        for span in there:
            alike[span.span.coding, span.span.mantissa_bits].append(span)
        for (coding, mantissa_bits), group in alike.items():
            Drafter(self._backend, group, coding, mantissa_bits).run(left)
        return [span.drafted() for span in there]


@cache
def _streams(device: torch.device, groups: int) -> DeviceStreams:
    """The streams on which groups are drafted, by whichever coder."""
    return DeviceStreams(device, groups)


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

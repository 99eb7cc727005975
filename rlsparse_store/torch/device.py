"""Coding spans on a device: words, contexts, streams and hashes there, entropy coding here."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.backends import Changes
from rlsparse_store.backends.gpu import WIDTHS, GpuBackend, hash_on_device
from rlsparse_store.checkpoint import TensorsSource
from rlsparse_store.codec import (
    DeltaChunk,
    decode_delta,
    decode_whole,
    encode_chunk,
    encode_whole,
    to_bytes,
)
from rlsparse_store.delta import (
    BLOCK_WORDS,
    ChunkCutter,
    Coded,
    CodedSpan,
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
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from rlsparse_store.checkpoint import Checkpoint, TensorRef

__all__ = ["DeviceCoder", "require_kernels"]

SPAN_MEMORY: Final = 384 << 20
"""Bytes of device memory that a span takes at most: its words and what is made of them."""


class DeviceCoder:
    """Codes spans on a device, giving the bytes that the CPU gives.

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

    def __init__(self, device: Any = "cuda", *, memory: int = 1 << 30) -> None:  # noqa: ANN401
        self._device = torch.device(device)
        require_kernels(self._device)
        self._backend = GpuBackend()
        self._cpu = CpuCoder()
        self._under_way = threading.BoundedSemaphore(max(1, memory // SPAN_MEMORY))
        self._alone = threading.Lock()
        self._streams = threading.local()

    def code(
        self, spans: Sequence[Span], base: Checkpoint, tuned: Sequence[Checkpoint]
    ) -> tuple[list[CodedSpan], NDArray[np.uint64]]:
        """Code spans of the same bytes of the base.

        Raises:
            RlsparseError: A checkpoint cannot be read, or what was coded does not decode.
        """
        if not all(map(_fits, spans)):
            return self._cpu.code(spans, base, tuned)
        try:
            with self._under_way, self._stream():
                return self._code(spans, base, tuned)
        except torch.OutOfMemoryError:
            pass
        # Once more while no other such span is tried, then on the CPU.
        try:
            with self._alone, self._stream():
                torch.cuda.empty_cache()
                return self._code(spans, base, tuned)
        except torch.OutOfMemoryError:
            msg = f"no memory left on {self._device}: a part is encoded on the CPU, more slowly"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return self._cpu.code(spans, base, tuned)

    def _stream(self) -> AbstractContextManager[Any]:
        """A stream of this thread's own, so that spans do not wait for each other."""
        if self._device.type != "cuda":
            return nullcontext()
        stream = getattr(self._streams, "stream", None)
        if stream is None:
            stream = self._streams.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(stream)

    def _code(
        self, spans: Sequence[Span], base: Checkpoint, tuned: Sequence[Checkpoint]
    ) -> tuple[list[CodedSpan], NDArray[np.uint64]]:
        first = spans[0]
        source = first.plan.source
        assert source is not None  # noqa: S101 - _fits asked for one
        old = self._bytes(base, source, first.start, min(first.stop, source.nbytes))
        base_leaves = hash_on_device(old)
        coded = []
        for span, checkpoint in zip(spans, tuned, strict=True):
            new = self._tuned_bytes(checkpoint, span)
            coded.append(_DeviceSpan(self._backend, span, old, new, base_leaves).run())
        return coded, base_leaves

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
    wide = words.to(torch.int64) & 0xFFFFFFFF
    rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
    is_nan = (wide & 0x7FFFFFFF) > 0x7F800000
    return torch.where(is_nan, (wide >> 16) | 0x40, rounded).to(torch.int16)


class _DeviceSpan:
    """One span on the device. Its leaf hashes are already taken where they can be."""

    def __init__(
        self,
        backend: GpuBackend,
        span: Span,
        old: torch.Tensor,
        new: torch.Tensor,
        base_leaves: NDArray[np.uint64],
    ) -> None:
        self._backend = backend
        self._span = span
        self._coding = span.coding
        self._old, self._base_leaves = old, base_leaves
        self._new, self._tuned_leaves = new, hash_on_device(new)

    def run(self) -> CodedSpan:
        """Code the span: what is shared as changes, the rest whole."""
        span = self._span
        shared = span.shared_stop - span.start
        chunks = [self._delta(stretch) for stretch in self._stretches(shared)]
        chunks += [self._whole(start, stop) for start, stop in self._rest(shared)]
        return CodedSpan(span, chunks, self._tuned_leaves)

    def _words(self, data: torch.Tensor) -> torch.Tensor:
        return words_of(data, self._coding.width)

    def _stretches(self, shared: int) -> Iterator[Stretch]:
        """What becomes chunks, in bytes of the span."""
        old, new = self._words(self._old[:shared]), self._words(self._new[:shared])
        survey = self._backend.survey(old, new, self._coding, BLOCK_WORDS)
        size = self._coding.nbytes(BLOCK_WORDS)
        cutter = ChunkCutter()
        for number, top_key, start in zip(
            survey.numbers.tolist(), survey.top_keys.tolist(), range(0, shared, size), strict=True
        ):
            cutter.add(start, min(start + size, shared), Changes(number, top_key))
            if cutter.is_full and (full := cutter.close()) is not None:
                yield full
        if (last := cutter.close()) is not None:
            yield last

    def _delta(self, stretch: Stretch) -> Coded:
        """Code a stretch, and prove that it decodes to the same words."""
        coding, row = self._coding, self._span.row
        old = self._old[stretch.start : stretch.stop]
        new = self._new[stretch.start : stretch.stop]
        first = coding.num_words(self._span.start + stretch.start)
        place = None if row is None else (row, first % row)
        # A backend's words may be of a type of its own: these are tensors.
        base: Any = self._words(old)
        tuned: Any = self._words(new)
        backend: Any = self._backend
        chunk = encode_chunk(
            backend, base, tuned, coding, self._span.mantissa_bits, place, stretch.changes
        )
        leaves = _leaves(self._new, self._tuned_leaves, stretch.start, stretch.stop)
        base_check = 0
        if isinstance(chunk, DeltaChunk):
            out: Any = torch.empty_like(tuned)
            decode_delta(backend, base, coding, chunk, place, out)
            found = hash_on_device(out.view(torch.uint8))
            base_leaves = _leaves(self._old, self._base_leaves, stretch.start, stretch.stop)
            base_check = leaves_check(base_leaves)
        else:
            decoded = decode_whole(chunk.stored, len(tuned), coding)
            found = leaf_hashes(to_bytes(decoded, coding.width))
        if not np.array_equal(found, leaves):
            raise proof_failed(self._span.plan)
        check = leaves_check(leaves)
        return Coded(first, len(tuned), chunk, base_check, check, stretch.changes.number)

    def _rest(self, shared: int) -> Iterator[tuple[int, int]]:
        """What the source does not have, in bytes of the span, block by block."""
        size = self._coding.nbytes(BLOCK_WORDS)
        start = shared
        while start < self._new.numel():
            stop = min(start // size * size + size, self._new.numel())
            yield start, stop
            start = stop

    def _whole(self, start: int, stop: int) -> Coded:
        backend: Any = self._backend
        tuned = backend.on_host(self._words(self._new[start:stop]))
        chunk = encode_whole(backend, tuned, self._coding)
        leaves = leaf_hashes(tuned.view(np.uint8))
        decoded = decode_whole(chunk.stored, tuned.size, self._coding)
        if not np.array_equal(leaf_hashes(to_bytes(decoded, self._coding.width)), leaves):
            raise proof_failed(self._span.plan)
        first = self._coding.num_words(self._span.start + start)
        return Coded(first, tuned.size, chunk, 0, leaves_check(leaves), 0)


def _leaves(
    data: torch.Tensor, leaves: NDArray[np.uint64], start: int, stop: int
) -> NDArray[np.uint64]:
    """The leaf hashes of a part that begins with a leaf, from those of the whole."""
    if stop % LEAF_BYTES == 0 or stop == data.numel():
        return leaves[start // LEAF_BYTES : -(-stop // LEAF_BYTES)]
    last = stop // LEAF_BYTES
    short = hash_on_device(data[last * LEAF_BYTES : stop])
    return np.concatenate([leaves[start // LEAF_BYTES : last], short])

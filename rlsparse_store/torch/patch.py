"""``patch_``: turns a loaded base into the tuned model, in place."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import FormatError
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_stored_bytes
from rlsparse_store.pipeline.overlay import Overlay, Segment
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.threads import ordered_map, resolve_threads
from rlsparse_store.torch.model_tensors import Target, check_is_base, find_targets, named_tensors
from rlsparse_store.torch.state_dict import synchronize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rlsparse_store.pipeline.scratch import ScratchBuffer

    OnChange = Callable[[Target, int, NDArray[np.uint8], NDArray[np.uint8]], None]

__all__ = ["patch_", "patch_targets"]


def patch_(
    model: Any,  # noqa: ANN401 - a module or a mapping
    delta: str | PathLike[str],
    *,
    subfolder: str = "",
    threads: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Any:  # noqa: ANN401 - the model
    """Turn a loaded base into the tuned model, in place.

    Before the first write, the whole model is compared with the delta's digests and all stored
    bytes with their checksums. An interruption after that leaves the model partly patched. Only
    weights change: the configuration stays the base's.

    Args:
        model: A module, a transformers model (its weights may be fused or renamed), or a state dict
            with the checkpoint's names. It must hold the base's weights in the base's dtype, whole
            and in memory, on any device. The CPU patches copies of what is on another device; with
            ``RLSPARSE_GPU=1`` in the environment, a CUDA device patches its tensors itself.
            Experimental: never run on a GPU.
        delta: Folder of the delta, its URL in object storage, or ``org/name[@revision]`` on the
            Hub.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        threads: Number of threads; defaults to all processors.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        token: Access token for the Hub; defaults to the stored one.
        cache_dir: Cache folder of the Hub; defaults to that of ``huggingface_hub``.
        local_files_only: Use only the cache and make no requests.

    Returns:
        The model.

    Raises:
        NotFoundError: The delta does not exist.
        FormatError: The delta is damaged.
        BaseMismatchError: The model is not the base.
        RlsparseError: The delta cannot be applied in place.

    Example:
        >>> patch_(model, "qwen-grpo-delta")  # doctest: +SKIP
    """
    workers = resolve_threads(threads)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with DeltaReader(find_delta(delta, revision, subfolder, access)) as reader:
        targets = find_targets(reader, named_tensors(model))
        check_is_base(reader, targets, workers, {})
        check_stored_bytes(reader, workers)
        try:
            patch_targets(reader, targets, workers)
        except FormatError as error:
            error.message += "; the model is partly patched: load it again"
            raise
        except BaseException as error:
            error.add_note("the model is partly patched: load it again")
            raise
    return model


@dataclass(frozen=True, slots=True)
class _Task:
    """Chunks of a tensor that one thread decodes."""

    target: Target
    overlay: Overlay
    chunks: list[Segment]
    nbytes: int


def patch_targets(
    reader: DeltaReader, targets: list[Target], threads: int, on_change: OnChange | None = None
) -> None:
    """Apply a delta to tensors in memory.

    Args:
        reader: The delta. Its stored bytes must have been checked.
        targets: The tensors. They must have been compared with the base.
        threads: Number of threads.
        on_change: Called before each change with the tensor, the offset of the first byte, and the
            bytes before and after; called on several threads.

    Raises:
        FormatError: The delta is damaged. Earlier writes are correct.
    """
    decoder, scratch = ChunkDecoder(reader, None), Scratch()

    def patch(task: _Task) -> None:
        _patch(task, scratch.tuned, on_change)

    on_devices: defaultdict[torch.device, list[Target]] = defaultdict(list)
    for target in targets:
        if on_change is None and target.runs_kernels:
            on_devices[target.tensor.device].append(target)
    others = [t for t in targets if on_change is not None or not t.runs_kernels]
    try:
        for device, device_targets in on_devices.items():
            from rlsparse_store.gpu.patch import patch_on_device  # noqa: PLC0415 - needs Triton

            patch_on_device(reader, device_targets, device, threads)
        for _ in ordered_map(patch, _tasks(decoder, others), threads):
            pass
    finally:
        # The caller may use the model on any stream, or free its memory after an error.
        synchronize(target.tensor for target in targets)


def _tasks(decoder: ChunkDecoder, targets: list[Target]) -> Iterator[_Task]:
    """Yield single chunks of tensors that change in place, and all chunks of other tensors."""
    for target in targets:
        overlay = Overlay(target.record, target.chunks, None, decoder)
        chunks = [segment for segment in overlay.segments() if segment.chunk is not None]
        if target.is_direct:
            for chunk in chunks:
                yield _Task(target, overlay, [chunk], chunk.nbytes)
        elif chunks:
            yield _Task(target, overlay, chunks, target.nbytes)


def _patch(task: _Task, buffer: ScratchBuffer, on_change: OnChange | None) -> None:
    target = task.target
    data = target.load()
    try:
        for chunk in task.chunks:
            before = data[chunk.start : chunk.stop]
            # Decoded beside the model, which never holds unchecked words.
            after, _ = task.overlay.decode(chunk, before, buffer.take(chunk.nbytes))
            if on_change is not None:
                on_change(target, chunk.start, before, after)
            before[:] = after
    finally:
        # Also after an error: on_change has already seen these changes.
        target.store(data)

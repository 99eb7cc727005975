"""``patch_``: a loaded base becomes the tuned model, in place."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import FormatError
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_batches import check_stored_bytes
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.threads import ordered_map, resolve_threads
from rlsparse_store.torch.model_tensors import Target, check_is_base, find_targets, live_tensors
from rlsparse_store.torch.state_dict import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rlsparse_store.format.index.records import ChunkRecord

    Watch = Callable[[Target, int, NDArray[np.uint8], NDArray[np.uint8]], None]

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

    All of the model is compared with the delta's digests, and all that the delta stores with its
    checks, before the first weight is written. If it is interrupted after that, the model is partly
    patched. Only weights change: the configuration stays the base's.

    Args:
        model: A module, a model of transformers, whose weights may be fused or renamed, or a
            state dict with the names of the checkpoint. It must hold the base's weights in the
            base's dtype, whole and in memory, on any device.
        delta: Folder of the delta, or ``org/name[@revision]`` on the Hub.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        threads: Threads to work on; all processors by default.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        The model.

    Raises:
        NotFoundError: The delta is not there.
        FormatError: The delta is damaged.
        BaseMismatchError: The model is not the base.
        RlsparseError: The delta makes something of a tensor that cannot be made in place.

    Example:
        >>> patch_(model, "qwen-grpo-delta")  # doctest: +SKIP
    """
    workers = resolve_threads(threads)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with DeltaReader(find_delta(delta, revision, subfolder, access)) as reader:
        targets = find_targets(reader, live_tensors(model))
        check_is_base(reader, targets, workers, {})
        # Before anything is written.
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
class _ChunkGroup:
    """Chunks of a tensor that are decoded together."""

    target: Target
    chunks: list[ChunkRecord]
    nbytes: int


def patch_targets(
    reader: DeltaReader, targets: list[Target], threads: int, watch: Watch | None = None
) -> None:
    """Change tensors in memory as a delta says.

    Args:
        reader: The delta, whose stored bytes were checked.
        targets: The tensors, which were compared with the base.
        threads: Threads to work on.
        watch: Told of each change before it is made: the tensor, the place of the first byte, the
            bytes before and after. Called from several threads.

    Raises:
        FormatError: The delta is damaged. What was written before that is right.
    """
    decoder, scratch = ChunkDecoder(reader, None), Scratch()

    def patch(piece: _ChunkGroup) -> None:
        _patch(decoder, scratch, piece, watch)

    on_devices: defaultdict[torch.device, list[Target]] = defaultdict(list)
    for target in targets:
        if watch is None and target.runs_kernels:
            on_devices[target.tensor.device].append(target)
    rest = [t for t in targets if watch is not None or not t.runs_kernels]
    try:
        for device, there in on_devices.items():
            from rlsparse_store.gpu.patch import patch_on_device  # noqa: PLC0415 - needs Triton

            patch_on_device(reader, there, device, threads)
        for _ in ordered_map(patch, _chunk_groups(rest), threads):
            pass
    finally:
        # Whoever uses the model, on whichever stream, finds it patched; and if it is only partly
        # so, nothing is written to its memory any more once it is given back.
        wait_for(target.tensor for target in targets)


def _chunk_groups(targets: list[Target]) -> Iterator[_ChunkGroup]:
    """Chunk by chunk where memory is changed where it is, else tensor by tensor."""
    for target in targets:
        if target.is_direct:
            for chunk in target.chunks:
                yield _ChunkGroup(target, [chunk], target.place(chunk)[1])
        elif target.chunks:
            yield _ChunkGroup(target, target.chunks, target.nbytes)


def _patch(
    decoder: ChunkDecoder, scratch: Scratch, piece: _ChunkGroup, watch: Watch | None
) -> None:
    target = piece.target
    whole = target.load()
    try:
        for chunk in piece.chunks:
            start, nbytes = target.place(chunk)
            place = whole[start : start + nbytes]
            # Decoded beside it: nothing that is not checked is ever in the model.
            room = scratch.tuned.take(place.size)
            room[:] = place
            after, _ = decoder.decode(target.record, chunk, room)
            if watch is not None:
                watch(target, start, place, after)
            place[:] = after
    finally:
        # What was watched is in the model, where undoing it expects it.
        target.store(whole)

"""``DeltaEncoder``: deltas of a model in training, made where its weights are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_open
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.frameworks.torch import LiveTensor, has_kernels
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.coder import CpuCoder, SpanCoder
from rlsparse_store.pipeline.fingerprints import BaseHashes
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.torch.dtensor import is_split
from rlsparse_store.torch.model_tensors import live_tensors
from rlsparse_store.torch.process_group import Ranks
from rlsparse_store.torch.sharded_encoder import encode_sharded
from rlsparse_store.torch.state_dict import live_checkpoint, wait_for

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.files.checkpoint import TensorRef

__all__ = ["DeltaEncoder"]

KEEP: Final = ("files", "host", "device")

SLAB_BYTES: Final = 1 << 30
"""Bytes of main memory that small tensors share."""

STAGED_BYTES: Final = 1 << 26
"""Bytes of main memory through which the base is read to a device."""

ALIGNMENT: Final = 64
"""What divides the place of a tensor in a slab."""

_BYTE: Final = torch.uint8


class DeltaEncoder(Closeable):
    """Stores a model in training as deltas against its base, again and again.

    The delta has the same bytes as :func:`rlsparse_store.encode_delta` gives for the state dict
    saved by safetensors in one file, with ``{"format": "pt"}``; for one that is saved in several,
    the tensors are equal.

    Args:
        base: The base: a folder, a ``.safetensors`` file or ``org/name[@revision]``.
        device: Where deltas are made: a CUDA device, or ``"cpu"``; by default the first CUDA device
            if there is one.
        keep: Where the base stays between deltas: ``"files"`` reads it each time, ``"host"`` holds
            it in main memory (pinned, if there is a CUDA device and as much can be), ``"device"``
            on the device.
        memory: Bytes of device memory to use besides the base and the model; where tensors are
            split over ranks, the writer keeps as many bytes of gathered ones.
        threads: Threads to work on; all processors by default.
        base_revision: Branch, tag or commit of the base on the Hub, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: The base is not there.
        CheckpointError: It is broken.

    Example:
        >>> with DeltaEncoder("Qwen/Qwen2.5-7B", keep="device") as encoder:  # doctest: +SKIP
        ...     encoder.encode(model.state_dict(), "run/step-100")
    """

    def __init__(  # noqa: PLR0913 - what from_pretrained takes of the Hub
        self,
        base: str | PathLike[str],
        *,
        device: Any = None,  # noqa: ANN401 - whatever torch takes
        keep: str = "files",
        memory: int = 1 << 30,
        threads: int | None = None,
        base_revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        if keep not in KEEP:
            msg = f"keep={keep!r}: choose one of {', '.join(KEEP)}"
            raise ValueError(msg)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._threads = threads
        self._memory = memory
        self._coder = _coder(torch.device(device), memory, threads)
        self._hashes = BaseHashes()
        access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        found = open_checkpoint(find_checkpoint(base, "base", access, base_revision))
        if keep == "files":
            self._base = found
        else:
            with found:
                self._base = _resident(found, torch.device(device) if keep == "device" else None)

    def encode(
        self,
        model: Any,  # noqa: ANN401 - a module or a mapping
        out: str | PathLike[str],
        *,
        cast: Literal["bf16"] | None = None,
        keep_dtype: bool = False,
        shard_bytes: int = SHARD_BYTES,
        progress: Progress = no_progress,
        group: Any = None,  # noqa: ANN401 - a process group of torch
    ) -> EncodeReport:
        """Store the model as it is now. Nothing may write to it meanwhile.

        Configuration and tokenizer are not part of a state dict: save them into ``out`` afterwards.

        Tensors may be split over ranks, in any way that DTensor knows (FSDP2, tensor parallelism).
        Then every rank calls this with its state dict. Tensors are gathered one by one, so that no
        rank needs memory for more than one besides its model (twice that for one that is not split
        by rows), and the first rank encodes and writes: the others only take part in gathering. The
        delta is the one that the whole state dict gives, byte for byte. If one rank fails, all do,
        and nothing is left behind; a rank that ends without a word is noticed after the process
        group's timeout at the latest.

        Args:
            model: A state dict, or a module. Tensors lie on any device, whole or as DTensors.
            out: Folder of the delta, which must not exist or be empty.
            cast: ``"bf16"`` rounds float32 tensors of a bfloat16 base first. Lossy, and recorded.
            keep_dtype: Store tensors whose dtype does not fit the base's whole.
            shard_bytes: Bytes of chunks after which a new file is begun.
            progress: Called with bytes done and bytes in all.
            group: The process group of the ranks that call this; the default one if left out.

        Returns:
            What was stored and what it takes, on every rank.

        Raises:
            UnsupportedDtypeError: A tensor is of a kind or dtype that no checkpoint has.
            DtypeMismatchError: A dtype does not fit, and neither option says what to do.
            OutputError: The delta cannot be written.
            CheckpointError: The ranks hold different state dicts.
            RlsparseError: Another rank failed.

        Example:
            >>> encoder.encode(fsdp_model.state_dict(), "run/step-100")  # doctest: +SKIP
        """
        policy = dtype_policy(cast, keep=keep_dtype)
        tensors = live_tensors(model)
        # What the trainer began on any stream is in the weights.
        wait_for(tensors.values())

        def write(tuned: Checkpoint, coder: SpanCoder) -> EncodeReport:
            # Those that were not contiguous were copied since, and are read on other streams.
            wait_for(tensors.values())
            encoder = Encoder(self._base, tuned, policy, self._hashes)
            return encode_open(encoder, Path(out), self._threads, shard_bytes, progress, coder)

        if any(map(is_split, tensors.values())):
            return encode_sharded(Ranks(group), tensors, self._coder, self._memory, write)
        return write(live_checkpoint(tensors), self._coder)

    def close(self) -> None:
        """Close the base's files, and let go of what is kept of it."""
        self._base.close()


def _coder(device: torch.device, memory: int, threads: int | None) -> SpanCoder:
    if device.type == "cpu":
        return CpuCoder()
    from rlsparse_store.gpu.coder import DeviceCoder  # noqa: PLC0415 - needs Triton

    return DeviceCoder(device, memory=memory, threads=threads)


def _resident(base: Checkpoint, device: torch.device | None) -> Checkpoint:
    """The base's tensors on a device, or in main memory."""
    slabs = _Slabs(base.nbytes if device is None else STAGED_BYTES)
    staging = None if device is None else slabs.take(STAGED_BYTES)
    tensors = {}
    for name, ref in base.tensors.items():
        if staging is None:
            data = slabs.take(ref.nbytes)
            base.read_into(ref, 0, data.numpy())
        else:
            data = torch.empty(ref.nbytes, dtype=_BYTE, device=device)
            _read_through(staging, base, ref, data)
        tensors[name] = LiveTensor(data, ref.dtype, ref.shape)
    return checkpoint_in_memory(tensors, base.path)


def _read_through(
    staging: torch.Tensor, base: Checkpoint, ref: TensorRef, out: torch.Tensor
) -> None:
    """Read a tensor to a device, part by part, through main memory that it copies from."""
    for start in range(0, ref.nbytes, len(staging)):
        part = staging[: ref.nbytes - start]
        base.read_into(ref, start, part.numpy())
        out[start : start + len(part)].copy_(part)


class _Slabs:
    """Main memory for many tensors, pinned if there is a CUDA device for kernels.

    torch rounds each piece that it pins up to a power of two: tensors share large ones. What cannot
    be pinned is held all the same.

    Args:
        nbytes: Bytes of all tensors.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._slab = torch.empty(0, dtype=_BYTE, device="cpu")
        self._pins = torch.cuda.is_available() and has_kernels(torch.device("cuda"))

    def take(self, nbytes: int) -> torch.Tensor:
        """Memory for a tensor."""
        if nbytes > len(self._slab):
            size = max(nbytes, min(SLAB_BYTES, self._left))
            self._slab = self._pinned(size) if self._pins else self._unpinned(size)
        taken = self._slab[:nbytes]
        self._slab = self._slab[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        self._left -= nbytes
        return taken

    def _pinned(self, nbytes: int) -> torch.Tensor:
        from rlsparse_store.gpu.launch import main_memory  # noqa: PLC0415 - needs Triton

        try:
            return main_memory(nbytes, torch.device("cuda"))
        except torch.OutOfMemoryError:
            msg = "no more main memory can be pinned: the base is copied from it more slowly"
            warnings.warn(msg, RuntimeWarning, stacklevel=5)
            self._pins = False
            return self._unpinned(nbytes)

    @staticmethod
    def _unpinned(nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=_BYTE, device="cpu")

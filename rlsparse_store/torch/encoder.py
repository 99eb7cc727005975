"""``DeltaEncoder``: encodes a model in training against its base."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.delta_place import new_delta_place
from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_open
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.kept_hashes import KeptHashes
from rlsparse_store.delta.plausibility import issue_warnings
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.frameworks.torch import LiveTensor
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.coder import CpuCoder, SpanCoder
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.torch.dtensor import is_dtensor
from rlsparse_store.torch.host_memory import HostSlabs
from rlsparse_store.torch.live_names import require_unfused
from rlsparse_store.torch.model_tensors import named_tensors
from rlsparse_store.torch.process_group import Ranks
from rlsparse_store.torch.saved_parts import saved_parts, state_dict_of, whole_parts
from rlsparse_store.torch.state_dict import live_checkpoint, synchronize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.files.checkpoint import TensorRef
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy
    from rlsparse_store.torch.saved_parts import Part

__all__ = ["DeltaEncoder"]

Keep = Literal["files", "host", "device"]

STAGING_BYTES: Final = 1 << 26
"""Bytes of the main-memory buffer through which the base is copied to a device."""

_BYTE: Final = torch.uint8


class DeltaEncoder(Closeable):
    """Encodes a model in training against its base, any number of times.

    The delta is byte for byte the one that :func:`rlsparse_store.encode_delta` writes for the state
    dict saved by safetensors in one file with ``{"format": "pt"}``. That of a model on several
    ranks stores the same tensors in other chunks and files.

    Args:
        base: The base: a folder, a ``.safetensors`` file or ``org/name[@revision]``.
        device: The device that encodes: ``"cpu"``, or a CUDA device. Experimental: never run on a
            GPU. The model may be on any device.
        keep: Where the base is kept between deltas: ``"files"`` reads it each time, ``"host"``
            keeps it in main memory (pinned if possible), ``"device"`` keeps it on the device.
        memory: Bytes of device memory to use in addition to the base and the model.
        threads: Number of threads; defaults to all processors, with DTensors to this rank's share
            of them.
        base_revision: Branch, tag or commit of the base on the Hub, if the id does not name one.
        token: Access token for the Hub; defaults to the stored one.
        cache_dir: Cache folder of the Hub; defaults to that of ``huggingface_hub``.
        local_files_only: Use only the cache and make no requests.

    Raises:
        NotFoundError: The base does not exist.
        CheckpointError: The base cannot be read.
        MissingDependencyError: The device needs a package that is not installed.

    Example:
        >>> with DeltaEncoder("Qwen/Qwen2.5-7B", keep="host") as encoder:  # doctest: +SKIP
        ...     encoder.encode(model.state_dict(), "run/step-100")
    """

    def __init__(  # noqa: PLR0913 - Hub options as in from_pretrained
        self,
        base: str | PathLike[str],
        *,
        device: Any = "cpu",  # noqa: ANN401 - anything that torch.device accepts
        keep: Keep = "files",
        memory: int = 1 << 30,
        threads: int | None = None,
        base_revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        if keep not in get_args(Keep):
            msg = f"keep={keep!r}: choose one of {', '.join(get_args(Keep))}"
            raise ValueError(msg)
        self._device = torch.device(device)
        self._keep = keep
        self._threads = threads
        self._coder = _coder(self._device, memory, threads)
        self._hashes = KeptHashes()
        access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        opened = open_checkpoint(find_checkpoint(base, "base", access, base_revision))
        self._name = str(base)
        if keep == "files":
            self._base = opened
        else:
            with opened:
                self._base = _load_base(opened, self._device if keep == "device" else None)

    def __repr__(self) -> str:
        return f"DeltaEncoder({self._name!r}, device='{self._device}', keep={self._keep!r})"

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
        """Encode the model's current weights. Nothing may write to them during the call.

        A state dict holds no configuration and no tokenizer: save them into ``out`` afterwards.

        The state dict may hold DTensors with any placements (FSDP2, tensor parallelism). Then every
        rank calls this method with its state dict, and encodes the rows that it holds into a file
        of its own; the first rank adds the index. Nothing is gathered. Tensors that are split by
        columns are redistributed to rows first, which takes memory for a rank's part of them. All
        ranks need the base, and a folder ``out`` on a file system that they share. Plans are made
        from names, dtypes and shapes, as
        :class:`~rlsparse_store.integrations.dcp.DeltaStorageWriter` does. If one rank fails, all
        ranks raise and no output remains; a rank that dies is noticed after the process group's
        timeout at the latest.

        Args:
            model: A state dict or a module. Tensors may be on any device, whole or DTensors.
            out: Folder of the delta, which must be empty or not exist, or its URL in object
                storage.
            cast: ``"bf16"`` rounds float32 tensors of a bfloat16 base. Lossy, and recorded.
            keep_dtype: Store a tensor whole if its dtype does not fit the base's.
            shard_bytes: Bytes of chunks per file. With DTensors, each rank writes one file.
            progress: Called with the bytes done and the total, with DTensors of this rank.
            group: Process group of the calling ranks; defaults to the default group.

        Returns:
            The size and contents of the delta, on every rank.

        Raises:
            UnsupportedDtypeError: A checkpoint cannot hold a tensor of this type or dtype.
            DtypeMismatchError: A dtype does not fit the base's; pass ``cast`` or ``keep_dtype``.
            OutputError: The delta cannot be written.
            BucketError: The object storage failed.
            CheckpointError: The ranks hold different state dicts.
            RlsparseError: Another rank failed.

        Example:
            >>> encoder.encode(fsdp_model.state_dict(), "run/step-100")  # doctest: +SKIP
        """
        policy = dtype_policy(cast, keep=keep_dtype)
        if isinstance(model, torch.nn.Module) and any(map(is_dtensor, model.parameters())):
            return self._encode_sharded(model, out, policy, progress, group)
        tensors = named_tensors(model)
        require_unfused(tensors, self._base.tensors)
        # The trainer's work on any stream must be complete.
        synchronize(tensors.values())
        if any(map(is_dtensor, tensors.values())):
            return self._encode_sharded(tensors, out, policy, progress, group)
        tuned = live_checkpoint(tensors)
        # Copies of non-contiguous tensors must be complete: other streams read them.
        synchronize(tensors.values())
        # What looks wrong is a warning: storing a checkpoint never ends a training job.
        encoder = Encoder(self._base, tuned, policy, self._hashes.tensors, force=True)
        with new_delta_place(out) as folder:
            report = encode_open(encoder, folder, self._threads, shard_bytes, progress, self._coder)
        issue_warnings(report)
        return report

    def _encode_sharded(
        self,
        model: torch.nn.Module | dict[str, torch.Tensor],
        out: str | PathLike[str],
        policy: DtypePolicy,
        progress: Progress,
        group: Any,  # noqa: ANN401 - as above
    ) -> EncodeReport:
        from rlsparse_store.torch.sharded_encoder import encode_sharded  # noqa: PLC0415 - slow
        from rlsparse_store.torch.slab_writer import SlabWriter  # noqa: PLC0415 - as above

        tensors = model if isinstance(model, dict) else state_dict_of(model)
        # The trainer's work on any stream must be complete.
        synchronize(tensors.values())

        def parts_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Part]]:
            if isinstance(model, torch.nn.Module):
                return saved_parts(model)
            return whole_parts({key: key for key in shapes}, shapes)

        writer = SlabWriter(
            lambda: nullcontext(self._base),
            parse_bucket_url(out) or Path(out),
            policy,
            parts_of=parts_of,
            coder=self._coder,
            threads=self._threads,
            hashes=self._hashes,
            progress=progress,
        )
        return encode_sharded(Ranks(group), tensors, writer)

    def close(self) -> None:
        """Close the base's files and free its memory."""
        self._base.close()


def _coder(device: torch.device, memory: int, threads: int | None) -> SpanCoder:
    if device.type == "cpu":
        return CpuCoder()
    from rlsparse_store.torch import DeviceCoder  # noqa: PLC0415 - needs Triton, and says so

    return DeviceCoder(device, memory=memory, threads=threads)


def _load_base(base: Checkpoint, device: torch.device | None) -> Checkpoint:
    """Load the base's tensors to a device, or to main memory if it is ``None``."""
    slabs = HostSlabs(base.nbytes if device is None else STAGING_BYTES)
    staging = None if device is None else slabs.take(STAGING_BYTES)
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
    """Copy a tensor to a device, part by part, through a buffer in main memory."""
    for start in range(0, ref.nbytes, len(staging)):
        part = staging[: ref.nbytes - start]
        base.read_into(ref, start, part.numpy())
        out[start : start + len(part)].copy_(part)

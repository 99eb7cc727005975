"""The tensors of a loaded base, matched with the tensors of a delta."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.digests import TensorDigester
from rlsparse_store.format.index.records import Kind
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.torch import bytes_of, code_of, runs_kernels
from rlsparse_store.gpu.chunk_words import WIDTHS
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.chunk_decoder import wrong_base
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map
from rlsparse_store.torch.live_names import plain_names
from rlsparse_store.torch.state_dict import synchronize

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord

__all__ = ["Target", "check_is_base", "find_targets", "named_tensors"]

HASH_BATCH_BYTES: Final = 1 << 28
"""Bytes of tensors on a device that are hashed in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A tensor in memory and the part of a delta that applies to it.

    Attributes:
        record: The delta's record of the tensor.
        tensor: The tensor.
        chunks: The delta's chunks of the tensor.
    """

    record: TensorRecord
    tensor: torch.Tensor
    chunks: list[ChunkRecord]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.record.nbytes

    @property
    def is_direct(self) -> bool:
        """Whether the CPU can change the tensor's bytes in place."""
        t = self.tensor
        is_aligned = t.data_ptr() % t.element_size() == 0
        return t.device.type == "cpu" and t.is_contiguous() and is_aligned

    @property
    def runs_kernels(self) -> bool:
        """Whether the GPU kernels hash and patch the tensor in place."""
        coding = self.record.coding or self.record.dtype.coding
        is_there = self.tensor.is_contiguous() and runs_kernels(self.tensor.device)
        return is_there and coding.width in WIDTHS

    @property
    def device_bytes(self) -> torch.Tensor:
        """The tensor's bytes on its device, without a copy."""
        return self.tensor.detach().view(-1).view(torch.uint8)

    def extent(self, chunk: ChunkRecord) -> tuple[int, int]:
        """Return the offset of a chunk's first byte in the tensor, and its length in bytes."""
        coding = self.record.coding
        assert coding is not None  # noqa: S101 - a tensor with chunks has a coding
        return coding.nbytes(chunk.first), coding.nbytes(chunk.length)

    def load(self) -> NDArray[np.uint8]:
        """Return the row-major bytes: the tensor's own memory if it is direct, else a copy."""
        tensor = self.tensor.detach()
        return bytes_of(tensor if self.is_direct else tensor.to("cpu", copy=True).contiguous())

    def store(self, data: NDArray[np.uint8]) -> None:
        """Write back the bytes of :meth:`load`. A direct tensor needs no write."""
        if not self.is_direct:
            tensor = self.tensor.detach()
            tensor.copy_(torch.from_numpy(data).view(tensor.dtype).view(tensor.shape))


def named_tensors(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - a module or a mapping
    """Return the tensors of a model or state dict by checkpoint name, without copies.

    Raises:
        TypeError: The argument is neither a model nor a state dict.
        RlsparseError: The model is wrapped or holds an adapter, which changes its weights' names.
    """
    if isinstance(model, Mapping):
        return plain_names(model)
    if not isinstance(model, torch.nn.Module):
        msg = f"{type(model).__name__} is neither a model nor a state dict"
        raise TypeError(msg)
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        from rlsparse_store.torch.weight_views import checkpoint_views  # noqa: PLC0415 - takes seconds

        tensors = checkpoint_views(model)
    else:
        tensors = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    tensors = plain_names(tensors)
    _check_no_copies(model, tensors)
    return tensors


def _check_no_copies(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Require that tensors share the model's memory: some wrappers return copies.

    Raises:
        RlsparseError: A tensor is a copy.
    """
    storages = {
        t.untyped_storage().data_ptr()
        for t in (*model.parameters(), *model.buffers())
        if type(t) in {torch.Tensor, torch.nn.Parameter}
    }
    for name, t in tensors.items():
        is_plain = type(t) in {torch.Tensor, torch.nn.Parameter} and not t.is_meta
        if is_plain and t.numel() and t.untyped_storage().data_ptr() not in storages:
            msg = "is a copy of the model's weights (FSDP?): patch the model before wrapping it"
            raise RlsparseError(msg, tensor=printable(name))


def find_targets(reader: DeltaReader, tensors: Mapping[str, torch.Tensor]) -> list[Target]:
    """Find the tensors of a delta in memory, changed or not.

    Tied names are one target.

    Raises:
        BaseMismatchError: A tensor is missing, or differs from the base's in shape or dtype.
        RlsparseError: The delta changes a tensor in a way that is impossible in place.
    """
    chunks = reader.index.chunks_of_tensors()
    records = {t.name: t for t in reader.index.tensors}
    found: dict[tuple[Any, ...], Target] = {}
    for t in reader.index.tensors:
        record = records[t.origin] if t.kind is Kind.ALIAS else t
        original = tensors.get(t.origin) if t.kind is not Kind.WHOLE else None
        tensor = tensors.get(t.name, original)
        if tensor is None:
            raise wrong_base(reader, None, t.name, "is not in the model")
        _check_fits(reader, record, t.name, tensor)
        target = Target(record, tensor, chunks.get(record.name, []))
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        other = found.setdefault(memory, target) if tensor.numel() else target
        if other.record.tuned_digest != record.tuned_digest:
            msg = (
                f"shares its memory with {printable(other.record.name)!r} in the model but has "
                "different values in the tuned checkpoint: load the model from the delta instead"
            )
            raise RlsparseError(msg, file=reader.path, tensor=printable(t.name))
    return list(found.values())


def _check_fits(reader: DeltaReader, t: TensorRecord, name: str, tensor: torch.Tensor) -> None:
    """Require that the tuned tensor fits into the memory of this tensor."""
    if type(tensor) not in {torch.Tensor, torch.nn.Parameter} or tensor.is_meta:
        msg = (
            f"is a {type(tensor).__name__} on {tensor.device}: only whole tensors in memory can "
            "be patched; patch the model before it is sharded, quantised or offloaded"
        )
        raise RlsparseError(msg, file=reader.path, tensor=printable(name))
    if t.widening or t.tail:
        what = "widens" if t.widening else "resizes"
        msg = f"the delta {what} it, and that is impossible in place: load the model from the delta"
        raise RlsparseError(msg, file=reader.path, tensor=printable(name))
    code = code_of(tensor.dtype)
    if code != t.dtype.code:
        problem = (
            f'is {code or tensor.dtype} in the model, not {t.dtype.code}: load it with dtype="auto"'
        )
        raise wrong_base(reader, None, name, problem)
    if tuple(tensor.shape) != t.shape and code != "F4":
        problem = f"is {list(tensor.shape)} in the model, not {list(t.shape)}"
        raise wrong_base(reader, None, name, problem)


def check_is_base(
    reader: DeltaReader, targets: list[Target], threads: int, known: dict[int, bytes]
) -> None:
    """Require that the tensors in memory have the base's digests.

    Args:
        reader: The delta.
        targets: The tensors of the delta.
        threads: Number of threads.
        known: Cache of digests by the address of a tensor's memory; this function extends it.

    Raises:
        BaseMismatchError: A tensor has other values.
    """

    def digest(batch: Batch[Target]) -> list[Target]:
        unknown = [t for t in batch.items if t.tensor.data_ptr() not in known]
        for target, digester in zip(unknown, _digesters(unknown), strict=True):
            known[target.tensor.data_ptr()] = digester.digest()
        return batch.items

    from_base = [t for t in targets if t.record.kind is not Kind.WHOLE]
    # The threads use other streams than the one that wrote the tensors.
    synchronize(target.tensor for target in targets)
    for batch in ordered_map(digest, _hash_batches(from_base), threads):
        for target in batch:
            t = target.record
            if known[target.tensor.data_ptr()] != (t.base_digest or t.tuned_digest):
                raise wrong_base(reader, reader.path, t.name, "has different values in the model")


def _hash_batches(targets: list[Target]) -> Iterator[Batch[Target]]:
    """Yield batches of tensors on one device, and single tensors in main memory."""
    on_devices: defaultdict[torch.device, list[Target]] = defaultdict(list)
    for target in targets:
        if target.runs_kernels:
            on_devices[target.tensor.device].append(target)
        else:
            yield Batch([target], target.nbytes)
    for on_device in on_devices.values():
        yield from batched(((target, target.nbytes) for target in on_device), HASH_BATCH_BYTES)


def _digesters(targets: list[Target]) -> list[TensorDigester]:
    """Return the completed digesters of a batch."""
    leaves = _device_leaves(targets) if targets and targets[0].runs_kernels else None
    hash_leaves = get_backend().leaf_hashes
    digesters = [TensorDigester(target.nbytes, hash_leaves) for target in targets]
    for i, (target, digester) in enumerate(zip(targets, digesters, strict=True)):
        if leaves is None:
            digester.add(target.load())
        else:
            digester.add_leaves(leaves[i])
    return digesters


def _device_leaves(targets: list[Target]) -> list[NDArray[np.uint64]] | None:
    """Hash tensors on their device; return ``None`` if the device is out of memory."""
    from rlsparse_store.gpu.hashing import hash_all_on_device  # noqa: PLC0415 - needs Triton

    try:
        return hash_all_on_device([target.device_bytes for target in targets])
    except torch.OutOfMemoryError:
        return None

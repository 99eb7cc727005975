"""The tensors of a loaded base, each with what a delta changes in it."""

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
from rlsparse_store.frameworks.torch import bytes_of, code_of, has_kernels
from rlsparse_store.pipeline.chunk_decoder import wrong_base
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map
from rlsparse_store.torch.state_dict import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord

__all__ = ["Live", "Target", "check_is_base", "find_targets", "live_tensors"]

_WRAPPERS: Final = {
    "_orig_mod.": "what torch.compile was given",
    "module.": "what was wrapped",
}
"""What wrappers put before the names of all weights, and which model to give instead."""

HASHED_BYTES: Final = 1 << 28
"""Bytes of tensors on a device that a thread has hashed at a time."""

Live = dict[str, torch.Tensor]
"""Tensors by the names they have in a checkpoint, which share the model's memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A tensor in memory and what a delta makes of it.

    Attributes:
        record: What the delta says of it.
        tensor: The tensor.
        chunks: The chunks that change it.
    """

    record: TensorRecord
    tensor: torch.Tensor
    chunks: list[ChunkRecord]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.record.nbytes

    @property
    def is_direct(self) -> bool:
        """Whether its bytes can be changed where they are."""
        t = self.tensor
        is_aligned = t.data_ptr() % t.element_size() == 0
        return t.device.type == "cpu" and t.is_contiguous() and is_aligned

    @property
    def runs_kernels(self) -> bool:
        """Whether its words can be hashed and patched on the device where they are."""
        coding = self.record.coding or self.record.dtype.coding
        return runs_kernels(self.tensor) and coding.width in (8, 16, 32)

    @property
    def device_bytes(self) -> torch.Tensor:
        """Its bytes where they are, shared with it."""
        return self.tensor.detach().view(-1).view(torch.uint8)

    def place(self, chunk: ChunkRecord) -> tuple[int, int]:
        """The first byte of a chunk in its data, and how many bytes it has."""
        coding = self.record.coding
        assert coding is not None  # noqa: S101 - a tensor with chunks has a coding
        return coding.nbytes(chunk.first), coding.nbytes(chunk.length)

    def load(self) -> NDArray[np.uint8]:
        """Its bytes, row by row: its own memory if it is direct, else a copy."""
        tensor = self.tensor.detach()
        return bytes_of(tensor if self.is_direct else tensor.to("cpu", copy=True).contiguous())

    def store(self, data: NDArray[np.uint8]) -> None:
        """Write back what :meth:`load` gave. Nothing to do if it is direct."""
        if not self.is_direct:
            tensor = self.tensor.detach()
            tensor.copy_(torch.from_numpy(data).view(tensor.dtype).view(tensor.shape))


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether kernels run on the memory of a tensor as it is."""
    return tensor.is_contiguous() and has_kernels(tensor.device)


def live_tensors(model: Any) -> Live:  # noqa: ANN401 - a module or a mapping
    """The tensors of a model, or of its state dict, under their names in a checkpoint.

    Raises:
        TypeError: It is neither.
        RlsparseError: It is a wrapper, and so its weights have other names.
    """
    if isinstance(model, Mapping):
        _check_names(model)
        return dict(model)
    if not isinstance(model, torch.nn.Module):
        msg = f"a {type(model).__name__} is neither a model nor a state dict"
        raise TypeError(msg)
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        from rlsparse_store.torch.weight_views import checkpoint_views  # noqa: PLC0415 - takes seconds

        live = checkpoint_views(model)
    else:
        live = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    _check_names(live)
    _check_is_memory_of(model, live)
    return live


def _check_names(live: Mapping[str, torch.Tensor]) -> None:
    """Require that the names are those of a checkpoint, not of a model that was wrapped."""
    for prefix, inner in _WRAPPERS.items():
        if live and all(name.startswith(prefix) for name in live):
            msg = f"the names of all weights begin with {prefix!r}: give {inner}"
            raise RlsparseError(msg)


def _check_is_memory_of(model: torch.nn.Module, live: Live) -> None:
    """Require that tensors share the memory of a model: wrappers may hand out copies.

    Raises:
        RlsparseError: One does not.
    """
    own = {
        t.untyped_storage().data_ptr()
        for t in (*model.parameters(), *model.buffers())
        if type(t) in {torch.Tensor, torch.nn.Parameter}
    }
    for name, t in live.items():
        plain = type(t) in {torch.Tensor, torch.nn.Parameter} and not t.is_meta
        if plain and t.numel() and t.untyped_storage().data_ptr() not in own:
            msg = "is a copy of the model's weights (FSDP?): patch the model before it is wrapped"
            raise RlsparseError(msg, tensor=printable(name))


def find_targets(reader: DeltaReader, live: Live) -> list[Target]:
    """What a delta is to change, and what it leaves alone, each found in memory.

    A tensor that stands under several names is one target.

    Raises:
        BaseMismatchError: A tensor is missing, or has another shape or dtype than the base's.
        RlsparseError: The delta makes something of a tensor that cannot be made in its place.
    """
    chunks = reader.index.chunks_of_tensors()
    records = {t.name: t for t in reader.index.tensors}
    found: dict[tuple[Any, ...], Target] = {}
    for t in reader.index.tensors:
        record = records[t.origin] if t.kind is Kind.ALIAS else t
        tensor = live.get(t.name, live.get(t.origin) if t.kind is not Kind.WHOLE else None)
        if tensor is None:
            raise wrong_base(reader, None, t.name, "is not in the model")
        _check_fits(reader, record, t.name, tensor)
        target = Target(record, tensor, chunks.get(record.name, []))
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        other = found.setdefault(place, target) if tensor.numel() else target
        if other.record.tuned_digest != record.tuned_digest:
            msg = (
                f"shares its memory with {printable(other.record.name)!r} in the model, but not "
                "its values in the tuned checkpoint: load the model from the delta instead"
            )
            raise RlsparseError(msg, file=reader.path, tensor=printable(t.name))
    return list(found.values())


def _check_fits(reader: DeltaReader, t: TensorRecord, name: str, tensor: torch.Tensor) -> None:
    """Require that the tuned tensor can stand where this one stands."""
    if type(tensor) not in {torch.Tensor, torch.nn.Parameter} or tensor.is_meta:
        msg = (
            f"is a {type(tensor).__name__} on {tensor.device}: only whole tensors in memory can "
            "be patched, so patch before they are split, quantised or offloaded"
        )
        raise RlsparseError(msg, file=reader.path, tensor=printable(name))
    if t.widening or t.tail:
        what = "widens" if t.widening else "resizes"
        msg = f"the delta {what} it, which cannot be done in place: load the model from the delta"
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
    """Require that tensors in memory have the values that the delta was made against.

    Args:
        reader: The delta.
        targets: What it changes and leaves alone.
        threads: Threads to read on.
        known: Digests of tensors by the address of their memory, which grows.

    Raises:
        BaseMismatchError: One has other values.
    """

    def digest(some: Batch[Target]) -> list[Target]:
        unknown = [t for t in some.items if t.tensor.data_ptr() not in known]
        for target, digester in zip(unknown, _digesters(unknown), strict=True):
            known[target.tensor.data_ptr()] = digester.digest()
        return some.items

    based = [t for t in targets if t.record.kind is not Kind.WHOLE]
    # Threads read and write them on other streams than the one that wrote them.
    wait_for(target.tensor for target in targets)
    for some in ordered_map(digest, _together(based), threads):
        for target in some:
            t = target.record
            if known[target.tensor.data_ptr()] != (t.base_digest or t.tuned_digest):
                raise wrong_base(reader, reader.path, t.name, "has other values in the model")


def _together(targets: list[Target]) -> Iterator[Batch[Target]]:
    """Tensors that are hashed together: many of a device, one of main memory."""
    on_devices: defaultdict[torch.device, list[Target]] = defaultdict(list)
    for target in targets:
        if target.runs_kernels:
            on_devices[target.tensor.device].append(target)
        else:
            yield Batch([target], target.nbytes)
    for there in on_devices.values():
        yield from batched(((target, target.nbytes) for target in there), HASHED_BYTES)


def _digesters(targets: list[Target]) -> list[TensorDigester]:
    """The digesters of tensors that are hashed together, once they have all of their bytes."""
    leaves = _device_leaves(targets) if targets and targets[0].runs_kernels else None
    digesters = [TensorDigester(target.nbytes) for target in targets]
    for i, (target, digester) in enumerate(zip(targets, digesters, strict=True)):
        if leaves is None:
            digester.add(target.load())
        else:
            digester.add_leaves(leaves[i])
    return digesters


def _device_leaves(targets: list[Target]) -> list[NDArray[np.uint64]] | None:
    """The leaf hashes of tensors on a device, taken there, unless its memory does not suffice."""
    from rlsparse_store.gpu.hashing import hash_all_on_device  # noqa: PLC0415 - needs Triton

    try:
        return hash_all_on_device([target.device_bytes for target in targets])
    except torch.OutOfMemoryError:
        return None

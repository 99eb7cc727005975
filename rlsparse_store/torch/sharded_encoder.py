"""Encoding a state dict that is split over ranks: all of them hold it, the first one writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlsparse_store.errors import CheckpointError, RlsparseError
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import GatherCoder, Gatherer, SplitTensor, is_split
from rlsparse_store.torch.state_dict import describe, live_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.memory_checkpoint import TensorBytes
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.torch.process_group import Ranks

    Write = Callable[[Checkpoint, SpanCoder], EncodeReport]

__all__ = ["encode_sharded"]


def encode_sharded(
    ranks: Ranks, tensors: Mapping[str, Any], coder: SpanCoder, room: int, write: Write
) -> EncodeReport:
    """Encode a state dict that is split over ranks. Every rank calls it.

    Args:
        ranks: The ranks.
        tensors: The state dict, the same on every rank but for the parts that each has.
        coder: Codes on the writer.
        room: Bytes of gathered tensors to keep.
        write: Writes the delta of a checkpoint; called on the writer only.

    Returns:
        What was stored, on every rank.

    Raises:
        RlsparseError: Any rank failed, or is gone; on every rank.
    """
    _agree(ranks, tensors)
    split = {name: tensor for name, tensor in tensors.items() if is_split(tensor)}
    gathered = Gatherer(ranks, split, room)
    if not ranks.is_writer:
        return _error_from_message(gathered.serve())
    try:
        checkpoint = checkpoint_in_memory(
            {name: _readable(name, tensor, gathered) for name, tensor in tensors.items()}
        )
        report = write(checkpoint, GatherCoder(coder, gathered, set(split)))
    except BaseException as error:
        # Whatever it is, the others wait for a last word.
        ranks.say(_error_to_message(error))
        raise
    ranks.say(report)
    return report


def _readable(name: str, tensor: Any, gathered: Gatherer) -> TensorBytes:  # noqa: ANN401 - a tensor
    if is_split(tensor):
        return SplitTensor(name, *describe(name, tensor), gathered)
    return live_tensor(name, tensor)


def _agree(ranks: Ranks, tensors: Mapping[str, Any]) -> None:
    """Require that the tensors of every rank can be encoded, and are the same ones.

    Raises:
        RlsparseError: One cannot be; on every rank.
        CheckpointError: The ranks hold different state dicts.
    """
    found = ranks.collect(_described(tensors))
    for word in found:
        if isinstance(word, RlsparseError):
            raise word
    for rank, other in enumerate(found):
        differing = dict(found[0].items() ^ other.items())
        if differing:
            msg = f"differs between ranks 0 and {rank}: every rank encodes the same state dict"
            raise CheckpointError(msg, tensor=printable(min(differing)))


def _described(
    tensors: Mapping[str, Any],
) -> dict[str, tuple[str, tuple[int, ...], bool]] | RlsparseError:
    """What this rank has, or what is wrong with it."""
    try:
        for name, tensor in tensors.items():
            if not is_split(tensor):
                live_tensor(name, tensor)
        described = {name: describe(name, tensor) for name, tensor in tensors.items()}
    except RlsparseError as error:
        return error
    return {
        name: (dtype.code, shape, is_split(tensors[name]))
        for name, (dtype, shape) in described.items()
    }


def _error_to_message(error: BaseException) -> RlsparseError:
    """An error as the other ranks are told it."""
    if isinstance(error, RlsparseError):
        return error
    return RlsparseError(f"the writing rank failed: {type(error).__name__}: {error}")


def _error_from_message(word: EncodeReport | RlsparseError) -> EncodeReport:
    if isinstance(word, RlsparseError):
        raise word
    return word

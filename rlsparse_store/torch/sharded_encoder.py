"""Encoding a state dict of DTensors: every rank takes part, the first rank writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlsparse_store.errors import CheckpointError, RlsparseError
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import DTensorReader, GatherCoder, Gatherer, is_dtensor
from rlsparse_store.torch.state_dict import dtype_and_shape, live_tensor

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
    ranks: Ranks, tensors: Mapping[str, Any], coder: SpanCoder, capacity: int, write: Write
) -> EncodeReport:
    """Encode a state dict that holds DTensors. Every rank calls this function.

    Args:
        ranks: The ranks.
        tensors: The state dict: the same names, dtypes and shapes on every rank.
        coder: Codes spans on the writer.
        capacity: Bytes of gathered tensors to cache on the writer.
        write: Writes the delta of a checkpoint; called on the writer only.

    Returns:
        The writer's report, on every rank.

    Raises:
        RlsparseError: A rank failed or has ended; raised on every rank.
    """
    _check_agreement(ranks, tensors)
    dtensors = {name: tensor for name, tensor in tensors.items() if is_dtensor(tensor)}
    gatherer = Gatherer(ranks, dtensors, capacity)
    if not ranks.is_writer:
        return _report_or_raise(gatherer.serve())
    try:
        checkpoint = checkpoint_in_memory(
            {name: _readable(name, tensor, gatherer) for name, tensor in tensors.items()}
        )
        report = write(checkpoint, GatherCoder(coder, gatherer, set(dtensors)))
    except BaseException as error:
        # The other ranks wait for a last message, whatever the error.
        ranks.broadcast(_error_message(error))
        raise
    ranks.broadcast(report)
    return report


def _readable(name: str, tensor: Any, gatherer: Gatherer) -> TensorBytes:  # noqa: ANN401 - a tensor
    if is_dtensor(tensor):
        return DTensorReader(name, *dtype_and_shape(name, tensor), gatherer)
    return live_tensor(name, tensor)


def _check_agreement(ranks: Ranks, tensors: Mapping[str, Any]) -> None:
    """Require that every rank holds the same tensors and that all can be encoded.

    Raises:
        RlsparseError: A rank's tensor cannot be encoded; raised on every rank.
        CheckpointError: The ranks hold different state dicts.
    """
    summaries = ranks.all_gather(_summary(tensors))
    for summary in summaries:
        if isinstance(summary, RlsparseError):
            raise summary
    for rank, summary in enumerate(summaries):
        differing = dict(summaries[0].items() ^ summary.items())
        if differing:
            msg = f"differs between ranks 0 and {rank}: pass the same state dict on every rank"
            raise CheckpointError(msg, tensor=printable(min(differing)))


def _summary(
    tensors: Mapping[str, Any],
) -> dict[str, tuple[str, tuple[int, ...], bool]] | RlsparseError:
    """Return the dtype, shape and kind of this rank's tensors, or the error of one of them."""
    try:
        for name, tensor in tensors.items():
            if not is_dtensor(tensor):
                live_tensor(name, tensor)
        found = {name: dtype_and_shape(name, tensor) for name, tensor in tensors.items()}
    except RlsparseError as error:
        return error
    return {
        name: (dtype.code, shape, is_dtensor(tensors[name]))
        for name, (dtype, shape) in found.items()
    }


def _error_message(error: BaseException) -> RlsparseError:
    """Return an error as the other ranks receive it."""
    if isinstance(error, RlsparseError):
        return error
    return RlsparseError(f"rank 0 failed: {type(error).__name__}: {error}")


def _report_or_raise(message: EncodeReport | RlsparseError) -> EncodeReport:
    if isinstance(message, RlsparseError):
        raise message
    return message

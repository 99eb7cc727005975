"""Encoding a state dict of DTensors: every rank encodes its rows, the first one adds the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from rlsparse_store.errors import CheckpointError, RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import is_dtensor
from rlsparse_store.torch.row_slabs import by_rows
from rlsparse_store.torch.state_dict import dtype_and_shape, live_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.torch.process_group import Ranks
    from rlsparse_store.torch.slab_writer import SlabWriter

__all__ = ["encode_sharded"]


def encode_sharded(ranks: Ranks, tensors: Mapping[str, Any], writer: SlabWriter) -> EncodeReport:
    """Encode a state dict that holds DTensors. Every rank calls this function.

    Args:
        ranks: The ranks.
        tensors: The state dict: the same names, dtypes and shapes on every rank.
        writer: Writes the delta.

    Returns:
        The report, on every rank.

    Raises:
        RlsparseError: A rank failed or has ended; raised on every rank.
    """
    _check_agreement(ranks, tensors)
    try:
        with ranks.collective():
            rows = by_rows(tensors)
            done = save(rows, storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        raise _first_failure(error) from error
    finally:
        writer.abandon()
    report: EncodeReport = done.storage_data
    return report


def _first_failure(error: CheckpointException) -> BaseException:
    """Return the error of the first rank that failed."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, RlsparseError) or not isinstance(cause, Exception):
        return cause
    return RlsparseError(f"rank {rank} failed: {type(cause).__name__}: {cause}")


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

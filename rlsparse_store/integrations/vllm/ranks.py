"""Agreement of an engine's ranks: all go on, or none does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import torch.distributed
from vllm.distributed.parallel_state import get_world_group

from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["prepare_together"]

logger = logging.getLogger("vllm.rlsparse")

T = TypeVar("T")


def prepare_together(prepare: Callable[[], T]) -> T | None:
    """Prepare something on every rank.

    vLLM reads the ranks' answers one after the other up to the first error, and takes what it left
    unread for answers to the next call. So only the last rank raises.

    Args:
        prepare: Prepares it, and changes nothing that cannot be left as it is.

    Returns:
        What was prepared; ``None`` if a rank failed and another one raises the error.

    Raises:
        RlsparseError: A rank failed, and this is the last rank.
    """
    group = get_world_group()
    prepared, error = None, None
    try:
        prepared = prepare()
    except Exception as caught:
        if group.world_size == 1:
            raise
        error = caught
    if group.world_size == 1:
        return prepared
    messages: list[str | None] = [None] * group.world_size
    mine = None if error is None else str(error)
    torch.distributed.all_gather_object(messages, mine, group=group.cpu_group)
    failed = next((message for message in messages if message is not None), None)
    if failed is None:
        return prepared
    if group.rank_in_group < group.world_size - 1:
        logger.error("weights are left as they are: %s", failed)
        return None
    raise error or RlsparseError(failed)

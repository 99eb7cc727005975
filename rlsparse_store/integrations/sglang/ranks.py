"""Agreement of an engine's ranks: all update their weights, or none does."""

from __future__ import annotations

import torch.distributed
from sglang.srt.runtime_context import get_parallel

__all__ = ["first_error"]


def first_error(mine: str | None) -> str | None:
    """The first error of any tensor-parallel rank. Each of them calls this.

    Args:
        mine: What is wrong on this rank, if anything.

    Returns:
        What is wrong, the same on every rank; ``None`` if nothing is.
    """
    parallel = get_parallel()
    if parallel.tp_size == 1:
        return mine
    messages: list[str | None] = [None] * parallel.tp_size
    torch.distributed.all_gather_object(messages, mine, group=parallel.tp_group.cpu_group)
    return next((message for message in messages if message is not None), None)

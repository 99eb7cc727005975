"""The processes that hold one model together, and how they speak to each other."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Ranks"]


class Ranks:
    """The ranks of a process group, of which the first one writes.

    What they send each other is pickled, as torch does it, and comes from no one but them.

    Args:
        group: The process group; the default one if it is ``None``.

    Attributes:
        is_writer: Whether this rank is the first one.

    Raises:
        RlsparseError: There is no process group.
    """

    def __init__(self, group: Any = None) -> None:  # noqa: ANN401 - torch's
        if not (dist.is_available() and dist.is_initialized()):
            msg = "tensors are split over ranks, but torch.distributed has no process group here"
            raise RlsparseError(msg)
        self._group = group
        self._first = 0 if group is None else dist.get_global_rank(group, 0)
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self.is_writer = dist.get_rank(group) == 0

    def say(self, word: Any) -> Any:  # noqa: ANN401 - any word
        """Hand every rank the writer's word; what another rank gives is not sent.

        Raises:
            RlsparseError: A rank is gone.
        """
        words = [word]
        with self.speaking():
            dist.broadcast_object_list(words, src=self._first, group=self._group)
        return words[0]

    def collect(self, mine: Any) -> list[Any]:  # noqa: ANN401 - any word
        """What every rank gives, in the order of ranks, on each of them.

        Raises:
            RlsparseError: A rank is gone.
        """
        found: list[Any] = [None] * dist.get_world_size(self._group)
        with self.speaking():
            dist.all_gather_object(found, mine, group=self._group)
        return found

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Speak from this rank's device, which is not the one that a new thread begins with.

        Raises:
            RlsparseError: A rank is gone, or this one has no memory for what it is sent.
        """
        try:
            with nullcontext() if self._device is None else torch.cuda.device(self._device):
                yield
        except RuntimeError as error:
            msg = f"the ranks cannot reach each other any more: has one ended? ({error})"
            # Of main memory, torch has no error of its own kind.
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                msg = f"no memory left on this rank for what the others send it: {error}"
            raise RlsparseError(msg) from error

"""Communication between the ranks that hold one model."""

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
    """The ranks of a process group. The first rank is the writer.

    Messages are pickled by torch.distributed and come only from ranks of the group.

    Args:
        group: The process group; the default one if it is ``None``.

    Attributes:
        is_writer: Whether this rank is the writer.

    Raises:
        RlsparseError: There is no process group.
    """

    def __init__(self, group: Any = None) -> None:  # noqa: ANN401 - torch's
        if not (dist.is_available() and dist.is_initialized()):
            msg = (
                "the state dict holds DTensors, but torch.distributed is not initialized in this "
                "process; call torch.distributed.init_process_group first"
            )
            raise RlsparseError(msg)
        self._group = group
        self._writer = 0 if group is None else dist.get_global_rank(group, 0)
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self.is_writer = dist.get_rank(group) == 0

    def broadcast(self, message: Any) -> Any:  # noqa: ANN401 - any picklable object
        """Send the writer's message to every rank; other ranks' arguments are ignored.

        Raises:
            RlsparseError: A rank has ended.
        """
        messages = [message]
        with self.collective():
            dist.broadcast_object_list(messages, src=self._writer, group=self._group)
        return messages[0]

    def all_gather(self, message: Any) -> list[Any]:  # noqa: ANN401 - any picklable object
        """Return every rank's message, in rank order, on every rank.

        Raises:
            RlsparseError: A rank has ended.
        """
        messages: list[Any] = [None] * dist.get_world_size(self._group)
        with self.collective():
            dist.all_gather_object(messages, message, group=self._group)
        return messages

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Run a collective on this rank's device, which new threads do not inherit.

        Raises:
            RlsparseError: A rank has ended, or this rank is out of memory.
        """
        try:
            with nullcontext() if self._device is None else torch.cuda.device(self._device):
                yield
        except RuntimeError as error:
            msg = f"communication between the ranks failed; a rank may have ended ({error})"
            # torch reports exhausted main memory as a plain RuntimeError.
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                msg = f"this rank is out of memory for a collective: {error}"
            raise RlsparseError(msg) from error

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
    """The ranks of a process group.

    Messages are pickled by torch.distributed and come only from ranks of the group.

    Args:
        group: The process group; the default one if it is ``None``.

    Attributes:
        group: The process group, or ``None`` for the default one.

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
        self.group = group
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def all_gather(self, message: Any) -> list[Any]:  # noqa: ANN401 - any picklable object
        """Return every rank's message, in rank order, on every rank.

        Raises:
            RlsparseError: A rank has ended.
        """
        messages: list[Any] = [None] * dist.get_world_size(self.group)
        with self.collective():
            dist.all_gather_object(messages, message, group=self.group)
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

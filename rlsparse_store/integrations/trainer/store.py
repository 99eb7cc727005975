"""The weights of one trainer's checkpoints, stored as deltas."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open

from rlsparse_store.files.output import output_errors
from rlsparse_store.integrations.trainer.checkpoint_folders import (
    draft_of,
    full_weights,
    place_delta,
)
from rlsparse_store.integrations.trainer.encoding_thread import EncodingThread, SavingGate
from rlsparse_store.integrations.trainer.preemption import before_sigterm
from rlsparse_store.integrations.trainer.staging import Staging
from rlsparse_store.integrations.trainer.weights import file_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rlsparse_store.torch.encoder import DeltaEncoder

__all__ = ["CheckpointStore"]

Tensors = dict[str, torch.Tensor]

_LOG = logging.getLogger(__name__)


class CheckpointStore:
    """Stores checkpoints as deltas, while training waits or in a thread.

    In a thread, at most one checkpoint at a time is without weights: the one that is being encoded
    from its copy in main memory. While the thread is busy, Trainer saves full weights, and the
    thread turns them into a delta later.

    Args:
        encoder: Encodes against the base.
        cast: As for :meth:`DeltaEncoder.encode`.
        keep: Number of the newest checkpoints that stay full.
        queue: Number of full checkpoints that may wait for the thread; ``None`` encodes while
            training waits.
        left_out: Names of tensors that are not stored.

    Attributes:
        keep: As given.
    """

    def __init__(
        self,
        encoder: DeltaEncoder,
        *,
        cast: Literal["bf16"] | None,
        keep: int,
        queue: int | None,
        left_out: Collection[str] = (),
    ) -> None:
        self._encoder = encoder
        self._cast = cast
        self.keep = keep
        self._queue = queue
        self._left_out = frozenset(left_out)
        self._full: list[Path] = []
        self._staging = Staging()
        self._thread = EncodingThread()
        self._gate = SavingGate()

    @property
    def wants_full(self) -> bool:
        """Whether the next checkpoint is saved full, and becomes a delta later."""
        return self.keep > 0 or self._thread.pending > 0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block in which Trainer saves a checkpoint and removes old ones.

        Raises:
            RlsparseError: An earlier checkpoint could not be encoded.
        """
        self._thread.wait(at_most=self._queue or 0)
        with self._gate.saving():
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """A block that trains. All deltas are complete at its end, and the one in work at SIGTERM.

        Raises:
            RlsparseError: A checkpoint could not be encoded.
        """
        with before_sigterm(self._end):
            try:
                yield
            except BaseException:
                self._end()
                raise
            self.finish()
        self._staging.free()

    def finish(self) -> None:
        """Wait until all deltas are complete.

        Raises:
            RlsparseError: A checkpoint could not be encoded.
        """
        self._thread.wait()

    def prepare(self, tensors: Tensors) -> None:
        """Allocate the memory for the first copy, which takes several times as long as copying.

        Args:
            tensors: The weights to copy later.
        """
        if self._queue is not None and not self.keep:
            self._staging.copy(tensors)

    def add(self, folder: Path, model: torch.nn.Module, tensors: Tensors) -> None:
        """Store weights from memory.

        Args:
            folder: The checkpoint.
            model: The model.
            tensors: Its weights, by their names in the model.
        """
        if self._queue is None:
            self._encode(folder, lambda: file_tensors(model, tensors))
        else:
            staged = self._staging.copy(tensors)
            self._thread.add(lambda: self._encode(folder, lambda: file_tensors(model, staged)))

    def add_full(self, folder: Path) -> None:
        """Store a checkpoint with full weights once it is not one of the newest."""
        # A run that is resumed writes checkpoints again.
        self._full = [path for path in self._full if path != folder]
        self._full.append(folder)
        while len(self._full) > self.keep:
            self._run(self._full.pop(0))

    def _run(self, folder: Path) -> None:
        if self._queue is None:
            self._encode_full(folder)
        else:
            self._thread.add(lambda: self._encode_full(folder), is_optional=True)

    def _encode_full(self, folder: Path) -> None:
        # Files that are open outlive Trainer's removing them.
        with self._changing():
            tensors = _read_full(folder) if folder.is_dir() else None
        if tensors is not None:
            self._encode(folder, lambda: tensors)

    def _encode(self, folder: Path, read: Callable[[], Tensors]) -> None:
        draft = draft_of(folder)
        shutil.rmtree(draft, ignore_errors=True)
        try:
            tensors = {n: t for n, t in read().items() if n not in self._left_out}
            self._encoder.encode(tensors, draft, cast=self._cast)
            self._place(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _place(self, draft: Path, folder: Path) -> None:
        with self._changing(), output_errors(folder):
            if folder.is_dir():
                place_delta(draft, folder)

    def _changing(self) -> AbstractContextManager[None]:
        """A block that reads or changes a checkpoint which Trainer may be about to remove."""
        return nullcontext() if self._queue is None else self._gate.changing()

    def _end(self) -> None:
        """Complete the delta in work: training ends early, and what waits for it is full."""
        self._thread.drop_optional()
        try:
            with self._gate.released():
                self._thread.wait()
        except Exception:  # noqa: BLE001 - another error, or a signal, ends training and comes first
            _LOG.exception("a checkpoint could not be stored as a delta")


def _read_full(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in full_weights(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors

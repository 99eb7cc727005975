"""The methods of Trainer in which it writes and reads weights, with deltas in their place."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import save_fsdp_optimizer
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from rlsparse_store.errors import CheckpointError
from rlsparse_store.integrations.trainer.checkpoint_folders import (
    OTHER_FILES,
    clear_checkpoint,
    full_weights,
    has_deepspeed_state,
    has_delta,
    is_finished,
    last_checkpoint,
    last_finished,
    remove_drafts,
)
from rlsparse_store.integrations.trainer.folder_lock import FolderLock
from rlsparse_store.integrations.trainer.weights import restore_weights, untied_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlsparse_store.delta.open import DeltaCheckpoint
    from rlsparse_store.integrations.trainer.store import CheckpointStore

__all__ = ["DeltaHooks"]

_LOG = logging.getLogger(__name__)


class DeltaHooks(Trainer):
    """A class to put before a trainer's own, so that its checkpoints hold deltas.

    Attributes:
        delta_store: Stores the weights of checkpoints.
        open_delta: Opens the delta in a checkpoint.
    """

    delta_store: CheckpointStore
    open_delta: Callable[[Path], DeltaCheckpoint]
    _is_checkpoint = False

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 - Trainer's
        *args: Any,  # noqa: ANN401 - as they are
        **kwargs: Any,  # noqa: ANN401 - as they are
    ) -> Any:  # noqa: ANN401 - Trainer's
        """Train. ``resume_from_checkpoint=True`` takes the last checkpoint that is finished."""
        folder = Path(self.args.output_dir or ".")
        with FolderLock(folder) if self.args.should_save else nullcontext():
            if self.args.should_save:
                remove_drafts(folder)
            return self._train(folder, resume_from_checkpoint, *args, **kwargs)

    def _train(
        self,
        folder: Path,
        resume_from_checkpoint: str | bool | None,  # noqa: FBT001 - Trainer's
        *args: Any,  # noqa: ANN401 - as above
        **kwargs: Any,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - Trainer's
        if resume_from_checkpoint is True:
            # What is not finished is refused below, and Trainer says if there is none.
            last = last_finished(folder) or last_checkpoint(folder)
            resume_from_checkpoint = True if last is None else str(last)
        if isinstance(resume_from_checkpoint, str):
            self._require_finished(Path(resume_from_checkpoint))
        with self.delta_store.training():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 - Trainer's
        """Save the model: its full weights, if the user asks for them."""
        # Without a folder, push_to_hub() calls it, and pushes full weights.
        self._is_checkpoint = _internal_call and output_dir is not None
        try:
            if self._is_checkpoint and self.is_deepspeed_enabled:
                # As Trainer does, which takes an error of storing for a setting of DeepSpeed.
                self._save(output_dir, self.accelerator.get_state_dict(self.deepspeed))
            else:
                super().save_model(output_dir, _internal_call)
        finally:
            self._is_checkpoint = False

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer's
        with self.delta_store.saving():
            super()._save_checkpoint(*args, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if output_dir is None or not (self._is_checkpoint and self.args.should_save):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        clear_checkpoint(folder)
        if self.delta_store.wants_full:
            super()._save(output_dir, state_dict)
            self.delta_store.add_full(folder)
            return
        model = self._unwrapped()
        weights = model.state_dict() if state_dict is None else state_dict
        self.delta_store.add(folder, model, untied_tensors(model, weights))
        with _moved_into(folder) as other:
            super()._save(str(other), {})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled or self.delta_store.keep:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Trainer would save the weights again, in a file of their own.
        state = self.accelerator.state
        save_fsdp_optimizer(
            state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        if has_delta(folder):
            self._restore(folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.delta_store.finish()
        self.accelerator.wait_for_everyone()
        best = Path(self.state.best_model_checkpoint or "")
        # DeepSpeed loads its own state.
        if has_delta(best) and not self.is_deepspeed_enabled:
            self._restore(best)
        else:
            super()._load_best_model()

    def _require_finished(self, folder: Path) -> None:
        if not folder.is_dir() or is_finished(folder):
            return
        if self.is_deepspeed_enabled and has_deepspeed_state(folder):
            _LOG.warning("%s has no weights but DeepSpeed's, and gets no delta", folder)
            return
        last = last_finished(folder.parent)
        remedy = "start again" if last is None else f"resume from {last.name}"
        msg = f"is not finished: training was ended while it was being written; {remedy}"
        raise CheckpointError(msg, file=folder)

    def _restore(self, folder: Path) -> None:
        with self.open_delta(folder) as checkpoint:
            restore_weights(self._unwrapped(), checkpoint)

    def _unwrapped(self) -> torch.nn.Module:
        model: torch.nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model


@contextmanager
def _moved_into(folder: Path) -> Iterator[Path]:
    """A folder whose files are moved to a checkpoint, except weights.

    Trainer writes weights with the other files. Of no tensors, it writes an empty file, which must
    never have its final name.
    """
    others = folder / OTHER_FILES
    others.mkdir()
    yield others
    for path in full_weights(others):
        path.unlink()
    for path in others.iterdir():
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    others.rmdir()

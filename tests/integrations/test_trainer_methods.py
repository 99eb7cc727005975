"""Releases of transformers whose Trainer deltas do not work with."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from models import small_llama
from trainers import Tokens, make_settings, make_trainer
from transformers import Trainer

from rlsparse_store.errors import RlsparseError
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.trainer_methods import require_methods

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "name",
    [
        "save_model",
        "_save_checkpoint",
        "_save",
        "_save_optimizer_and_scheduler",
        "_load_from_checkpoint",
        "_load_best_model",
    ],
)
def test_a_changed_method_is_refused_with_the_release(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def changed(self: Any, directory: str) -> None:  # noqa: ANN401
        """Another release's."""

    monkeypatch.setattr(Trainer, name, changed)
    with pytest.raises(
        RlsparseError, match=rf"^transformers {transformers.__version__} has no Trainer\.{name}\("
    ):
        require_methods(Trainer)
    monkeypatch.delattr(Trainer, name)
    with pytest.raises(RlsparseError, match=rf"has no Trainer\.{name}\("):
        require_methods(Trainer)


def test_it_is_said_when_attaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    trainer = make_trainer(tmp_path / "base", tmp_path / "out")
    monkeypatch.delattr(Trainer, "_save")
    with pytest.raises(RlsparseError, match="install a release that was tried"):
        store_as_deltas(trainer, tmp_path / "base")


class Narrow(Trainer):
    """A trainer of a user's, with a method that takes less than Trainer's."""

    def _save(self, output_dir: str | None = None) -> None:  # type: ignore[override]
        super()._save(output_dir)


class Open(Trainer):
    """A trainer of a user's, with a method that takes anything."""

    def _save(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super()._save(*args, **kwargs)


def test_methods_of_a_subclass(tmp_path: Path) -> None:
    with pytest.raises(RlsparseError, match=r"Narrow\._save does not take .*state_dict"):
        require_methods(Narrow)
    small_llama().save_pretrained(tmp_path / "base")
    trainer = Open(small_llama(), make_settings(tmp_path / "out"), train_dataset=Tokens())
    store_as_deltas(trainer, tmp_path / "base")
    trainer.train()
    assert (tmp_path / "out" / "checkpoint-6" / "rlsparse").is_dir()


WITHOUT_A_FUNCTION = """
import transformers.modeling_utils
from rlsparse_store.errors import MissingDependencyError

del transformers.modeling_utils.remove_tied_weights_from_state_dict
try:
    import rlsparse_store.integrations.trainer
except MissingDependencyError as error:
    print(error)
"""


def test_a_missing_function_is_refused_with_the_release() -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_A_FUNCTION], check=True, capture_output=True, text=True
    )
    expected = f"transformers {transformers.__version__} is not a release that deltas work with"
    assert result.stdout.startswith(expected)

"""The step and the metrics that a trainer wrote beside a checkpoint."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["STATE_NAME", "TrainerState", "read_trainer_state"]

STATE_NAME: Final = "trainer_state.json"

_LARGEST: Final = 256 << 20
_NOT_METRICS: Final = frozenset({"step", "epoch", "total_flos"})


class TrainerState(NamedTuple):
    """What a trainer wrote.

    Attributes:
        step: The optimizer step, if known.
        metrics: The last finite value of every number that was logged, by name.
        best: The name of the folder with the best checkpoint so far, if known.
    """

    step: int | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012 - a field of a tuple, never written to
    best: str | None = None


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """Read the ``trainer_state.json`` of transformers and TRL; nothing of a folder without one.

    Raises:
        CheckpointError: It is not one.
    """
    path = checkpoint / STATE_NAME
    if not path.is_file():
        return TrainerState()
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            msg = f"is longer than the {_LARGEST:,} bytes allowed; remove it"
            raise CheckpointError(msg, file=path)
        # Trainers log NaN as Python does, which is no JSON.
        state = json.loads(text)
        step = state.get("global_step")
        best = state.get("best_model_checkpoint")
        metrics: dict[str, float] = {}
        for logged in state.get("log_history", ()):
            metrics |= {name: float(value) for name, value in logged.items() if _is_metric(value)}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        msg = "is not the state of a trainer; restore it, or remove it"
        raise CheckpointError(msg, file=path) from error
    is_step = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    known = {name: value for name, value in metrics.items() if name not in _NOT_METRICS}
    folder = re.split(r"[/\\]", best.rstrip("/\\"))[-1] if isinstance(best, str) else ""
    return TrainerState(step if is_step else None, known, folder or None)


def _is_metric(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(float(value))  # type: ignore[arg-type]

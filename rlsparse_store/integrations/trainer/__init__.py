"""Storing the checkpoints of Trainer and of TRL's trainers as deltas. Imports transformers."""

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.installing import install_command

try:
    from rlsparse_store.integrations.trainer.attach import store_as_deltas
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in {"accelerate", "torch", "transformers"}:
        raise
    msg = f"{missing} is not installed: {install_command('trainer')}"
    raise MissingDependencyError(msg) from error

__all__ = ["store_as_deltas"]

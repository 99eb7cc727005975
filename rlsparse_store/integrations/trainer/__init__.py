"""Storing the checkpoints of Trainer and of TRL's trainers as deltas. Imports transformers."""

import sys
from importlib.metadata import version

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.installing import install_command

try:
    from rlsparse_store.integrations.trainer.attach import store_as_deltas
except ImportError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in {"accelerate", "torch", "transformers"}:
        raise
    if sys.modules.get(missing) is None:
        msg = f"{missing} is not installed: {install_command('trainer')}"
    else:
        # A release has moved what is imported.
        msg = f"{missing} {version(missing)} is not a release that deltas work with ({error})"
    raise MissingDependencyError(msg) from error

__all__ = ["store_as_deltas"]

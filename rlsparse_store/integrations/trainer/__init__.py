"""Storing the checkpoints of Trainer and of TRL's trainers as deltas. Imports transformers."""

from rlsparse_store.integrations.trainer.attach import store_as_deltas

__all__ = ["store_as_deltas"]

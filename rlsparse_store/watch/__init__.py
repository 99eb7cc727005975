"""Watching the folder of a trainer, and storing its checkpoints as they are completed."""

from rlsparse_store.watch.event import WatchEvent
from rlsparse_store.watch.watcher import watch_checkpoints

__all__ = ["WatchEvent", "watch_checkpoints"]

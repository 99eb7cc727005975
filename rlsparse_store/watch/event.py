"""What a watcher did, or why it did not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from rlsparse_store.delta.html_table import SummaryRepr

if TYPE_CHECKING:
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.run import RunEntry

__all__ = ["Kind", "WatchEvent"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""

Kind = Literal["stored", "skipped", "refused", "waiting", "thinned", "thinnable", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WatchEvent(SummaryRepr):
    """Something that happened to a checkpoint.

    Attributes:
        kind: ``stored``: its delta is a new entry of the run. ``skipped``: it is not whole, not a
            model, or changed while it was read; nothing was stored. ``refused``: it is complete
            and cannot be stored. ``waiting``: it will be stored once the cause is gone.
            ``thinned``: its weights were removed. ``thinnable``: they would be. ``kept``: they
            were not, although enough newer checkpoints exist.
        checkpoint: Its folder.
        message: The same in words.
        entry: The new entry, if it was stored.
        freed_bytes: Bytes of the weights that were removed, or would be.
    """

    kind: Kind
    checkpoint: str
    message: str
    entry: RunEntry | None = None
    freed_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """The event as JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "kind", self.kind
        yield "checkpoint", self.checkpoint
        yield "message", self.message

"""How the Hub is reached, and how long it is waited for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["HubAccess"]

TIMEOUT: Final = "RLSPARSE_HUB_TIMEOUT"
"""Environment variable: seconds."""


def _timeout() -> float:
    try:
        return max(0.1, float(os.environ.get(TIMEOUT, "")))
    except ValueError:
        return 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How to reach the Hub.

    Attributes:
        token: An access token, ``False`` for none; by default the one that is stored.
        cache_dir: The cache; by default the Hub client's.
        local_files_only: Whether only the cache is looked at.
        timeout: Seconds after which an answer, or the next part of a file, is given up on; by
            default those of ``RLSPARSE_HUB_TIMEOUT``, else 60.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    timeout: float = field(default_factory=_timeout)

    @property
    def cache(self) -> Path | None:
        """The cache's folder; ``None`` for the Hub client's own."""
        return None if self.cache_dir is None else Path(self.cache_dir)

    def api(self) -> Any:  # noqa: ANN401 - what its methods give has no common type
        """The client's interface to the Hub."""
        import huggingface_hub  # noqa: PLC0415 - only when an id is given

        return huggingface_hub.HfApi(token=self.token, library_name="rlsparse-store")

    @property
    def is_offline(self) -> bool:
        """Whether only the cache is looked at, here or by the client's own setting."""
        from huggingface_hub import constants  # noqa: PLC0415 - only when an id is given

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

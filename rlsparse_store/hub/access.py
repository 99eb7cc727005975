"""How to reach the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["HubAccess"]

TIMEOUT: Final = "RLSPARSE_HUB_TIMEOUT"
"""Environment variable: timeout in seconds."""


def _default_timeout() -> float:
    try:
        return max(0.1, float(os.environ.get(TIMEOUT, "")))
    except ValueError:
        return 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How to reach the Hub.

    Attributes:
        token: Access token; ``None`` for the stored one, ``False`` for none.
        cache_dir: Cache folder; defaults to that of ``huggingface_hub``.
        local_files_only: Use only the cache and make no requests.
        timeout: Seconds to wait for a response, or for the next part of a file. Defaults to
            ``RLSPARSE_HUB_TIMEOUT``, else 60.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    timeout: float = field(default_factory=_default_timeout)

    def api(self) -> Any:  # noqa: ANN401 - its methods have no common return type
        """Return a client of the Hub's API."""
        import huggingface_hub  # noqa: PLC0415 - only for repository ids

        return huggingface_hub.HfApi(token=self.token, library_name="rlsparse-store")

    @property
    def cache(self) -> Path | None:
        """The cache folder; ``None`` for that of ``huggingface_hub``."""
        return None if self.cache_dir is None else Path(self.cache_dir)

    @property
    def is_offline(self) -> bool:
        """Whether requests are disabled, by ``local_files_only`` or by ``HF_HUB_OFFLINE``."""
        from huggingface_hub import constants  # noqa: PLC0415 - only for repository ids

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

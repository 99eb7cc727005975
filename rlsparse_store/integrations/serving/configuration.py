"""Whether a running engine's configuration is a checkpoint's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.errors import UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_configuration"]

BOOKKEEPING: Final = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Settings of a configuration that change nothing about what the weights compute."""


def check_configuration(served: Any, folder: Path) -> None:  # noqa: ANN401 - transformers'
    """Require that a checkpoint's configuration is the engine's.

    The engine keeps the configuration that it was started with. A tuned checkpoint with another one
    would load, and compute something else.

    Args:
        served: The engine's configuration of the model, a ``transformers.PretrainedConfig``.
        folder: Folder of the delta, or of a full checkpoint.

    Raises:
        UnsupportedModelError: The folder holds another configuration.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    stored = type(served).from_dict(json.loads(file.read_text("utf-8"))).to_dict()
    known = served.to_dict()
    differing = sorted(
        name for name in stored.keys() & known.keys() - BOOKKEEPING if stored[name] != known[name]
    )
    if differing:
        msg = (
            f"its configuration differs from the engine's in {', '.join(differing[:5])}; start an "
            "engine with the delta itself as the model"
        )
        raise UnsupportedModelError(msg, file=file)

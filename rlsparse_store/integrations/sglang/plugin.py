"""The entry point of SGLang's plugins: registers the hooks."""

from __future__ import annotations

import inspect
import pkgutil
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OLDEST", "register"]

OLDEST: Final = (0, 5, 23)
"""The oldest release that was tried."""

_LOADER: Final = "sglang.srt.model_loader.loader"
_UPDATER: Final = "sglang.srt.model_executor.model_runner_components.weight_updater"


def register() -> None:
    """Register the hooks by which SGLang loads deltas.

    SGLang calls it in each of its processes. It logs the errors and goes on without the hooks, and
    then finds no weights where there is a delta.

    Raises:
        MissingDependencyError: This SGLang is too old, or has other functions than those tried.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - it calls
    from sglang.version import __version__, __version_tuple__  # noqa: PLC0415 - as above

    from rlsparse_store.integrations.sglang.hooks import DeltaHooks  # noqa: PLC0415 - as above

    if tuple(__version_tuple__[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        msg = f"SGLang {__version__} is too old for rlsparse_store: {oldest} or newer is needed"
        raise MissingDependencyError(msg)
    hooks = DeltaHooks()
    targets: dict[str, tuple[Callable[..., object], list[str]]] = {
        f"{_LOADER}.get_model_loader": (hooks.begin, ["load_config", "model_config"]),
        f"{_LOADER}.DefaultModelLoader._get_weights_iterator": (hooks.weights, ["self", "source"]),
        f"{_UPDATER}.WeightUpdater.update_weights_from_disk": (
            hooks.update,
            ["self", "model_path", "load_format"],
        ),
    }
    # All or none: without one of them, a server would read places that it was not configured with.
    for target, (_, parameters) in targets.items():
        if _first_parameters(target, len(parameters)) != parameters:
            msg = f"SGLang {__version__} is not one that rlsparse_store knows: {target} is another"
            raise MissingDependencyError(msg)
    for target, (hook, _) in targets.items():
        HookRegistry.register(target, hook, HookType.AROUND)


def _first_parameters(target: str, count: int) -> list[str]:
    """The names of a function's first parameters; none if there is no such function."""
    try:
        function = pkgutil.resolve_name(target)
    except (ImportError, AttributeError):
        return []
    return list(inspect.signature(function).parameters)[:count]

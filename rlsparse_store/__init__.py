"""Store RL-tuned checkpoints as lossless sparse deltas against their base model.

Names are imported when they are first used: importing the package itself takes next to nothing.
"""

TYPE_CHECKING = False  # as type checkers know it; importing `typing` takes milliseconds
if TYPE_CHECKING:
    from rlsparse_store.analysis import compare_deltas
    from rlsparse_store.delta import (
        apply_delta,
        encode_delta,
        encode_run,
        inspect_delta,
        open_delta,
        verify_delta,
    )
    from rlsparse_store.errors import RlsparseError
    from rlsparse_store.integrations.transformers import enable_transformers, from_delta
    from rlsparse_store.publish import pull_delta, push_delta

__version__ = "0.1.0"

__all__ = [
    "RlsparseError",
    "apply_delta",
    "compare_deltas",
    "enable_transformers",
    "encode_delta",
    "encode_run",
    "from_delta",
    "inspect_delta",
    "open_delta",
    "pull_delta",
    "push_delta",
    "verify_delta",
]

_HOMES = {
    "RlsparseError": "errors",
    "apply_delta": "delta",
    "compare_deltas": "analysis",
    "enable_transformers": "integrations.transformers",
    "encode_delta": "delta",
    "encode_run": "delta",
    "from_delta": "integrations.transformers",
    "inspect_delta": "delta",
    "open_delta": "delta",
    "pull_delta": "publish",
    "push_delta": "publish",
    "verify_delta": "delta",
}
"""Where the names come from."""

_PACKAGES = ("analysis", "container", "delta", "errors", "publish")
"""What can be used as attributes without having been imported by name."""

if not TYPE_CHECKING:  # so that type checkers find misspelt names

    def __getattr__(name: str) -> object:
        import importlib  # noqa: PLC0415 - not needed by who imports modules by their names

        if name in _PACKAGES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        try:
            home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "transformers"}:
                raise
            from rlsparse_store.errors import MissingDependencyError  # noqa: PLC0415 - as above

            msg = f"{error.name} is not installed; install rlsparse-store[transformers]"
            raise MissingDependencyError(msg) from error
        globals()[name] = found = getattr(home, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})

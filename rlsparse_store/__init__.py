"""Store RL-tuned checkpoints as lossless sparse deltas against their base model.

Names are imported when they are first used: importing the package itself loads nothing.
"""

TYPE_CHECKING = False  # as type checkers know it; importing `typing` takes milliseconds
if TYPE_CHECKING:
    from rlsparse_store.analysis import CompareReport, compare_deltas
    from rlsparse_store.delta import (
        ApplyReport,
        DeltaCheckpoint,
        DeltaReport,
        DeltaSlice,
        EncodeReport,
        RunReport,
        VerifyReport,
        apply_delta,
        encode_delta,
        encode_run,
        inspect_delta,
        inspect_run,
        open_delta,
        verify_delta,
    )
    from rlsparse_store.errors import RlsparseError
    from rlsparse_store.integrations.transformers import enable_transformers, from_delta
    from rlsparse_store.publish import PullReport, PushReport, pull_delta, push_delta
    from rlsparse_store.watch import WatchEvent, watch_checkpoints

__version__ = "0.1.0"

__all__ = [
    "ApplyReport",
    "CompareReport",
    "DeltaCheckpoint",
    "DeltaReport",
    "DeltaSlice",
    "EncodeReport",
    "PullReport",
    "PushReport",
    "RlsparseError",
    "RunReport",
    "VerifyReport",
    "WatchEvent",
    "apply_delta",
    "compare_deltas",
    "enable_transformers",
    "encode_delta",
    "encode_run",
    "from_delta",
    "inspect_delta",
    "inspect_run",
    "open_delta",
    "pull_delta",
    "push_delta",
    "verify_delta",
    "watch_checkpoints",
]

_HOMES = {
    "CompareReport": "analysis",
    "PullReport": "publish",
    "PushReport": "publish",
    "RlsparseError": "errors",
    "WatchEvent": "watch",
    "compare_deltas": "analysis",
    "enable_transformers": "integrations.transformers",
    "from_delta": "integrations.transformers",
    "pull_delta": "publish",
    "push_delta": "publish",
    "watch_checkpoints": "watch",
}
"""Modules of the public names; ``delta`` is the module of the others."""

_PACKAGES = ("analysis", "container", "delta", "errors", "publish", "watch")
"""Modules that are attributes without having been imported."""

if not TYPE_CHECKING:  # so that type checkers find misspelt names

    def __getattr__(name: str) -> object:
        import importlib  # noqa: PLC0415 - not needed by who imports modules by their names

        if name in _PACKAGES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        try:
            home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'delta')}")
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "transformers"}:
                raise
            from rlsparse_store.errors import MissingDependencyError  # noqa: PLC0415 - as above
            from rlsparse_store.installing import install_command  # noqa: PLC0415 - as above

            msg = f"{error.name} is not installed: {install_command('transformers')}"
            raise MissingDependencyError(msg) from error
        globals()[name] = found = getattr(home, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})

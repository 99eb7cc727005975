"""Store RL-tuned checkpoints as lossless sparse deltas against their base model."""

from typing import TYPE_CHECKING, Any

from rlsparse_store.analysis import compare_deltas
from rlsparse_store.delta import (
    apply_delta,
    encode_delta,
    encode_run,
    inspect_delta,
    open_delta,
    verify_delta,
)
from rlsparse_store.errors import MissingDependencyError, RlsparseError
from rlsparse_store.publish import pull_delta, push_delta

if TYPE_CHECKING:
    from rlsparse_store.integrations.transformers import enable_transformers, from_delta

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


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function of the module below
    # Transformers takes seconds to import, so it waits until one of these is used.
    if name in {"enable_transformers", "from_delta"}:
        try:
            from rlsparse_store.integrations import transformers  # noqa: PLC0415 - see above
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "transformers"}:
                raise
            msg = f"{error.name} is not installed; install rlsparse-store[transformers]"
            raise MissingDependencyError(msg) from error
        return getattr(transformers, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)

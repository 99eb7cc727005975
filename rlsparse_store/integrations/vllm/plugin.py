"""The entry point of vLLM's plugins: registers the loader and the weight transfer engine."""

from __future__ import annotations

from typing import Final

from rlsparse_store.errors import MissingDependencyError

__all__ = ["IN_PLACE", "LOAD_FORMAT", "OLDEST", "register"]

LOAD_FORMAT: Final = "rlsparse"
"""Name of the load format, and of the backend for weight transfer that loads layer by layer."""

IN_PLACE: Final = "rlsparse_sparse"
"""Name of the backend for weight transfer that writes in place."""

OLDEST: Final = (0, 32)
"""The oldest release that was tried."""


def register() -> None:
    """Register ``--load-format rlsparse`` and the backends for weight transfer.

    vLLM calls it in each of its processes, sometimes more than once.

    Raises:
        MissingDependencyError: This vLLM is too old.
    """
    import vllm  # noqa: PLC0415 - vLLM calls this
    from vllm.distributed.weight_transfer.factory import (  # noqa: PLC0415
        WeightTransferEngineFactory,
    )
    from vllm.model_executor import model_loader  # noqa: PLC0415

    if vllm.__version_tuple__[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        msg = f"vLLM {vllm.__version__} is too old for rlsparse_store: {oldest} or newer is needed"
        raise MissingDependencyError(msg)
    if LOAD_FORMAT in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:  # noqa: SLF001 - no public test
        return
    from rlsparse_store.integrations.vllm.loader import DeltaModelLoader  # noqa: PLC0415

    model_loader.register_model_loader(LOAD_FORMAT)(DeltaModelLoader)
    module = "rlsparse_store.integrations.vllm.weight_transfer"
    WeightTransferEngineFactory.register_engine(LOAD_FORMAT, module, "DeltaWeightTransferEngine")
    WeightTransferEngineFactory.register_engine(IN_PLACE, module, "InPlaceWeightTransferEngine")

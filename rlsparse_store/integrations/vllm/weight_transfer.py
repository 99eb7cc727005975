"""A weight transfer engine of vLLM whose wire carries the place of a delta, and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rlsparse_store.errors import UnsupportedModelError
from rlsparse_store.integrations.vllm.in_place import check_in_place
from rlsparse_store.integrations.vllm.loader import DeltaModelLoader
from rlsparse_store.integrations.vllm.ranks import prepare_together

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DeltaWeightTransferEngine", "InPlaceWeightTransferEngine", "PlaceInfo"]

Weights = Iterable[tuple[str, torch.Tensor]]

# Below vLLM's own logger, whose handlers its users see.
logger = logging.getLogger("vllm.rlsparse")


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Nothing is set up beforehand."""


@dataclass
class PlaceInfo(WeightTransferUpdateInfo):
    """What to load.

    Attributes:
        place: A delta or a full checkpoint: a folder, or ``org/name[@revision]``, as the server
            sees it and under one of its roots.
        subfolder: Folder of the delta within the place, such as a step of a run on the Hub.
    """

    place: str
    subfolder: str = ""


class DeltaWeightTransferEngine(WeightTransferEngine[NoInitInfo, PlaceInfo]):
    """Loads a delta, or the base, into a running engine.

    The delta is verified in full, with the base, before a weight is touched: if it is bad for one
    rank, that is an error, and every rank goes on with the weights it has. Then vLLM loads it layer
    by layer.
    """

    init_info_cls = NoInitInfo
    update_info_cls = PlaceInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Nothing to do: weights are read from storage."""

    def start_weight_update(self) -> None:
        """Nothing to do: an update begins when its delta is verified."""

    def finish_weight_update(self) -> None:
        """Nothing to do: an update ends with its weights loaded."""

    def shutdown(self) -> None:
        """Nothing to do: no file stays open."""

    def receive_weights(self, update_info: PlaceInfo) -> None:
        """Load what the place holds.

        Raises:
            RlsparseError: It cannot be served; the engine still has its weights.
        """
        config, loader = self.model_config, self._loader()
        before = config.model, config.revision
        started = time.perf_counter()
        weights = None
        try:
            weights = prepare_together(lambda: self._prepare(loader, update_info))
        finally:
            if weights is None:
                config.model, config.revision = before
        if weights is None:
            return  # another rank raises
        verified = time.perf_counter()
        self._load(weights)
        _process_embeddings(self.model)
        loader.note()
        seconds = verified - started, time.perf_counter() - verified
        logger.info("%s: checked in %.2f s, loaded in %.2f s", update_info.place, *seconds)

    def _loader(self) -> DeltaModelLoader:
        loader = get_model_loader(self.vllm_config.load_config)
        if not isinstance(loader, DeltaModelLoader):
            msg = "weight transfer by rlsparse needs an engine with --load-format rlsparse"
            raise UnsupportedModelError(msg)
        return loader

    def _prepare(self, loader: DeltaModelLoader, info: PlaceInfo) -> Weights:
        """Open and verify what is to be loaded; the model is not touched."""
        config = self.model_config
        config.model, config.revision = info.place, None
        loader.use_subfolder(info.subfolder)
        return loader.weights(config, self.model, mends_ties=True)

    def _load(self, weights: Weights) -> None:
        initialize_layerwise_reload(self.model)
        self.model.load_weights(weights)
        finalize_layerwise_reload(self.model, self.model_config)


class InPlaceWeightTransferEngine(DeltaWeightTransferEngine):
    """Writes tensors into the memory of the running model, where that is proven to be right.

    Nothing is allocated, packed or captured anew. Each tensor is decoded over the base and copied
    whole, whatever the memory holds: no old words are kept, and an update after one that broke off
    is right. vLLM's sparse patches would do the same with one more tensor of NaNs for each, and
    without NaNs in weights; on the CPU they take 25 to 70 times as long as a copy.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - vLLM's
        super().__init__(*arguments, **named)
        self._is_proven = False

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Prove that writing in place is right for this model.

        Raises:
            UnsupportedModelError: It is not, and why; the engine serves on.
        """
        del init_info
        prepare_together(self._prove)

    def _prove(self) -> bool:
        """Prove it once, with the checkpoint that the model holds."""
        if not self._is_proven:
            config = self.model_config
            held = self._loader().weights(config, self.model, mends_ties=True)
            check_in_place(self.model, held, uses_mla=config.use_mla)
            self._is_proven = True
        return True

    def _prepare(self, loader: DeltaModelLoader, info: PlaceInfo) -> Weights:
        self._prove()
        return super()._prepare(loader, info)

    def _load(self, weights: Weights) -> None:
        with torch.no_grad():
            self.model.load_weights(weights)


def _process_embeddings(model: nn.Module) -> None:
    """Process embeddings anew: on the CPU, the packed copy of a tied one is of the old weights."""
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            layer.quant_method.process_weights_after_loading(layer)

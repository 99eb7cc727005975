"""``--load-format rlsparse``: a model loader of vLLM that reads a delta over its base."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from rlsparse_store.delta.open import DeltaCheckpoint, open_local
from rlsparse_store.delta.resolve import as_repo_id, delta_folders, find_delta
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.snapshots import cached_snapshot
from rlsparse_store.integrations.serving.configuration import check_configuration
from rlsparse_store.integrations.serving.places import ServedPlaces
from rlsparse_store.integrations.vllm.unsupported import check_live_update, check_quantization

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch
    from torch import nn
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig

    from rlsparse_store.delta.open import Verify

__all__ = ["DeltaModelLoader"]


class DeltaModelLoader(DefaultModelLoader):
    """Loads a delta's tuned checkpoint, tensor by tensor, and any other checkpoint as vLLM does.

    Args:
        load_config: vLLM's. Its ``model_loader_extra_config`` takes the fields of
            :class:`ServedPlaces` besides those of vLLM's own loader. What the engine was started
            with is noted in it, since vLLM makes a loader anew for every reload.
    """

    counter_before_loading_weights: float  # vLLM's, for its log

    def __init__(self, load_config: LoadConfig) -> None:
        self._engine_config = load_config
        options = dict(load_config.model_loader_extra_config or {})
        self._places = ServedPlaces.take("--model-loader-extra-config", options)
        self._opened: DeltaCheckpoint | None = None
        self._is_start = False
        # vLLM's loader refuses load formats and options that it does not know.
        plain = copy.copy(load_config)
        plain.load_format = "auto"
        plain.model_loader_extra_config = options
        super().__init__(plain)

    def download_model(self, model_config: ModelConfig) -> None:
        """Download the delta and its base, or a full checkpoint."""
        delta = self._places.delta or model_config.model
        if not self._is_delta(delta, self._places.delta_revision or model_config.revision):
            super().download_model(model_config)
            return
        self._begin(model_config)
        self._open(model_config, "none").close()

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Load the model that the engine is started with."""
        check_quantization(model_config)
        self._begin(model_config)
        self._is_start = True
        super().load_weights(model, model_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """The tensors of ``model_config.model``, a delta or a full checkpoint.

        On a running engine, the place must be one that the server may load from, and the delta is
        verified in full before this returns: vLLM gives up the old weights right after.

        Raises:
            RlsparseError: The delta cannot be served; the engine still has its weights.
        """
        return self.weights(model_config, model, mends_ties=False)

    def weights(
        self, model_config: ModelConfig, model: nn.Module, *, mends_ties: bool
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """As :meth:`get_all_weights`.

        Args:
            model_config: The engine's configuration of the model.
            model: The model.
            mends_ties: Whether the caller processes tied embeddings again afterwards.
        """
        is_delta = self._is_delta(model_config.model, model_config.revision)
        if not self._is_start:
            self._places.check(model_config.model)
            check_live_update(model_config, mends_ties=mends_ties)
            if not is_delta:
                check_configuration(model_config.hf_config, Path(model_config.model))
        if is_delta:
            self._opened = self._open(model_config, "touched" if self._is_start else "full")
        return super().get_all_weights(model_config, model)

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        tuned, self._opened = self._opened, None
        if tuned is None:
            return super()._get_weights_iterator(source)
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        return self._tensors(tuned, source)

    def _tensors(
        self, tuned: DeltaCheckpoint, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """The tensors that this rank may need, each decoded when it is asked for."""
        with tuned:
            for name in tuned:
                is_unused = source.is_unused_weight is not None and source.is_unused_weight(name)
                if not (is_unused or should_skip_weight(name, self.local_expert_ids)):
                    yield source.prefix + name, tuned[name]
            tuned.check_unchanged()

    def _access(self) -> HubAccess:
        return HubAccess(cache_dir=self._engine_config.download_dir)

    def _is_delta(self, place: str, revision: str | None) -> bool:
        """Whether a place holds a delta."""
        if Path(place).is_dir():
            return Path(place, self._places.subfolder, DELTA_FOLDER).is_dir()
        repo, access = as_repo_id(place, revision), self._access()
        if repo is None:
            return False
        if access.is_offline:
            found = cached_snapshot(repo, "model", access)
            return found is not None and self._is_delta(str(found.path), None)
        return self._places.subfolder in delta_folders(list_repo(repo, "model", access))

    def _begin(self, model_config: ModelConfig) -> None:
        """Note what the engine is started with. From now on, its delta is its model."""
        places = self._places
        start = [model_config.model, places.base, places.delta]
        places.roots += [place for place in start if place is not None]
        if places.delta is not None:
            if places.base is None:
                places.base, places.base_revision = model_config.model, model_config.revision
            model_config.model, model_config.revision = places.delta, places.delta_revision
            places.delta = places.delta_revision = None
        elif places.base is None and not self._is_delta(model_config.model, model_config.revision):
            places.base, places.base_revision = model_config.model, model_config.revision
        self._note()

    def _note(self) -> None:
        options: dict[str, Any] = self._engine_config.model_loader_extra_config
        options.update(self._places.fields())
        for gone in ("delta", "delta_revision"):
            options.pop(gone, None)

    def _open(self, model_config: ModelConfig, verify: Verify) -> DeltaCheckpoint:
        """Open the delta ``model_config.model`` over the engine's base.

        The base that a delta names is followed only by the delta that the engine is started with.
        """
        places, access = self._places, self._access()
        folder = find_delta(model_config.model, model_config.revision, places.subfolder, access)
        check_configuration(model_config.hf_config, folder)
        tuned = open_local(
            folder,
            places.base,
            places.base_revision,
            access,
            get_framework("pt", None),
            verify,
            is_whole=True,
        )
        if places.base is None:
            places.base, places.base_revision = str(tuned.base), None
            places.roots.append(places.base)
            self._note()
        return tuned

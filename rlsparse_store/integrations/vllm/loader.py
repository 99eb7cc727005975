"""``--load-format rlsparse``: a model loader of vLLM that reads a delta over its base."""

from __future__ import annotations

import copy
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from rlsparse_store.delta.open import DeltaCheckpoint, open_local
from rlsparse_store.delta.resolve import find_checkpoint, subfolder_parts
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.serving.configuration import check_configuration
from rlsparse_store.integrations.serving.detection import detect_delta
from rlsparse_store.integrations.serving.places import ServedPlaces
from rlsparse_store.integrations.vllm.unsupported import (
    check_live_update,
    check_quantization,
    check_ties,
)
from rlsparse_store.integrations.vllm.verified import verify_once

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future
    from pathlib import Path

    import torch
    from torch import nn
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig

__all__ = ["DeltaModelLoader"]

AHEAD: Final = 1
"""Tensors that are decoded while vLLM loads another one."""


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
        self._folders: dict[tuple[str, str | None], Path | None] = {}
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
        revision = self._places.delta_revision if self._places.delta else model_config.revision
        folder = self._delta_folder(delta, revision)
        if folder is None:
            super().download_model(model_config)
            return
        self._begin(model_config)
        self._open(model_config, folder).close()

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
        if not self._is_start:
            self._places.check(model_config.model)
            check_live_update(model_config, mends_ties=mends_ties)
        folder = self._delta_folder(model_config.model, model_config.revision)
        if folder is not None:
            self._opened = self._open(model_config, folder)
            if not self._is_start:
                verify_once(self._opened)
        elif not self._is_start:
            model_config = self._full(model_config)
        return super().get_all_weights(model_config, model)

    def _full(self, model_config: ModelConfig) -> ModelConfig:
        """Find and open the full checkpoint ``model_config.model``, since vLLM does so too late.

        Raises:
            RlsparseError: There is none, or it cannot be read.
        """
        place, revision = model_config.model, model_config.revision
        path = find_checkpoint(place, "checkpoint", self._access(), revision)
        check_configuration(model_config.hf_config, path)
        open_checkpoint(path).close()
        found = copy.copy(model_config)
        found.model, found.revision = str(path), None
        return found

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
        """The tensors that this rank may need, each decoded while vLLM loads the one before."""
        names = [name for name in tuned if self._is_needed(name, source)]
        ahead: deque[Future[torch.Tensor]] = deque()
        with tuned, ThreadPoolExecutor(1) as thread:
            for number, name in enumerate(names):
                following = names[number + len(ahead) : number + 1 + AHEAD]
                ahead.extend(thread.submit(tuned.get_tensor, each) for each in following)
                yield source.prefix + name, ahead.popleft().result()
            tuned.check_unchanged()

    def _is_needed(self, name: str, source: DefaultModelLoader.Source) -> bool:
        if source.is_unused_weight is not None and source.is_unused_weight(name):
            return False
        return not should_skip_weight(name, self.local_expert_ids)

    def _access(self) -> HubAccess:
        return HubAccess(cache_dir=self._engine_config.download_dir)

    def _delta_folder(self, place: str, revision: str | None) -> Path | None:
        """The local folder of a delta, which is downloaded; ``None`` for another checkpoint.

        A repository is listed once per loader.
        """
        key = place, revision
        if key not in self._folders:
            self._folders[key] = self._find_delta(place, revision)
        return self._folders[key]

    def _find_delta(self, place: str, revision: str | None) -> Path | None:
        inside, access = "/".join(subfolder_parts(self._places.subfolder)), self._access()
        found = detect_delta(place, revision, (inside, ""), access)
        return None if found is None else found.fetch(access)

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
        elif places.base is None:
            model = model_config.model, model_config.revision
            if self._delta_folder(*model) is None:
                places.base, places.base_revision = model
        self.note()

    def use_subfolder(self, subfolder: str) -> None:
        """Look for deltas in another folder of their place than the engine does so far."""
        self._places.subfolder = subfolder
        self._folders.clear()

    def note(self) -> None:
        """Note in the engine's configuration where its model comes from."""
        options: dict[str, Any] = self._engine_config.model_loader_extra_config
        for gone in ("delta", "delta_revision", "subfolder"):
            options.pop(gone, None)
        options.update(self._places.fields())

    def _open(self, model_config: ModelConfig, folder: Path) -> DeltaCheckpoint:
        """Open a delta over the engine's base.

        The base that a delta names is followed only by the delta that the engine is started with.
        """
        places, access = self._places, self._access()
        check_configuration(model_config.hf_config, folder)
        tuned = open_local(
            folder,
            places.base,
            places.base_revision,
            access,
            get_framework("pt", None),
            "touched",
            is_whole=self._is_start,
        )
        check_ties(model_config, tuned.digests())
        if places.base is None:
            places.base, places.base_revision = str(tuned.base), None
            places.roots.append(places.base)
            self.note()
        return tuned

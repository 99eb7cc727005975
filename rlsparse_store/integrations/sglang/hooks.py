"""What stands around SGLang's functions: where they read a checkpoint, it may be a delta."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.open import open_local
from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import PlaceError, RlsparseError
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.serving.configuration import check_configuration
from rlsparse_store.integrations.serving.detection import detect_delta
from rlsparse_store.integrations.sglang.settings import configured_places, is_configured
from rlsparse_store.integrations.sglang.unsupported import check_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from rlsparse_store.delta.open import DeltaCheckpoint, Verify
    from rlsparse_store.integrations.serving.places import ServedPlaces

    Weights = Iterator[tuple[str, torch.Tensor]]

__all__ = ["DeltaHooks"]

logger = logging.getLogger("sglang.rlsparse")


@dataclass(frozen=True)
class _Start:
    """What an engine was started with.

    Attributes:
        place: The model.
        revision: Its revision on the Hub.
        is_delta: Whether it is a delta.
    """

    place: str
    revision: str | None
    is_delta: bool


@dataclass
class _Update:
    """A running engine's change to other weights.

    Attributes:
        places: The places to read, the next one first: that of the new weights, then that of the
            old ones, to which SGLang goes back after an error.
        opened: The delta at the first of them, verified in full.
    """

    places: list[str]
    opened: DeltaCheckpoint | None


class DeltaHooks:
    """The hooks of one of SGLang's processes, and what they know about its engine."""

    def __init__(self) -> None:
        self._access = HubAccess()
        self._start = _Start("", None, is_delta=False)
        self._serves_deltas = is_configured()
        self._update: _Update | None = None

    @cached_property
    def _places(self) -> ServedPlaces:
        # Read when the model is loaded: an error in a plugin does not end SGLang.
        return configured_places()

    def begin(
        self,
        original: Callable[..., Any],
        load_config: Any,  # noqa: ANN401 - SGLang's
        model_config: Any = None,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - as above
        """Around ``get_model_loader``: note what the engine is started with.

        Raises:
            RlsparseError: That is a delta which this engine cannot serve.
        """
        if self._update is None and model_config is not None:
            self._access = HubAccess(cache_dir=load_config.download_dir)
            place, revision = model_config.model_path, model_config.revision
            start = _Start(place, revision, self._is_delta(place, revision))
            if start.is_delta:
                check_engine(model_config, load_config.load_format)
            if not model_config.is_draft_model:
                self._note(start)
        return original(load_config, model_config)

    def weights(
        self,
        original: Callable[..., Weights],
        loader: Any,  # noqa: ANN401 - SGLang's
        source: Any,  # noqa: ANN401 - as above
        **keywords: Any,  # noqa: ANN401 - as above
    ) -> Weights:
        """Around ``DefaultModelLoader._get_weights_iterator``: the tensors of a checkpoint.

        Raises:
            RlsparseError: They are a delta's, and it is damaged or its base is another one.
        """
        if source.model_config is None:  # an adapter
            return original(loader, source, **keywords)
        opened: DeltaCheckpoint | None = None
        verify: Verify = "touched"
        if self._update is not None:
            place, verify = self._update.places.pop(0), "full"
            source = dataclasses.replace(
                source, model_or_path=place, revision=self._revision(place)
            )
            opened, self._update.opened = self._update.opened, None
        place, revision = source.model_or_path, source.revision
        if opened is None:
            if not self._is_delta(place, revision):
                return original(loader, source, **keywords)
            opened = self._open(place, revision, verify)
        if loader.counter_before_loading_weights == 0.0:
            loader.counter_before_loading_weights = time.perf_counter()
        return _tensors(opened, source.prefix)

    def update(
        self,
        original: Callable[..., tuple[bool, str]],
        updater: Any,  # noqa: ANN401 - SGLang's
        model_path: str,
        load_format: str,
        *arguments: Any,  # noqa: ANN401 - as above
        **keywords: Any,  # noqa: ANN401 - as above
    ) -> tuple[bool, str]:
        """Around ``WeightUpdater.update_weights_from_disk``: check first, then touch weights.

        Returns:
            Whether the weights are the new ones, and a message. Else they are the old ones.
        """
        from rlsparse_store.integrations.sglang.ranks import first_error  # noqa: PLC0415 - torch's

        config = updater.model_config
        before, mine, update = config.model_path, None, None
        started = time.perf_counter()
        try:
            update = self._prepare(config, model_path, load_format)
        except Exception as error:  # noqa: BLE001 - it would end the server, which has its weights
            mine = str(error) or type(error).__name__
        message = first_error(mine)
        if message is not None:
            if update is not None and update.opened is not None:
                update.opened.close()
            return False, message
        if update is None:
            return original(updater, model_path, load_format, *arguments, **keywords)
        logger.info("%s: checked in %.2f s", model_path, time.perf_counter() - started)
        update.places.append(before)
        self._update = update
        try:
            is_done, message = original(updater, model_path, load_format, *arguments, **keywords)
        finally:
            self._update = None
            if update.opened is not None:
                update.opened.close()
        if not is_done:
            config.model_path = before
        return is_done, message

    def _note(self, start: _Start) -> None:
        """Note what the engine is started with."""
        self._start, places = start, self._places
        self._serves_deltas = self._serves_deltas or start.is_delta
        places.roots.append(start.place)
        if places.base is not None:
            places.roots.append(places.base)
        elif not start.is_delta:
            places.base, places.base_revision = start.place, start.revision

    def _revision(self, place: str) -> str | None:
        """The revision of a place; SGLang has one only for the model that it was started with."""
        start, places = self._start, self._places
        known = {places.base: places.base_revision, start.place: start.revision}
        return known.get(place)

    def _is_delta(self, place: str, revision: str | None) -> bool:
        start = self._start
        if (place, revision) == (start.place, start.revision):
            return start.is_delta
        try:
            return detect_delta(place, revision, ("",), self._access) is not None
        except RlsparseError as error:
            # SGLang may know better what this is, and where to find it.
            logger.warning("not known to be a delta: %s", error)
            return False

    def _prepare(self, model_config: Any, place: str, load_format: str) -> _Update | None:  # noqa: ANN401
        """Check the place that an update asks for, and all that it holds.

        Returns:
            The update; ``None`` where neither the engine nor the place has to do with deltas.

        Raises:
            RlsparseError: The engine must not load this.
        """
        revision = self._revision(place)
        if self._serves_deltas:
            # Before anything of the place is read, be it a listing.
            self._places.check(place)
        found = self._is_delta(place, revision)
        if not (found or self._serves_deltas):
            return None
        self._places.check(place)
        if not found:
            if parse_bucket_url(place) is not None:
                msg = "holds no delta; give a full checkpoint by its folder or repository"
                raise PlaceError(msg, file=place)
            check_configuration(self._configuration(model_config), Path(place))
            return _Update([place], None)
        check_engine(model_config, load_format)
        served = self._configuration(model_config)
        return _Update([place], self._open(place, revision, "full", served))

    def _configuration(self, model_config: Any) -> Any:  # noqa: ANN401 - transformers'
        """The configuration that the engine was started with, before SGLang wrote to it."""
        start = self._start
        kind = type(model_config.hf_config)
        return kind.from_pretrained(start.place, revision=start.revision or "main")

    def _open(
        self,
        place: str,
        revision: str | None,
        verify: Verify,
        served: Any = None,  # noqa: ANN401 - transformers'
    ) -> DeltaCheckpoint:
        """Open a delta over the engine's base.

        The base that a delta names is followed only by the delta that the engine is started with.

        Args:
            place: The delta.
            revision: Its revision.
            verify: How much to check.
            served: The engine's configuration, if the delta's must be the same.
        """
        places, access = self._places, self._access
        folder = find_delta(place, revision, "", access)
        if served is not None:
            check_configuration(served, folder)
        framework = get_framework("pt", None)
        base, base_revision = places.base, places.base_revision
        tuned = open_local(folder, base, base_revision, access, framework, verify, is_whole=True)
        if places.base is None:
            places.base, places.base_revision = str(tuned.base), None
            places.roots.append(places.base)
        return tuned


def _tensors(tuned: DeltaCheckpoint, prefix: str) -> Weights:
    """The tensors of a delta's tuned checkpoint, each decoded when it is asked for."""
    with tuned:
        for name in tuned:
            yield prefix + name, tuned[name]
        tuned.check_unchanged()

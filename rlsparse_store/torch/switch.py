"""``DeltaSwitch``: one loaded base that becomes each of several tuned models in turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import RlsparseError
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_batches import check_stored_bytes
from rlsparse_store.pipeline.threads import ordered_map, resolve_threads
from rlsparse_store.torch.model_tensors import check_is_base, find_targets, live_tensors
from rlsparse_store.torch.patch import patch_targets
from rlsparse_store.torch.state_dict import wait_for
from rlsparse_store.torch.undo_log import SwapGroup, UndoLog, swap_groups

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path
    from types import TracebackType

__all__ = ["DeltaSwitch"]


class _Visit(NamedTuple):
    """A delta as it was on disk: one that is written anew is another one.

    Attributes:
        folder: Its folder.
        files: Name, length and time of change of each of its files.
    """

    folder: Path
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, folder: Path) -> _Visit:
        """The delta in a folder, as it is now."""
        folder = folder.resolve()
        found = sorted((folder / DELTA_FOLDER).glob("*"))
        states = [(path.name, path.stat()) for path in found]
        return cls(folder, tuple((name, s.st_size, s.st_mtime_ns) for name, s in states))


def _places(model: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - a module or a mapping
    """Where the weights of a model lie."""
    weights = model.values() if isinstance(model, Mapping) else model.parameters()
    return [(t.device, t.dtype, t.data_ptr()) for t in weights]


def _wait_for(groups: list[SwapGroup]) -> None:
    wait_for(group.target.tensor for group in groups)


class DeltaSwitch:
    """Holds a loaded base and turns it into tuned models and back, in place and bit for bit.

    A delta is decoded when it is visited for the first time, and what it changed is kept: one bit
    per weight for the places, and the words themselves; together about 11 % of a bfloat16 model at
    5 % density. Coming back later exchanges those words, without decoding.

    Make it when the model is where it will stay, before it is wrapped (FSDP, torch.compile), and
    use it from one thread. Only weights change: the configuration stays the base's.

    Words are exchanged in main memory: of a model on a device, each tensor that a delta changes is
    copied there and back.

    While it is in use, nothing else may write to the weights. That is noticed where words that a
    delta changes are not what they were left as.

    Args:
        model: As for :func:`rlsparse_store.torch.patch_`. It must hold the base's weights.
        memory: Bytes of main memory for deltas that were visited, beyond the current one; those
            not used for longest are given up. By default as many as the model has.
        threads: Threads to work on; all processors by default.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Attributes:
        current: The delta that the model is now, as it was named; ``None`` for the base.

    Example:
        >>> with DeltaSwitch(model) as switch:  # doctest: +SKIP
        ...     for step in range(100, 1000, 100):
        ...         switch.to(f"run/step-{step}")
        ...         evaluate(model)
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a module or a mapping
        *,
        memory: int | None = None,
        threads: int | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        self._access = HubAccess(
            token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        self._model = model
        self._places = _places(model)
        self._is_moving = False
        self._lock = threading.Lock()
        self._live = live_tensors(model)
        own = sum(t.numel() * t.element_size() for t in self._live.values())
        self._memory = own if memory is None else memory
        self._threads = resolve_threads(threads)
        self._digests: dict[int, bytes] = {}
        self._visited: OrderedDict[_Visit, UndoLog] = OrderedDict()
        self._here: UndoLog | None = None
        self.current: str | PathLike[str] | None = None

    def to(self, delta: str | PathLike[str] | None) -> None:
        """Turn the model into a tuned one, or back into the base.

        Args:
            delta: Folder of the delta, or ``org/name[@revision]``; ``None`` for the base.

        Raises:
            NotFoundError: The delta is not there.
            FormatError: The delta is damaged.
            BaseMismatchError: The model is not the delta's base.
            RlsparseError: The delta makes something of a tensor that cannot be made in place, or
                something else wrote to the weights. The model is then as it was before.
        """
        if not self._lock.acquire(blocking=False):
            msg = "another thread is switching this model; use a switch from one thread"
            raise RlsparseError(msg)
        try:
            self._check_in_place()
            self._become(delta)
            self.current = delta
            self._forget()
        finally:
            self._lock.release()

    def _become(self, delta: str | PathLike[str] | None) -> None:
        if delta is None:
            self._move(None)
        else:
            visit = _Visit.of(find_delta(delta, None, "", self._access))
            if visit in self._visited:
                self._visited.move_to_end(visit)
                self._move(self._visited[visit])
            else:
                self._visit(visit)

    def __enter__(self) -> Self:
        """Return the switch itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Turn the model back into the base."""
        self.to(None)

    def _visit(self, visit: _Visit) -> None:
        """Decode a delta for the first time, from the base."""
        with DeltaReader(visit.folder) as reader:
            targets = find_targets(reader, self._live)
            before, changes = self._here, UndoLog()
            self._move(None)
            try:
                check_is_base(reader, targets, self._threads, self._digests)
                check_stored_bytes(reader, self._threads)
                patch_targets(reader, targets, self._threads, changes.add)
            except BaseException:
                # What was patched goes back first, then all of it to where it was.
                self._here = changes
                self._move(before)
                raise
        self._here = self._visited[visit] = changes

    def _move(self, to: UndoLog | None) -> None:
        """Leave what the model is and enter another visited delta, or none."""
        if to is self._here:
            return
        groups = list(swap_groups([step for step in (self._here, to) if step is not None]))
        # What was begun with the weights, on any stream, is done with them first.
        _wait_for(groups)
        self._is_moving = True
        try:
            # Closed before anything is undone: threads go on until then.
            with closing(ordered_map(SwapGroup.exchange, groups, self._threads)) as done:
                failed = [group for group in done if group.failed]
            # Threads copy on the default stream, whichever the caller's is.
            _wait_for(groups)
        except BaseException:
            self._undo(groups)
            raise
        if failed:
            self._undo(groups)
            msg = "was written to by something else since the model was switched; load it again"
            raise RlsparseError(msg, tensor=printable(failed[0].target.record.name))
        self._here, self._is_moving = to, False

    def _undo(self, groups: list[SwapGroup]) -> None:
        """Go back to where a move began."""
        _wait_for(groups)
        for group in groups:
            group.undo()
        _wait_for(groups)
        self._is_moving = False

    def _check_in_place(self) -> None:
        """Require that the model is whole, and its weights are where they were."""
        if self._is_moving:
            msg = "a move was interrupted and could not be undone; load the model again"
            raise RlsparseError(msg)
        if self._places != _places(self._model):
            msg = (
                "the model's weights were moved, cast or replaced since the switch was made: load "
                "the base again, and make the switch when it is where it will stay"
            )
            raise RlsparseError(msg)

    def _forget(self) -> None:
        """Give up what was not used for longest, until the rest fits."""
        others = [visit for visit, v in self._visited.items() if v is not self._here]
        total = sum(self._visited[visit].nbytes for visit in others)
        for visit in others:
            if total <= self._memory:
                break
            total -= self._visited.pop(visit).nbytes

"""Watching the folder of a trainer: each checkpoint is stored as a delta once it is complete."""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy
from rlsparse_store.delta.resolve import find_checkpoint, find_repo_id
from rlsparse_store.delta.run import RunEntry, place_of
from rlsparse_store.delta.run_encoder import RunEncoder, is_new, require_one_base
from rlsparse_store.delta.run_files import natural_order, step_in_name
from rlsparse_store.delta.units import format_bytes, format_percent
from rlsparse_store.errors import (
    BucketError,
    CheckpointError,
    DtypeMismatchError,
    FormatError,
    ImplausibleError,
    NotFoundError,
    OutputError,
    RlsparseError,
    RunError,
    RunLockedError,
    raise_interrupt,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.side_files import open_side_files
from rlsparse_store.files.trainer_folders import step_folder, survey_folder
from rlsparse_store.files.trainer_state import read_trainer_state
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.watch.completeness import FoundCheckpoint, Settling, has_marker, list_checkpoint
from rlsparse_store.watch.event import WatchEvent
from rlsparse_store.watch.seen import SeenCheckpoints
from rlsparse_store.watch.thinning import Thinner

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from os import PathLike
    from threading import Event

    from rlsparse_store.delta.run_encoder import Added
    from rlsparse_store.delta.run_files import IndexRow
    from rlsparse_store.delta.run_place import RunPlace, RunWriter
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.watch.completeness import Listing
    from rlsparse_store.watch.event import Kind

__all__ = ["SETTLE_SECONDS", "watch_checkpoints"]

SETTLE_SECONDS: Final = 30.0
"""Seconds without a change after which a checkpoint without a marker is complete, by default."""

_MOST_POLL_SECONDS: Final = 5.0
_LEAST_POLL_SECONDS: Final = 0.05

_RETRY_SECONDS: Final = 30.0
"""Between two tries on a full disk, or where object storage fails: each may write gigabytes."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def watch_checkpoints(  # noqa: PLR0913 - each option is one of the command line's
    folder: str | PathLike[str],
    base: str | PathLike[str],
    out: str | PathLike[str],
    *,
    settle_seconds: float = SETTLE_SECONDS,
    once: bool = False,
    stop: Event | None = None,
    thin: int | None = None,
    yes: bool = False,
    cast: Literal["bf16"] | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    coder: SpanCoder | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    force: bool = False,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Generator[WatchEvent, None, None]:
    """Store every checkpoint that a trainer writes as a delta, once it is complete.

    A checkpoint is complete if its trainer wrote a marker after its weights, or if two listings of
    its files, ``settle_seconds`` apart, are the same. Markers are ``trainer_state.json`` (Trainer,
    TRL), ``STABLE`` (prime-rl), ``.complete``, and a step in ``latest_checkpointed_iteration.txt``
    (verl). If a file changes while the checkpoint is read, nothing is stored, and it is read again
    when it is complete again.

    Deltas are entries of a run, as :func:`encode_run` writes them: named after the folder of their
    step, with step and metrics from ``trainer_state.json``. The base is hashed once. Nothing is
    written to the trainer's folder. An interruption at any moment loses nothing but work: the next
    watcher continues.

    Args:
        folder: The folder of the trainer. Its own weights, the final model, are not stored.
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        out: Folder of the run, outside of ``folder``, or its URL in object storage.
        settle_seconds: Seconds without a change after which a checkpoint without a marker is
            complete.
        once: Store what is complete, and end. Otherwise the iterator waits for more, until it is
            closed or ``stop`` is set.
        stop: Ends the watching when another thread sets it.
        thin: Newest checkpoints that stay full, at least one, while the weights of others are
            removed; by default, all stay. Not with ``cast``, or with a base on the Hub without its
            commit.
        yes: Remove the weights. Without it, events say which could be removed.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta continues in another file.
        coder: As for :func:`encode_delta`.
        include: As for :func:`encode_delta`.
        exclude: As for :func:`encode_delta`.
        force: As for :func:`encode_delta`.
        base_revision: Branch, tag or commit of the base on the Hub.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Yields:
        What happened to each checkpoint, as it happens.

    Raises:
        NotFoundError: There is no such folder or base, or the folder was removed.
        OutputError: The run is inside the folder, or cannot be written. Where the disk is full,
            the iterator yields an event and tries again, unless ``once``.
        BucketError: The object storage failed when watching began. Later failures are waited for
            like a full disk.
        RunLockedError: Another watcher is watching for this run. Another writer of the run is
            waited for, unless ``once``.
        ImplausibleError: The first checkpoint is not one of this base, as names and shapes show.
            Later ones are refused with an event.
        DtypeMismatchError: A dtype of the first checkpoint does not match, and no option says what
            to do. Later ones are refused with an event.
        BaseMismatchError: The run has deltas of another base.
        CheckpointError: The base cannot be read, or weights cannot be thinned with these options.
        RunError: The run's index or an entry's note is damaged.

    Example:
        >>> for event in watch_checkpoints("out", "qwen-base", "run", once=True):  # doctest: +SKIP
        ...     print(event.message)
    """
    folder, run = Path(folder), place_of(out)
    _require_places(folder, run)
    if settle_seconds < 0:
        msg = f"settle_seconds={settle_seconds}: give seconds, at least 0"
        raise ValueError(msg)
    if thin is not None:
        _require_thinnable(base, base_revision, cast)
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    with ExitStack() as stack:
        seen = SeenCheckpoints(stack.enter_context(run.watch()))
        rows = require_one_base(run)
        path = find_checkpoint(base, "base", access, base_revision)
        encoder = RunEncoder(
            stack.enter_context(open_checkpoint(path)),
            policy,
            threads=threads,
            shard_bytes=shard_bytes,
            coder=coder,
            force=force,
        )
        sides, settling = _SideFileOptions(include, exclude), Settling(settle_seconds)
        thinner = None
        if thin is not None:
            thinner = Thinner(run, encoder.base, thin, threads, is_confirmed=yes)
        held = {row.name: row for row in rows}
        watcher = _Watcher(folder, run, encoder, held, seen, sides, settling, thinner, once=once)
        yield from watcher.look()
        if once:
            if watcher.is_waiting and not _is_stopped(stop, settle_seconds):
                yield from watcher.look()
            return
        poll = max(_LEAST_POLL_SECONDS, min(settle_seconds / 2, _MOST_POLL_SECONDS))
        while not _is_stopped(stop, poll):
            yield from watcher.look()


def _is_stopped(stop: Event | None, seconds: float) -> bool:
    """Wait, and return whether watching ends."""
    if stop is not None:
        return stop.wait(seconds)
    time.sleep(seconds)
    return False


def _require_places(folder: Path, run: RunPlace) -> None:
    """Require a folder to watch and a run outside of it.

    Raises:
        NotFoundError: There is no such folder.
        OutputError: The run is inside it, where the trainer would count it among its own.
    """
    if not folder.is_dir():
        msg = "no such folder; give the one in which the trainer saves its checkpoints"
        raise NotFoundError(msg, file=printable(str(folder)))
    if run.is_inside(folder):
        msg = f"is inside {printable(str(folder))}, which is watched; choose a folder outside of it"
        raise OutputError(msg, file=run.root)


def _require_thinnable(
    base: str | PathLike[str], base_revision: str | None, cast: str | None
) -> None:
    """Require that deltas will give back what is removed.

    Raises:
        CheckpointError: They may not.
    """
    if cast is not None:
        msg = "deltas with cast are rounded, and give no checkpoint back: do not thin"
        raise CheckpointError(msg)
    repo = find_repo_id(base, base_revision)
    if repo is not None and not repo.is_pinned:
        msg = "may move on: to thin, name its commit (ORG/NAME@COMMIT)"
        raise CheckpointError(msg, file=printable(str(base)))


@dataclass(frozen=True, slots=True)
class _SideFileOptions:
    include: Sequence[str]
    exclude: Sequence[str]


class _ChangedError(Exception):
    """The files of a checkpoint changed while it was read. Keeps its delta from being published."""


class _Watcher:
    """Looks at the trainer's folder again and again.

    Args:
        folder: The folder.
        run: The place of the run.
        encoder: Adds checkpoints to the run.
        held: The entries that the run has, by name.
        seen: The checkpoints that were stored.
        sides: Which small files travel.
        settling: Says which checkpoints have settled.
        thinner: Removes weights that are stored, if asked for.
        once: Whether what would be waited for is an error.

    Attributes:
        is_waiting: Whether the last look left a checkpoint for later.
    """

    def __init__(  # noqa: PLR0913 - what looking takes
        self,
        folder: Path,
        run: RunPlace,
        encoder: RunEncoder,
        held: Mapping[str, IndexRow],
        seen: SeenCheckpoints,
        sides: _SideFileOptions,
        settling: Settling,
        thinner: Thinner | None,
        *,
        once: bool,
    ) -> None:
        self._folder = folder
        self._run = run
        self._encoder = encoder
        self._held = held
        self._sides = sides
        self._settling = settling
        self._thinner = thinner
        self._once = once
        self._seen = seen
        self._refused: dict[Path, Listing] = {}
        self._said: dict[Path, str] = {}
        self._has_stored = False
        self._retry_at = 0.0
        self.is_waiting = False

    def look(self) -> Iterator[WatchEvent]:
        """Look at every checkpoint once, in the order of their steps, and store complete ones."""
        if not self._folder.is_dir():
            msg = "was removed while it was watched"
            raise NotFoundError(msg, file=printable(str(self._folder)))
        self.is_waiting = False
        surveyed = survey_folder(self._folder)
        for path, reason in surveyed.others.items():
            yield from self._say("skipped", path, reason)
        self._settling.keep_only(surveyed.checkpoints)
        here = {*surveyed.checkpoints, *surveyed.others}
        self._said = {path: text for path, text in self._said.items() if path in here}
        places: dict[str, Path] = {}
        stored: list[FoundCheckpoint] = []
        for path in self._in_order(surveyed.checkpoints):
            step = step_folder(self._folder, path)
            other = places.setdefault(step.name, path)
            if other != path:
                reason = f"has the name of {printable(str(other))}: watch the folder of one run"
                yield from self._say("skipped", path, reason)
                continue
            # Others were encoded meanwhile: it is listed now.
            try:
                listing = list_checkpoint(path)
            except OSError as error:
                yield from self._wait(path, error, f"cannot be listed ({error.strerror})")
                continue
            if listing is not None:
                found = FoundCheckpoint(path, step, listing)
                yield from self._look_at(found)
                if self._seen.has(found.name, listing):
                    stored.append(found)
        if self._thinner is not None:
            paths = {found.path for found in stored}
            others = [path for path in surveyed.checkpoints if path not in paths]
            yield from self._thinner.thin(self._folder, stored, others)

    def _in_order(self, checkpoints: Sequence[Path]) -> list[Path]:
        def order(path: Path) -> tuple[int, list[tuple[int, int, str]], str]:
            name = step_folder(self._folder, path).name
            return step_in_name(name) or 0, natural_order(name), str(path)

        return sorted(checkpoints, key=order)

    def _look_at(self, found: FoundCheckpoint) -> Iterator[WatchEvent]:
        try:
            yield from self._examine(found)
        except BucketError as error:
            yield from self._retry_later(found, error)

    def _examine(self, found: FoundCheckpoint) -> Iterator[WatchEvent]:
        if self._seen.has(found.name, found.listing):
            return
        if self._refused.get(found.path) == found.listing:
            return
        if self._is_held(found, self._held.get(found.name)):
            self._remember(found)
            return
        is_complete = has_marker(found)
        # Called in any case: a marker may be gone at the next look.
        is_settled = self._settling.is_settled(found.path, found.listing)
        if found.listing.is_draft:
            self.is_waiting = True
            if is_settled:
                yield from self._say("skipped", found.path, "its trainer has not finished it")
            return
        if not (is_complete or is_settled) or time.monotonic() < self._retry_at:
            self.is_waiting = True
            return
        yield from self._store(found)

    def _store(self, found: FoundCheckpoint) -> Iterator[WatchEvent]:
        try:
            with self._run.write() as run:
                added = self._add(run, found)
        except RunLockedError as error:
            yield from self._wait(found.path, error, error.message)
        except OutputError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL):
                raise
            yield from self._retry_later(found, error)
        except (BucketError, FormatError, RunError):
            raise
        except (_ChangedError, RlsparseError, OSError) as error:
            yield from self._not_stored(found, error)
        else:
            self._has_stored = True
            if added is not None:
                yield _stored(found, added)
            self._remember(found)

    def _is_held(self, found: FoundCheckpoint, held: IndexRow | None) -> bool:
        """Whether an entry that another command wrote is of this version of a checkpoint.

        Its time tells. Of an entry that a watcher wrote, the files are known, and they changed.
        """
        if held is None or self._seen.knows(found.name):
            return False
        try:
            return not is_new(self._run, held, found.path)
        except BucketError:
            raise
        except OSError:  # It is being removed.
            return False

    def _remember(self, found: FoundCheckpoint) -> None:
        # It only saves work: the entry tells the next watcher, too.
        with suppress(OutputError, BucketError):
            self._seen.add(found.name, found.listing)

    def _add(self, run: RunWriter, found: FoundCheckpoint) -> Added | None:
        """Encode a checkpoint, unless it has an entry."""
        if self._is_held(found, run.current(found.name)):
            return None

        def confirm() -> None:
            # What was removed meanwhile was read before, from open files.
            if not found.listing.only_lost(list_checkpoint(found.path)):
                raise _ChangedError

        with (
            open_checkpoint(found.path) as checkpoint,
            open_side_files(checkpoint, self._sides.include, self._sides.exclude) as sides,
        ):
            state = read_trainer_state(found.path)
            # Now that all is open: these are the files that were listed.
            if list_checkpoint(found.path) != found.listing:
                raise _ChangedError
            return self._encoder.add(run, found.name, checkpoint, sides, state, confirm=confirm)

    def _retry_later(self, found: FoundCheckpoint, error: Exception) -> Iterator[WatchEvent]:
        """Leave a checkpoint for some seconds later."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        message = error.message if isinstance(error, RlsparseError) else str(error)
        yield from self._wait(found.path, error, message)

    def _wait(self, path: Path, error: Exception, message: str) -> Iterator[WatchEvent]:
        """Leave a checkpoint for later, unless nothing comes later."""
        if self._once:
            raise error
        self.is_waiting = True
        yield from self._say("waiting", path, message)

    def _not_stored(self, found: FoundCheckpoint, error: Exception) -> Iterator[WatchEvent]:
        """Say why a checkpoint was not stored, or raise what concerns them all."""
        raise_interrupt(error)
        self._encoder.base.check_unchanged()
        now = list_checkpoint(found.path)
        if now != found.listing or isinstance(error, _ChangedError):
            self.is_waiting = now is not None
            reason = "changed" if now is not None else "was removed"
            yield from self._say("skipped", found.path, f"{reason} while it was read")
            return
        if _is_unread(error):
            yield from self._retry_later(found, error)
            return
        if not isinstance(error, RlsparseError):
            raise error
        is_of_all = isinstance(error, ImplausibleError | DtypeMismatchError)
        if is_of_all and not (self._held or self._has_stored):
            raise error
        self._refused[found.path] = found.listing
        kind: Kind = "skipped" if isinstance(error, CheckpointError) else "refused"
        yield from self._say(kind, found.path, error.message)

    def _say(self, kind: Kind, path: Path, message: str) -> Iterator[WatchEvent]:
        """An event, unless it was the last one of this checkpoint."""
        if self._said.get(path) != message:
            self._said[path] = message
            yield WatchEvent(kind=kind, checkpoint=str(path), message=message)


def _is_unread(error: Exception) -> bool:
    """Whether a file is there and could not be read, which may be possible later."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and not isinstance(error, FileNotFoundError)


def _stored(found: FoundCheckpoint, added: Added) -> WatchEvent:
    row, report = added
    message = (
        f"stored as {printable(row.folder)}: {format_bytes(row.tuned_bytes)} in "
        f"{format_bytes(row.delta_bytes)}, {format_percent(report.density)} changed"
    )
    return WatchEvent(
        kind="stored",
        checkpoint=str(found.path),
        message=message,
        entry=RunEntry.of(row, report),
    )

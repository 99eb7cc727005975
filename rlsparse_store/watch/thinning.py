"""Removing the weights of full checkpoints whose deltas were verified against these very files.

The order makes it safe: the run is locked, so that nobody prunes the delta. The delta is decoded
against the whole base and compared with the files by digest. The files are listed again, and must
be the same. A note of what is removed is written, and then each file is removed, if it is still
the listed one. Where a kill comes in between, the note tells the next call what to finish.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.apply import rebuild_files
from rlsparse_store.delta.resolve import read_delta
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.errors import (
    CheckpointError,
    RlsparseError,
    RunLockedError,
    VerificationError,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.folder import walk_files
from rlsparse_store.files.output import output_errors, replace_file
from rlsparse_store.files.trainer_folders import UP
from rlsparse_store.files.trainer_state import STATE_NAME, read_trainer_state
from rlsparse_store.format.strict_json import StrictJsonError, parse, printed
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.watch.completeness import FileStamp, has_marker, list_checkpoint, tracked_step
from rlsparse_store.watch.event import WatchEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rlsparse_store.delta.run_files import IndexRow
    from rlsparse_store.delta.run_place import RunPlace
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.watch.completeness import FoundCheckpoint, Listing
    from rlsparse_store.watch.event import Kind

__all__ = ["NOTE_NAME", "Thinner"]

NOTE_NAME: Final = "weights_in_delta.json"
"""In the folder of a checkpoint without its weights: where they are, and what they were."""

_HIDDEN: Final = ".{}.removed"
"""What a file is called while it is being removed."""

_LARGEST_NOTE: Final = 16 << 20


class Thinner:
    """Removes the weights of older checkpoints that a run stores.

    Args:
        run: The place of the run.
        base: The base, open.
        keep: Newest checkpoints that stay full; one in any case.
        is_confirmed: Whether weights are removed, and not only said to be removable.
        threads: Threads to verify on.
    """

    def __init__(
        self, run: RunPlace, base: Checkpoint, keep: int, threads: int | None, *, is_confirmed: bool
    ) -> None:
        self._run = run
        self._base = base
        self._keep = max(1, keep)
        self._threads = threads
        self._is_confirmed = is_confirmed
        self._decided: dict[Path, Listing] = {}
        self._has_looked = False

    def thin(
        self, folder: Path, stored: Sequence[FoundCheckpoint], others: Sequence[Path]
    ) -> Iterator[WatchEvent]:
        """Remove the weights of every checkpoint that is not needed in full.

        Args:
            folder: The folder of the trainer.
            stored: The complete checkpoints that the run stores, in the order of their steps.
            others: Checkpoints that are not complete, or not stored.
        """
        if self._is_confirmed and not self._has_looked:
            self._has_looked = True
            for path, note in _begun(folder):
                with suppress(RunLockedError):  # until the next watcher
                    yield self._finish(path, note)
        candidates = [found for found in stored if self._decided.get(found.path) != found.listing]
        needed = self._needed(folder, stored, others) if candidates else set()
        for found in candidates:
            if found.path in needed:
                continue
            if not self._is_confirmed:
                self._decided[found.path] = found.listing
                nbytes = sum(stamp.nbytes for stamp in found.listing.weights.values())
                message = f"{format_bytes(nbytes)} of weights could be removed (--yes removes them)"
                yield _event("thinnable", found.path, message, nbytes)
                continue
            with suppress(RunLockedError):  # until the next look
                yield self._thin(found)

    def _needed(
        self, folder: Path, stored: Sequence[FoundCheckpoint], others: Sequence[Path]
    ) -> set[Path]:
        """The checkpoints that stay: the newest, the best, and where training resumes.

        A run that resumed at an earlier step writes lower steps later, so both orders count. From
        one that its trainer did not finish, it may not resume.
        """
        needed: set[Path] = set()
        for kept in (stored, [found for found in stored if has_marker(found)]):
            by_time = sorted(kept, key=lambda found: found.listing.weights_written)
            needed |= {found.path for found in (*kept[-self._keep :], *by_time[-self._keep :])}
        try:
            best = _best_of([folder, *(found.path for found in stored), *others])
            tracked = {above: tracked_step(above) for above in {f.step.parent for f in stored}}
        except (CheckpointError, OSError):
            # A state in progress, or one that cannot be read, may name another checkpoint.
            return {found.path for found in stored}
        for found in stored:
            is_best = found.name in best or found.name.lower().startswith("best")
            if is_best or tracked[found.step.parent] == found.number:
                needed.add(found.path)
        return needed

    def _thin(self, found: FoundCheckpoint) -> WatchEvent:
        self._decided[found.path] = found.listing
        try:
            with self._run.write() as run:
                row = run.current(found.name)
                if row is None:
                    return _event("kept", found.path, "has no entry in the run")
                names = self._verify(found, row)
                run.require_held()
                freed = _remove(found.path, self._note(found, row, names))
        except RunLockedError:
            del self._decided[found.path]
            raise
        except (RlsparseError, OSError) as error:
            # As it was: a damaged delta, another version of the checkpoint, or no permission.
            return _event("kept", found.path, f"its weights stay: {error}")
        message = f"{format_bytes(freed)} of weights removed, which {row.folder} stores"
        return _event("thinned", found.path, message, freed)

    def _verify(self, found: FoundCheckpoint, row: IndexRow) -> list[str]:
        """Require that the delta gives back the files of a checkpoint, byte for byte.

        Returns:
            Their names, in the order in which they are to be removed.

        Raises:
            RlsparseError: It does not, or they are not to be removed.
        """
        _require_own(found, self._base)
        delta = self._run.entry(row.folder)
        report = verify_delta(delta, base=self._base.path, tuned=found.path, threads=self._threads)
        if report.cast is not None:
            msg = f"its delta was rounded to {report.cast}"
            raise VerificationError(msg, file=delta)
        opened = read_delta(delta, None, "", HubAccess())
        with opened as reader, open_checkpoint(found.path) as checkpoint:
            files, index_text = rebuild_files(reader)
            headers = {file.name: file.framed_header for file in files}
            is_same = index_text == checkpoint.index_text and headers == {
                file.name: file.source.read(0, 8 + len(file.header)) for file in checkpoint.files
            }
            names = [file.name for file in checkpoint.files]
            if checkpoint.index_name is not None:
                # First: without it, shards are no checkpoint.
                names.insert(0, checkpoint.index_name)
        if not is_same or list_checkpoint(found.path) != found.listing:
            msg = "its files are not those that its delta stores"
            raise VerificationError(msg, file=found.path)
        return names

    def _note(self, found: FoundCheckpoint, row: IndexRow, names: Sequence[str]) -> dict[str, Any]:
        delta = self._run.entry(row.folder)
        delta = delta if isinstance(delta, str) else str(delta.absolute())
        base = str(self._base.path.absolute())
        stamps = {name: found.listing.files[name] for name in names}
        return {
            "about": "The weights of this checkpoint were removed: a delta stores them.",
            "base": row.base,
            "delta": delta,
            "files": {name: [stamp.nbytes, stamp.modified] for name, stamp in stamps.items()},
            "order": list(names),
            "rebuild": ["rlsparse", "apply", delta, "--base", base, "-o", "FOLDER"],
            "tuned": row.tuned,
        }

    def _finish(self, path: Path, note: dict[str, Any]) -> WatchEvent:
        """Finish what a killed call began."""
        try:
            with self._run.write() as run:
                if all(row.tuned != note["tuned"] for row in run.rows.values()):
                    return _event("kept", path, "its weights are gone in part, and its entry, too")
                freed = _remove(path, note)
        except RunLockedError:
            raise
        except RlsparseError as error:
            return _event("kept", path, f"the rest of its weights stays: {error}")
        return _event("thinned", path, f"{format_bytes(freed)} of weights removed", freed)


def _event(kind: Kind, path: Path, message: str, freed_bytes: int = 0) -> WatchEvent:
    return WatchEvent(kind=kind, checkpoint=str(path), message=message, freed_bytes=freed_bytes)


def _best_of(places: Sequence[Path]) -> set[str]:
    """The best checkpoints, by name, as the newest states of the trainer say.

    Raises:
        CheckpointError: A state is not whole.
    """
    states = []
    for place in places:
        with suppress(FileNotFoundError):
            modified = FileStamp.of(place / STATE_NAME).modified
            states.append((modified, read_trainer_state(place)))
    if not states:
        return set()
    _, newest = max(states, key=lambda item: item[0])
    _, last = max(states, key=lambda item: item[1].step or 0)
    return {state.best for state in (newest, last) if state.best is not None}


def _require_own(found: FoundCheckpoint, base: Checkpoint) -> None:
    """Require that the weights are the checkpoint's own files, and not the base's.

    Raises:
        CheckpointError: They are not.
    """
    of_base = {_identity(file.source.path) for file in base.files}
    for name in found.listing.weights:
        path = found.path / name
        if path.is_symlink():
            msg = "is a link, whose file is not this checkpoint's"
            raise CheckpointError(msg, file=path)
        if _identity(path) in of_base:
            msg = "is a file of the base"
            raise CheckpointError(msg, file=path)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _remove(path: Path, note: dict[str, Any]) -> int:
    """Write the note of what is removed, and remove it. Returns the bytes.

    Raises:
        CheckpointError: A file is not the noted one any more.
        OutputError: A file cannot be removed.
    """
    freed = 0
    with output_errors(path):
        # Trainer removes the oldest folders, by their times, which this does not change.
        times = path.stat()
        replace_file(path / NOTE_NAME, printed(note) + b"\n")
        try:
            for name in note["order"]:
                freed += _remove_noted(path / name, FileStamp(*note["files"][name]))
        finally:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return freed


def _remove_noted(path: Path, stamp: FileStamp) -> int:
    """Remove one file, if it is the noted one. Returns its bytes.

    Under another name first: a trainer that opens it by its own name makes a new one, and one that
    had opened it to write has changed it.
    """
    hidden = path.with_name(_HIDDEN.format(path.name))
    if not hidden.exists():
        try:
            _require_noted(path, stamp)
            path.rename(hidden)
        except FileNotFoundError:
            return 0
    try:
        _require_noted(hidden, stamp)
    except CheckpointError:
        if not path.exists():
            hidden.rename(path)
        raise
    hidden.unlink()
    return stamp.nbytes


def _require_noted(path: Path, stamp: FileStamp) -> None:
    """Require that a file is the one that was verified.

    Raises:
        CheckpointError: It was written since.
        FileNotFoundError: It is gone.
    """
    if FileStamp.of(path) != stamp:
        msg = "was written while weights were removed"
        raise CheckpointError(msg, file=path)


def _begun(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoints of which a killed call removed a part, and its notes.

    Where a trainer wrote a checkpoint again since, its files are others than the noted ones.
    """
    places = [folder / name for name in walk_files(folder, UP + 1) if name.endswith(NOTE_NAME)]
    for path in (place.parent for place in places if place.name == NOTE_NAME):
        note = _read_note(path)
        if note is None:
            continue
        hidden = [name for name in note["order"] if (path / _HIDDEN.format(name)).exists()]
        left = [name for name in note["order"] if (path / name).exists()]
        listing = list_checkpoint(path)
        is_written_again = listing is not None and any(
            note["files"].get(name) != [stamp.nbytes, stamp.modified]
            for name, stamp in listing.weights.items()
        )
        if hidden or (0 < len(left) < len(note["order"]) and not is_written_again):
            yield path, note


def _read_note(path: Path) -> dict[str, Any] | None:
    """The note of an earlier call; ``None`` if there is none, or it is not one."""
    try:
        with (path / NOTE_NAME).open("rb") as file:
            text = file.read(_LARGEST_NOTE)
        note = parse(text, most_objects=len(text))
        files, order = note["files"], note["order"]
        is_note = (
            isinstance(note["tuned"], str)
            and set(order) == files.keys()
            and all(os.sep not in name for name in order)
            and all([type(part) for part in stamp] == [int, int] for stamp in files.values())
        )
    except (OSError, StrictJsonError, KeyError, TypeError, AttributeError):
        return None
    return note if is_note else None

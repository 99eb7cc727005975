"""What a POSIX file system may hold after a power cut, given what a process did and flushed.

This is a model, not a file system. It is looser than those in use: between two flushes nothing is
ordered. What is certain at a moment is only what was flushed before: a file's content by a flush of
the file, a name by a flush of the folder that holds it. Of everything else any part may have
reached the disk: pages of a write without the others, a length without its content, a name without
its file, either half of a rename from one folder to another. A rename within a folder is whole.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interposer import Op

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

__all__ = ["ENTRY", "Change", "Recording", "read_record", "sampled"]

PAGE: Final = 4096

ENTRY: Final = struct.Struct("<IIQQQII")
"""``struct entry`` of ``interpose.c``."""


@dataclass(frozen=True)
class Change:
    """One change that reaches the disk whole or not at all.

    Attributes:
        event: The number of the call that made it.
        target: The file or folder that it changes.
        names: For folders: each name with the file that it now has, or that it had.
        offset: For files: where the bytes go.
        data: For files: the bytes of a page; empty for a new length.
        length: For files: the length that the call left.
    """

    event: int
    target: int
    names: tuple[tuple[str, int, bool], ...] = ()
    offset: int = 0
    data: bytes = b""
    length: int = -1


@dataclass
class Recording:
    """What a process did below a folder.

    Attributes:
        folder: The folder.
        root: Its number among files and folders.
        start: Names and what they lead to, by folder, before.
        contents: Contents of files before.
        folders: Which numbers are folders.
        changes: The changes, in order.
        flushes: Events at which each file or folder was flushed.
        length: Number of events.
        acknowledged: The event after which the result was reported; ``length`` if never.
    """

    folder: Path
    root: int
    start: dict[int, dict[str, int]]
    contents: dict[int, bytes]
    folders: set[int]
    changes: list[Change] = field(default_factory=list)
    flushes: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    length: int = 0
    acknowledged: int = 0

    @classmethod
    def before(cls, folder: Path) -> Recording:
        """A recording of nothing yet, which starts from what is on the disk now."""
        start: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        for here, names, files in os.walk(folder):
            place = Path(here)
            start[place.stat().st_ino] = {n: (place / n).lstat().st_ino for n in [*names, *files]}
            for name in files:
                if (place / name).is_file():
                    contents[(place / name).lstat().st_ino] = (place / name).read_bytes()
        return cls(folder, folder.stat().st_ino, start, contents, {*start})

    def is_certain(self, change: Change, event: int) -> bool:
        """Whether a change was flushed before an event."""
        return any(change.event < flush < event for flush in self.flushes[change.target])

    def uncertain(self, event: int) -> list[Change]:
        """The changes before an event that may be missing after a cut."""
        return [c for c in self.changes if c.event < event and not self.is_certain(c, event)]

    def state(self, event: int, missing: set[Change], *, has_lengths: bool) -> dict[str, bytes]:
        """The files below the folder after a cut.

        Args:
            event: The cut comes before this event.
            missing: Changes that did not reach the disk.
            has_lengths: Whether the lengths of files did, all the same.

        Returns:
            Contents by path; folders end with a slash.
        """
        entries = {number: dict(names) for number, names in self.start.items()}
        contents = {number: bytearray(data) for number, data in self.contents.items()}
        for change in self.changes:
            if change.event >= event:
                break
            if change.names:
                if change not in missing:
                    _rename(entries.setdefault(change.target, {}), change)
                continue
            data = contents.setdefault(change.target, bytearray())
            if change not in missing:
                _write(data, change)
            elif has_lengths and len(data) < change.length:
                data.extend(bytes(change.length - len(data)))
        return dict(self._walk(self.root, "", entries, contents, set()))

    def _walk(
        self,
        here: int,
        prefix: str,
        entries: dict[int, dict[str, int]],
        contents: dict[int, bytearray],
        above: set[int],
    ) -> Iterator[tuple[str, bytes]]:
        for name, number in entries.get(here, {}).items():
            if number not in self.folders:
                yield prefix + name, bytes(contents.get(number, b""))
            elif number not in above:
                yield f"{prefix}{name}/", b""
                inner = f"{prefix}{name}/"
                yield from self._walk(number, inner, entries, contents, {*above, number})


def _rename(names: dict[str, int], change: Change) -> None:
    for name, number, is_there in change.names:
        if is_there:
            names[name] = number
        elif names.get(name) == number:
            del names[name]


def _write(data: bytearray, change: Change) -> None:
    end = change.offset + len(change.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[change.offset : end] = change.data
    if not change.data:
        # A new length.
        del data[change.length :]
        data.extend(bytes(change.length - len(data)))


def read_record(record: bytes, recording: Recording) -> None:
    """Add the calls of a record to a recording.

    Args:
        record: What the interposer wrote.
        recording: Begun before the calls.
    """
    reader = _Reader(recording)
    at = 0
    while at < len(record):
        op, is_new, inode, offset, nbytes, first, second = ENTRY.unpack_from(record, at)
        at += ENTRY.size
        path, other = record[at : at + first], record[at + first : at + first + second]
        at += first + second
        has_data = op in {Op.WRITE, Op.PRINT}
        data = record[at : at + nbytes] if has_data else b""
        at += nbytes if has_data else 0
        places = [os.fsdecode(p) for p in (path, other)]
        reader.add(Op(op), bool(is_new), inode, offset, data, places)


class _Reader:
    """Turns calls into changes. Numbers of removed files come again: each is counted anew."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._now = {number: dict(names) for number, names in recording.start.items()}
        self._lengths = {number: len(data) for number, data in recording.contents.items()}
        self._numbers = {number: number for number in [*self._now, *self._lengths]}
        self._next = -1

    def add(
        self,
        op: Op,
        is_new: bool,  # noqa: FBT001
        inode: int,
        offset: int,
        data: bytes,
        places: Sequence[str],
    ) -> None:
        """Add a call."""
        recording = self._recording
        recording.length += 1
        event = recording.length
        if op == Op.PRINT:
            recording.acknowledged = event
        elif op == Op.FLUSH:
            if inode in self._numbers:
                recording.flushes[self._numbers[inode]].append(event)
        elif op in {Op.WRITE, Op.RESIZE}:
            self._change_file(event, inode, offset, data, is_resize=op == Op.RESIZE)
        elif op == Op.CREATE and not is_new:
            self._change_file(event, inode, 0, b"", is_resize=True)
        else:
            self._change_names(event, op, inode, places)

    def _change_file(
        self, event: int, inode: int, offset: int, data: bytes, *, is_resize: bool
    ) -> None:
        if inode not in self._numbers:
            return
        number = self._numbers[inode]
        before = self._lengths.get(number, 0)
        length = offset if is_resize else max(before, offset + len(data))
        self._lengths[number] = length
        changes = self._recording.changes
        if is_resize:
            changes.append(Change(event, number, length=length))
        start = offset
        while start < offset + len(data):
            end = min(offset + len(data), (start // PAGE + 1) * PAGE)
            page = data[start - offset : end - offset]
            changes.append(Change(event, number, (), start, page, length))
            start = end

    def _change_names(self, event: int, op: Op, inode: int, places: Sequence[str]) -> None:
        above = self._folder(places[0])
        name = os.path.basename(places[0])  # noqa: PTH119 - texts
        if op in {Op.CREATE, Op.MKDIR}:
            self._next -= 1
            number = self._numbers[inode] = self._next
            if op == Op.MKDIR:
                self._recording.folders.add(number)
                self._now[number] = {}
            self._set(event, above, [(name, number, True)])
            return
        if above is None or name not in self._now[above]:
            return
        number = self._now[above][name]
        if op in {Op.UNLINK, Op.RMDIR}:
            self._set(event, above, [(name, number, False)])
            return
        target = self._folder(places[1])
        other = os.path.basename(places[1])  # noqa: PTH119
        if op == Op.LINK:
            self._set(event, target, [(other, number, True)])
        elif target == above:
            self._set(event, above, [(other, number, True), (name, number, False)])
        else:
            self._set(event, target, [(other, number, True)])
            self._set(event, above, [(name, number, False)])

    def _set(self, event: int, above: int | None, names: list[tuple[str, int, bool]]) -> None:
        if above is None:
            return
        change = Change(event, above, tuple(names))
        self._recording.changes.append(change)
        _rename(self._now[above], change)

    def _folder(self, path: str) -> int | None:
        """The folder of a path now; ``None`` outside of what is recorded."""
        parts = Path(os.path.relpath(path, self._recording.folder)).parts
        here = self._recording.root
        for part in parts[:-1]:
            if part == ".." or part not in self._now.get(here, {}):
                return None
            here = self._now[here][part]
        return here if here in self._now else None


def sampled(
    recording: Recording, event: int, rng: random.Random, count: int
) -> Iterator[set[Change]]:
    """Sets of changes that are missing after a cut: none, all, and a sample of the others.

    Args:
        recording: What was done.
        event: The cut comes before this event.
        rng: Draws the sample.
        count: Sets beside the first two; all of them, if there are no more.
    """
    uncertain = recording.uncertain(event)
    yield set()
    if not uncertain:
        return
    yield set(uncertain)
    if len(uncertain) < 2:
        return
    if 2 ** len(uncertain) - 2 <= count:
        for bits in range(1, 2 ** len(uncertain) - 1):
            yield {change for n, change in enumerate(uncertain) if bits >> n & 1}
        return
    for number in range(count):
        if number % 3 == 0:
            yield {rng.choice(uncertain)}
        elif number % 3 == 1:
            yield {*uncertain} - {rng.choice(uncertain)}
        else:
            yield {change for change in uncertain if rng.random() < 0.5}

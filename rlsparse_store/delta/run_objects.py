"""The objects of a run in a bucket beside its entries: the index, marks and pins."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.buckets.objects import ABSENT, Absent, ObjectVersion
from rlsparse_store.buckets.upload import LAST_NAMES
from rlsparse_store.delta.run_files import (
    INDEX_NAME,
    LARGEST_INDEX,
    PINS_PATH,
    UNLISTED_PATH,
    RunContents,
    index_text,
    is_digest,
    is_folder_name,
    parse_index,
)
from rlsparse_store.errors import NotFoundError, ObjectConflictError, OutputError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.buckets.object_store import ObjectStore

__all__ = [
    "ABANDONED",
    "PINS",
    "UNLISTED",
    "Index",
    "folder_times",
    "get_small",
    "has_object",
    "read_marks",
    "read_pins",
    "swap_index",
    "whole_folders",
]

UNLISTED: Final = f"{UNLISTED_PATH}/"
"""What the keys of the marks of unlisted entries begin with."""

ABANDONED: Final = ".run/abandoned/"
"""The same of folders that a killed writer uploaded."""

PINS: Final = f"{PINS_PATH}/"
"""What the keys of pins begin with."""

_PROBE: Final = ".run/conditions"
"""An empty object, on which conditions are tried."""

_NO_VERSION: Final = ObjectVersion(f'"{"0" * 32}"', "0")
"""A version that no object has."""

_MOST_SWAPS: Final = 200
"""Times that other writers may come first. Each time, one of them succeeded."""

_MOST_REFUSED: Final = 8
"""Times that a version may be refused and found again."""


class Index(NamedTuple):
    """A version of the index.

    Attributes:
        text: Its content; ``None`` if there is no index.
        version: What a writer replaces.
        place: Where it is.
    """

    text: bytes | None
    version: ObjectVersion | Absent
    place: object

    @classmethod
    def read(cls, store: ObjectStore) -> Index:
        """The newest version.

        Raises:
            RunError: It is too long.
            BucketError: The object storage failed.
        """
        return cls(*get_small(store, INDEX_NAME, LARGEST_INDEX), store.url / INDEX_NAME)

    def contents(self) -> RunContents:
        """What it lists.

        Raises:
            RunError: It is damaged.
        """
        return parse_index(self.text, self.place)


def swap_index(store: ObjectStore, change: Callable[[Index], RunContents]) -> RunContents:
    """Replace the index by what follows from it, in a version that no other writer came before.

    Args:
        store: The store, at the run.
        change: Returns what to list, by the newest version.

    Returns:
        What is listed.

    Raises:
        OutputError: Other writers came first every time, or the store refuses what it should not,
            or replaces what it should not.
    """
    refused: list[ObjectVersion | Absent] = []
    for attempt in range(_MOST_SWAPS):
        index = Index.read(store)
        if refused.count(index.version) == _MOST_REFUSED:
            break
        contents = change(index)
        text = index_text(contents.rows, contents.pins)
        if text == index.text:
            return contents
        if index.text is None:
            _require_conditions(store)
        try:
            store.put(INDEX_NAME, text, only_if=index.version)
        except ObjectConflictError:
            refused.append(index.version)
            # Or the first attempt was this writer's own, and its answer was lost: the next
            # version shows it.
            time.sleep(random.random() * min(0.02 * 2**attempt, 1.0))  # noqa: S311 - no secret
        else:
            return contents
    msg = f"could not be replaced {len(refused)} times; run the same command again"
    raise OutputError(msg, file=store.url / INDEX_NAME)


def _require_conditions(store: ObjectStore) -> None:
    """Require, before there is a run, that the store honours both conditions of a write.

    Some servers of S3 ignore them: there, writers would lose each other's entries.

    Raises:
        OutputError: It does not.
    """
    with suppress(ObjectConflictError):
        store.put(_PROBE, b"", only_if=ABSENT)
    conditions: tuple[ObjectVersion | Absent, ...] = (ABSENT, _NO_VERSION)
    for condition in conditions:
        with suppress(ObjectConflictError):
            store.put(_PROBE, b"", only_if=condition)
            msg = (
                "this object storage ignores the conditions of a write, so writers of a run could "
                "lose each other's entries; store the run elsewhere, or in a folder"
            )
            raise OutputError(msg, file=store.url)


def get_small(
    store: ObjectStore, key: str, largest: int
) -> tuple[bytes | None, ObjectVersion | Absent]:
    """A small object and its version, or that there is none.

    Raises:
        RunError: It is too long.
    """
    try:
        text, version = store.get(key)
    except NotFoundError:
        return None, ABSENT
    if len(text) > largest:
        msg = f"is longer than the {largest:,} bytes allowed; restore it, or remove it"
        raise RunError(msg, file=store.url / key)
    return text, version


def has_object(store: ObjectStore, key: str) -> bool:
    """Whether there is an object."""
    try:
        store.head(key)
    except NotFoundError:
        return False
    return True


def read_marks(store: ObjectStore, kind: str) -> dict[str, float]:
    """The folders that have a mark of this kind, and when they were marked."""
    found = {stat.key.removeprefix(kind): stat.modified for stat in store.list(kind)}
    return {folder: marked for folder, marked in found.items() if is_folder_name(folder)}


def read_pins(store: ObjectStore) -> set[str]:
    """The tuned digests that are pinned."""
    names = (stat.key.removeprefix(PINS) for stat in store.list(PINS))
    return {name for name in names if is_digest(name)}


def folder_times(store: ObjectStore) -> dict[str, float]:
    """When the newest object of each folder was written."""
    newest: dict[str, float] = {}
    for stat in store.list():
        folder, slash, _ = stat.key.partition("/")
        if slash and is_folder_name(folder):
            newest[folder] = max(newest.get(folder, 0.0), stat.modified)
    return newest


def whole_folders(store: ObjectStore) -> set[str]:
    """The folders that hold a delta."""
    found = set()
    for stat in store.list():
        folder, _, name = stat.key.partition("/")
        if name in LAST_NAMES and is_folder_name(folder):
            found.add(folder)
    return found

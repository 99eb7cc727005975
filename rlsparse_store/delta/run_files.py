"""What a run holds beside its deltas (``specs/runs.md``): the names, the notes and the index.

Nothing of it is believed: names are checked before they become paths, and content decides.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import xxhash

from rlsparse_store.errors import RlsparseError, RunError
from rlsparse_store.files.output import replace_file
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import StrictJsonError, canonical, parse, printed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rlsparse_store.delta.report import DeltaReport

__all__ = [
    "INDEX_NAME",
    "LARGEST_INDEX",
    "LARGEST_NOTE",
    "NOTE_NAME",
    "PINS_PATH",
    "UNLISTED_PATH",
    "EntryNote",
    "IndexRow",
    "RunContents",
    "delta_names",
    "index_text",
    "is_delta",
    "is_digest",
    "is_folder_name",
    "marks_folder",
    "names_in",
    "natural_order",
    "note_by_name",
    "parse_index",
    "parse_note",
    "pin_text",
    "private_folder",
    "read_small",
    "row_of",
    "step_in_name",
    "unlisted_names",
    "write_note",
]

INDEX_NAME: Final = "run.json"
NOTE_NAME: Final = "entry.json"
PINS_PATH: Final = ".run/pins"
UNLISTED_PATH: Final = ".run/unlisted"
"""Folders in a run, wherever it is kept: a file for each digest that is pinned, and for each folder
that is no entry any more."""

LARGEST_NOTE: Final = 64 << 10
LARGEST_INDEX: Final = 64 << 20
"""Bytes."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_COUNTS: Final = ("elements", "changed", "delta_bytes", "tuned_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryNote:
    """What belongs to an entry of a run.

    Attributes:
        name: Its name, a label.
        tuned: State digest of the tuned checkpoint: the entry's identity.
        parent: Identity of the entry before it in training, if known.
        step: Its optimizer step, if known.
        metrics: Its metrics by name.
    """

    name: str
    tuned: str
    parent: str | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow(EntryNote):
    """An entry in a run's index: its note, and the totals of its delta.

    Attributes:
        folder: Its folder in the run.
        base: State digest of the base.
        elements: Elements of the tuned checkpoint.
        changed: Elements that differ from their source's.
        delta_bytes: Bytes of the delta's files.
        tuned_bytes: Bytes of the tuned checkpoint's tensors.
    """

    folder: str
    base: str
    elements: int
    changed: int
    delta_bytes: int
    tuned_bytes: int


class RunContents(NamedTuple):
    """What a run holds.

    Attributes:
        rows: Its entries, in natural order of their folders.
        pins: The tuned digests that are pinned.
    """

    rows: list[IndexRow]
    pins: set[str]


# --- places -----------------------------------------------------------------------------------


def private_folder(run: Path) -> Path:
    """The folder of a run for its lock, pins and marks."""
    return run / ".run"


def marks_folder(run: Path) -> Path:
    """The folder with a file for each folder of the run that is no entry any more."""
    return run / UNLISTED_PATH


def is_delta(path: Path) -> bool:
    """Whether a folder holds a delta. Temporary folders of a writer do not count."""
    return (path / DELTA_FOLDER).is_dir() and not path.name.startswith(".")


def delta_names(run: Path) -> list[str]:
    """The folders of the entries in a local run, in natural order."""
    if not run.is_dir():
        return []
    unlisted = unlisted_names(run)
    found = (path.name for path in run.iterdir() if path.name not in unlisted and is_delta(path))
    return sorted(found, key=natural_order)


def unlisted_names(run: Path) -> set[str]:
    """The folders that are marked as no entries."""
    return names_in(marks_folder(run))


def names_in(folder: Path) -> set[str]:
    """The names in a folder; none if there is no such folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``step-9`` before ``step-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [_number(part) if part.isdecimal() else (1, 0, part) for part in parts]


def _number(digits: str) -> tuple[int, int, str]:
    """A key that sorts numbers by value. Python refuses to convert very long ones."""
    digits = digits.lstrip("0")
    return (0, len(digits), digits)


def step_in_name(name: str) -> int | None:
    """The last number in a name; a commit at its end is none.

    Example:
        >>> step_in_name("epoch_0_step_100"), step_in_name("final")
        (100, None)
    """
    numbers = re.findall(r"[0-9]{1,18}", re.sub(r"-[0-9a-f]{40}\Z", "", name))
    return int(numbers[-1]) if numbers else None


# --- notes ------------------------------------------------------------------------------------


def write_note(delta: Path, note: EntryNote) -> None:
    """Write the note of an entry.

    Args:
        delta: Folder of its delta, complete or in progress.
        note: The note.

    Raises:
        OutputError: It cannot be written.
    """
    entry = asdict(note)
    text = canonical({"checksum": _checksum(entry), "entry": entry}) + b"\n"
    replace_file(delta / DELTA_FOLDER / NOTE_NAME, text)


def parse_note(text: bytes | None, place: object, name: str, tuned: str) -> EntryNote:
    """The note of an entry, or what its folder's name says where it has none.

    Args:
        text: The content of the note, or ``None`` if there is none.
        place: Where it is, for errors.
        name: The entry's folder.
        tuned: State digest of the tuned checkpoint, as the entry's delta says.

    Raises:
        RunError: The note is damaged, or another entry's.
    """
    if text is None:
        return note_by_name(name, tuned)
    try:
        held = parse(text, most_objects=8, any_number=True)
        entry = held["entry"]
        if held["checksum"] != _checksum(entry):
            msg = "does not match its checksum; restore it, or remove it to lose its metrics only"
            raise RunError(msg, file=place)
        note = EntryNote(**_note_fields(entry))
    except (StrictJsonError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        msg = f"is not the note of an entry ({printable(str(error), 80)}); restore or remove it"
        raise RunError(msg, file=place) from error
    if note.tuned != tuned:
        msg = "belongs to another delta than the one beside it; restore or remove it"
        raise RunError(msg, file=place)
    return note


def note_by_name(name: str, tuned: str) -> EntryNote:
    """The note of an entry that has none."""
    return EntryNote(name=name, tuned=tuned, step=step_in_name(name))


def pin_text(note: EntryNote) -> bytes:
    """The content of the pin of an entry: the name that was pinned."""
    return note.name.encode("utf-8", "surrogateescape")


def _checksum(entry: object) -> str:
    return xxhash.xxh3_64_hexdigest(canonical(entry))


def _note_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a note out of an object.

    Raises:
        ValueError: One is not as the specification has it.
        KeyError: One is missing.
    """
    parent, step = value["parent"], value["step"]
    _require(isinstance(value["name"], str) and 0 < len(value["name"]) <= 1024, "name")
    _require(is_digest(value["tuned"]), "tuned")
    _require(parent is None or is_digest(parent), "parent")
    _require(step is None or _is_count(step), "step")
    return {
        "name": value["name"],
        "tuned": value["tuned"],
        "parent": parent,
        "step": step,
        "metrics": _metrics(value["metrics"]),
    }


def _metrics(value: object) -> dict[str, float]:
    _require(isinstance(value, dict), "metrics")
    metrics = cast("dict[str, object]", value)
    for number in metrics.values():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        _require(is_number and math.isfinite(cast("float", number)), "metrics")
    return {name: float(cast("float", number)) for name, number in metrics.items()}


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - a condition
    if not holds:
        msg = f"wrong {what}"
        raise ValueError(msg)


def is_digest(value: object) -> bool:
    """Whether this is a state digest as text."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- the index --------------------------------------------------------------------------------


def parse_index(text: bytes | None, place: object) -> RunContents:
    """What a run's index lists; nothing if it has no index.

    Args:
        text: The content of the index, or ``None`` if there is none.
        place: Where it is, for errors.

    Raises:
        RunError: The index is damaged, or names something other than folders of the run.
    """
    if text is None:
        return RunContents([], set())
    try:
        held = parse(text, most_objects=len(text) // 64 + 2, any_number=True)
        _require(isinstance(held, dict) and held["rlsparse_run"] == 1, "version")
        rows = [_row(value) for value in held["entries"]]
        # Only the index of a run in a bucket has it.
        pins = set(held.get("pins", ()))
        _require(all(map(is_digest, pins)), "pins")
    except (StrictJsonError, KeyError, TypeError, ValueError) as error:
        msg = (
            f"is not an index ({printable(str(error), 80)}); rlsparse runs repair writes it anew "
            "from the entries"
        )
        raise RunError(msg, file=place) from error
    if len({row.folder for row in rows}) != len(rows):
        msg = "names a folder twice; rlsparse runs repair writes it anew from the entries"
        raise RunError(msg, file=place)
    return RunContents(rows, pins)


def _row(value: Mapping[str, Any]) -> IndexRow:
    folder = value["folder"]
    _require(isinstance(folder, str) and is_folder_name(folder), "folder")
    _require(is_digest(value["base"]), "base")
    for name in _COUNTS:
        _require(_is_count(value[name]), name)
    counts = {name: value[name] for name in _COUNTS}
    return IndexRow(folder=folder, base=value["base"], **counts, **_note_fields(value))


def is_folder_name(name: str) -> bool:
    """Whether this is one component of a path that can be an entry's."""
    return 0 < len(name) <= 255 and not name.startswith(".") and not re.search(r"[/\\\x00]", name)


def index_text(rows: Iterable[IndexRow], pins: Iterable[str] | None = None) -> bytes:
    """The content of the index of a run.

    Args:
        rows: Its rows, which are listed in natural order of the folders.
        pins: The pinned digests, which the index of a run in a bucket lists.
    """
    ordered = sorted(rows, key=lambda row: natural_order(row.folder))
    index: dict[str, object] = {"rlsparse_run": 1, "entries": [asdict(row) for row in ordered]}
    if pins is not None:
        index["pins"] = sorted(pins)
    return printed(index) + b"\n"


def row_of(folder: str, note: EntryNote, report: DeltaReport) -> IndexRow:
    """The row of an entry by its note and its delta's report."""
    return IndexRow(
        folder=folder,
        name=note.name,
        tuned=note.tuned,
        parent=note.parent,
        step=note.step,
        metrics=note.metrics,
        base=report.base_digest,
        elements=report.elements,
        changed=report.changed,
        delta_bytes=report.delta_bytes,
        tuned_bytes=report.tuned_bytes,
    )


def read_small(path: Path, largest: int) -> bytes | None:
    """The content of a small file, or ``None`` if there is none.

    Raises:
        RunError: It is too long.
        RlsparseError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(largest + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"cannot be read ({error.strerror})"
        raise RlsparseError(msg, file=path) from error
    if len(text) > largest:
        msg = f"is longer than the {largest:,} bytes allowed; restore it, or remove it"
        raise RunError(msg, file=path)
    return text

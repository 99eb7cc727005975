"""The entries of a run on the Hub: by its index, and what this lacks by the entries themselves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rlsparse_store.delta.inspect import report_delta
from rlsparse_store.delta.resolve import delta_folders, read_listed
from rlsparse_store.delta.run_files import (
    INDEX_NAME,
    NOTE_NAME,
    PINS_PATH,
    EntryNote,
    IndexRow,
    natural_order,
    parse_index,
    parse_note,
    row_of,
)
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.calls import map_concurrently
from rlsparse_store.hub.remote_folder import read_small_file

if TYPE_CHECKING:
    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import Listing

__all__ = [
    "entry_folders",
    "index_path",
    "listed_pins",
    "listed_rows",
    "read_listed_row",
    "run_folders",
    "within",
]


def within(run: str, name: str) -> str:
    """The path in a repository of something in a run.

    Args:
        run: Folder of the run; empty for the repository itself.
        name: Path within the run.

    Example:
        >>> within("", "run.json"), within("runs/a", "run.json")
        ('run.json', 'runs/a/run.json')
    """
    return f"{run}/{name}" if run else name


def index_path(run: str) -> str:
    """The path in a repository of a run's index."""
    return within(run, INDEX_NAME)


def run_folders(listing: Listing) -> list[str]:
    """Folders of a repository that hold entries; an empty string for the repository itself."""
    return sorted({folder.rpartition("/")[0] for folder in delta_folders(listing) if folder})


def entry_folders(listing: Listing, run: str) -> list[str]:
    """Folders of a run's entries, within the run, in natural order."""
    prefix = within(run, "")
    found = (f.removeprefix(prefix) for f in delta_folders(listing) if f.startswith(prefix))
    return sorted((f for f in found if f and "/" not in f), key=natural_order)


def listed_pins(listing: Listing, run: str) -> set[str]:
    """The digests that are pinned in a run."""
    prefix = within(run, f"{PINS_PATH}/")
    return {path.removeprefix(prefix) for path in listing.files if path.startswith(prefix)}


def listed_rows(listing: Listing, run: str, access: HubAccess) -> list[IndexRow]:
    """The entries of a run, in natural order. A run with a whole index takes one request.

    Args:
        listing: The repository.
        run: Folder of the run; empty for the repository itself.
        access: How to reach the Hub.

    Raises:
        RunError: The index or a note is damaged.
        FormatError: A delta that the index lacks is damaged.
        HubError: The Hub failed.
    """
    path = index_path(run)
    text = read_small_file(listing, path, access) if path in listing.files else None
    indexed = {row.folder: row for row in parse_index(text, f"{listing.repo}/{path}").rows}
    folders, nbytes = entry_folders(listing, run), _delta_bytes(listing)
    known = {
        folder: indexed[folder]
        for folder in folders
        if folder in indexed and indexed[folder].delta_bytes == nbytes.get(within(run, folder))
    }
    missing = [folder for folder in folders if folder not in known]
    read = map_concurrently(lambda folder: read_listed_row(listing, run, folder, access), missing)
    known |= {row.folder: row for row in read}
    return [known[folder] for folder in folders]


def _delta_bytes(listing: Listing) -> Counter[str]:
    """The bytes of each delta's files, without its note, by its folder."""
    found: Counter[str] = Counter()
    for path, file in listing.files.items():
        folder, inside, name = path.rpartition(f"/{DELTA_FOLDER}/")
        if inside and name != NOTE_NAME:
            found[folder] += file.nbytes
    return found


def read_listed_row(listing: Listing, run: str, folder: str, access: HubAccess) -> IndexRow:
    """The row of an entry, by the entry itself. Its chunks are not read.

    Args:
        listing: The repository.
        run: Folder of the run; empty for the repository itself.
        folder: Folder of the entry within the run.
        access: How to reach the Hub.

    Raises:
        RunError: Its note is damaged.
        FormatError: Its delta is damaged.
        HubError: The Hub failed.
    """
    with read_listed(listing, within(run, folder), access) as reader:
        report = report_delta(reader)
    return row_of(folder, _note(listing, run, folder, report.tuned_digest, access), report)


def _note(listing: Listing, run: str, folder: str, tuned: str, access: HubAccess) -> EntryNote:
    path = within(run, f"{folder}/{DELTA_FOLDER}/{NOTE_NAME}")
    has_note = path in listing.files
    text = read_small_file(listing, path, access) if has_note else None
    return parse_note(text, f"{listing.repo}/{path}", folder, tuned)

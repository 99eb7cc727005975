"""A local delta to publish: its report, its files, and the base that it names on the Hub."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.inspect import report_delta
from rlsparse_store.delta.run_files import LARGEST_NOTE, NOTE_NAME, parse_note, read_small, row_of
from rlsparse_store.delta.verify import check_alone
from rlsparse_store.errors import NotFoundError
from rlsparse_store.files.base_hint import write_named
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import OutputFile, scratch_folder
from rlsparse_store.files.side_files import CARD, delta_side_files
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.repo_id import parse_repo_id
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.publish.published_base import (
    PublishedBase,
    find_published_base,
    recorded_base,
    require_base,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import IndexRow
    from rlsparse_store.hub.access import HubAccess

__all__ = ["LocalDelta", "open_named"]

LARGEST_CARD: Final = 1 << 20
"""Bytes: a longer text is no card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDelta:
    """A delta to publish.

    Attributes:
        folder: Its folder.
        report: Its report.
        row: Its row in the index of a run.
        files: Its files by their paths in its folder.
        card: The text that a trainer wrote for the model card, if there is one.
    """

    folder: Path
    report: DeltaReport
    row: IndexRow
    files: dict[str, Path]
    card: str | None

    def verify(self) -> None:
        """Compare every stored byte with its checksum.

        Raises:
            FormatError: The delta is damaged.
        """
        with DeltaReader(self.folder) as reader:
            check_alone(reader, resolve_threads(None))


@contextmanager
def open_named(
    folders: dict[str, Path], base_id: str | None, access: HubAccess
) -> Iterator[tuple[dict[str, LocalDelta], PublishedBase]]:
    """The deltas with their base named, and that base.

    Args:
        folders: Folders of the deltas, by the names that entries without a note take.
        base_id: The base on the Hub, for deltas that do not name it.
        access: How to reach the Hub.

    Raises:
        NotFoundError: A delta does not name its base, or the base does not exist.
        BaseMismatchError: The deltas have different bases, or ``base_id`` is not theirs.
        FormatError: A delta is damaged.
    """
    with scratch_folder() as scratch:
        if base_id is None:
            local = {name: _open(name, folder) for name, folder in folders.items()}
            reports = [delta.report for delta in local.values()]
            repo = recorded_base(reports, next(iter(folders.values())))
            yield local, find_published_base(repo, access, must_exist=False)
            return
        asked = parse_repo_id(base_id)
        if asked is None:
            msg = "is not a repository id: give ORG/BASE or ORG/BASE@COMMIT"
            raise NotFoundError(msg, file=printable(base_id))
        base = find_published_base(asked, access, must_exist=True)
        local = {
            name: _open_as(name, folder, scratch / str(number), base, access)
            for number, (name, folder) in enumerate(folders.items())
        }
        yield local, base


def _open(name: str, folder: Path) -> LocalDelta:
    """A delta and its files."""
    with DeltaReader(folder) as reader:
        return _described(reader, name, folder)


def _open_as(
    name: str, folder: Path, scratch: Path, base: PublishedBase, access: HubAccess
) -> LocalDelta:
    """A delta and its files. The base is compared, and named in a copy of the last file."""
    with DeltaReader(folder) as reader:
        delta = _described(reader, name, folder)
        repo, revision = base.repo.repo, str(base.repo.revision)
        named = (delta.report.base_repo, delta.report.base_revision) == (repo, revision)
        if base.listing is None or named:
            return delta
        require_base(reader, base.listing, access)
        with OutputFile(scratch) as copy:
            write_named(reader, copy, repo, revision)
        nbytes = reader.nbytes - reader.shards[-1].source.nbytes + scratch.stat().st_size
        last = f"{DELTA_FOLDER}/{reader.shards[-1].source.path.name}"
    return replace(
        delta,
        report=replace(delta.report, base_repo=repo, base_revision=revision, delta_bytes=nbytes),
        row=replace(delta.row, delta_bytes=nbytes),
        files={**delta.files, last: scratch},
    )


def _described(reader: DeltaReader, name: str, folder: Path) -> LocalDelta:
    report = report_delta(reader)
    files = {f"{DELTA_FOLDER}/{name}": folder / DELTA_FOLDER / name for name in reader.names}
    path = folder / DELTA_FOLDER / NOTE_NAME
    note = read_small(path, LARGEST_NOTE)
    if note is not None:
        files[f"{DELTA_FOLDER}/{NOTE_NAME}"] = path
    files |= {name: folder / name for name in delta_side_files(folder, {f"{DELTA_FOLDER}/", CARD})}
    return LocalDelta(
        folder=folder,
        report=report,
        row=row_of(name, parse_note(note, path, name, report.tuned_digest), report),
        files=files,
        card=_trainer_card(folder),
    )


def _trainer_card(folder: Path) -> str | None:
    """The card that encoding copied from the checkpoint."""
    card = folder / CARD
    is_own = card.is_file() and not card.is_symlink() and card.stat().st_size <= LARGEST_CARD
    return card.read_text(errors="replace") if is_own else None

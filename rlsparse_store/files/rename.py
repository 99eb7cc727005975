"""Giving a finished folder its final name, as far as its file system can.

A folder is renamed where that works. Mount points cannot be replaced, and object stores and some
network file systems rename files only: there the files are moved one by one, and last the one that
every reader opens first, so that no loader takes an unfinished folder for a whole one.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import OutputError
from rlsparse_store.files.weight_files import SUFFIX, is_index, parse_shard_name
from rlsparse_store.format.file_names import DELTA_FOLDER

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "can_rename_folders",
    "flush_folder",
    "make_folder",
    "move_files",
    "raise_error",
    "rename_folder",
    "rename_order",
]

_UNSUPPORTED: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
)
"""What file systems answer that cannot flush a folder."""

_FINAL: Final = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
        *(errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR),
    }
)
"""Errors of a rename after which moving files one by one would fail, too."""


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, and flush their names to the disk.

    Otherwise a power cut may take them away again, and with them what was flushed in them.

    Raises:
        OSError: One cannot be created.
    """
    missing = [path, *path.parents]
    while missing and missing[-1].exists():
        missing.pop()
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def can_rename_folders(place: Path, target: Path) -> bool:
    """Try what writing a result needs: any order of writing, and renaming.

    Args:
        place: An empty folder on the file system in question, which is left empty.
        target: What the result is called in errors.

    Returns:
        Whether folders can be renamed; otherwise files can.

    Raises:
        OutputError: The file system can do too little.
        OSError: It is full, read-only or not permitted.
    """
    folder, renamed = place / "probe", place / "renamed"
    folder.mkdir()
    file = folder / "file"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # The header of a file is known, and written, last.
        os.pwrite(descriptor, b"1", 8)
        os.pwrite(descriptor, b"0", 0)
    except OSError as error:
        raise _unable("write files in any order", target, error) from error
    finally:
        os.close(descriptor)
    try:
        folder.rename(renamed)
    except OSError as error:
        if error.errno in _FINAL:
            raise
        renamed = folder
    file = renamed / "file"
    if renamed is folder:
        try:
            file = file.rename(folder / "other")
        except OSError as error:
            raise _unable("rename files", target, error) from error
    # Not by rmtree(), which closes a folder twice if a signal interrupts it.
    file.unlink()
    renamed.rmdir()
    return renamed is not folder


def _unable(what: str, target: Path, error: OSError) -> Exception:
    if error.errno in _FINAL:
        return error
    msg = (
        f"this file system cannot {what} ({error.strerror}): write to another one, such as a local "
        "disk, and copy the result"
    )
    return OutputError(msg, file=target)


def rename_folder(temporary: Path, target: Path) -> bool:
    """Rename a folder to its final name, which is free or an empty folder.

    Returns:
        Whether it was renamed; if not, its files can still be moved.

    Raises:
        OSError: The place is taken, full or not writable.
    """
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno in _FINAL:
            raise
        return False
    return True


def move_files(temporary: Path, target: Path) -> None:
    """Move the files of a folder one by one, each by a rename, in :func:`rename_order`.

    After an error, what was moved is removed again.

    Args:
        temporary: The folder, whose files are flushed.
        target: The folder to move them to, which is created if there is none.

    Raises:
        OSError: The place is taken, full or not writable.
    """
    names = [
        os.path.relpath(os.path.join(here, name), temporary)  # noqa: PTH118 - walks texts
        for here, _, files in os.walk(temporary, onerror=raise_error)
        for name in files
    ]
    made: list[Path] = []
    try:
        _make_folder(target, made)
        for name in sorted(names, key=rename_order):
            place = target / name
            for folder in reversed([f for f in place.parents if target in f.parents]):
                _make_folder(folder, made)
            _require_free(place)
            made.append(place)
            (temporary / name).rename(place)
            flush_folder(place.parent)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def raise_error(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed, which ``os.walk`` leaves out otherwise."""
    raise error


def _require_free(place: Path) -> None:
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))


def _make_folder(folder: Path, made: list[Path]) -> None:
    if not folder.is_dir():
        made.append(folder)
        folder.mkdir()


def rename_order(path: str) -> tuple[int, bool, str]:
    """A key that sorts files as they are placed: last what a reader opens first.

    Example:
        >>> sorted(["model.safetensors", "config.json", "tokenizer.json"], key=rename_order)
        ['tokenizer.json', 'config.json', 'model.safetensors']
    """
    parts = PurePath(path).parts
    name = parts[-1]
    shard = parse_shard_name(name)
    if is_index(name):
        rank = 3
    elif name.endswith(SUFFIX) and (shard is None or shard.number == shard.total):
        rank = 2
    else:
        rank = 1 if name == "config.json" else 0
    return rank, len(parts) == 1 or DELTA_FOLDER in parts, path

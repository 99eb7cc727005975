"""Writing folders and files that appear completely or not at all.

Everything goes into a temporary folder beside the final one; its files are flushed to the disk,
it is renamed, and the parent folder is flushed. A crash at any moment leaves either the old state
or the new one under the final name, and at most a temporary folder, which the next run for the same
name removes once its process is gone. Where a folder cannot be renamed,
:mod:`rlsparse_store.files.rename` moves its files.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rlsparse_store.errors import OutputError, RlsparseError
from rlsparse_store.files.near_names import in_home
from rlsparse_store.files.rename import (
    can_rename_folders,
    flush_folder,
    make_folder,
    move_files,
    raise_error,
    rename_folder,
)
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = [
    "OutputFile",
    "close_all",
    "draft_of",
    "is_running",
    "new_file",
    "output_errors",
    "output_folder",
    "remove_stale",
    "replace_file",
    "replacing_file",
    "require_new",
    "require_path",
    "scratch_folder",
    "staging_folder",
    "write_new",
]

_HOST: Final = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]


_LIVE: Final[set[Path]] = set()
"""Temporary folders and files that this process is writing."""

_NAMING: Final = threading.Lock()

_SCRATCH: Final = "rlsparse-"


@contextmanager
def output_errors(place: object) -> Iterator[None]:
    """Turn errors of the file system into :class:`OutputError`, which names the place."""
    try:
        yield
    except RlsparseError:
        # Some of these are errors of the operating system, too, and name their file.
        raise
    except OSError as error:
        remedies = {
            errno.ENOSPC: "no space left on the device; free some or choose another place",
            errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
            errno.EACCES: "permission denied; choose a place you may write to",
            errno.EFBIG: "the file would be larger than is allowed here; raise the limit",
            errno.EEXIST: "exists already, or a file stands in its way; choose another place",
            errno.ENOTDIR: "a file stands in its way; choose another place",
            errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
            errno.EROFS: "a read-only file system; choose another place",
            errno.ENOSYS: "this file system cannot do it; choose a place on another one",
            errno.ENOTSUP: "this file system cannot do it; choose a place on another one",
        }
        reason = remedies.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(reason, file=place) from error


class OutputFile:
    """A new file, written at any position, flushed to the disk on :meth:`close`.

    Args:
        path: Must not exist.

    Raises:
        OutputError: It cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Writers of one file wait for each other in the kernel, and some kernels let them spin.
        self._writing = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with output_errors(path):
            self._descriptor = os.open(path, flags, 0o666)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``. May be called from several threads.

        Raises:
            OutputError: It cannot be written.
        """
        view = memoryview(data)
        with output_errors(self.path), self._writing:
            while view:
                put = os.pwrite(self._descriptor, view, offset)
                view = view[put:]
                offset += put

    def close(self) -> None:
        """Flush to the disk and close. May be called twice.

        Raises:
            OutputError: The flush failed.
        """
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                with output_errors(self.path):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def abandon(self) -> None:
        """Close without flushing: the file will be removed. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close; after an error only close, for the file will be removed."""
        if error is None:
            self.close()
        else:
            self.abandon()


def close_all(files: list[OutputFile], *, failed: bool) -> None:
    """Close all files even if one of them cannot be, without flushing if something failed.

    Raises:
        OutputError: A flush failed; the first one that did.
    """
    with ExitStack() as stack:
        for file in reversed(files):
            stack.callback(file.abandon if failed else file.close)


def require_new(path: Path) -> None:
    """Require, before the work, that the place of its result is free.

    Raises:
        OutputError: Something exists there.
    """
    with output_errors(path):
        if path.is_symlink() or path.exists():
            msg = "exists already; remove it or choose another place"
            raise OutputError(msg, file=path)


@contextmanager
def draft_of(target: Path, *, is_inside: bool = False) -> Iterator[Path]:
    """The temporary name of ``target`` while this process writes it.

    It tells :func:`remove_stale` who was writing. Its file or folder is the caller's to make and
    to remove.

    Args:
        target: The final name.
        is_inside: Whether it is a name in the target, and not beside it.

    Raises:
        OutputError: This process is already writing it.
    """
    folder = target if is_inside else target.parent
    temporary = folder / f".{target.name}.tmp-{_HOST}-{os.getpid()}"
    with _NAMING:
        if temporary in _LIVE:
            msg = "is being written by this process already"
            raise OutputError(msg, file=target)
        _LIVE.add(temporary)
    try:
        yield temporary
    finally:
        _LIVE.discard(temporary)


@contextmanager
def new_file(path: Path) -> Iterator[OutputFile]:
    """A file that appears under its name when the block ends without an error.

    Raises:
        OutputError: It exists or cannot be written.
    """
    require_path(path)
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    require_new(path)
    with draft_of(path) as temporary:
        with output_errors(path):
            make_folder(path.parent)
            # A killed process of the same number may have left it: containers reuse numbers.
            temporary.unlink(missing_ok=True)
            _require_rename(temporary)
        try:
            with OutputFile(temporary) as file:
                yield file
            # Someone may have made it meanwhile, and rename would replace it.
            require_new(path)
            with output_errors(path):
                temporary.rename(path)
                flush_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _require_rename(temporary: Path) -> None:
    """Test, before the work, whether a file can get its final name."""
    probe = temporary.with_name(f"{temporary.name}.probe")
    try:
        temporary.touch()
        temporary.rename(probe)
    finally:
        for path in (temporary, probe):
            path.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a small file, which appears completely or not at all.

    Raises:
        OutputError: It exists or cannot be written.
    """
    with new_file(path) as file:
        file.write(content, 0)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file in place of an earlier one: readers find the old or the new content.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing_file(path) as file:
        file.write(content, 0)


@contextmanager
def replacing_file(path: Path) -> Iterator[OutputFile]:
    """A file that replaces an earlier one when the block ends without an error.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path), draft_of(path) as temporary:
        _remove_stale(path)
        try:
            with OutputFile(temporary) as file:
                yield file
            temporary.replace(path)
            flush_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder for files that go elsewhere, removed at the end.

    What processes of this host that are gone left in the parent is removed, too.

    Args:
        parent: A folder that is this package's own, which is created if there is none.

    Raises:
        OutputError: It cannot be created.
    """
    with output_errors(parent):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _NAMING:
            remove_stale(parent)
    with _own_folder(parent, ".staging-") as folder:
        yield folder


def is_running(process: int) -> bool:
    """Whether this machine runs a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(target: Path) -> None:
    """Remove temporary folders and files for this target whose process on this host is gone."""
    pattern = f".{glob.escape(target.name)}.tmp-{_HOST}-*"
    _remove_ended([*target.parent.glob(pattern), *target.glob(pattern)])


def remove_stale(folder: Path) -> None:
    """Remove what processes of this host that are gone were writing into a folder.

    Args:
        folder: A folder that is this package's own, such as a run.
    """
    _remove_ended(list(folder.glob(f".*.tmp-{_HOST}-*")))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for intermediate files among the system's temporary ones.

    It is removed at the end, or after a kill by the next call.

    Raises:
        OutputError: It cannot be made.
    """
    above = Path(tempfile.gettempdir())
    with output_errors(above), _NAMING:
        # Others' may be there, too, and their processes cannot be seen from every container.
        found = above.glob(f"{_SCRATCH}*.tmp-{_HOST}-*")
        _remove_ended([path for path in found if _owner(path) == os.geteuid()])
    with _own_folder(above, _SCRATCH) as folder:
        yield folder


def _owner(path: Path) -> int | None:
    """The user of a file or folder; ``None`` if it is gone meanwhile."""
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None


@contextmanager
def _own_folder(above: Path, prefix: str) -> Iterator[Path]:
    """A new folder, removed at the end. Its name tells others whose it is."""
    with output_errors(above), _NAMING:
        folder = Path(tempfile.mkdtemp(f".tmp-{_HOST}-{os.getpid()}", prefix, above))
        _LIVE.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _LIVE.discard(folder)


def _remove_ended(temporary: list[Path]) -> None:
    for found in temporary:
        process = found.name.rpartition("-")[2]
        if not re.fullmatch(r"\d{1,9}", process) or found in _LIVE:
            continue
        # An earlier process of the same number is gone: containers reuse numbers.
        if int(process) == os.getpid() or not is_running(int(process)):
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def require_path(target: Path) -> None:
    """Require that a URL, or ``~``, is not taken for the name of a folder.

    Args:
        target: Where to write.

    Raises:
        OutputError: It is one.
    """
    if re.match(r"(s3|gs|gcs|az|abfss?|hf|https?):/", str(target)):
        msg = "is a URL; only deltas and runs are written to one: choose a folder or a file here"
        raise OutputError(msg, file=target)
    if (home := in_home(target)) is not None:
        msg = f"begins with ~, which the shell did not replace; give {printable(str(home))}"
        raise OutputError(msg, file=target)


def _require_free(target: Path) -> None:
    if target.is_symlink():
        msg = "exists and is a link; give the folder that it leads to, or choose another place"
        raise OutputError(msg, file=target)
    if target.exists() and not target.is_dir():
        msg = "exists and is not a folder; choose another place"
        raise OutputError(msg, file=target)
    # A new file system has it.
    free = {"lost+found"} if target.is_mount() else set()
    if target.is_dir() and any(path.name not in free for path in target.iterdir()):
        msg = "exists and is not empty; remove it or choose another place"
        raise OutputError(msg, file=target)


@contextmanager
def output_folder(target: Path, nbytes: int = 0) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` when the block ends without an error.

    Whether the file system supports that is tested before the block begins.

    Args:
        target: Must not exist, or be an empty folder, which may be a mount point.
        nbytes: Bytes that will be written at least.

    Raises:
        OutputError: The place is taken, cannot be written, or has too little room.
    """
    require_path(target)
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow links
    with output_errors(target):
        make_folder(target.parent)
        _remove_stale(target)
        _require_free(target)
        is_inside = _is_written_inside(target)
    with draft_of(target, is_inside=is_inside) as temporary:
        try:
            # Within the block, so that a signal cannot come between making it and removing it.
            with output_errors(target):
                temporary.mkdir()
                renames = can_rename_folders(temporary, target) and not is_inside
                _require_room(temporary, target, nbytes)
            yield temporary
            with output_errors(target):
                for folder, _, _ in os.walk(temporary, onerror=raise_error):
                    flush_folder(Path(folder))
                # rename replaces an empty folder, and fails if someone filled it meanwhile.
                if not (renames and rename_folder(temporary, target)):
                    move_files(temporary, target)
                    shutil.rmtree(temporary)
                flush_folder(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _is_written_inside(target: Path) -> bool:
    """Whether the temporary folder has to be in the target: nothing can be made beside it."""
    if not target.is_dir():
        return False
    return target.is_mount() or not os.access(target.parent, os.W_OK | os.X_OK)


def _require_room(temporary: Path, target: Path, nbytes: int) -> None:
    """Require that a file system has room, as far as it says."""
    free = shutil.disk_usage(temporary).free
    # Some say nothing, which reads as 0; one that is full refuses the first byte.
    if 0 < free < nbytes:
        msg = (
            f"no space left on the device: {nbytes:,} bytes are needed and {free:,} free; free "
            "some or choose another place"
        )
        raise OutputError(msg, file=target) from OSError(
            errno.ENOSPC, "no space left on the device"
        )

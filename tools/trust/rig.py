"""What every rig does first: preload the interposer, start the test Hub, import the library."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from interposer import Trials, start_interposed
from subjects import SUBJECTS, Bench, TestHub, prepare_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from result import Fault, Result

__all__ = [
    "OTHER_FILE_SYSTEMS",
    "add_found",
    "file_system",
    "open_bench",
    "rig_folder",
    "without_numbers",
]

OTHER_FILE_SYSTEMS: Final = ("ext4", "xfs", "fuse", "fuse.sshfs")
"""Those that ``--root`` is to lead to, besides memory: local ones, one in a process, and one behind
a network."""

_ROOMS: Final = ("cli", "delta", "files", "publish", "watch", "pipeline", "codec", "kernels", "hub")
_HUBS: list[TestHub] = []


@contextmanager
def rig_folder(root: Path | None) -> Iterator[Path]:
    """Start this process anew with the interposer, and import the library.

    Args:
        root: Folder in which trials run; by default in memory, where flushing takes no time.

    Yields:
        The folder of the trials, which is removed at the end.
    """
    if "TRUST_FOLDER" not in os.environ:
        memory = Path("/dev/shm")  # noqa: S108 - the folder that is made in it is new
        above = root or (memory if memory.is_dir() else None)
        folder = Path(tempfile.mkdtemp(prefix="trust-", dir=above)).resolve()
        start_interposed({"TRUST_FOLDER": str(folder), **prepare_process(folder)})
    folder = Path(os.environ["TRUST_FOLDER"])
    hub = TestHub()
    try:
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.port}"
        os.environ["HF_TOKEN"] = "hf_canaryWriter0123456789abcdef"  # noqa: S105 - the test Hub's
        # Drawing the picture of a card takes longer than everything else.
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
        for room in _ROOMS:
            package = importlib.import_module(f"rlsparse_store.{room}")
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        _HUBS.append(hub)
        yield folder
    finally:
        hub.close()
        shutil.rmtree(folder)
        shutil.rmtree(Path(os.environ["TRUST_INTERPOSER"]).parent)


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as ``tmpfs``, ``ext4`` or ``fuse``."""
    kinds: dict[int, str] = {}
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        point = Path(place.replace("\\040", " "))
        if folder.is_relative_to(point):
            kinds[len(point.parts)] = kind
    return kinds[max(kinds)]


def open_bench(folder: Path, name: str) -> Bench:
    """The bench of a subject, ready for trials."""
    bench = Bench(folder, SUBJECTS[name](), _HUBS[-1], Trials(folder))
    bench.make()
    return bench


def without_numbers(text: str) -> str:
    """A text without what differs from run to run."""
    return re.sub(r"\d{4,}|[0-9a-f]{32,}", "N", text)


def add_found(result: Result, counts: Mapping[str, int], faults: Mapping[str, Fault]) -> None:
    """Add what a seed gave to the result, and print its faults."""
    result.add(counts, list(faults.values()))
    for fault in faults.values():
        click.echo(f"{fault.what}\n  {fault.case}")

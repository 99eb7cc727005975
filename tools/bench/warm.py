"""What a command finds when its time begins: files in the page cache, and memory that exists."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK: Final = 1 << 24

_WRITE: Final = """
import mmap, sys
with mmap.mmap(-1, int(sys.argv[1])) as memory:
    for start in range(0, len(memory), mmap.PAGESIZE):
        memory[start] = 1
"""


def warm_files(folder: Path) -> None:
    """Read all files of a folder into the page cache."""
    buffer = bytearray(_BLOCK)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def warm_memory(nbytes: int) -> None:
    """Write to this much memory, and free it.

    A virtual machine gets memory from its host when it first writes to it, and may return what was
    free for a while. That takes longer than to fill it, and says nothing of a command. A process of
    its own writes: the peak memory of those that this one starts would begin with its own.
    """
    subprocess.run([sys.executable, "-c", _WRITE, str(nbytes)], check=True)  # noqa: S603 - our own

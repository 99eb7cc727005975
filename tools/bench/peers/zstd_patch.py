"""``zstd --patch-from``: the general tool for a file that resembles another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from peers.base import Codec, Coded, Kind, UnavailableError

if TYPE_CHECKING:
    from peers.base import Tensors


class ZstdPatch(Codec[Path]):
    """At the command's default level; from files to files."""

    name = "zstd --patch-from"
    kind = Kind.PACKAGE
    note = "level 3; from files to files, in the page cache"
    limit_words = 1 << 24
    level: ClassVar[int] = 3

    def __init__(self) -> None:
        command = shutil.which("zstd")
        if command is None:
            msg = "the zstd command is not installed"
            raise UnavailableError(msg)
        self._command = command
        self._folder = TemporaryDirectory()

    def prepare(self, base: Tensors, tuned: Tensors) -> None:
        """Write both as plain bytes."""
        self._folder = TemporaryDirectory()
        for name, tensors in (("base", base), ("tuned", tuned)):
            with self._at(name).open("wb") as file:
                for words in tensors:
                    file.write(words.data)

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Path]:
        """Compress the one file with the other as its dictionary."""
        del base, tuned
        patch = self._at("patch")
        self._run(f"-{self.level}", self._at("tuned"), patch)
        return Coded(patch, patch.stat().st_size)

    def decode(self, base: Tensors, payload: Path) -> Tensors:
        """Decompress into a file."""
        out = self._at("out")
        self._run("-d", payload, out)
        words = np.memmap(out, np.uint16, "r")
        ends = np.cumsum([tensor.size for tensor in base])
        return [
            part.reshape(tensor.shape)
            for tensor, part in zip(base, np.split(words, ends[:-1]), strict=True)
        ]

    def _run(self, mode: str, source: Path, out: Path) -> None:
        # The window has to reach over the whole base.
        options = [mode, "-q", "-f", "--single-thread", "--long=31", "--memory=2048MB"]
        files = [f"--patch-from={self._at('base')}", str(source), "-o", str(out)]
        subprocess.run([self._command, *options, *files], check=True)  # noqa: S603 - our own files

    def _at(self, name: str) -> Path:
        return Path(self._folder.name) / name


class ZstdPatchHard(ZstdPatch):
    """At the level that its manual recommends for patches."""

    name = "zstd -19 --patch-from"
    note = "from files to files, in the page cache"
    limit_words = 1 << 22
    level = 19

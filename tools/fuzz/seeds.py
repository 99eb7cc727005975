#!/usr/bin/env python3
"""Write inputs for ``fuzz_apply.cpp``, which describes them: the vectors, and made-up words.

python tools/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import numpy as np

from rlsparse_store.delta import apply_delta
from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.kernels.dispatch import VARIABLE
from rlsparse_store.kernels.numpy import NumpyBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import Rows

VECTORS: Final = Path(__file__).resolve().parent.parent.parent / "specs" / "vectors"
KINDS: Final = {4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
WIDTHS: Final = list(KINDS)
MOST_WORDS: Final = 10_000
MOST_BYTES: Final = 0xFFFF
MOST_INPUT: Final = 8000
"""Bytes that the fuzzer reads of an input; run.sh says the same."""

HEAD: Final = 300
"""Bytes before the words, at most."""

PATTERN: Final = 3000
"""Bytes of words that a longer input repeats."""

ROWS, IN_PLACE, CHANGING, THREADED, EDITED, UNWRITTEN = 1, 2, 4, 8, 16, 32
VARIANTS: Final = [0, IN_PLACE, CHANGING, EDITED, UNWRITTEN, CHANGING | THREADED]
DECODE, ENCODE, COUNT, EXCHANGE = range(4)
TASKS: Final = [DECODE, ENCODE, COUNT, EXCHANGE]
PATHS: Final = 3
EDIT: Final = bytes([7, 0, 1])
"""An edit of what the encoder makes: a place and what to XOR there."""


@dataclass
class Seed:
    """One call of ``apply``.

    Attributes:
        base: Words before.
        tuned: Words after.
        coding: Width and order map of the words.
        bounds: Inclusive upper key of each context.
        rows: Which rows hold changed words, if that is told.
        changed: Changed words of each context.
        content: The streams; empty where the fuzzer makes them.
    """

    base: Words
    tuned: Words
    coding: WordCoding
    bounds: NDArray[np.uint64]
    rows: Rows | None
    changed: list[int]
    content: bytes

    def fits(self) -> bool:
        """Whether the fuzzer's input has room for it."""
        return self.base.size <= MOST_WORDS and self.base.nbytes <= MOST_BYTES

    def tasks(self) -> list[int]:
        """What the fuzzer can do with it: without streams, nothing can be decoded."""
        nbytes = self._head_and_words(DECODE, 0, 0)
        fits = len(nbytes) + len(self.content) <= MOST_INPUT
        return TASKS if self.content and fits else TASKS[1:]

    def encoded(self, task: int, flags: int, paths: int) -> bytes:
        """The fuzzer's input: which paths do which task."""
        end = self.content if task == DECODE else EDIT
        return self._head_and_words(task, flags, paths) + end

    def _head_and_words(self, task: int, flags: int, paths: int) -> bytes:
        base, difference = self.base.tobytes(), (self.base ^ self.tuned).tobytes()
        active = b"" if self.rows is None else self.rows.active.tobytes()
        changed = self.changed if task == DECODE else [0] * len(self.changed)
        if task != DECODE and len(base) + len(difference) + len(active) > MOST_INPUT - HEAD:
            # The fuzzer repeats a part of the words.
            base, difference = base[:PATTERN], difference[:PATTERN]
        length, offset = (1, 0) if self.rows is None else (self.rows.length, self.rows.offset)
        head = struct.pack(
            "<BBBBBBHQQHHH",
            WIDTHS.index(self.coding.width),
            self.coding.order,
            flags | (0 if self.rows is None else ROWS),
            task,
            paths << 2,
            self.bounds.size - 1,
            self.base.size,
            length,
            offset,
            len(base),
            len(difference),
            len(active),
        )
        numbers = np.append(self.bounds, np.array(changed, np.uint64)).tobytes()
        return head + numbers + base + difference + active


def from_vectors() -> Iterator[Seed]:
    """What decoding the vectors asks of a backend."""
    seeds: list[Seed] = []
    plain = NumpyBackend.apply

    def record(*arguments: Any) -> None:  # noqa: ANN401 - as apply has them
        backend, base, coding, bounds, rows, changed, content, out = arguments
        before = base.copy()
        try:
            plain(backend, base, coding, bounds, rows, changed, content, out)
        finally:
            seeds.append(Seed(before, out.copy(), coding, bounds, rows, changed, content))

    vectors = json.loads((VECTORS / "index.json").read_text())["vectors"]
    with mock.patch.object(NumpyBackend, "apply", record), tempfile.TemporaryDirectory() as scratch:
        for vector in vectors:
            delta, base = VECTORS / vector["delta"], VECTORS / vector["base"]
            try:
                apply_delta(delta, Path(scratch) / vector["delta"], base=base, threads=1)
            except RlsparseError:
                if vector["kind"] == "valid" and "reader" not in vector:
                    raise
    yield from seeds


def made_up() -> Iterator[Seed]:
    """Words of every coding, few and many of them changed, with streams of ``partition``."""
    rng = np.random.default_rng(1)
    shapes = itertools.product(WIDTHS, OrderMap, [(70, 0.5), (4200, 0.003), (700, 0.3)], [0, 1])
    for width, order, (words, density), with_rows in shapes:
        coding = WordCoding(width, order)
        top = np.uint64((1 << width) - 1)
        spread = rng.standard_normal((2, words)) * [[2.0 ** (width - 3)], [4]]
        wide = spread.clip(-(2.0**62), 2.0**62).astype(np.int64).view(np.uint64)
        base = (wide[0] & top).astype(KINDS[width])
        moved = ((wide[0] + wide[1]) & top).astype(KINDS[width])
        tuned = np.where(rng.random(words) < density, moved, base).astype(KINDS[width])
        keys = rng.integers(0, 1 << coding.key_bits, 3, np.uint64, endpoint=False)
        bounds = np.unique(np.append(keys, np.uint64((1 << coding.key_bits) - 1)))
        backend = NumpyBackend()
        changed = backend.changed_words(base, tuned, coding)
        rows = backend.active_rows(changed, base.size, 100, 30) if with_rows else None
        streams = backend.partition(base, changed, coding, bounds, rows)
        yield Seed(base, tuned, coding, bounds, rows, streams.changed, bytes(streams.content))


def unsettled() -> Iterator[Seed]:
    """Words few of which are in the context, before others most of which are.

    A decoder that counts the former and then finds the latter reads far beyond its streams, unless
    it looks where they end.
    """
    for width, order in itertools.product(WIDTHS, OrderMap):
        coding = WordCoding(width, order)
        base = np.full(8000, 3, KINDS[width])
        base[::50] = 0
        tuned = np.zeros_like(base)
        tuned[::100] = 1
        yield Seed(base, tuned, coding, np.array([2], np.uint64), None, [0], b"")


def bursts() -> Iterator[Seed]:
    """Changed words side by side, and gaps between them that do not fit a byte."""
    for width, order in itertools.product(WIDTHS, OrderMap):
        base = np.zeros(8000, KINDS[width])
        tuned = (np.arange(8000) % 1000 < 100).astype(KINDS[width])
        yield Seed(base, tuned, WordCoding(width, order), np.array([2], np.uint64), None, [0], b"")


def write(folder: Path, data: bytes) -> None:
    """Write an input under a name that its content gives."""
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    """Write every seed, once for each task."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = NumpyBackend.name
    seeds = [seed for seed in [*from_vectors(), *made_up(), *bursts()] if seed.fits()]
    kinds = itertools.cycle(itertools.product(VARIANTS, range(PATHS)))
    for seed in seeds:
        for task in seed.tasks():
            write(folder, seed.encoded(task, *next(kinds)))
    for seed, paths in itertools.product(unsettled(), range(PATHS)):
        for flags in (CHANGING, CHANGING | UNWRITTEN):
            write(folder, seed.encoded(ENCODE, flags, paths))
    print(f"{len(seeds)} seeds")  # noqa: T201 - a command's output


if __name__ == "__main__":
    main()

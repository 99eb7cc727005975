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
WIDTHS: Final = [4, 8, 16, 32, 64]
MOST_WORDS: Final = 10_000
MOST_BYTES: Final = 0xFFFF
MOST_INPUT: Final = 8000
"""Bytes that the fuzzer reads of an input; run.sh says the same."""

HEAD: Final = 300
"""Bytes before the words, at most."""

PATTERN: Final = 3000
"""Bytes of words that a longer input repeats."""

ROWS, IN_PLACE, CHANGING, THREADED, DERIVED = 1, 2, 4, 8, 16
VARIANTS: Final = [0, IN_PLACE, CHANGING, CHANGING | THREADED]


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
        content: The streams.
        flags: Of the fuzzer's input.
    """

    base: Words
    tuned: Words
    coding: WordCoding
    bounds: NDArray[np.uint64]
    rows: Rows | None
    changed: list[int]
    content: bytes
    flags: int = 0

    def fits(self) -> bool:
        """Whether the fuzzer's input has room for it."""
        return self.base.size <= MOST_WORDS and self.base.nbytes <= MOST_BYTES

    def encoded(self, flags: int) -> bytes:
        """The fuzzer's input, with more flags."""
        base, difference = self.base.tobytes(), (self.base ^ self.tuned).tobytes()
        active = b"" if self.rows is None else self.rows.active.tobytes()
        changed, content = self.changed, self.content
        if len(base) + len(difference) + len(active) + len(content) > MOST_INPUT - HEAD:
            # A part of the words, repeated, has other streams, which the fuzzer makes.
            base, difference = base[:PATTERN], difference[:PATTERN]
            changed, content, flags = [0] * len(changed), b"", flags | DERIVED
        length, offset = (1, 0) if self.rows is None else (self.rows.length, self.rows.offset)
        head = struct.pack(
            "<BBBBBHQQHHH",
            WIDTHS.index(self.coding.width),
            self.coding.order,
            self.flags | flags | (0 if self.rows is None else ROWS),
            0,
            self.bounds.size - 1,
            self.base.size,
            length,
            offset,
            len(base),
            len(difference),
            len(active),
        )
        numbers = np.append(self.bounds, np.array(changed, np.uint64)).tobytes()
        return head + numbers + base + difference + active + content


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
    kinds = {4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
    shapes = itertools.product(WIDTHS, OrderMap, [(70, 0.5), (4200, 0.003), (700, 0.3)], [0, 1])
    for width, order, (words, density), with_rows in shapes:
        coding = WordCoding(width, order)
        top = np.uint64((1 << width) - 1)
        spread = rng.standard_normal((2, words)) * [[2.0 ** (width - 3)], [4]]
        wide = spread.clip(-(2.0**62), 2.0**62).astype(np.int64).view(np.uint64)
        base = (wide[0] & top).astype(kinds[width])
        moved = ((wide[0] + wide[1]) & top).astype(kinds[width])
        tuned = np.where(rng.random(words) < density, moved, base).astype(kinds[width])
        keys = rng.integers(0, 1 << coding.key_bits, 3, np.uint64, endpoint=False)
        bounds = np.unique(np.append(keys, np.uint64((1 << coding.key_bits) - 1)))
        backend = NumpyBackend()
        changed = backend.changed_words(base, tuned, coding)
        rows = backend.active_rows(changed, base.size, 100, 30) if with_rows else None
        streams = backend.partition(base, changed, coding, bounds, rows)
        zeros = [0] * bounds.size
        yield Seed(base, tuned, coding, bounds, rows, zeros, b"", DERIVED)
        if words < 1000:
            yield Seed(base, tuned, coding, bounds, rows, streams.changed, bytes(streams.content))


def main() -> None:
    """Write every seed, once for each way to use it."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = NumpyBackend.name
    seeds = [seed for seed in [*from_vectors(), *made_up()] if seed.fits()]
    for number, seed in enumerate(seeds):
        data = seed.encoded(VARIANTS[number % len(VARIANTS)])
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{len(seeds)} seeds")  # noqa: T201 - a command's output


if __name__ == "__main__":
    main()

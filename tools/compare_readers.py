#!/usr/bin/env python3
"""Compare the library and the second decoder on random mutations of the vectors.

    python tools/compare_readers.py --count 1000000
    python tools/compare_readers.py --count 2000 --seed 7

Half of the mutations are sealed again: what checksums and checks guard is edited, and they are
computed anew, so that the edit is seen by what they hide. Both readers must refuse with the same
code, or one of those that a rule of one step allows, or give the same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import xxhash

from conformance.readers import Outcome, library_outcome, load_decoder, second_outcome
from format_vectors.draft import DELTA, Draft, compressed, plain
from format_vectors.listing import VECTORS, load
from rlsparse_store.format.index.writer import encode_index

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

STEPS: Final = (
    {"missing"},
    {"header", "version", "feature", "limit"},
    {"index", "limit", "checksum"},
    {"base", "index"},
    {"stream", "base"},
)
"""Codes that rules of one step have: which of them is told is free (section 14)."""

NUMBERS: Final = (0, 1, 2, 3, 15, 16, 127, 128, 255)


class Victim:
    """A vector that is mutated again and again.

    Args:
        vector: The vector.
        folder: Where to write its mutants.
        decoder: The second decoder.
    """

    def __init__(self, vector: dict[str, Any], folder: Path, decoder: ModuleType) -> None:
        self.id: str = vector["id"]
        self.reader: dict[str, Any] = vector.get("reader", {})
        self.base = VECTORS / vector["base"]
        self.base_tensors = decoder.read_checkpoint(self.base)
        source = VECTORS / vector["delta"] / "rlsparse"
        self.files = {path.name: path.read_bytes() for path in sorted(source.iterdir())}
        self.delta = folder
        single = vector["kind"] == "valid" and DELTA in self.files and not self.reader
        self.draft = Draft.read(VECTORS / vector["delta"]) if single else None

    def write(self, files: dict[str, bytes]) -> None:
        """Write a mutant."""
        target = self.delta / "rlsparse"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, data in files.items():
            (target / name).write_bytes(data)

    def mutant(self, rng: random.Random) -> dict[str, bytes]:
        """A mutant, sealed or not."""
        if self.draft is not None and rng.random() < 0.6:
            return {DELTA: sealed(self.draft, rng)}
        name = rng.choice(sorted(self.files))
        return {**self.files, name: edited(self.files[name], rng)}


def edited(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three small edits."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        run = rng.choice((1, 1, 1, 2, 4, 8))
        fresh = rng.choice((bytes([rng.choice(NUMBERS)]) * run, rng.randbytes(run)))
        match rng.randrange(6):
            case 0 | 1:
                data = data[:at] + fresh + data[at + run :]
            case 2:
                data = data[:at] + data[at + run :]
            case 3:
                data = data[:at] + fresh + data[at:]
            case 4 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case _:
                data = data[:at] + data[at : at + run] * 2 + data[at + run :]
    return data


def edited_json(fields: Any, rng: random.Random) -> Any:  # noqa: ANN401 - any JSON
    """A manifest with one value exchanged, or a key more or less."""
    fields = json.loads(json.dumps(fields))
    group = fields
    inner = [value for value in fields.values() if isinstance(value, dict)]
    if inner and rng.random() < 0.6:
        group = rng.choice(inner)
    key = rng.choice([*sorted(group), "repo", "revision", "delta", "cast"])
    fresh: tuple[Any, ...] = (
        0,
        1,
        -1,
        1 << 53,
        "",
        "a/b",
        "../a",
        "BF16",
        [],
        {},
        {"path": "../a"},
    )
    group[key] = rng.choice((*fresh, "0" * 64, None, True, 0.5, "\ud800", "é"))
    if rng.random() < 0.2:
        del group[key]
    return fields


def sealed(draft: Draft, rng: random.Random) -> bytes:
    """A delta whose index, manifest or a chunk was edited, with checksums computed anew."""
    what = rng.randrange(4 if draft.stored else 2)
    if what == 0:
        content = edited(encode_index(draft.index), rng)
        return draft.sealed(content=lambda _: content)
    if what == 1:
        return draft.sealed(manifest=lambda fields: edited_json(fields, rng))
    number = rng.randrange(len(draft.stored))
    stored = draft.stored[number]
    if what == 2:
        return draft.with_stored(number, edited(stored, rng)).sealed()
    return draft.with_stored(number, compressed(edited(plain(stored), rng))).sealed()


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether the readers say the same."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other or any({one, other} <= codes for codes in STEPS)
    return one == other


def _use_fast_hash(decoder: ModuleType) -> None:
    """The decoder's own XXH3 has vectors; here it would take most of the time."""

    def rows(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in data], np.uint64)

    decoder.__dict__.update(xxh3=xxhash.xxh3_64_intdigest, xxh3_rows=rows)


def compare(job: tuple[int, int, int]) -> tuple[Counter[str], list[str]]:
    """Compare the readers on some mutants.

    Args:
        job: Number of the job, mutants, seed.

    Returns:
        How often each outcome came, and what they disagreed on.
    """
    number, count, seed = job
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable
    decoder = load_decoder()
    _use_fast_hash(decoder)
    found: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        victims = [
            Victim(vector, Path(temporary) / "delta", decoder)
            for vector in load()["vectors"]
            if vector["kind"] == "valid"
        ]
        for _ in range(count):
            victim = rng.choice(victims)
            files = victim.mutant(rng)
            victim.write(files)
            one = library_outcome(victim.delta, victim.base, victim.reader)
            other = second_outcome(decoder, victim.delta, victim.base_tensors, victim.reader)
            found[one if isinstance(one, str) else "rebuilt"] += 1
            if not agree(one, other):
                name = f"{victim.id}: library {_short(one)}, decoder {_short(other)}"
                wrong.append(f"{name}: { ({n: f.hex() for n, f in files.items()}) }")
    return found, wrong


def _short(outcome: Outcome) -> str:
    return outcome if isinstance(outcome, str) else "rebuilds"


def _jobs(count: int, seed: int) -> Iterator[tuple[int, int, int]]:
    size = min(5000, max(1, count // (2 * (os.cpu_count() or 1))))
    for number, start in enumerate(range(0, count, size)):
        yield number, min(size, count - start), seed


@click.command()
@click.option("--count", default=1_000_000, show_default=True, help="Mutations.")
@click.option("--seed", default=1, show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write disagreements.")
def main(count: int, seed: int, jobs: int, out: Path | None) -> None:
    """Compare the two readers of deltas on random mutations of the vectors."""
    start = time.monotonic()
    found: Counter[str] = Counter()
    wrong: list[str] = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcomes, disagreements in pool.imap_unordered(compare, _jobs(count, seed)):
            found += outcomes
            wrong += disagreements
            for line in disagreements:
                click.echo(line[:200])
    if out is not None:
        out.write_text("".join(f"{line}\n" for line in wrong), encoding="utf-8")
    told = ", ".join(f"{name} {times}" for name, times in found.most_common())
    seconds = time.monotonic() - start
    click.echo(f"{found.total()} mutations in {seconds:.0f} s: {len(wrong)} disagreements; {told}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()

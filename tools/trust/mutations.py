#!/usr/bin/env python3
"""Mutate deltas, and compare what the library and the second decoder make of them.

    python tools/trust/mutations.py --seconds 60
    python tools/trust/mutations.py --seconds 3600 --pair BASE TUNED
    python tools/trust/mutations.py --reproduce 17/204

Subjects are the valid vectors, deltas of generated pairs and, with ``--pair``, deltas of a few rows
of a real pair. Every other mutation is sealed again: what checksums and checks guard is edited, and
they are made anew, so that what they hide sees the edit. Both readers refuse with one code, or with
two of those that a rule of one step allows, or give the same bytes. A fault is: anything else, an
error of no type of the library's, a death, more than ``ROOM`` bytes of memory or ``ADDRESSES`` of
address space beyond what the process had, more than ``PATIENCE`` seconds for a batch.
"""

from __future__ import annotations

import mmap
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conformance.edits import edited, sealed
from conformance.memory import MemoryPath
from conformance.readers import (
    Outcome,
    agree,
    library_outcome,
    load_decoder,
    second_outcome,
    use_fast_hash,
)
from forked import PATIENCE, Place, in_fork, run_batches
from format_vectors.checkpoints import MODEL, Tensor, Tensors, floats, safetensors
from format_vectors.draft import DELTA, Draft
from format_vectors.listing import VECTORS, load
from result import RESULTS, Result
from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from rlsparse_store.files.checkpoint import Checkpoint

BATCH: Final = 5000
"""Mutations of a seed."""

GROUP: Final = 20
"""Mutations after which memory is looked at, which takes nearly as long as one."""

ON_DISK: Final = 16
"""Of this many mutations, one of each kind is read from files; the others are in memory."""

ROOM: Final = 64 << 20
"""Bytes that the readers may hold beyond those of the process before."""

ADDRESSES: Final = 1 << 30
"""Bytes of address space that they may take. A thread's heap alone reserves 128 MiB, and Python
waits forever for one that cannot start."""

MOST_TUNED: Final = 16 << 20
"""Bytes of tensors that the readers accept: more are refused."""

ROWS: Final = 16
"""Of each tensor of a real pair."""


@dataclass(frozen=True)
class Subject:
    """A delta that is mutated again and again.

    Attributes:
        name: Its name in faults.
        origin: ``vectors``, ``generated pairs`` or ``real pairs``.
        base: Its base, open.
        base_tensors: The base as the second decoder reads it.
        files: The files of the delta.
        reader: How readers are configured.
        draft: The delta taken apart; ``None`` if it cannot be sealed again.
    """

    name: str
    origin: str
    base: Checkpoint
    base_tensors: dict[str, Any]
    files: dict[str, bytes]
    reader: dict[str, Any]
    draft: Draft | None

    @classmethod
    def read(
        cls,
        name: str,
        origin: str,
        base: Path,
        delta: Path,
        decoder: ModuleType,
        **reader: int | list[str],
    ) -> Subject:
        """Read a delta and its base."""
        files = {path.name: path.read_bytes() for path in sorted((delta / "rlsparse").iterdir())}
        draft = Draft.read(delta) if DELTA in files and not reader else None
        reader = {"max_tuned_bytes": MOST_TUNED, **reader}
        tensors = decoder.read_checkpoint(base)
        return cls(name, origin, open_checkpoint(base), tensors, files, reader, draft)

    def mutant(self, rng: random.Random, *, seal: bool) -> dict[str, bytes]:
        """A mutant; to seal it again, there must be a draft."""
        if seal:
            assert self.draft is not None  # noqa: S101 - chosen among those with one
            return {DELTA: sealed(self.draft, rng)}
        name = rng.choice(sorted(self.files))
        data = self.files[name]
        if rng.random() < 0.1:
            return {**self.files, name: data[: rng.randrange(len(data))]}
        return {**self.files, name: edited(data, rng)}


def of_vectors(decoder: ModuleType) -> Iterator[Subject]:
    """The valid vectors."""
    for vector in load()["vectors"]:
        if vector["kind"] == "valid":
            base, delta = VECTORS / vector["base"], VECTORS / vector["delta"]
            reader = vector.get("reader", {})
            yield Subject.read(vector["id"], "vectors", base, delta, decoder, **reader)


def of_generated_pairs(folder: Path, decoder: ModuleType) -> Iterator[Subject]:
    """Deltas of pairs that differ as tuned checkpoints do: by few steps, in some rows."""
    rng = np.random.default_rng(1)
    for dtype, density in (("BF16", 0.02), ("BF16", 0.3), ("F16", 0.1), ("F32", 0.05)):
        name = f"{dtype} {density}"
        base = {f"{name} {i}": floats(f"{name} {i}", dtype, 40, 100) for i in range(4)}
        tuned = {key: _moved(tensor, density, rng) for key, tensor in base.items()}
        yield _encoded(name, "generated pairs", folder / name, (base, tuned), decoder)


def _moved(tensor: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    words = tensor.words.copy()
    rows = rng.random((40, 1)) < 0.7
    moved = (rows & (rng.random((40, 100)) < density)).ravel()
    steps = rng.geometric(0.6, words.size) * rng.choice((-1, 1), words.size)
    words[moved] += steps.astype(words.dtype)[moved]
    return Tensor(tensor.dtype, tensor.shape, words.tobytes())


def of_real_pair(
    number: int, base: Path, tuned: Path, folder: Path, decoder: ModuleType
) -> Iterator[Subject]:
    """Deltas of a few rows of a real pair, four matrices that changed in each."""
    with open_checkpoint(base) as old, open_checkpoint(tuned) as new:
        shared = [name for name in old.tensors if name in new.tensors]
        matrices = [name for name in shared if len(old.tensors[name].shape) == 2]
        for first in range(0, min(len(matrices), 24), 4):
            names = matrices[first : first + 4]
            pair = tuple({name: _rows(side, name) for name in names} for side in (old, new))
            if pair[0] != pair[1]:
                name = f"real {number}/{first}"
                yield _encoded(name, "real pairs", folder / name, (pair[0], pair[1]), decoder)


def _rows(checkpoint: Checkpoint, name: str) -> Tensor:
    ref = checkpoint.tensors[name]
    rows = min(ROWS, ref.shape[0])
    nbytes = ref.nbytes // ref.shape[0] * rows
    data = checkpoint.read(ref, 0, nbytes).tobytes()
    return Tensor(ref.dtype.code, (rows, *ref.shape[1:]), data)


def _encoded(
    name: str, origin: str, folder: Path, pair: tuple[Tensors, Tensors], decoder: ModuleType
) -> Subject:
    for side, tensors in zip(("base", "tuned"), pair, strict=True):
        (folder / side).mkdir(parents=True)
        (folder / side / MODEL).write_bytes(safetensors(tensors, metadata={"format": "pt"}))
    encode_delta(folder / "base", folder / "tuned", folder / "delta", threads=1, force=True)
    return Subject.read(name, origin, folder / "base", folder / "delta", decoder)


class Rig:
    """Mutates subjects and compares the readers.

    Args:
        subjects: What is mutated.
        decoder: The second decoder.
        folder: Where mutants are written.
    """

    def __init__(self, subjects: Sequence[Subject], decoder: ModuleType, folder: Path) -> None:
        self.subjects = subjects
        self.whole = [subject for subject in subjects if subject.draft is not None]
        self.decoder = decoder
        self.folder = folder

    def mutant(self, seed: int, number: int) -> tuple[Subject, dict[str, bytes], bool]:
        """A mutation: what is mutated, its files, and whether it is sealed again."""
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable
        seal = number % 2 == 1
        subject = rng.choice(self.whole if seal else self.subjects)
        return subject, subject.mutant(rng, seal=seal), seal

    def problem(
        self,
        subject: Subject,
        files: dict[str, bytes],
        counts: Counter[str],
        *,
        on_disk: bool = False,
    ) -> str:
        """What is wrong with how the readers take a mutant; empty if nothing."""
        delta = self.folder / "delta" if on_disk else MemoryPath(files)
        if isinstance(delta, Path):
            write(delta, files)
        try:
            one = library_outcome(delta, subject.base, subject.reader)
        except RlsparseError as error:  # of no code
            return f"the library raises {type(error).__name__}"
        except Exception as error:  # noqa: BLE001 - what is looked for
            return f"the library raises an untyped {type(error).__name__}"
        try:
            other = second_outcome(self.decoder, delta, subject.base_tensors, subject.reader)
        except Exception as error:  # noqa: BLE001 - as above
            return f"the second decoder raises an untyped {type(error).__name__}"
        counts["rebuilt" if isinstance(one, dict) else f"refused: {one}"] += 1
        if agree(one, other):
            return ""
        return f"library: {_short(one)}, second decoder: {_short(other)}"

    def batch(self, seed: int, place: Place) -> tuple[Counter[str], list[tuple[str, str]]]:
        """Counts of all mutations of a seed, and what was wrong with which."""
        limit_memory()
        before = peak()
        counts: Counter[str] = Counter()
        faults = []
        for number in range(BATCH):
            place.set(number)
            subject, files, seal = self.mutant(seed, number)
            on_disk = number % ON_DISK < 2
            problem = self.problem(subject, files, counts, on_disk=on_disk)
            counts.update({"mutations": 1, "sealed again": int(seal), f"of {subject.origin}": 1})
            counts["read from files"] += on_disk
            if problem:
                faults.append((problem, f"{seed}/{number} of {subject.name}"))
            if number % GROUP == GROUP - 1 and peak() - before > ROOM:
                took, before = (peak() - before) >> 20, peak()
                faults.append((f"took {took} MiB", f"{seed}/{number + 1 - GROUP} to {number}"))
        return counts, faults


def _short(outcome: Outcome) -> str:
    return outcome if isinstance(outcome, str) else "rebuilds"


def write(delta: Path, files: dict[str, bytes]) -> None:
    """Write the files of a delta in place of earlier ones."""
    target = delta / "rlsparse"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, data in files.items():
        (target / name).write_bytes(data)


def limit_memory() -> None:
    """Refuse more address space than there is now and ``ADDRESSES``."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * mmap.PAGESIZE + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def peak() -> int:
    """The most memory that this process held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def bounds_hold() -> bool:
    """Whether more memory is noticed: the control, without which the bounds are none."""

    def work(_: Place) -> bool:
        limit_memory()
        before = peak()
        bytearray(2 * ROOM)
        try:
            bytearray(2 * ADDRESSES)
        except MemoryError:
            return peak() - before > ROOM
        return False

    return in_fork(work, PATIENCE) is True


def make_rig(folder: Path, pairs: Sequence[tuple[Path, Path]]) -> Rig:
    """The rig with its subjects, made in a folder."""
    decoder = load_decoder()
    use_fast_hash(decoder)
    subjects = [*of_vectors(decoder), *of_generated_pairs(folder / "generated", decoder)]
    for number, (base, tuned) in enumerate(pairs):
        subjects += of_real_pair(number, base, tuned, folder / "real", decoder)
    return Rig(subjects, decoder, folder)


def reproduce(rig: Rig, case: str, keep: Path | None) -> None:
    """Do one mutation again, in this process, and say what is wrong."""
    seed, _, number = case.partition("/")
    subject, files, _ = rig.mutant(int(seed), int(number))
    if keep is not None:
        write(keep, files)
    counts: Counter[str] = Counter()
    problem = rig.problem(subject, files, counts)
    click.echo(f"{subject.name}: {problem or 'agreed: ' + ' '.join(counts)}")


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option(
    "--pair",
    "pairs",
    nargs=2,
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="BASE and TUNED of a real pair.",
)
@click.option("--reproduce", "case", help="SEED/NUMBER, with the pairs of the run.")
@click.option("--keep", type=click.Path(path_type=Path), help="Where to write that mutant.")
def main(
    seconds: float,
    results: Path,
    pairs: tuple[tuple[Path, Path], ...],
    case: str | None,
    keep: Path | None,
) -> None:
    """Compare the two readers of deltas on random mutations."""
    shared = Path("/dev/shm")  # noqa: S108 - memory, if there is: nothing here is to last
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        rig = make_rig(Path(folder), pairs)
        if case is not None:
            reproduce(rig, case, keep)
            return
        if not bounds_hold():
            raise click.ClickException("this system does not tell or limit memory")
        result = Result.read("mutations", results)
        result.describe(
            "Mutates deltas, half of them sealed again: the library and the second decoder refuse "
            "with one code or give the same bytes, within 64 MiB, without an untyped error",
            {"mutations": 10_000_000},
        )
        run_batches(rig.batch, result, seconds)
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()

"""Damage: whatever is done to a delta, it is refused by a typed error or decodes unchanged."""

from __future__ import annotations

import functools
import random
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from format_vectors.draft import DELTA, Draft, plain
from format_vectors.listing import VECTORS, load
from rlsparse_store.delta.apply import rebuild_files
from rlsparse_store.errors import RlsparseError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.records import Kind, TensorRecord
from rlsparse_store.format.index.writer import encode_index
from rlsparse_store.pipeline.decode import decode_tensors
from rlsparse_store.pipeline.progress import no_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

FOLDER = VECTORS
VALID: list[dict[str, Any]] = [
    v for v in load()["vectors"] if v["kind"] == "valid" and "reader" not in v
]
SEED = 20260701
EXHAUSTIVE = 3  # of the smallest vectors, every bit
FLIPS = 250  # of each other vector
TRUNCATIONS = 60
CHUNK_EDITS = 120  # per vector
INDEX_EDITS = 120
RANDOM = {v["id"]: random.Random(f"{SEED}/{v['id']}") for v in VALID}  # noqa: S311 - repeatable


@dataclass(frozen=True)
class Content:
    """What a delta decodes to.

    Attributes:
        tensors: The data of every tensor, by name.
        files: The headers of its files and its index file.
    """

    tensors: dict[str, bytes]
    files: dict[str, bytes | None]


def decode(delta: Path, base: Checkpoint) -> Content:
    """Everything that a delta says, decoded in this process."""
    with DeltaReader(delta) as reader:
        reader.check_state()
        files, listing = rebuild_files(reader)
        parts: dict[str, list[bytes]] = {t.name: [] for t in reader.index.tensors}

        def write(tensor: TensorRecord, offset: int, data: NDArray[np.uint8]) -> None:
            assert offset == sum(map(len, parts[tensor.name]))
            parts[tensor.name].append(data.tobytes())

        decode_tensors(reader, base, 1, write, no_progress)
        tensors = {name: b"".join(found) for name, found in parts.items()}
        for t in reader.index.tensors:
            if t.kind is Kind.ALIAS:
                tensors[t.name] = tensors[t.origin]
        headers: dict[str, bytes | None] = {file.name: file.framed_header for file in files}
        return Content(tensors, headers | {"": listing})


class Victim:
    """A copy of a valid vector that is damaged again and again.

    Args:
        vector: The vector.
        folder: Where to copy it.
        base: Its base, open.
    """

    def __init__(self, vector: dict[str, Any], folder: Path, base: Checkpoint) -> None:
        self.id = vector["id"]
        self._base = base
        self._delta = folder / "delta"
        shutil.copytree(FOLDER / vector["delta"], self._delta)
        self.files = {p: p.read_bytes() for p in sorted((self._delta / "rlsparse").iterdir())}
        self.sound = decode(self._delta, base)

    def outcome(self, path: Path, damaged: bytes, what: str) -> Content | None:
        """What a damaged file decodes to, or ``None`` if it is refused as it should be."""
        path.write_bytes(damaged)
        try:
            return decode(self._delta, self._base)
        except RlsparseError:
            return None
        except BaseException as error:
            error.add_note(f"{self.id}: {path.name}: {what}")
            raise

    def damage(self, path: Path, damaged: bytes, what: str) -> None:
        """Require that one damaged file is refused, or makes no difference."""
        found = self.outcome(path, damaged, what)
        assert found in (None, self.sound), f"{self.id}: {path.name}: {what}"

    def restore(self, path: Path) -> None:
        """Put a file back."""
        path.write_bytes(self.files[path])

    @property
    def draft(self) -> Draft:
        """The delta taken apart."""
        return Draft.read(self._delta)


@pytest.fixture
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    with open_checkpoint(FOLDER / request.param["base"]) as base:
        yield Victim(request.param, tmp_path, base)


def size_of(vector: dict[str, Any]) -> int:
    return sum(p.stat().st_size for p in (FOLDER / vector["delta"] / "rlsparse").iterdir())


BY_SIZE = sorted(VALID, key=size_of)
SINGLE = [v for v in VALID if list(v["sha256"]) == [DELTA]]


def over(chosen: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Parametrize ``victim`` by vectors."""
    return pytest.mark.parametrize("victim", chosen, ids=[v["id"] for v in chosen], indirect=True)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def truncate(victim: Victim, choose: Callable[[int], list[int]]) -> None:
    for path, data in victim.files.items():
        for end in choose(len(data)):
            victim.damage(path, data[:end], f"cut at {end}")
        victim.restore(path)


def flip(victim: Victim, choose: Callable[[int], list[int]]) -> None:
    for path, data in victim.files.items():
        for bit in choose(8 * len(data)):
            victim.damage(path, flipped(data, bit), f"bit {bit} flipped")
        victim.restore(path)


@over(BY_SIZE[:EXHAUSTIVE])
def test_every_truncation_is_refused(victim: Victim) -> None:
    truncate(victim, lambda size: list(range(size)))


@over(BY_SIZE[:EXHAUSTIVE])
def test_every_flipped_bit_is_refused_or_changes_nothing(victim: Victim) -> None:
    flip(victim, lambda size: list(range(size)))


@over(BY_SIZE[EXHAUSTIVE:])
def test_some_truncations_are_refused(victim: Victim) -> None:
    truncate(victim, lambda size: list(range(0, size, max(1, size // TRUNCATIONS))))


@over(BY_SIZE[EXHAUSTIVE:])
def test_some_flipped_bits_are_refused_or_change_nothing(victim: Victim) -> None:
    # A stride of an odd number of bits comes by every bit of a byte.
    flip(victim, lambda size: list(range(0, size, size // FLIPS | 1)))


def edited(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one random edit."""
    at = rng.randrange(len(data)) if data else 0
    run = rng.choice((1, 1, 1, 2, 4, 8))
    fresh = rng.choice((bytes(run), b"\xff" * run, b"\x80" * run, rng.randbytes(run)))
    return rng.choice(
        (
            lambda: flipped(data, 8 * at + rng.randrange(8)) if data else fresh,
            lambda: data[:at] + fresh + data[at + run :],
            lambda: data[:at] + data[at + run :],
            lambda: data[:at] + fresh + data[at:],
            lambda: data[:at] + data[at : at + run] * 2 + data[at + run :],
            lambda: data[:at],
        )
    )()


def replaced(after: bytes, before: bytes) -> bytes:
    """``after``, whatever stood there before."""
    assert before
    return after


def require_same_tensors(victim: Victim, found: Content | None, what: str) -> None:
    """Refused, or the same tensors: the index may tell of other headers, for it was sealed."""
    assert found is None or found.tensors == victim.sound.tensors, f"{victim.id}: {what}"


@over([v for v in SINGLE if Draft.read(FOLDER / v["delta"]).stored])
def test_edited_chunks_are_refused_or_change_nothing(victim: Victim) -> None:
    draft, rng = victim.draft, RANDOM[victim.id]
    (path,) = victim.files
    for _ in range(CHUNK_EDITS):
        number = rng.randrange(len(draft.stored))
        before = plain(draft.stored[number])
        after = edited(before, rng)
        sealed = draft.with_content(number, after).sealed()
        what = f"content of chunk {number} edited to {after.hex()}"
        require_same_tensors(victim, victim.outcome(path, sealed, what), what)


@over(SINGLE)
def test_edited_indexes_are_refused_or_change_nothing(victim: Victim) -> None:
    draft, rng = victim.draft, RANDOM[victim.id]
    (path,) = victim.files
    content = encode_index(draft.index)
    for _ in range(INDEX_EDITS):
        after = edited(edited(content, rng) if rng.random() < 0.5 else content, rng)
        sealed = draft.sealed(content=functools.partial(replaced, after))
        what = f"index edited to {after.hex()}"
        require_same_tensors(victim, victim.outcome(path, sealed, what), what)

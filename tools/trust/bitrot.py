#!/usr/bin/env python3
"""Flip bits in memory while a delta is encoded, once the words were hashed.

    python tools/trust/bitrot.py --seconds 60
    python tools/trust/bitrot.py --reproduce 17/204

What comes between the kernels and the encoder flips one or two bits, after a call that is drawn at
random, in a buffer that is drawn at random among those that were hashed and what was made of them:
base words, tuned words, the changed words, streams, frames. Then the encoder must refuse, or what
it wrote must give the tuned checkpoint. A fault is a delta that gives anything else, with an error
or without, or a refusal by an error that is not the library's. That the rig sees wrong deltas is
shown by encoding without the proof.

What flips before a buffer is hashed looks like another checkpoint. What flips after the proof, on
the way to the disk, readers notice by the checksums: `mutations.py`.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from forked import PATIENCE, Died, Place, in_fork, run_batches
from format_vectors.checkpoints import MODEL, Tensor, Tensors, floats, safetensors
from result import RESULTS, Result
from rlsparse_store.codec.chunk import compress_draft, encode_chunk
from rlsparse_store.delta import apply_delta, encode_run
from rlsparse_store.errors import RlsparseError
from rlsparse_store.kernels import dispatch
from rlsparse_store.pipeline import encode_small, spans

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.codec.chunk import EncodedChunk

BATCH: Final = 100
"""Encodings of a seed."""

ROWS: Final = (60, 90, 60, 90)
"""Rows of 200 bytes of the tensors in BF16: 60 fit into a leaf."""


class Flipper:
    """Stands between the encoder and a backend, and flips bits after one of the calls.

    Args:
        backend: The backend.
        at: The call after which it flips; a negative number never does.
        bits: How many bits it flips.
        rng: Draws buffers and bits.

    Attributes:
        calls: Calls so far.
        flipped: What it flipped.
    """

    def __init__(self, backend: Any, at: int, bits: int, rng: random.Random) -> None:  # noqa: ANN401 - of any backend
        self._backend, self._at, self._bits, self._rng = backend, at, bits, rng
        self._buffers: list[tuple[str, Any]] = []
        self.calls = 0
        self.flipped: list[str] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the backend has
        found = getattr(self._backend, name)
        return partial(self._call, name, found) if callable(found) else found

    def framed(self, encode: Callable[..., EncodedChunk]) -> Callable[..., EncodedChunk]:
        """A function that encodes a chunk, whose frame then is a buffer, too."""

        def encoded(*arguments: Any) -> EncodedChunk:  # noqa: ANN401 - as the encoder's
            chunk = encode(*arguments)
            self._after([("frame", chunk.stored)])
            return chunk

        return encoded

    def _call(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - any
        result = work(*arguments)
        buffers: list[tuple[str, Any]] = []
        if name in ("leaf_hashes", "hash_each"):
            buffers = [("hashed words", arguments[0])]
        elif name == "compare":
            listed = arguments[3].first(arguments[0].size)
            buffers = [("changed words", listed.after), ("their mask", listed.mask)]
            buffers += [("changed base words", listed.before)]
        elif name in ("draft", "partition") and result is not None:
            buffers = [("streams", result.content)]
        elif name == "draft_each":
            buffers = [("streams", draft.content) for draft in result.drafts if draft]
        self._after(buffers)
        return result

    def _after(self, buffers: list[tuple[str, Any]]) -> None:
        self._buffers = [*self._buffers, *buffers][-8:]
        if self.calls == self._at:
            full = [(name, buffer) for name, buffer in self._buffers if memoryview(buffer).nbytes]
            for _ in range(self._bits if full else 0):
                name, buffer = self._rng.choice(full)
                flip(buffer, self._rng)
                self.flipped.append(name)
        self.calls += 1


def flip(buffer: Any, rng: random.Random) -> None:  # noqa: ANN401 - arrays and bytes
    """Flip a bit where the buffer lies in memory, whether that may be written to or not."""
    view = np.frombuffer(memoryview(buffer).cast("B"), np.uint8)
    place = view.ctypes.data + rng.randrange(view.size)
    byte = ctypes.c_uint8.from_address(place)
    byte.value ^= 1 << rng.randrange(8)


@dataclass(frozen=True)
class Pair:
    """A base and tuned checkpoints, on disk, and the calls that encoding them takes."""

    base: Path
    tuned: tuple[Path, ...]
    calls: int


def make_pairs(folder: Path) -> list[Pair]:
    """Pairs whose chunks have one context and many, row flags, few changes and many.

    Two tensors are encoded one by one. The others fit into a leaf and are encoded together.
    """
    rng = np.random.default_rng(2)
    pairs = []
    for number, density in enumerate((0.0005, 0.01, 0.2, 0.9)):
        to = folder / str(number)
        base = {f"w{i}": floats(f"rot {i}", "BF16", rows, 100) for i, rows in enumerate(ROWS)}
        base["v"] = floats("rot v", "F32", 300)
        states = [base]
        for _ in range(2):
            states.append({n: _moved(t, density, rng) for n, t in states[-1].items()})
        places = [_write(to / name, s) for name, s in zip(("base", "a", "b"), states, strict=True)]
        pair = Pair(places[0], (places[1], places[2]), 0)
        flipper = _encode(pair, to / "probe", -1, 0, random.Random(0))  # noqa: S311 - not flipped
        pairs.append(Pair(pair.base, pair.tuned, flipper.calls))
    return pairs


def _moved(tensor: Tensor, density: float, rng: np.random.Generator) -> Tensor:
    words = tensor.words.copy()
    words[rng.random(words.size) < density] ^= 1
    words[0] ^= 1
    return Tensor(tensor.dtype, tensor.shape, words.tobytes())


def _write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(safetensors(tensors, metadata={"format": "pt"}))
    return folder


def _encode(pair: Pair, out: Path, at: int, bits: int, rng: random.Random) -> Flipper:
    """Encode both checkpoints of a pair as a run, whose base is hashed once, while bits flip."""
    flipper = Flipper(dispatch.get_backend(), at, bits, rng)
    with (
        mock.patch.object(dispatch, "_load", return_value=flipper),
        mock.patch.object(spans, "encode_chunk", flipper.framed(encode_chunk)),
        mock.patch.object(encode_small, "compress_draft", flipper.framed(compress_draft)),
    ):
        encode_run(pair.base, list(pair.tuned), out, threads=1)
    return flipper


class Rig:
    """Encodes pairs while bits flip.

    Args:
        folder: Where it writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = make_pairs(folder / "pairs")

    def trial(self, seed: int, number: int) -> tuple[str, str]:
        """Encode once: the outcome, and what was flipped."""
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable
        pair = rng.choice(self.pairs)
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            flipper = _encode(pair, out / "run", rng.randrange(pair.calls), 1 + number % 2, rng)
        except RlsparseError as error:
            # To a kernel, a mask and the words that it selects are not of one number.
            is_kernel = isinstance(error.__cause__, ValueError)
            return f"noticed by {'a kernel' if is_kernel else 'the proof'}", ""
        except Exception as error:  # noqa: BLE001 - what is looked for
            return f"untyped {type(error).__name__}", ""
        flipped = " and ".join(flipper.flipped) or "nothing"
        try:
            for tuned in pair.tuned:
                rebuilt = out / tuned.name
                apply_delta(out / "run" / tuned.name, rebuilt, base=pair.base, threads=1)
                if (rebuilt / MODEL).read_bytes() != (tuned / MODEL).read_bytes():
                    return "stored wrong", flipped
        except RlsparseError:
            return "stored broken", flipped
        return "without effect", flipped

    def batch(self, seed: int, place: Place) -> tuple[Counter[str], list[tuple[str, str]]]:
        """Counts of all encodings of a seed, and what was wrong with which."""
        counts: Counter[str] = Counter({"stored wrong": 0, "stored broken": 0})
        faults = []
        for number in range(BATCH):
            place.set(number)
            outcome, flipped = self.trial(seed, number)
            counts.update({"encodings": 1, f"with {1 + number % 2} flipped": 1, outcome: 1})
            if outcome.startswith(("stored", "untyped")):
                faults.append((f"{outcome} after {flipped} flipped", f"{seed}/{number}"))
        return counts, faults


def control(rig: Rig) -> int:
    """How many wrong deltas are stored without the proof: none would mean that the rig is blind."""

    def work(place: Place) -> int:
        with (
            mock.patch.object(spans, "_prove"),
            mock.patch.object(encode_small._Batch, "prove"),  # noqa: SLF001 - what is in control
        ):
            counts, _ = rig.batch(0, place)
        return counts["stored wrong"] + counts["stored broken"]

    found = in_fork(work, PATIENCE)
    if isinstance(found, Died):
        raise click.ClickException(f"the control ended: {found.how}")
    return int(found)


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--reproduce", "case", help="SEED/NUMBER")
def main(seconds: float, results: Path, case: str | None) -> None:
    """Flip bits while deltas are encoded."""
    shared = Path("/dev/shm")  # noqa: S108 - memory, if there is: nothing here is to last
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        rig = Rig(Path(folder))
        if case is not None:
            seed, _, number = case.partition("/")
            click.echo(" after ".join(rig.trial(int(seed), int(number))))
            return
        blind = control(rig) == 0
        if blind:
            raise click.ClickException(
                "without the proof nothing wrong is stored: the rig is blind"
            )
        result = Result.read("bitrot", results)
        result.describe(
            "Flips one or two bits, while two checkpoints are encoded, in buffers after the words "
            "were hashed: encoding refuses, or what is stored is right",
            {"encodings": 10_000},
        )
        run_batches(rig.batch, result, seconds)
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()

"""A tensor encoded from several slabs: the digests and weights of the whole, in valid chunks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Tensor, Tensors, bf16_tensor, random_tensor, save, tune

from rlsparse_store.delta import encode_delta, verify_delta
from rlsparse_store.delta.chunk_counts import ChunkCounts
from rlsparse_store.delta.joined_delta import Described, JoinedDelta, Tie
from rlsparse_store.delta.slab_encoder import HeldSlab, SlabEncoder, SlabRecord
from rlsparse_store.errors import CheckpointError, DtypeMismatchError, RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_writer import LastShard, RankShard
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.digests import LEAF_BYTES, digest_of_leaves, leaf_hashes
from rlsparse_store.format.dtypes import DTYPES, Dtype
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.fingerprints import BaseHashes
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.pipeline.slabs import hash_run, join_runs
from rlsparse_store.pipeline.tensor_matching import DtypePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.delta import EncodeReport

    Leaves = list[dict[tuple[str, int, int], NDArray[np.uint64]]]


@dataclass
class Held:
    """A slab in memory."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        out[:] = self.data[start : start + out.size]


def encode_slabs(  # noqa: PLR0913 - what a save and its repetition differ in
    base_folder: Path,
    tuned: Tensors,
    out: Path,
    cuts: Mapping[str, list[int]],
    *,
    ranks: int = 3,
    policy: DtypePolicy | None = None,
    hashes: BaseHashes | None = None,
    leaves: Leaves | None = None,
    ties: Mapping[str, str] | None = None,
) -> EncodeReport:
    """Encode slabs of rows between these cuts, dealt out to ranks one after the other."""
    folder = out / "rlsparse"
    folder.mkdir(parents=True)
    leaves = leaves if leaves is not None else [{} for _ in range(ranks)]
    with open_checkpoint(base_folder) as base:
        described = [Described(n, DTYPES[t.dtype], t.shape) for n, t in tuned.items()]
        joined = JoinedDelta(base, described, policy or DtypePolicy(), hashes or BaseHashes(), out)
        orders = joined.orders()
        parts: list[dict[str, tuple[Held, str, int]]] = [{} for _ in range(ranks)]
        dealt = 0
        for name, tensor in tuned.items():
            if name in (ties or {}):
                continue
            rows = tensor.shape[0] if tensor.shape else 1
            row_bytes = len(tensor.data) // max(rows, 1)
            places = [0, *cuts.get(name, []), rows]
            for first, last in pairwise(places):
                if first == last or not row_bytes:
                    continue
                data = np.frombuffer(tensor.data, np.uint8)[first * row_bytes : last * row_bytes]
                shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
                held = Held(DTYPES[tensor.dtype], shape, data)
                parts[dealt % ranks][f"{name} {first}"] = held, name, first * row_bytes
                dealt += 1
        records: list[SlabRecord] = []
        nbytes = 0
        for rank, mine in enumerate(parts):
            memory = checkpoint_in_memory({key: held for key, (held, _, _) in mine.items()})
            slabs = [
                HeldSlab(orders[name], start, memory.tensors[key])
                for key, (_, name, start) in mine.items()
            ]
            encoder = SlabEncoder(base, memory, slabs, leaves[rank], joined.known_sources())
            with RankShard(folder, rank + 1, ranks + 1) as shard:
                records += encoder.encode(shard, CpuCoder(), 2, no_progress)
                nbytes += shard.finish()
        tied = [Tie(n, len(tuned[n].data), target) for n, target in (ties or {}).items()]
        return joined.join(reversed(records), tied, LastShard(folder, ranks + 1, nbytes))


def require_same(report: EncodeReport, expected: EncodeReport) -> None:
    """Require that two deltas say the same of each tensor, but for how chunks store it."""
    assert report.tuned_digest == expected.tuned_digest
    assert report.base_digest == expected.base_digest
    assert report.changed == expected.changed
    assert report.removed == expected.removed
    for mine, theirs in zip(report.tensors, expected.tensors, strict=True):
        for field in ("name", "kind", "dtype", "shape", "changed", "source", "tail"):
            assert getattr(mine, field) == getattr(theirs, field), mine.name


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 90), max_size=5),
    columns=st.sampled_from([7, 64, 512, 8192]),
    density=st.sampled_from([0.0, 0.001, 0.05, 0.6]),
    shape=st.sampled_from(["same", "grown", "shrunk"]),
)
def test_slabs_of_any_rows_make_the_delta_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    cuts: list[int],
    columns: int,
    density: float,
    shape: str,
) -> None:
    work = tmp_path_factory.mktemp("slabs")
    rows = {"same": 90, "grown": 70, "shrunk": 110}[shape]
    whole = bf16_tensor(seed, 110, columns)
    source = Tensor("BF16", (rows, columns), whole.data[: rows * columns * 2])
    tuned = {
        "a": tune(Tensor("BF16", (90, columns), whole.data[: 180 * columns]), seed, density),
        "b": bf16_tensor(seed, 5, 3),
        "scalar": random_tensor(seed, "F32"),
        "none": random_tensor(seed, "F32", 0, 4),
    }
    base = save(work / "base", {**tuned, "a": source, "gone": bf16_tensor(seed, 40, 40)})
    save(work / "tuned", tuned)
    report = encode_slabs(base, tuned, work / "delta", {"a": sorted(cuts), "b": [1, 2]})
    expected = encode_delta(base, work / "tuned", work / "expected", force=True)
    require_same(report, expected)
    verified = verify_delta(work / "delta", base=base, tuned=work / "tuned", threads=1)
    assert verified.decoded


def test_the_base_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = bf16_tensor(1, 100, 512)
    base = save(tmp_path / "base", {"a": tensor, "b": tensor})
    hashes = BaseHashes()
    leaves: Leaves = [{}, {}, {}]
    cuts = {"a": [16, 33], "b": [50]}
    encode_slabs(
        base, {"a": tensor, "b": tensor}, tmp_path / "0", cuts, hashes=hashes, leaves=leaves
    )
    assert hashes.digests.keys() == {"a", "b"}
    tuned = {"a": tune(tensor, 1), "b": tune(tensor, 2)}
    save(tmp_path / "tuned", tuned)
    monkeypatch.setattr("rlsparse_store.delta.slab_encoder.SlabEncoder._base_run", lambda *_: None)
    encode_slabs(base, tuned, tmp_path / "1", cuts, hashes=hashes, leaves=leaves)
    verify_delta(tmp_path / "1", base=base, tuned=tmp_path / "tuned")


@pytest.mark.parametrize("wider", ["widened", "cast", "kept"])
def test_float32_over_bfloat16(tmp_path: Path, wider: str) -> None:
    narrow = bf16_tensor(1, 64, 300)
    base = save(tmp_path / "base", {"w": narrow})
    words = tune(narrow, 3).words(np.uint16).astype(np.uint32) << 16
    if wider != "widened":
        words += 77
    tuned = {"w": Tensor("F32", (70, 300), np.pad(words, (0, 1800)).tobytes())}
    save(tmp_path / "tuned", tuned)
    cuts = {"w": [13, 40, 66]}
    policy = DtypePolicy(cast=wider == "cast", keep=wider == "kept")
    report = encode_slabs(base, tuned, tmp_path / "delta", cuts, policy=policy)
    cast: Literal["bf16"] | None = "bf16" if wider == "cast" else None
    expected = encode_delta(
        base, tmp_path / "tuned", tmp_path / "x", cast=cast, keep_dtype=wider == "kept"
    )
    require_same(report, expected)
    assert verify_delta(tmp_path / "delta", base=base).decoded
    if wider != "widened":
        with pytest.raises(DtypeMismatchError, match="not all exactly BF16"):
            encode_slabs(base, tuned, tmp_path / "refused", cuts)


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    tensor = bf16_tensor(1, 64, 300)
    moved = tune(tensor, 1)
    base = save(tmp_path / "base", {"a": tensor, "c": tensor})
    tuned = {"a": moved, "b": moved, "c": moved}
    save(tmp_path / "tuned", tuned)
    ties = {"b": "a", "c": "a"}
    report = encode_slabs(base, tuned, tmp_path / "delta", {"a": [20]}, ties=ties)
    assert report.kinds["alias"] == 2
    require_same(report, encode_delta(base, tmp_path / "tuned", tmp_path / "expected"))
    assert verify_delta(tmp_path / "delta", base=base, tuned=tmp_path / "tuned").decoded
    # Unchanged, each is its own source.
    same = encode_slabs(base, {"a": tensor, "c": tensor}, tmp_path / "same", {}, ties={"c": "a"})
    assert same.kinds["same"] == 2
    assert verify_delta(tmp_path / "same", base=base).decoded


def test_runs_must_cover_a_tensor_once() -> None:
    run = hash_run(0, 4, lambda *_: np.zeros(4, np.uint8), leaf_hashes, np.zeros(0, np.uint64))
    whole = run._replace(head=bytes(4))
    with pytest.raises(CheckpointError, match="held twice"):
        join_runs("a", 8, [whole, whole], leaf_hashes)
    with pytest.raises(CheckpointError, match="every part must be saved"):
        join_runs("a", 8, [whole], leaf_hashes)
    with pytest.raises(CheckpointError, match="held by none"):
        join_runs("a", 8, [whole._replace(start=4)], leaf_hashes)


@given(
    nbytes=st.integers(0, 5 * LEAF_BYTES),
    cuts=st.lists(st.integers(0, 5 * LEAF_BYTES), max_size=6),
)
def test_runs_join_to_the_digest_of_the_whole(nbytes: int, cuts: list[int]) -> None:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    places = [0, *sorted(min(cut, nbytes) for cut in cuts), nbytes]

    def read(place: int, count: int) -> NDArray[np.uint8]:
        return data[place : place + count]

    runs = [
        hash_run(a, b - a, read, leaf_hashes, leaf_hashes(data[a:b])).with_edges(read)
        for a, b in pairwise(places)
    ]
    whole = digest_of_leaves(nbytes, leaf_hashes(data))
    assert join_runs("x", nbytes, runs, leaf_hashes) == whole


def test_a_tensor_that_is_tied_on_some_ranks_only_is_refused(tmp_path: Path) -> None:
    tensor = bf16_tensor(1, 64, 300)
    base = save(tmp_path / "base", {"a": tensor})
    described = [Described(name, DTYPES["BF16"], tensor.shape) for name in ("a", "b")]
    data = np.frombuffer(tensor.data, np.uint8)

    def read(place: int, nbytes: int) -> NDArray[np.uint8]:
        return data[place : place + nbytes]

    run = hash_run(0, data.size, read, leaf_hashes, leaf_hashes(data)).with_edges(read)
    slab = SlabRecord("a", [], ChunkCounts(), run, None)
    with open_checkpoint(base) as checkpoint:
        joined = JoinedDelta(checkpoint, described, DtypePolicy(), BaseHashes(), tmp_path)
        with pytest.raises(CheckpointError, match="on some ranks only"):
            joined.join([slab], [Tie("b", 100, "a")], LastShard(tmp_path, 2, 0))
        with pytest.raises(RlsparseError, match="memory of several processes"):
            described[0].read_into(np.zeros(1, np.uint8), 0)

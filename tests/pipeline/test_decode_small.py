"""Small tensors: decoding many in a few calls equals decoding them one by one."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Tensors, bf16_tensor, random_pair, save, save_shuffled, tune

from rlsparse_store.delta import apply_delta, encode_delta, verify_delta
from rlsparse_store.errors import RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.kernels.dispatch import VARIABLE
from rlsparse_store.kernels.native import instruction_sets
from rlsparse_store.pipeline import decode
from rlsparse_store.pipeline.decode import decode_tensors
from rlsparse_store.pipeline.decode_small import decode_small
from rlsparse_store.pipeline.progress import no_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rlsparse_store.format.index.records import TensorRecord
    from rlsparse_store.pipeline.decode_small import SmallTensor
    from rlsparse_store.pipeline.threads import Batch


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "small_tensor", lambda *_: None)


def decoded(delta: Path, base: Path, threads: int) -> dict[str, bytes]:
    """All tensors that a delta gives but aliases."""
    found: dict[str, bytearray] = {}
    progress: list[tuple[int, int]] = []

    def write(t: TensorRecord, offset: int, data: NDArray[np.uint8]) -> None:
        found.setdefault(t.name, bytearray(t.nbytes))[offset : offset + data.size] = data.tobytes()

    with DeltaReader(delta) as reader, open_checkpoint(base) as checkpoint:
        decode_tensors(reader, checkpoint, threads, write, lambda *done: progress.append(done))
        assert progress[-1][0] == sum(map(len, found.values()))
    return {name: bytes(data) for name, data in found.items()}


@pytest.mark.parametrize("backend", ["numpy", *instruction_sets()])
@given(seed=st.integers(0, 2**32), threads=st.sampled_from([1, 2]))
@settings(max_examples=6)
def test_many_at_once_equal_one_by_one(backend: str, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    base, tuned = random_pair(rng, 120)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv(VARIABLE, backend)
        old = save_shuffled(folder / "base", rng, base)
        new = save_shuffled(folder / "tuned", rng, tuned)
        encode_delta(old, new, folder / "delta", keep_dtype=True, force=True)
        many = decoded(folder / "delta", old, threads)
        one_by_one(patch)
        assert many == decoded(folder / "delta", old, threads)
    assert all(many[name] == tuned[name].data for name in many if tuned[name].data)


# --- errors ----------------------------------------------------------------------------------

BASE: Tensors = {f"t{i:02}": bf16_tensor(i, 20, 20) for i in range(60)}
TUNED: Tensors = {
    name: tensor if i % 3 == 0 else tune(tensor, i) for i, (name, tensor) in enumerate(BASE.items())
}


def error_of(decode: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RlsparseError) as caught:
        decode()
    return type(caught.value).__name__, str(caught.value)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def cut(file: Path, place: int) -> None:
    os.truncate(file, place)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    encode_delta(save(folder / "base", BASE), save(folder / "tuned", TUNED), folder / "delta")
    return folder


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("side", ["base", "delta"])
def test_a_flipped_bit_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Path, side: str, place: float
) -> None:
    shutil.copytree(pair, tmp_path / "pair")
    delta, base = tmp_path / "pair" / "delta", tmp_path / "pair" / "base"
    if side == "base":
        file = base / "model.safetensors"
        flip(file, int(place * file.stat().st_size))
    else:
        file = delta / "rlsparse" / "delta.safetensors"
        with DeltaReader(delta) as reader:
            shard = reader.shards[0]
        flip(file, shard.data_start + int(place * shard.data_bytes))
    many = error_of(lambda: verify_delta(delta, base=base, threads=1))
    assert many == error_of(lambda: apply_delta(delta, tmp_path / "out", base=base))
    assert not (tmp_path / "out").exists()
    one_by_one(monkeypatch)
    assert many == error_of(lambda: verify_delta(delta, base=base, threads=1))


@pytest.mark.parametrize("side", ["base", "delta"])
def test_a_file_cut_while_it_is_read_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Path, side: str
) -> None:
    def decode_cut(number: int) -> None:
        copy = tmp_path / str(number)
        shutil.copytree(pair, copy)
        with DeltaReader(copy / "delta") as reader, open_checkpoint(copy / "base") as base:
            shard = reader.shards[0]
            place = shard.data_start + shard.data_bytes // 2
            if side == "base":
                cut(copy / "base" / "model.safetensors", 30_000)
            else:
                cut(copy / "delta" / "rlsparse" / "delta.safetensors", place)
            decode_tensors(reader, base, 1, lambda *_: None, no_progress)

    many = error_of(lambda: decode_cut(1))
    assert "cut short" in many[1]
    one_by_one(monkeypatch)
    single = error_of(lambda: decode_cut(2))
    assert single == (many[0], many[1].replace(str(tmp_path / "1"), str(tmp_path / "2")))


@pytest.mark.parametrize("fault", ["missing", "other shape", "other dtype"])
def test_a_base_with_another_tensor_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Path, fault: str
) -> None:
    base = dict(BASE)
    if fault == "missing":
        del base["t31"]
    elif fault == "other shape":
        base["t31"] = bf16_tensor(31, 20, 21)
    else:
        base["t31"] = replace(BASE["t31"], dtype="F16")
    other = save(tmp_path / "other", base)
    many = error_of(lambda: verify_delta(pair / "delta", base=other))
    one_by_one(monkeypatch)
    assert many == error_of(lambda: verify_delta(pair / "delta", base=other))


def test_results_before_an_error_are_those_of_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Path
) -> None:
    """Nothing of a batch is written before all of it is checked."""
    shutil.copytree(pair, tmp_path / "pair")
    file = tmp_path / "pair" / "base" / "model.safetensors"
    flip(file, file.stat().st_size - 5)
    written: list[str] = []
    batches: list[Batch[SmallTensor]] = []

    def decode_seen(*arguments: Any) -> bool:  # noqa: ANN401 - as decode_small has them
        batches.append(arguments[2])
        before = len(written)
        done = decode_small(*arguments)
        assert done or len(written) == before
        return done

    monkeypatch.setattr(decode, "decode_small", decode_seen)
    with (
        DeltaReader(pair / "delta") as reader,
        open_checkpoint(file.parent) as base,
        pytest.raises(RlsparseError, match="different values"),
    ):
        decode_tensors(reader, base, 1, lambda t, *_: written.append(t.name), no_progress)
    assert len(batches) > 1
    assert "t59" not in written

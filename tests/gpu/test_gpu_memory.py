"""Tensors made on a device have the bits of the CPU's; here the device is interpreted."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from interpreter import hasten
from models import move_weights, small_llama
from pairs import SINGLE, Tensor, bf16_tensor, random_tensor, save, tune

from rlsparse_store import from_delta, open_delta
from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import BaseMismatchError, ChecksumError, FormatError
from rlsparse_store.format.words import Widening, widen
from rlsparse_store.frameworks import torch as pt
from rlsparse_store.gpu.memory import DeviceMemory
from rlsparse_store.integrations.transformers.device_map import single_device
from rlsparse_store.pipeline import spans

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.delta import DeltaCheckpoint
    from rlsparse_store.delta.open import Verify

hasten()


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels on the CPU, and several chunks in tensors that can be interpreted."""
    monkeypatch.setattr(spans, "BLOCK_WORDS", 1 << 15)
    for name in ("CHUNK_CHANGES", "SHORT_CHUNK_CHANGES"):
        monkeypatch.setattr(spans, name, 1 << 10)
    monkeypatch.setattr(pt, "runs_kernels", lambda _: True)


def widened(tensor: Tensor, widening: Widening) -> Tensor:
    """The same numbers as float32."""
    words: Any = tensor.words(np.uint16)
    return Tensor("F32", tensor.shape, widen(words, widening).tobytes())


def every_kind() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors that are the same, changed, whole, aliases, widened, resized; of every width."""
    base = {
        "same": bf16_tensor(0, 100, 100),
        "mapped": bf16_tensor(1, 1024, 640),
        "changed": bf16_tensor(2, 400, 101),
        "sparse": bf16_tensor(3, 260, 256),
        "replaced": bf16_tensor(4, 200, 100),
        "wide": bf16_tensor(5, 150, 100),
        "half": random_tensor(17, "F16", 150, 100),
        "grown": bf16_tensor(6, 150, 100),
        "shrunk": bf16_tensor(7, 150, 100),
        "f8": random_tensor(8, "F8_E4M3", 60, 200),
        "i32": random_tensor(9, "I32", 50, 111),
        "i64": random_tensor(10, "I64", 5000),
        "packed": random_tensor(11, "U8", 100, 200),
        "f4": random_tensor(12, "F4", 100, 200),
        "empty": Tensor("BF16", (0, 3), b""),
        "scalar": random_tensor(13, "F32"),
    }
    tuned = dict(base)
    tuned["changed"] = tune(base["changed"], 1, 0.05)
    rare = base["sparse"].words(np.uint16)
    rare[50_000:50_010] ^= 3
    tuned["sparse"] = base["sparse"].with_words(rare)
    tuned["replaced"] = random_tensor(14, "BF16", 200, 100)
    tuned["wide"] = widened(tune(base["wide"], 2, 0.1), Widening.BF16_TO_F32)
    tuned["half"] = widened(tune(base["half"], 3, 0.1), Widening.F16_TO_F32)
    tail = bf16_tensor(15, 100, 100).data
    tuned["grown"] = Tensor("BF16", (250, 100), tune(base["grown"], 4).data + tail)
    tuned["shrunk"] = Tensor("BF16", (100, 100), tune(base["shrunk"], 5).data[:20_000])
    for name, kind in (("f8", np.uint8), ("f4", np.uint8), ("i32", np.uint32), ("i64", np.uint64)):
        words: Any = base[name].words(kind)
        words[5::11] += 1
        tuned[name] = base[name].with_words(words)
    nibbles = base["packed"].words(np.uint8)
    nibbles[::9] ^= 0x10
    tuned["packed"] = base["packed"].with_words(nibbles)
    tuned["added"] = random_tensor(16, "U8", 50, 50)
    tuned["tied"] = tuned["changed"]
    return base, tuned


def make(work: Path) -> tuple[Path, Path]:
    """A base, and a delta with tensors of every kind."""
    base, tuned = every_kind()
    b = save(work / "base", base)
    encode_delta(b, save(work / "tuned", tuned), work / "delta", threads=2)
    return b, work / "delta"


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def on_cpu(delta: Path, **options: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The tensors that the CPU makes."""
    with pytest.MonkeyPatch.context() as patch, open_delta(delta, **options) as opened:
        patch.setattr(pt, "runs_kernels", lambda _: False)
        return {name: opened[name].clone() for name in opened}


@pytest.mark.parametrize("verify", ["touched", "none"])
def test_every_kind_of_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: Verify
) -> None:
    base, delta = make(tmp_path)
    expected = on_cpu(delta, base=base)
    made: list[int] = []
    empty = DeviceMemory.empty

    def counting(self: DeviceMemory, nbytes: int) -> torch.Tensor:
        made.append(nbytes)
        return empty(self, nbytes)

    monkeypatch.setattr(DeviceMemory, "empty", counting)
    with open_delta(delta, base=base, verify=verify) as opened:
        assert set(expected) == set(opened)
        for name, tensor in expected.items():
            made.clear()
            found = opened[name] if verify == "touched" else opened.get_slice(name)[...]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert bits(found) == bits(tensor), name
            if verify == "touched":
                # Decoded where kernels run, but for words of other widths and widened ones.
                is_other = name in {"i64", "f4", "packed", "wide", "half"}
                assert (len(bits(tensor)) in made) != is_other, name
        rows = opened.get_slice("changed")[17:290:3, ::2]
        assert bits(rows) == bits(expected["changed"][17:290:3, ::2])


@pytest.mark.parametrize("name", ["changed", "wide", "grown", "f8"])
def test_a_wrong_base_is_refused(tmp_path: Path, name: str) -> None:
    base, tensors = tmp_path / "base", every_kind()[0]
    _, delta = make(tmp_path)
    tensors[name] = tune(tensors[name], 99, 0.001)
    (base / SINGLE).unlink()
    base.rmdir()
    save(base, tensors)
    with open_delta(delta, base=base) as opened, pytest.raises(BaseMismatchError, match=name):
        opened.get_tensor(name)


def test_damage_is_refused_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, delta = make(tmp_path)
    file = delta / "rlsparse" / "delta.safetensors"
    sound = file.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    rng = np.random.default_rng(0)
    for place in rng.integers(start, len(sound) - 4096, 5):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with open_delta(delta, base=base) as opened:
            monkeypatch.setattr(pt, "runs_kernels", lambda _: False)
            refused = {name for name in opened if is_refused(opened, name)}
            assert 1 <= len(refused) <= 2, "a chunk's tensor, and its alias"
            monkeypatch.setattr(pt, "runs_kernels", lambda _: True)
            for name in {"f8", "grown", *refused}:
                assert is_refused(opened, name) == (name in refused), name


def is_refused(opened: DeltaCheckpoint, name: str) -> bool:
    try:
        opened[name]
    except ChecksumError:
        return True
    return False


def test_damage_that_no_check_sees_stays_within_bounds(tmp_path: Path) -> None:
    base, delta = make(tmp_path)
    expected = on_cpu(delta, base=base)
    file = delta / "rlsparse" / "delta.safetensors"
    sound = file.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    for place in np.random.default_rng(1).integers(start, len(sound) - 4096, 3):
        damaged = bytearray(sound)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with open_delta(delta, base=base, verify="none") as opened:
            for name in ("changed", "f8", "grown", "wide", "i32"):
                with suppress(FormatError):
                    assert opened[name].shape == expected[name].shape


def test_no_memory_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, delta = make(tmp_path)
    expected = on_cpu(delta, base=base)

    def failing(_: Any, data: torch.Tensor) -> None:  # noqa: ANN401 - the memory
        raise torch.OutOfMemoryError(str(len(data)))

    monkeypatch.setattr(DeviceMemory, "leaf_hashes", failing)
    with open_delta(delta, base=base) as opened:
        with pytest.warns(RuntimeWarning, match="no memory left on cpu"):
            found = opened["changed"]
        assert bits(found) == bits(expected["changed"])
        assert bits(opened["same"]) == bits(expected["same"])


def test_a_model_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    move_weights(model, 1, 0.05)
    model.save_pretrained(tmp_path / "tuned")
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    made = []
    take = DeviceMemory.empty

    def noting(self: DeviceMemory, nbytes: int) -> torch.Tensor:
        made.append(nbytes)
        return take(self, nbytes)

    monkeypatch.setattr(DeviceMemory, "empty", noting)
    loaded = from_delta(tmp_path / "base", tmp_path / "delta", device_map={"": "cpu"})
    assert len(made) > 5
    for name, tensor in model.state_dict().items():
        assert bits(loaded.state_dict()[name]) == bits(tensor), name


def test_which_device_a_model_goes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:1")
    for one in (cuda, "cuda:1", {"": "cuda:1"}, {"a": cuda, "b": cuda}):
        assert single_device(one) == cuda
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert single_device("cuda") == cuda
    for other in (None, "auto", "balanced", "cpu", "meta", "nowhere", {"a": cuda, "b": "cpu"}, {}):
        assert single_device(other) is None

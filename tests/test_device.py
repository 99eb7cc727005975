"""Deltas made on a device have the bytes of the CPU's; here the device is interpreted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from models import move_weights, small_llama
from pairs import (
    Tensor,
    bf16_tensor,
    contents,
    random_tensor,
    save,
    save_sharded,
    tune,
)
from safetensors.torch import load_file, save_file

import rlsparse_store.torch.encoder
from rlsparse_store.delta import encode_delta, scan, verify_delta
from rlsparse_store.errors import DtypeMismatchError, UnsupportedDtypeError
from rlsparse_store.torch import DeltaEncoder, DeviceCoder, device

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, chunks and spans in tensors that can be interpreted."""
    for module in (scan, device):
        monkeypatch.setattr(module, "BLOCK_WORDS", 1 << 14)
    monkeypatch.setattr(scan, "ENOUGH_CHANGES", 1 << 11)
    monkeypatch.setattr(scan, "SPAN_BYTES", 1 << 18)


def float32(tensor: Tensor) -> Tensor:
    wide = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
    return Tensor("F32", tensor.shape, wide.tobytes())


def everything() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of every kind, and what tuning makes of them."""
    base = {
        "bf16": bf16_tensor(0, 700, 301),
        "sparse": bf16_tensor(1, 500, 256),
        "same": bf16_tensor(2, 100, 100),
        "f8": random_tensor(3, "F8_E4M3", 300, 200),
        "i32": random_tensor(4, "I32", 90, 111),
        "i64": random_tensor(5, "I64", 500),
        "i8": random_tensor(6, "I8", 70_001),
        "grown": bf16_tensor(7, 300, 100),
        "shrunk": bf16_tensor(8, 300, 100),
        "wide": bf16_tensor(9, 64, 64),
        "gone": bf16_tensor(10, 10, 10),
        "empty": Tensor("BF16", (0, 3), b""),
        "all": bf16_tensor(11, 200, 100),
    }
    tuned = {name: tensor for name, tensor in base.items() if name != "gone"}
    tuned["bf16"] = tune(base["bf16"], 1, 0.05)
    sparse = base["sparse"].words(np.uint16)
    sparse[100:110] ^= 3
    tuned["sparse"] = base["sparse"].with_words(sparse)
    for name in ("f8", "i8"):
        words = base[name].words(np.uint8)
        words[::7] += 1
        tuned[name] = base[name].with_words(words)
    words = base["i32"].words(np.uint32)
    words[5::11] += 70_000
    tuned["i32"] = base["i32"].with_words(words)
    tuned["grown"] = bf16_tensor(12, 400, 100)
    tuned["grown"] = Tensor("BF16", (400, 100), base["grown"].data + tuned["grown"].data[60_000:])
    tuned["shrunk"] = Tensor("BF16", (200, 100), tune(base["shrunk"], 2).data[:40_000])
    tuned["wide"] = float32(tune(base["wide"], 3))
    tuned["all"] = random_tensor(13, "BF16", 200, 100)
    tuned["new"] = bf16_tensor(14, 50, 50)
    return base, tuned


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("threads", [1, 3])
def test_files_give_the_same_bytes(tmp_path: Path, threads: int) -> None:
    base, tuned = everything()
    b = save_sharded(tmp_path / "base", dict(list(base.items())[:5]), dict(list(base.items())[5:]))
    t = save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "cpu", threads=threads)
    encode_delta(b, t, tmp_path / "device", threads=threads, coder=DeviceCoder("cpu"))
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")
    assert verify_delta(tmp_path / "device", base=b, tuned=t).decoded


@pytest.mark.parametrize("keep", ["files", "host", "device"])
@pytest.mark.parametrize("on_device", [True, False])
def test_state_dict_gives_the_bytes_of_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    on_device: bool,  # noqa: FBT001
) -> None:
    base, tuned = everything()
    b = save(tmp_path / "base", base)
    live = state(save(tmp_path / "made", tuned))
    (tmp_path / "tuned").mkdir()
    save_file(live, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    encode_delta(b, tmp_path / "tuned", tmp_path / "expected")
    if on_device:
        monkeypatch.setattr(
            rlsparse_store.torch.encoder,
            "_coder",
            lambda _, memory: DeviceCoder("cpu", memory=memory),
        )
    with DeltaEncoder(b, device="cpu", keep=keep) as encoder:
        report = encoder.encode(live, tmp_path / "delta")
        assert report.elements > 0
        encoder.encode(live, tmp_path / "again")
    assert contents(tmp_path / "delta") == contents(tmp_path / "expected")
    assert contents(tmp_path / "again") == contents(tmp_path / "expected")


def test_model_of_transformers(tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    with DeltaEncoder(tmp_path / "base", device="cpu") as encoder:
        move_weights(model, seed=1, density=0.05)
        encoder.encode(model, tmp_path / "delta")
    model.save_pretrained(tmp_path / "tuned")
    verify_delta(tmp_path / "delta", base=tmp_path / "base", tuned=tmp_path / "tuned")


def test_float32_masters_are_cast_only_when_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masters = rng.normal(0, 0.02, 40_000).astype(np.float32)
    masters[:4] = np.array([np.nan, np.inf, -0.0, 1e-42], np.float32)
    masters.view(np.uint32)[4:6] = [0x7F800001, 0xFFFFFFFF]
    with np.errstate(invalid="ignore"):
        moved = masters * np.float32(1.0001)
    rounded = (masters.view(np.uint32) >> 16).astype(np.uint16)
    base = save(tmp_path / "base", {"w": Tensor("BF16", (200, 200), rounded.tobytes())})
    tuned = {"w": Tensor("F32", (200, 200), moved.tobytes())}
    save(tmp_path / "tuned", tuned)
    live = state(tmp_path / "tuned")
    with DeltaEncoder(base, device="cpu") as encoder:
        with pytest.raises(DtypeMismatchError):
            encoder.encode(live, tmp_path / "delta")
        encoder.encode(live, tmp_path / "delta", cast="bf16")
    coder = DeviceCoder("cpu")
    encode_delta(base, tmp_path / "tuned", tmp_path / "device", cast="bf16", coder=coder)
    expected = contents(tmp_path / "delta")["rlsparse/delta.safetensors"]
    assert contents(tmp_path / "device")["rlsparse/delta.safetensors"] == expected


def test_strided_tensors_and_others(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 120, 200)}
    b = save(tmp_path / "base", base)
    live = state(b)["w"].t().contiguous().t()
    assert not live.is_contiguous()
    with DeltaEncoder(b, device="cpu") as encoder:
        assert encoder.encode({"w": live}, tmp_path / "delta").changed == 0
        for odd in (live.to("meta"), "no tensor", live.to_sparse()):
            with pytest.raises(UnsupportedDtypeError, match="'w'"):
                encoder.encode({"w": odd}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="keep"):
        DeltaEncoder(b, keep="elsewhere")


@pytest.mark.parametrize("failures", [1, 1000])
def test_no_memory_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    base, tuned = everything()
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "cpu")
    left = [failures]
    code = DeviceCoder._code

    def failing(self: DeviceCoder, *arguments: Any) -> Any:  # noqa: ANN401 - passed on
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError
        return code(self, *arguments)

    monkeypatch.setattr(DeviceCoder, "_code", failing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        encode_delta(b, t, tmp_path / "device", threads=1, coder=DeviceCoder("cpu"))
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")
    assert any("no memory left" in str(w.message) for w in told) == (failures > 1)

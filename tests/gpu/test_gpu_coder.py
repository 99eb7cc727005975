"""Deltas made on a device have the bytes of the CPU's; here the device is interpreted."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from interpreter import hasten
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

import rlsparse_store.gpu.hashing
import rlsparse_store.torch.encoder
import rlsparse_store.torch.host_memory
from rlsparse_store.delta import encode_delta, encode_run, verify_delta
from rlsparse_store.delta.encode import dtype_policy
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.errors import (
    BaseMismatchError,
    DtypeMismatchError,
    RlsparseError,
    UnsupportedDtypeError,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.gpu import chunk_batches, drafter, kernels, upload
from rlsparse_store.gpu import coder as coder_module
from rlsparse_store.gpu.chunk_batches import DeviceDecoder
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline import spans
from rlsparse_store.torch import DeltaEncoder, DeviceCoder, model_tensors, patch_
from rlsparse_store.torch.state_dict import live_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.torch.encoder import Keep

hasten()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, chunks and spans in tensors that can be interpreted."""
    for module in (spans, drafter):
        monkeypatch.setattr(module, "BLOCK_WORDS", 1 << 14)
    monkeypatch.setattr(spans, "CHUNK_CHANGES", 1 << 11)
    monkeypatch.setattr(spans, "CHUNK_BLOCKS", 2)
    monkeypatch.setattr(spans, "SHORT_CHUNK_CHANGES", 1 << 13)
    monkeypatch.setattr(spans, "SPAN_BYTES", 1 << 18)


def float32(tensor: Tensor) -> Tensor:
    wide = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
    return Tensor("F32", tensor.shape, wide.tobytes())


def everything() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of every kind, and what tuning makes of them."""
    base = {
        "bf16": bf16_tensor(0, 120, 301),
        "sparse": bf16_tensor(1, 260, 256),
        "same": bf16_tensor(2, 100, 100),
        "f8": random_tensor(3, "F8_E4M3", 100, 200),
        "i32": random_tensor(4, "I32", 90, 111),
        "i64": random_tensor(5, "I64", 500),
        "i8": random_tensor(6, "I8", 20_001),
        "grown": bf16_tensor(7, 150, 100),
        "shrunk": bf16_tensor(8, 150, 100),
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
    tuned["grown"] = bf16_tensor(12, 250, 100)
    tuned["grown"] = Tensor("BF16", (250, 100), base["grown"].data + tuned["grown"].data[30_000:])
    tuned["shrunk"] = Tensor("BF16", (100, 100), tune(base["shrunk"], 2).data[:20_000])
    tuned["wide"] = float32(tune(base["wide"], 3))
    tuned["all"] = random_tensor(13, "BF16", 200, 100)
    tuned["new"] = bf16_tensor(14, 50, 50)
    return base, tuned


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_files_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    # With little memory, every chunk is drafted alone.
    monkeypatch.setattr(coder_module, "MIN_MEMORY", 1)
    base, tuned = everything()
    b = save_sharded(tmp_path / "base", dict(list(base.items())[:5]), dict(list(base.items())[5:]))
    t = save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "cpu", threads=3)
    coder = DeviceCoder("cpu", memory=memory)
    encode_delta(b, t, tmp_path / "device", threads=3, coder=coder)
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")
    assert verify_delta(tmp_path / "device", base=b, tuned=t).decoded


@pytest.mark.parametrize(
    ("keep", "on_device"), [("files", False), ("host", False), ("device", True)]
)
def test_state_dict_gives_the_bytes_of_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: Keep,
    on_device: bool,  # noqa: FBT001
) -> None:
    base, tuned = everything()
    b = save(tmp_path / "base", base)
    live = state(save(tmp_path / "made", tuned))
    (tmp_path / "tuned").mkdir()
    save_file(live, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    encode_delta(b, tmp_path / "tuned", tmp_path / "expected")
    if on_device:
        monkeypatch.setattr(rlsparse_store.torch.encoder, "STAGING_BYTES", 10_000)
        monkeypatch.setattr(
            rlsparse_store.torch.encoder,
            "_coder",
            lambda _, memory, threads: DeviceCoder("cpu", memory=memory, threads=threads),
        )
    with DeltaEncoder(b, device="cpu", keep=keep) as encoder:
        report = encoder.encode(live, tmp_path / "delta")
        assert report.elements > 0
        if not on_device:
            encoder.encode(live, tmp_path / "again")
    assert contents(tmp_path / "delta") == contents(tmp_path / "expected")
    if not on_device:
        assert contents(tmp_path / "again") == contents(tmp_path / "expected")


@pytest.mark.parametrize("keep", ["host", "device"])
def test_a_base_that_cannot_be_pinned_is_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Keep
) -> None:
    base = {name: bf16_tensor(i, 100, 200) for i, name in enumerate("abc")}
    b, t = save(tmp_path / "base", base), tmp_path / "tuned"
    live = state(save(tmp_path / "made", base | {"a": tune(base["a"], 1)}))
    t.mkdir()
    save_file(live, t / "model.safetensors", {"format": "pt"})
    encode_delta(b, t, tmp_path / "expected")
    monkeypatch.setattr(rlsparse_store.torch.host_memory, "SLAB_BYTES", 50_000)
    empty, pinned = torch.empty, []

    def refusing(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:  # noqa: ANN401
        if pin_memory:
            pinned.append(shape)
            if len(pinned) > 1 or keep == "device":
                msg = "CUDA error: out of memory\nFor debugging consider passing ..."
                raise RuntimeError(msg)
        return empty(*shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch, "empty", refusing)
        with pytest.warns(RuntimeWarning, match="cannot pin more .*: CUDA error: out of memory$"):
            encoder = DeltaEncoder(b, device="cpu", keep=keep)
    assert len(pinned) == (2 if keep == "host" else 1)
    with encoder:
        encoder.encode(live, tmp_path / "delta")
    assert contents(tmp_path / "delta") == contents(tmp_path / "expected")


def test_model_of_transformers(tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    with DeltaEncoder(tmp_path / "base", device="cpu") as encoder:
        move_weights(model, seed=1, density=0.05)
        encoder.encode(model, tmp_path / "delta")
    model.save_pretrained(tmp_path / "tuned")
    verify_delta(tmp_path / "delta", base=tmp_path / "base", tuned=tmp_path / "tuned")


def test_float32_masters_are_cast_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    # Not all of them at a time.
    monkeypatch.setattr(upload, "CAST_WORDS", 9_999)
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
    unknown: Any = "elsewhere"
    with pytest.raises(ValueError, match="keep='elsewhere': choose one of files, host, device"):
        DeltaEncoder(b, keep=unknown)


@pytest.mark.parametrize("failures", [1, 1000])
def test_no_memory_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    base, tuned = (
        {name: some[name] for name in ("sparse", "f8", "grown", "i64")} for some in everything()
    )
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "cpu")
    left = [failures]
    draft = DeviceCoder._draft_batch

    def failing(self: DeviceCoder, *arguments: Any) -> Any:  # noqa: ANN401 - passed on
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError
        return draft(self, *arguments)

    monkeypatch.setattr(DeviceCoder, "_draft_batch", failing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        encode_delta(b, t, tmp_path / "device", threads=1, coder=DeviceCoder("cpu"))
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")
    assert any("is out of memory" in str(w.message) for w in told) == (failures > 1)


def test_a_run_on_the_device(tmp_path: Path) -> None:
    base = {"v": bf16_tensor(0, 200, 200), "w": bf16_tensor(1, 200, 200)}
    b = save(tmp_path / "base", base)
    steps = [
        save(tmp_path / f"step-{i}", {name: tune(t, i) for name, t in base.items()})
        for i in (1, 2, 3)
    ]
    encode_run(b, steps, tmp_path / "cpu")
    encode_run(b, steps, tmp_path / "device", coder=DeviceCoder("cpu"))
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")


def test_words_on_the_device_weigh_little(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 200, 200)}
    b = save(tmp_path / "base", base)
    coder, tuned = DeviceCoder("cpu"), live_checkpoint({"w": state(b)["w"].clone()})
    weights = []
    with open_checkpoint(b) as files:
        for known in (files, tuned):
            encoder = Encoder(known, tuned, dtype_policy(None, keep=False))
            (span,) = encoder.spans(get_backend())
            weights.append(coder.weigh(span, known, tuned))
    assert weights == [160_000, 160_000 // coder_module.RESIDENT_WEIGHT]
    # What is rounded is made on the device anew.
    wide = live_checkpoint({"w": state(b)["w"].float()})
    encoder = Encoder(tuned, wide, dtype_policy("bf16", keep=False))
    (span,) = encoder.spans(get_backend())
    assert coder.weigh(span, tuned, wide) == 160_000


def test_base_is_patched_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = everything()
    for name in ("grown", "shrunk", "wide", "new", "gone"):
        base.pop(name, None)
        tuned.pop(name, None)
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "delta")
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)
    model = state(b)
    patch_(model, tmp_path / "delta", threads=1)
    for name, tensor in state(t).items():
        assert torch.equal(model[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_no_memory_to_hash_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"w": bf16_tensor(0, 200, 200)}
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", {"w": tune(base["w"], 1)})
    encode_delta(b, t, tmp_path / "delta")
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)

    def failing(_: Any) -> Any:  # noqa: ANN401 - never called to an end
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rlsparse_store.gpu.hashing, "hash_all_on_device", failing)
    model = patch_(state(b), tmp_path / "delta", threads=1)
    assert torch.equal(model["w"].view(torch.uint8), state(t)["w"].view(torch.uint8))


@pytest.mark.parametrize("most", [1, 0])
def test_no_memory_to_patch_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    base = {"v": bf16_tensor(0, 200, 200), "w": bf16_tensor(1, 200, 200)}
    tuned = {name: tune(tensor, 1) for name, tensor in base.items()}
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "delta")
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)
    decode = DeviceDecoder.decode

    def decoding(self: DeviceDecoder, chunks: Any, *rest: Any) -> Any:  # noqa: ANN401 - passed on
        if len(chunks) > most:
            raise torch.OutOfMemoryError
        return decode(self, chunks, *rest)

    monkeypatch.setattr(DeviceDecoder, "decode", decoding)
    model = state(b)
    if not most:
        with pytest.raises(RlsparseError, match="is out of memory"):
            patch_(model, tmp_path / "delta", threads=1)
        return
    patch_(model, tmp_path / "delta", threads=1)
    for name, tensor in state(t).items():
        assert torch.equal(model[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_batches_that_leave_no_memory_to_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {f"w{i}": bf16_tensor(i, 100, 200) for i in range(8)}
    tuned = {name: tune(tensor, 1) for name, tensor in base.items()}
    b, t = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(b, t, tmp_path / "delta")
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)
    monkeypatch.setattr(chunk_batches, "BATCH_CHUNKS", 2)
    decode, there = DeviceDecoder.decode, [0]

    def decoding(self: DeviceDecoder, chunks: Any, *rest: Any) -> Any:  # noqa: ANN401 - passed on
        """Decode, where the device has memory for one chunk."""
        there[0] += len(chunks)
        try:
            time.sleep(0.02)
            if there[0] > 1:
                raise torch.OutOfMemoryError
            return decode(self, chunks, *rest)
        finally:
            there[0] -= len(chunks)

    monkeypatch.setattr(DeviceDecoder, "decode", decoding)
    model = patch_(state(b), tmp_path / "delta", threads=2)
    for name, tensor in state(t).items():
        assert torch.equal(model[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_another_base_is_not_patched_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"w": bf16_tensor(0, 200, 200)}
    b = save(tmp_path / "base", base)
    encode_delta(b, save(tmp_path / "tuned", {"w": tune(base["w"], 1)}), tmp_path / "delta")
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)
    model = state(b)
    model["w"][0, 0] += 1
    before = model["w"].clone()
    with pytest.raises(BaseMismatchError):
        patch_(model, tmp_path / "delta", threads=1)
    assert torch.equal(model["w"], before)


def test_command_encodes_on_a_device(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 100, 200)}
    b = save(tmp_path / "base", base)
    t = save(tmp_path / "tuned", {"w": tune(base["w"], 1)})
    encode_delta(b, t, tmp_path / "cpu")
    command = [sys.executable, "-P", "-m", "rlsparse_store", "encode", str(b), str(t)]
    out = ["-o", str(tmp_path / "device")]
    subprocess.run([*command, *out, "--device", "cpu"], check=True)
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")
    if not torch.cuda.is_available():
        refused = subprocess.run(
            [*command, *out, "--device", "cuda"], capture_output=True, check=False, text=True
        )
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "no CUDA device" in refused.stderr


def test_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs, and compares the device with the CPU in all that kernels are compiled for."""
    monkeypatch.setattr(model_tensors, "runs_kernels", lambda _: True)
    launched: defaultdict[tuple[str, str], set[Any]] = defaultdict(set)
    for name in kernels.__all__:
        monkeypatch.setattr(kernels, name, Noted(name, launched))
    folder = Path(__file__).parents[2] / "tools" / "bench"
    monkeypatch.syspath_prepend(folder)
    small = ["--device", "cpu", "--mib", "0.02", "--densities", "0.05", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *small])
    runpy.run_path(str(folder / "gpu.py"), run_name="__main__")
    assert "the same bytes as on the CPU: yes" in capsys.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["parity"]
    stages = ["copy", "encode", "apply", "rival_encode", "rival_apply", "cpu_encode"]
    assert [row["stage"] for row in report["rows"]][:6] == stages
    stored = {row["stage"]: row["stored"] for row in report["rows"]}
    assert stored["encode"] == stored["rival_encode"] == stored["cpu_encode"]
    assert all(row["seconds"] is None for row in report["rows"])
    assert {name for name, _ in launched} == set(kernels.__all__)
    for name in ("count_bins", "map_contexts", "patch_changes"):
        assert launched[name, "HAS_ROWS"] == {False, True}
        assert launched[name, "WIDTH"] == {8, 16, 32}
    assert launched["patch_changes", "VERIFIES"] == {False, True}


class Noted:
    """A kernel that notes what it is compiled for."""

    def __init__(self, name: str, launched: defaultdict[tuple[str, str], set[Any]]) -> None:
        self._name, self._launched = name, launched
        self._kernel = getattr(kernels, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - a kernel's
            for constant, value in constants.items():
                self._launched[self._name, constant].add(value)
            self._kernel[grid](*arguments, **constants)

        return run

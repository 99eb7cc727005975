"""Masks, compared with NumPy, and training with them: no weight outside a mask changes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from models import adamw, half_of, small_llama
from pairs import Tensor, bf16_tensor, random_tensor, save, tune
from safetensors.torch import load_file, save_file

from rlsparse_store.analysis import write_mask
from rlsparse_store.delta import encode_delta, encode_run
from rlsparse_store.errors import (
    BaseMismatchError,
    CheckpointError,
    NotFoundError,
    OutputError,
    VerificationError,
)
from rlsparse_store.torch import DeltaEncoder, Mask, freeze_outside, load_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pairs import Tensors

INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(INTS[tensor.element_size()])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    base = {
        "a": bf16_tensor(0, 61, 53),
        "b": bf16_tensor(1, 40, 50),
        "f8": random_tensor(2, "F8_E4M3", 777),
        "still": bf16_tensor(3, 30),
    }
    save(folder / "base", base)
    for seed in range(3):
        tuned = {n: t if n == "still" else tune(t, seed, 0.2) for n, t in base.items() if n != "f8"}
        words = base["f8"].words(np.uint8)
        words[seed::9] ^= 1
        save(folder / f"s{seed}", {**tuned, "f8": base["f8"].with_words(words)})
    encode_run(folder / "base", [folder / f"s{seed}" for seed in range(3)], folder / "run")
    return folder


def changed(work: Path, seed: int) -> dict[str, torch.Tensor]:
    base = load_file(work / "base" / "model.safetensors")
    tuned = load_file(work / f"s{seed}" / "model.safetensors")
    return {name: bits(base[name]) != bits(tuned[name]) for name in base}


def new_mask(work: Path, out: Path, *deltas: str, **options: Any) -> Mask:  # noqa: ANN401
    write_mask([work / "run" / d for d in deltas], out, base=work / "base", **options)
    return load_mask(out)


def test_masks_are_exact(work: Path, tmp_path: Path) -> None:
    one, two, three = (changed(work, seed) for seed in range(3))
    exact = new_mask(work, tmp_path / "exact", "s0")
    inverted = new_mask(work, tmp_path / "inverted", "s0", complement=True)
    every = ("s0", "s1", "s2")
    union = new_mask(work, tmp_path / "union", *every)
    common = new_mask(work, tmp_path / "common", *every, combine="intersection")
    majority = new_mask(work, tmp_path / "majority", *every, combine="majority")
    for name in one:
        assert torch.equal(exact[name], one[name])
        assert torch.equal(inverted[name], ~one[name])
        votes = one[name].int() + two[name].int() + three[name].int()
        for mask, required in ((union, 1), (common, 3), (majority, 2)):
            assert torch.equal(mask[name], votes >= required)
        assert exact.count(name) == int(one[name].sum())
    assert exact.density == sum(int(m.sum()) for m in one.values()) / sum(
        m.numel() for m in one.values()
    )


def test_tolerance(work: Path, tmp_path: Path) -> None:
    base = load_file(work / "base" / "model.safetensors")
    tuned = load_file(work / "s0" / "model.safetensors")
    mask = new_mask(work, tmp_path / "mask", "s0", tolerance=1e-5)
    for name, before in base.items():
        differs = bits(before) != bits(tuned[name])
        near = (before.double() - tuned[name].double()).abs() <= 1e-5
        assert torch.equal(mask[name], differs & ~near)
    assert mask.count() < new_mask(work, tmp_path / "exact", "s0").count()


def one_delta(folder: Path, base: Tensors, tuned: Tensors) -> Path:
    save(folder / "base", base)
    save(folder / "tuned", tuned)
    encode_delta(folder / "base", folder / "tuned", folder / "delta")
    return folder / "delta"


def test_tolerance_does_not_apply_to_integers(tmp_path: Path) -> None:
    large = np.array([1 << 60, 5], np.uint64)
    next_ones = np.array([(1 << 60) + 1, 6], np.uint64)
    base = {"i": Tensor("I64", (2,), large.tobytes())}
    delta = one_delta(tmp_path, base, {"i": base["i"].with_words(next_ones)})
    write_mask([delta], tmp_path / "mask", base=tmp_path / "base", tolerance=1e-5)
    assert load_mask(tmp_path / "mask").count() == 2
    with pytest.raises(ValueError, match="negative"):
        write_mask([delta], tmp_path / "other", base=tmp_path / "base", tolerance=-1.0)


@pytest.mark.parametrize("rows", [17, 24])
@pytest.mark.parametrize("complement", [False, True])
def test_masks_have_the_shape_of_the_base(tmp_path: Path, rows: int, complement: bool) -> None:  # noqa: FBT001
    base = bf16_tensor(0, 20, 13)
    more = bf16_tensor(1, rows, 13)
    shared = min(rows, 20) * 13
    words = more.words(np.uint16)
    words[:shared] = tune(base, 2, 0.3).words(np.uint16)[:shared]
    differs = np.zeros(20 * 13, np.bool_)
    differs[:shared] = (words[:shared] != base.words(np.uint16)[:shared]) != complement
    delta = one_delta(tmp_path, {"e": base}, {"e": more.with_words(words)})
    report = write_mask([delta], tmp_path / "mask", base=tmp_path / "base", complement=complement)
    mask = load_mask(tmp_path / "mask")
    assert np.array_equal(mask["e"].numpy(), differs.reshape(20, 13))
    assert (report.words, report.density) == (260, mask.density)


def test_tensors_without_a_word_for_each_weight_have_no_mask(tmp_path: Path) -> None:
    base = {
        "c": random_tensor(0, "C64", 8),
        "f4": random_tensor(1, "F4", 6, 10),
        "f6": random_tensor(2, "F6_E2M3", 8),
    }
    flipped = {n: t.with_words(t.words(np.uint8) ^ np.uint8(17)) for n, t in base.items()}
    delta = one_delta(tmp_path, base, flipped)
    report = write_mask([delta], tmp_path / "mask", base=tmp_path / "base")
    assert report.unmatched == ["c", "f6"]
    assert load_mask(tmp_path / "mask")["f4"].all()


def test_controls_have_equal_counts(work: Path, tmp_path: Path) -> None:
    base = load_file(work / "base" / "model.safetensors")
    exact = new_mask(work, tmp_path / "exact", "s0")
    random = new_mask(work, tmp_path / "r", "s0", control="random", seed=1)
    again = new_mask(work, tmp_path / "r2", "s0", control="random", seed=1, threads=1)
    other = new_mask(work, tmp_path / "r3", "s0", control="random", seed=2)
    matched = new_mask(work, tmp_path / "m", "s0", control="magnitude")
    for name in exact:
        assert random.count(name) == exact.count(name) == matched.count(name)
        assert torch.equal(random[name], again[name])
    assert not torch.equal(random["a"], other["a"])
    assert not torch.equal(random["a"], exact["a"])
    for name, shift in (("a", 7), ("b", 7), ("f8", 3)):
        width = 8 * base[name].element_size() - 1
        exponents = (bits(base[name]).int() & ((1 << width) - 1)) >> shift
        for exponent in sorted(set(exponents.view(-1).tolist())):
            inside = exponents == exponent
            assert int(matched[name][inside].sum()) == int(exact[name][inside].sum())


def test_set_operations(work: Path, tmp_path: Path) -> None:
    left, right = (new_mask(work, tmp_path / f"{n}", f"s{n}") for n in (0, 1))
    for name in left:
        a, b = left[name], right[name]
        for mask, expected in (
            (left | right, a | b),
            (left & right, a & b),
            (left - right, a & ~b),
            (~left, ~a),
        ):
            assert torch.equal(mask[name], expected)
            assert mask.count(name) == int(expected.sum())
    less = Mask({"a": left._bits["a"]}, {"a": left.shapes["a"]})
    assert (less | right).count() == (left | right).count("a") + right.count() - right.count("a")
    with pytest.raises(BaseMismatchError):
        left & Mask(left._bits, left.shapes, "0" * 64)
    transposed = Mask({"a": left._bits["a"]}, {"a": left.shapes["a"][::-1]})
    with pytest.raises(CheckpointError, match=r"is \[.*in one mask"):
        left | transposed


def test_files_that_are_not_masks(work: Path, tmp_path: Path) -> None:
    new_mask(work, tmp_path / "mask", "s0")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("mask", "link"):
        # Refused before the delta is opened, which does not exist.
        with pytest.raises(OutputError, match="exists already"):
            new_mask(work, tmp_path / taken, "nosuch")
    data = bytearray((tmp_path / "mask").read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    for path in (tmp_path / "damaged", work / "base" / "model.safetensors", tmp_path):
        with pytest.raises(CheckpointError):
            load_mask(path)
    with pytest.raises(NotFoundError):
        load_mask(tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def metadata_of(entry: Any, **changes: Any) -> str:  # noqa: ANN401 - JSON
    """The metadata of a mask of one tensor, with changed fields."""
    valid = {"version": 1, "polarity": "1 = trainable", "base": None, "tensors": {"w": entry}}
    return json.dumps(valid | changes)


ENTRY = {"shape": [2, 3], "trainable": 2}
HOSTILE = {
    "no JSON": ("{", "not a mask file"),
    "nested": ('{"version":' + "[" * 100_000, "not a mask file"),
    "twice": ('{"version":1,"version":1}', "not a mask file"),
    "a list": ("[]", "version"),
    "version": (metadata_of(ENTRY, version=2), "version"),
    "polarity": (metadata_of(ENTRY, polarity="0 = trainable"), "invalid mask metadata"),
    "base": (metadata_of(ENTRY, base=5), "invalid mask metadata"),
    "no digest": (metadata_of(ENTRY, base="me/base"), "invalid mask metadata"),
    "no tensors": (metadata_of(ENTRY, tensors=["w"]), "invalid mask metadata"),
    "other tensors": (metadata_of(ENTRY, tensors={"v": ENTRY}), "invalid mask metadata"),
    "more tensors": (metadata_of(ENTRY, tensors={"v": ENTRY, "w": ENTRY}), "invalid mask metadata"),
    "about nothing": (metadata_of(None), "'w'.*dimensions"),
    "no shape": (metadata_of({"trainable": 2}), "'w'.*dimensions"),
    "negative": (metadata_of(ENTRY | {"shape": [-2, -3]}), "'w'.*dimensions"),
    "a flag": (metadata_of(ENTRY | {"shape": [True, 6]}), "'w'.*dimensions"),
    "too large": (metadata_of(ENTRY | {"shape": [1 << 40, 1 << 40, 0]}), "'w'.*dimensions"),
    "too many": (metadata_of(ENTRY | {"shape": [1] * 80}), "'w'.*dimensions"),
    "more words": (metadata_of(ENTRY | {"shape": [9]}), "'w'.*bits"),
    "bits behind the last": (metadata_of({"shape": [2], "trainable": 2}), "'w'.*bits"),
    "other counts": (metadata_of(ENTRY | {"trainable": 3}), "'w'.*bits"),
    "no counts": (metadata_of({"shape": [2, 3]}), "'w'.*bits"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_invalid_metadata_is_refused(what: str, tmp_path: Path) -> None:
    path, bits = tmp_path / "mask", {"w": torch.tensor([0b100001], dtype=torch.uint8)}
    save_file(bits, path, {"rlsparse_mask": metadata_of(ENTRY)})
    assert load_mask(path)["w"].tolist() == [[True, False, False], [False, False, True]]
    metadata, reason = HOSTILE[what]
    save_file(bits, path, {"rlsparse_mask": metadata})
    with pytest.raises(CheckpointError, match=f"mask: .*{reason}"):
        load_mask(path)


def test_masks_of_another_dtype_are_refused(tmp_path: Path) -> None:
    bits = {"w": torch.tensor([0b100001], dtype=torch.int8)}
    save_file(bits, tmp_path / "mask", {"rlsparse_mask": metadata_of(ENTRY)})
    with pytest.raises(CheckpointError, match="bits"):
        load_mask(tmp_path / "mask")


def test_extreme_options_are_read_back(work: Path, tmp_path: Path) -> None:
    new_mask(work, tmp_path / "large", "s0", control="random", seed=(1 << 63) - 1)
    new_mask(work, tmp_path / "small", "s0", tolerance=1e-300)
    for options in ({"seed": 1 << 63}, {"seed": -1}, {"tolerance": float("inf")}):
        with pytest.raises(ValueError, match="it must be"):
            new_mask(work, tmp_path / "none", "s0", **options)


def test_command(work: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "rlsparse_store", "mask", str(work / "run")]
    more = ["-b", str(work / "base"), "-o", str(tmp_path / "m.safetensors"), "--json"]
    process = subprocess.run([*command, *more], capture_output=True, check=True, text=True)
    report = json.loads(process.stdout)
    assert report["trainable"] == load_mask(tmp_path / "m.safetensors").count()


# --- Training -----------------------------------------------------------------------------------


def momentum(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    return torch.optim.SGD(parameters, lr=1e-1, momentum=0.9, nesterov=True, weight_decay=0.1)


@pytest.mark.parametrize("make", [adamw, momentum])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_nothing_outside_the_mask_moves(
    make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, clip: float | None
) -> None:
    model: Any = small_llama()
    model = model.to(dtype)
    optimizer = make(model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = half_of(model)
    frozen = freeze_outside(model, mask, optimizer)
    for step in range(3):
        for _ in range(2):
            tokens = torch.randint(0, 64, (2, 9))
            model(input_ids=tokens, labels=tokens).loss.backward()
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            inside = [
                p.grad[mask[n]].float()
                for n, p in model.named_parameters()
                if n in mask and p.grad is not None
            ]
            assert float(torch.cat(inside).norm()) <= clip * 1.1 or float(norm) < clip
        if step == 1:
            # As another library that writes to gradients between hook and step.
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad[..., 0] += 1.0
        optimizer.step()
        optimizer.zero_grad()
    frozen.check()
    moved = 0
    for name, parameter in model.named_parameters():
        differs = bits(parameter) != bits(before[name])
        allowed = mask[name] if name in mask else torch.zeros_like(differs)
        assert not (differs & ~allowed).any()
        moved += int(differs.sum())
    assert moved > 0
    frozen.release()
    tokens = torch.randint(0, 64, (2, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    with pytest.raises(VerificationError, match="outside the mask"):
        frozen.check()


def test_clipping_by_the_norm_of_all_gradients() -> None:
    model: Any = small_llama()
    model = model.float()
    optimizer = adamw(model.parameters())
    mask = half_of(model)
    frozen = freeze_outside(model, mask, optimizer, before_clipping=False)
    tokens = torch.randint(0, 64, (2, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    name, first = next(iter(model.named_parameters()))
    assert first.grad[~mask[name]].abs().sum() > 0, "clipping sees all of it"
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert first.grad[~mask[name]].abs().sum() == 0
    frozen.check()


def test_nan_gradients_stay_inside_the_mask() -> None:
    model: Any = small_llama()
    model = model.float()
    optimizer = adamw(model.parameters())
    frozen = freeze_outside(model, half_of(model), optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    frozen.check()


def one_weight(values: torch.Tensor) -> tuple[Any, Mask]:
    """A model of one parameter, and a mask of every third weight of it."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(values)
    flags = np.arange(values.numel()) % 3 == 0
    packed = torch.from_numpy(np.packbits(flags, bitorder="little"))
    return model, Mask({"weight": packed}, {"weight": tuple(values.shape)})


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_outside_the_mask_are_restored(dtype: torch.dtype, transposed: bool) -> None:  # noqa: FBT001
    torch.manual_seed(3)
    words = torch.randint(0, 256, (12, 10 * dtype.itemsize), dtype=torch.uint8)
    values = words.view(dtype)
    nan, zero = torch.tensor([float("nan"), -0.0], dtype=dtype).view(INTS[dtype.itemsize])
    bits(values).view(-1)[::5] = zero
    # NaNs, quiet and signalling, with various payloads.
    bits(values)[:, 4:8] |= nan
    bits(values)[:, 6:8] &= ~(nan & -nan)
    model, mask = one_weight(values.t() if transposed else values)
    before, inside = bits(model.weight).clone(), mask["weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = freeze_outside(model, mask, optimizer)
    model.weight.grad = torch.ones_like(model.weight)
    model.weight.detach().fill_(1)
    with pytest.raises(VerificationError, match=f"{int((~inside).sum())} weights"):
        frozen.check()
    optimizer.step()
    frozen.check()
    assert torch.equal(bits(model.weight)[~inside], before[~inside])
    assert (model.weight[inside] < 1).all()


def test_a_step_makes_no_index_list() -> None:
    model, mask = one_weight(torch.randn(40, 30))
    frozen = freeze_outside(model, mask, adamw(model.parameters()))
    model.weight.grad = torch.ones_like(model.weight)
    with torch.profiler.profile() as profile:
        frozen._before_step()
        frozen._after_step()
    operators = {event.key for event in profile.key_averages()}
    # On a device, it would take 16 bytes per weight and a synchronization.
    assert {"aten::masked_fill_", "aten::where"} <= operators
    assert not operators & {"aten::nonzero", "aten::index", "aten::index_put_"}


def test_the_default_device_is_ignored(work: Path, tmp_path: Path) -> None:
    expected = new_mask(work, tmp_path / "mask", "s0")["a"]
    model, mask = one_weight(torch.randn(7, 9))
    with torch.device("meta"):
        assert torch.equal(load_mask(tmp_path / "mask")["a"], expected)
        frozen = freeze_outside(model, mask, adamw(model.parameters()))
        frozen._after_step()
        frozen.check()


def test_a_mask_of_another_model_is_refused() -> None:
    model = small_llama()
    optimizer = adamw(model.parameters())
    name = next(iter(dict(model.named_parameters())))
    nothing = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="not a parameter"):
        freeze_outside(model, Mask({"x": nothing}, {"x": (3,)}), optimizer)
    with pytest.raises(CheckpointError, match="in the mask"):
        freeze_outside(model, Mask({name: nothing}, {name: (3,)}), optimizer)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = small_llama()
    with pytest.raises(CheckpointError, match="none of the model's"):
        freeze_outside(model, half_of(model), adamw(small_llama().parameters()))


def test_replaced_parameters_are_detected() -> None:
    model = small_llama()
    frozen = freeze_outside(model, half_of(model), adamw(model.parameters()))
    frozen.check()
    head: Any = model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with pytest.raises(CheckpointError, match="was replaced since"):
        frozen.check()


def test_cast_and_added_parameters_are_detected() -> None:
    model: Any = small_llama()
    optimizer = adamw(model.parameters())
    frozen = freeze_outside(model, half_of(model), optimizer)
    model.float()
    with pytest.raises(CheckpointError, match="was replaced since"):
        frozen.check()
    with pytest.raises(CheckpointError, match="was replaced since"):
        optimizer.step()
    model.bfloat16()
    frozen.check()
    model.value = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"value\.bias.*was added since"):
        frozen.check()


def test_buffers_are_not_frozen() -> None:
    model = torch.nn.BatchNorm1d(8)
    half = torch.tensor([15], dtype=torch.uint8)
    names = ("weight", "running_mean")
    mask = Mask(dict.fromkeys(names, half), dict.fromkeys(names, (8,)))
    optimizer = adamw(model.parameters())
    frozen = freeze_outside(model, mask, optimizer)
    model(torch.rand(4, 8)).square().sum().backward()
    optimizer.step()
    frozen.check()
    assert (model.weight.detach() != 1).tolist() == [True] * 4 + [False] * 4


def test_tied_parameters_match_any_of_their_names() -> None:
    model: Any = small_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    shape = tuple(model.lm_head.weight.shape)
    bits_of = torch.zeros(-(-torch.Size(shape).numel() // 8), dtype=torch.uint8)
    bits_of[:100] = 255
    mask = Mask({"lm_head.weight": bits_of}, {"lm_head.weight": shape})
    before = model.lm_head.weight.detach().clone()
    optimizer = adamw(model.parameters())
    frozen = freeze_outside(model, mask, optimizer)
    tokens = torch.randint(0, 64, (2, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    frozen.check()
    differs = bits(model.lm_head.weight) != bits(before)
    assert differs.any()
    assert not (differs & ~mask["lm_head.weight"]).any()


def test_delta_of_a_subnetwork_lies_within_its_mask(tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            words = bits(parameter.data)
            words ^= (torch.rand(words.shape) < 0.2).to(words.dtype)
    model.save_pretrained(tmp_path / "full")
    encode_delta(tmp_path / "base", tmp_path / "full", tmp_path / "delta")
    write_mask([tmp_path / "delta"], tmp_path / "mask", base=tmp_path / "base")
    mask = load_mask(tmp_path / "mask")

    trained = small_llama()
    optimizer = adamw(trained.parameters())
    frozen = freeze_outside(trained, mask, optimizer)
    for _ in range(3):
        tokens = torch.randint(0, 64, (2, 9))
        trained(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen.check()
    with DeltaEncoder(tmp_path / "base", device="cpu") as encoder:
        assert encoder.encode(trained, tmp_path / "sub").changed > 0
    write_mask([tmp_path / "sub"], tmp_path / "of-sub", base=tmp_path / "base")
    assert (load_mask(tmp_path / "of-sub") - mask).count() == 0

"""Implausible pairs, which give errors or warnings, and unusual but legitimate ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pairs import SINGLE, Tensor, bf16_tensor, file_bytes, random_tensor, save, tune

from rlsparse_store.delta import encode_delta, encode_run, inspect_delta, measure_pair
from rlsparse_store.errors import ImplausibleError, ImplausibleWarning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pairs import Tensors

pytestmark = pytest.mark.filterwarnings("error::rlsparse_store.errors.ImplausibleWarning")

PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def model(seed: int = 0, layers: int = 3, width: int = 32, vocab: int = 60) -> Tensors:
    """Return tensors with the names of a small language model."""
    result = {
        "model.embed_tokens.weight": bf16_tensor(seed, vocab, width),
        "lm_head.weight": bf16_tensor(seed + 1, vocab, width),
        "model.norm.weight": bf16_tensor(seed + 2, width),
    }
    for layer in range(layers):
        for i, part in enumerate(PARTS):
            name = f"model.layers.{layer}.{part}.weight"
            result[name] = bf16_tensor(seed + 10 * layer + i + 3, width, width)
    return result


BASE = model()


def tuned(tensors: Tensors = BASE, density: float = 0.05) -> Tensors:
    return {name: tune(t, k, density) for k, (name, t) in enumerate(tensors.items())}


def empty(tensors: Tensors) -> Tensors:
    return {
        name: Tensor(t.dtype, (0,), b"") if ".layers.1." in name else t
        for name, t in tensors.items()
    }


def wrapped(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for name, t in tensors.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        if "q_proj" in name:
            result[f"{stem}.base_layer.weight"] = t
            result[f"{stem}.lora_A.default.weight"] = bf16_tensor(1, 4, 32)
        else:
            result[f"{stem}.weight"] = t
    return result


IMPLAUSIBLE: dict[str, tuple[Callable[[], Tensors], str]] = {
    "placeholders": (lambda: empty(tuned()), "gather the weights"),
    "unmerged": (lambda: wrapped(tuned()), "unmerged adapter.*merge_and_unload"),
    "adapter": (
        lambda: {n: t for n, t in wrapped(BASE).items() if "lora_" in n},
        "is an adapter.*store it as it is",
    ),
    "other names": (
        lambda: {f"x{n}.w": random_tensor(n, "BF16", 7, 9) for n in range(9)},
        "of another model",
    ),
    "other shapes": (lambda: model(7, width=48, vocab=70), "of another model"),
    "half": (lambda: dict(list(tuned().items())[: len(BASE) // 2]), "part of a checkpoint"),
}


@pytest.mark.parametrize("kind", IMPLAUSIBLE)
def test_implausible_structure_is_rejected_before_encoding(tmp_path: Path, kind: str) -> None:
    make, match = IMPLAUSIBLE[kind]
    base = save(tmp_path / "base", BASE)
    folder = save(tmp_path / "tuned", make())
    with pytest.raises(ImplausibleError, match=match):
        encode_delta(base, folder, tmp_path / "delta")
    good = save(tmp_path / "good", tuned())
    with pytest.raises(ImplausibleError, match=match):
        encode_run(base, [good, folder], tmp_path / "run")
    assert not (tmp_path / "delta").exists()
    assert not (tmp_path / "run").exists()
    # force=True turns the error into a warning.
    with pytest.warns(ImplausibleWarning):
        report = encode_delta(base, folder, tmp_path / "delta", force=True)
    assert re.search(match, report.warnings[0])
    assert measure_pair(base, folder).warnings == report.warnings


LEGITIMATE: dict[str, Callable[[], Tensors]] = {
    "tuned": tuned,
    "grown vocabulary": lambda: {
        **tuned(),
        "model.embed_tokens.weight": bf16_tensor(0, 64, 32),
        "lm_head.weight": bf16_tensor(1, 64, 32),
    },
    "frozen towers": lambda: {n: tune(t, 3) if "layers.2" in n else t for n, t in BASE.items()},
    "tied head": lambda: {n: t for n, t in tuned().items() if n != "lm_head.weight"},
    "pruned layer": lambda: {n: t for n, t in tuned().items() if "layers.2" not in n},
    "added head": lambda: {**tuned(), "score.weight": bf16_tensor(4, 1, 32)},
    "renamed": lambda: {f"module.{n}": t for n, t in tuned().items()},
    "most changed": lambda: tuned(density=0.9),
}


@pytest.mark.parametrize("kind", LEGITIMATE)
def test_legitimate_pairs_give_no_warning(tmp_path: Path, kind: str) -> None:
    base = save(tmp_path / "base", BASE)
    report = encode_delta(base, save(tmp_path / "tuned", LEGITIMATE[kind]()), tmp_path / "delta")
    assert not [w for w in report.warnings if "nothing saved" not in w]


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_one_shard_is_no_checkpoint(tmp_path: Path, side: str) -> None:
    """Where the other shards are small, names and shapes show little of it."""
    first = dict(list(BASE.items())[1:])
    whole = save(tmp_path / "whole", BASE if side == "tuned" else tuned())
    (tmp_path / "shards").mkdir()
    shard = tmp_path / "shards" / SHARD
    shard.write_bytes(file_bytes(first if side == "base" else tuned(first)))
    pair = (shard, whole) if side == "base" else (whole, shard)
    with pytest.raises(ImplausibleError, match=r"only shard 1 of 2.*give the folder"):
        encode_delta(*pair, tmp_path / "delta")
    # The same shard of both sides is a pair.
    (tmp_path / "same").mkdir()
    same = tmp_path / "same" / SHARD
    same.write_bytes(file_bytes(tuned(first, density=0.1)))
    encode_delta(shard, same, tmp_path / "delta")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module"])
def test_names_of_wrapped_layers_are_found_and_told(tmp_path: Path, wrapper: str) -> None:
    names = {n: re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}.", n) for n in BASE}
    base = save(tmp_path / "base", BASE)
    folder = save(tmp_path / "tuned", {names[n]: t for n, t in tuned().items()})
    report = encode_delta(base, folder, tmp_path / "delta")
    assert not report.warnings
    assert not report.whole
    assert not report.removed
    assert sum("names are those of a wrapped model" in note for note in report.notes) == 1
    # Where the base has these names, too, they are as they should be.
    report = encode_delta(
        folder, save(tmp_path / "next", {names[n]: t for n, t in BASE.items()}), tmp_path / "again"
    )
    assert not report.notes


def test_an_adapter_beside_the_model_is_told(tmp_path: Path) -> None:
    base, folder = save(tmp_path / "base", BASE), save(tmp_path / "tuned", tuned())
    (folder / "adapter_config.json").write_text("{}")
    report = encode_delta(base, folder, tmp_path / "delta")
    assert any("the adapter beside the model is not stored" in note for note in report.notes)


CONTENT: dict[str, tuple[Callable[[], Tensors], str]] = {
    "the base again": (lambda: BASE, "nothing changed: every weight is identical"),
    "only added": (lambda: {**BASE, "new": bf16_tensor(3, 40, 40)}, "nothing changed: no weight"),
    "another seed": (lambda: model(500), "nearly everything changed"),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_implausible_content_gives_the_same_warning_everywhere(tmp_path: Path, kind: str) -> None:
    make, match = CONTENT[kind]
    base, folder = save(tmp_path / "base", BASE), save(tmp_path / "tuned", make())
    with pytest.warns(ImplausibleWarning, match=match) as caught:
        report = encode_delta(base, folder, tmp_path / "delta")
    assert [str(w.message) for w in caught] == report.warnings
    with pytest.warns(ImplausibleWarning, match=f"tuned: {match}"):
        (entry,) = encode_run(base, [folder], tmp_path / "run").deltas
    assert entry.warnings == report.warnings
    for more in ([], ["--run"]):
        for form in ([], ["--json"]):
            out = tmp_path / f"o{len(more)}{len(form)}"
            done = command("encode", base, folder, "-o", out, *more, *form)
            if form:
                found = json.loads(done)["warnings"]
                assert [text.removeprefix("tuned: ") for text in found] == report.warnings
            else:
                assert all(f"  warning: {text}" in done for text in report.warnings)


def command(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_base_in_another_dtype_is_not_another_model(tmp_path: Path) -> None:
    base = save(tmp_path / "base", BASE)
    wide: Tensors = {n: random_tensor(k, "F32", *t.shape) for k, (n, t) in enumerate(BASE.items())}
    with pytest.warns(ImplausibleWarning, match="nothing") as caught:
        encode_delta(base, save(tmp_path / "wide", wide), tmp_path / "delta", keep_dtype=True)
    assert not any("another model" in str(w.message) for w in caught)


def test_swapped_arguments_are_detected_by_trainer_files(tmp_path: Path) -> None:
    base, checkpoint = save(tmp_path / "base", BASE), save(tmp_path / "checkpoint-1", tuned())
    (checkpoint / "trainer_state.json").write_text("{}")
    (base / "config.json").write_text("{}")
    with pytest.warns(ImplausibleWarning, match="right order"):
        encode_delta(checkpoint, base, tmp_path / "swapped")
    assert not encode_delta(base, checkpoint, tmp_path / "delta").warnings
    # A base from training is one like any other.
    later = save(tmp_path / "checkpoint-2", tuned(tuned()))
    (later / "trainer_state.json").write_text("{}")
    assert not encode_delta(checkpoint, later, tmp_path / "d2").warnings


def test_run_gives_the_warnings_of_each_pair(tmp_path: Path) -> None:
    base, folder = save(tmp_path / "base", BASE), save(tmp_path / "step-1", tuned())
    for name in ("config.json", "optimizer.pt", "rng_state_0.pth"):
        (folder / name).write_text("{}")
    kept = save(tmp_path / "step-2", {**tuned(), "added": bf16_tensor(1, 40, 40)})
    pair = encode_delta(base, folder, tmp_path / "delta")
    report = encode_run(base, [folder, kept], tmp_path / "run")
    first, second = report.deltas
    assert first.skipped_files == pair.skipped_files == ["optimizer.pt", "rng_state_0.pth"]
    assert first.notes == pair.notes
    assert first.carried_files == ["config.json"]
    assert [tensor.name for tensor in second.whole] == ["added"]
    text = command("encode", base, folder, kept, "-o", tmp_path / "again")
    assert "skipped: optimizer.pt, rng_state_0.pth" in text
    assert "training cannot be resumed from a delta" in text
    assert "added: 3.2 kB, added" in text


def test_encoding_and_inspecting_agree_about_whole_chunks(tmp_path: Path) -> None:
    noise = {n: random_tensor(90 + k, "BF16", *t.shape) for k, (n, t) in enumerate(BASE.items())}
    mixed = {n: noise[n] if "layers.1" in n else t for n, t in tuned().items()}
    base = save(tmp_path / "base", BASE)
    folder = save(tmp_path / "tuned", {**mixed, "added": bf16_tensor(1, 40, 40)})
    encoded = encode_delta(base, folder, tmp_path / "delta")
    inspected = inspect_delta(tmp_path / "delta")
    assert encoded.whole
    assert inspected.whole_bytes == sum(tensor.raw_bytes for tensor in encoded.whole)
    assert inspected.whole_stored_bytes == sum(tensor.stored_bytes for tensor in encoded.whole)
    for report in (encoded, inspected):
        assert report.changed == sum(report.steps) + report.whole_changed
        for tensor in report.tensors:
            assert tensor.changed == sum(tensor.steps) + tensor.whole_changed
    text = command("inspect", tmp_path / "delta")
    assert f"stored whole, in {inspected.whole_stored_bytes / 1000:.3g} kB" in text


def test_progress_is_of_the_checkpoint(tmp_path: Path) -> None:
    base, folder = save(tmp_path / "base", BASE), save(tmp_path / "tuned", tuned())
    seen: list[tuple[int, int]] = []
    report = encode_delta(base, folder, tmp_path / "d", progress=lambda *at: seen.append(at))
    assert seen[-1] == (report.tuned_bytes, report.tuned_bytes)
    assert seen == sorted(seen)
    assert report.tuned_bytes <= (folder / SINGLE).stat().st_size

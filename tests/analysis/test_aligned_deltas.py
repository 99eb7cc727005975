"""Overlap, match and series, compared with NumPy on whole tensors; and damaged or odd input."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pairs import Tensor, bf16_tensor, random_tensor, save, save_sharded, tune

from rlsparse_store.analysis import compare_deltas, match_checkpoints, measure_series
from rlsparse_store.analysis.tensor_pairs import BLOCK_WORDS
from rlsparse_store.delta import encode_delta, encode_run
from rlsparse_store.errors import BaseMismatchError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Words = dict[str, "NDArray[Any]"]
KINDS: dict[str, Any] = {"BF16": np.uint16, "F32": np.uint32, "F8_E4M3": np.uint8, "I8": np.uint8}


def words_of(tensors: dict[str, Tensor]) -> Words:
    return {name: t.words(KINDS[t.dtype]) for name, t in tensors.items()}


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return {
        "model.layers.0.mlp.up_proj.weight": bf16_tensor(0, 60, 50),
        "model.layers.1.mlp.up_proj.weight": bf16_tensor(1, 60, 50),
        "model.layers.1.self_attn.q_proj.weight": bf16_tensor(2, 30, 50),
        "f32": Tensor(
            "F32", (700,), np.random.default_rng(3).normal(0, 1, 700).astype("f4").tobytes()
        ),
        "f8": random_tensor(4, "F8_E4M3", 500),
        "i8": random_tensor(5, "I8", 300),
        "still": bf16_tensor(6, 40),
    }


@pytest.fixture(scope="module")
def states(base: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Three checkpoints of a run; some words revert to the base."""
    checkpoints = []
    state = base
    for step in range(3):
        rng = np.random.default_rng(step)
        tuned = {}
        for name, tensor in state.items():
            words = tensor.words(KINDS[tensor.dtype])
            original = base[name].words(KINDS[tensor.dtype])
            if name != "still":
                hit = rng.random(words.size) < 0.15
                words[hit] += rng.choice([1, 2, 255], int(hit.sum())).astype(words.dtype)
                back = rng.random(words.size) < 0.03
                words[back] = original[back]
            tuned[name] = tensor.with_words(words)
        state = tuned
        checkpoints.append(state)
    return checkpoints


@pytest.fixture(scope="module")
def work(
    tmp_path_factory: pytest.TempPathFactory,
    base: dict[str, Tensor],
    states: list[dict[str, Tensor]],
) -> Path:
    folder = tmp_path_factory.mktemp("overlap")
    save(folder / "base", base)
    for number, state in enumerate(states):
        save(folder / f"step-{9 + number}", state)
    steps = [folder / f"step-{9 + number}" for number in range(3)]
    encode_run(folder / "base", steps, folder / "run")
    return folder


def magnitudes(name: str, words: NDArray[Any], base: dict[str, Tensor]) -> NDArray[Any]:
    """The exponents of floating-point words; 0 for others."""
    bits = {"BF16": (15, 7), "F32": (31, 23), "F8_E4M3": (7, 3)}.get(base[name].dtype)
    if bits is None:
        return np.zeros(words.size, int)
    return ((words & ((1 << bits[0]) - 1)) >> bits[1]).astype(int)


def test_overlaps_are_exact(
    work: Path, base: dict[str, Tensor], states: list[dict[str, Tensor]]
) -> None:
    report = compare_deltas([work / "run"], base=work / "base", threads=2)
    assert report.deltas == ["step-9", "step-10", "step-11"]
    before, after = words_of(base), [words_of(state) for state in states]
    every = sum(words.size for words in before.values())
    assert report.words == every
    masks = [{n: before[n] != state[n] for n in before} for state in after]
    assert report.changed == [sum(int(m.sum()) for m in mask.values()) for mask in masks]
    times = np.concatenate([np.sum([m[n] for m in masks], axis=0) for n in before])
    assert report.consensus == np.bincount(times, minlength=4).tolist()
    for pair, (a, b) in zip(report.pairs, combinations(range(3), 2), strict=True):
        overall = pair.overall
        both = {n: masks[a][n] & masks[b][n] for n in before}
        count = sum(int(m.sum()) for m in both.values())
        counts = (count, report.changed[a], report.changed[b])
        assert (overall.both, overall.changed_a, overall.changed_b) == counts
        assert overall.one_sided_a == count / report.changed[a]
        assert overall.jaccard == count / (report.changed[a] + report.changed[b] - count)
        equal = sum(int((both[n] & (after[a][n] == after[b][n])).sum()) for n in before)
        assert overall.same_value == equal / count
        uniform = report.changed[a] * report.changed[b] / every
        tensor = sum(
            int(masks[a][n].sum()) * int(masks[b][n].sum()) / before[n].size for n in before
        )
        magnitude = 0.0
        for name, words in before.items():
            bins = magnitudes(name, words, base)
            for exponent in np.unique(bins):
                inside = bins == exponent
                hits = [int((mask[name] & inside).sum()) for mask in (masks[a], masks[b])]
                magnitude += hits[0] * hits[1] / int(inside.sum())
        assert overall.expected == pytest.approx(
            {"uniform": uniform, "tensor": tensor, "magnitude": magnitude}, rel=1e-12
        )
        layer = {group.name: group for group in pair.layers}["1"]
        assert layer.both == sum(int(m.sum()) for n, m in both.items() if ".layers.1." in n)


def test_signs(tmp_path: Path) -> None:
    base = np.array([0x3F80, 0xBF80, 0x3F80, 0x3F80], np.uint16)
    up_down = np.array([0x3F81, 0xBF81, 0x3F80, 0x3F81], np.uint16)
    other = np.array([0x3F82, 0xBF7F, 0x3F81, 0x3F81], np.uint16)
    for name, words in (("base", base), ("a", up_down), ("b", other)):
        save(tmp_path / name, {"w": Tensor("BF16", (4,), words.tobytes())})
    for name in ("a", "b"):
        encode_delta(tmp_path / "base", tmp_path / name, tmp_path / f"d{name}")
    (pair,) = compare_deltas([tmp_path / "da", tmp_path / "db"], base=tmp_path / "base").pairs
    # Both changed three words: up and up, down and up, up and up to the same word.
    assert (pair.overall.both, pair.overall.same_sign) == (3, 2 / 3)
    assert pair.overall.same_value == 1 / 3
    values = [(w.astype(np.uint32) << 16).view("f4").astype(float) for w in (base, up_down, other)]
    one, two = values[1] - values[0], values[2] - values[0]
    expected = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert pair.overall.cosine == pytest.approx(expected, rel=1e-12)


def test_ratios_without_changes_are_undefined(tmp_path: Path) -> None:
    save(tmp_path / "base", {"w": bf16_tensor(0, 10, 10)})
    for name in ("a", "b"):
        encode_delta(tmp_path / "base", tmp_path / "base", tmp_path / name)
    report = compare_deltas([tmp_path / "a", tmp_path / "b"], base=tmp_path / "base")
    overall = report.pairs[0].overall
    assert (overall.jaccard, overall.one_sided_a, report.mean_jaccard) == (None, None, None)
    assert set(overall.lift.values()) == {None}
    series = measure_series([tmp_path / "a", tmp_path / "b"], base=tmp_path / "base")
    assert (series.ever_changed, series.outside_final) == (0, None)


def test_deltas_of_two_bases_and_single_deltas_are_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        base = {"w": bf16_tensor(seed, 30, 30)}
        save(tmp_path / f"base{seed}", base)
        tuned = save(tmp_path / f"tuned{seed}", {"w": tune(base["w"], 1)})
        encode_delta(tmp_path / f"base{seed}", tuned, tmp_path / f"d{seed}")
    with pytest.raises(BaseMismatchError, match="has another base than"):
        compare_deltas([tmp_path / "d0", tmp_path / "d1"], base=tmp_path / "base0")
    with pytest.raises(NotFoundError, match=r"d0: too few deltas: give at least 2"):
        compare_deltas([tmp_path / "d0"], base=tmp_path / "base0")


def test_locations_without_a_delta_are_refused(tmp_path: Path) -> None:
    for analyze in (compare_deltas, measure_series):
        with pytest.raises(NotFoundError, match="nosuch: no such folder"):
            analyze([tmp_path / "nosuch"])
        with pytest.raises(NotFoundError, match="so it is no delta"):
            analyze([tmp_path])


def test_tensors_missing_from_a_delta_are_unmatched(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 30, 30), "grown": bf16_tensor(1, 10, 20)}
    save(tmp_path / "base", base)
    longer = Tensor("BF16", (12, 20), tune(base["grown"], 1).data + bytes(80))
    shorter = Tensor("BF16", (8, 20), tune(base["grown"], 2).data[:320])
    for name, tuned in (
        ("a", {"w": tune(base["w"], 1), "grown": longer}),
        ("b", {"w": tune(base["w"], 2), "grown": shorter}),
        ("c", {"w": tune(base["w"], 2)}),
    ):
        encode_delta(tmp_path / "base", save(tmp_path / f"t{name}", tuned), tmp_path / name)
    both = compare_deltas([tmp_path / "a", tmp_path / "b"], base=tmp_path / "base")
    assert (both.words, both.unmatched) == (900 + 160, [])
    with_removed = compare_deltas([tmp_path / "a", tmp_path / "c"], base=tmp_path / "base")
    assert (with_removed.words, with_removed.unmatched) == (900, ["grown"])


def test_tensors_stored_whole_or_removed_are_unmatched(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 30, 30), "other": bf16_tensor(1, 10, 20), "gone": bf16_tensor(2, 9)}
    save(tmp_path / "base", base)
    deltas = [tmp_path / "a", tmp_path / "b"]
    for seed, delta in enumerate(deltas):
        other, new = random_tensor(seed, "I8", 10, 20), random_tensor(seed, "F32", 5)
        tuned = save(
            tmp_path / f"t{seed}", {"w": tune(base["w"], seed), "other": other, "new": new}
        )
        encode_delta(tmp_path / "base", tuned, delta, keep_dtype=True)
    unmatched = ["gone", "new", "other"]
    assert compare_deltas(deltas, base=tmp_path / "base").unmatched == unmatched
    assert measure_series(deltas, base=tmp_path / "base").unmatched == unmatched
    match = match_checkpoints(deltas[0], deltas[1], base=tmp_path / "base")
    assert (match.everything.words, match.unmatched) == (900, unmatched)


def test_values_beyond_the_precision_of_float64(tmp_path: Path) -> None:
    wide = np.array([1e160, 1.0, 2.0])
    whole = np.array([1 << 60, 5])
    for name, factor, more in (("base", 1, 0), ("a", -1, 1), ("b", -2, 2)):
        tensors = {
            "wide": Tensor("F64", (3,), (wide * [factor, 1, 1]).tobytes()),
            "whole": Tensor("I64", (2,), (whole + np.array([more, 0])).tobytes()),
        }
        save(tmp_path / name, tensors)
        encode_delta(tmp_path / "base", tmp_path / name, tmp_path / f"d{name}")
    deltas = [tmp_path / "da", tmp_path / "db"]
    report = compare_deltas(deltas, base=tmp_path / "base")
    assert report.pairs[0].overall.cosine is None
    json.dumps(report.as_json(), allow_nan=False)
    match = match_checkpoints(deltas[0], deltas[1], base=tmp_path / "base")
    assert set(match.everything.full_and_sub.values()) == {3 / 5}


def test_tensors_of_several_blocks(tmp_path: Path) -> None:
    base = bf16_tensor(0, BLOCK_WORDS + 999)
    tuned = [tune(base, seed, 0.1) for seed in (1, 2)]
    save(tmp_path / "base", {"w": base})
    for number, tensor in enumerate(tuned):
        save(tmp_path / f"t{number}", {"w": tensor})
        encode_delta(tmp_path / "base", tmp_path / f"t{number}", tmp_path / f"d{number}")
    report = compare_deltas([tmp_path / "d0", tmp_path / "d1"], base=tmp_path / "base")
    before, *after = (tensor.words(np.uint16) for tensor in (base, *tuned))
    masks = [before != words for words in after]
    assert report.changed == [int(mask.sum()) for mask in masks]
    assert report.pairs[0].overall.both == int((masks[0] & masks[1]).sum())


def test_series_is_exact(
    work: Path, base: dict[str, Tensor], states: list[dict[str, Tensor]]
) -> None:
    report = measure_series([work / "run"], base=work / "base")
    every = [
        np.concatenate([words.astype(np.uint32) for words in words_of(state).values()])
        for state in (base, *states)
    ]
    changed = [every[0] != state for state in every[1:]]
    moved = [a != b for a, b in pairwise(every)]
    assert [step.changed for step in report.steps] == [int(c.sum()) for c in changed]
    assert [step.moved for step in report.steps] == [int(m.sum()) for m in moved]
    assert report.steps[0].locality is None
    assert report.steps[2].locality == (moved[2] & (moved[0] | moved[1])).sum() / moved[2].sum()
    ever = np.logical_or.reduce(changed)
    assert report.ever_changed == int(ever.sum())
    assert report.cancelled == int((ever & ~changed[2]).sum()) > 0
    assert report.finally_changed + report.cancelled == report.ever_changed
    differing = [(every[1] != every[2]).mean(), (every[2] != every[3]).mean()]
    assert report.sparsity["1"] == pytest.approx(1 - np.mean(differing), rel=1e-12)
    assert report.sparsity["2"] == pytest.approx((every[1] == every[3]).mean(), rel=1e-12)
    assert set(report.sparsity) == {"1", "2"}


@pytest.mark.parametrize("as_deltas", [True, False])
def test_match_is_exact(
    work: Path,
    base: dict[str, Tensor],
    states: list[dict[str, Tensor]],
    as_deltas: bool,  # noqa: FBT001
) -> None:
    folder = work / "run" if as_deltas else work
    report = match_checkpoints(folder / "step-9", folder / "step-11", base=work / "base")
    before, full, sub = (words_of(state) for state in (base, states[0], states[2]))
    mask = {n: before[n] != full[n] for n in before}
    everything = sum(words.size for words in before.values())
    equal = sum(int((full[n] == sub[n]).sum()) for n in before)
    assert report.everything.words == everything
    assert report.everything.full_and_sub["bits"] == equal / everything
    inside = sum(int(m.sum()) for m in mask.values())
    assert report.mask.words == inside
    assert report.mask.base_and_full["bits"] == 0
    assert report.complement.base_and_full["bits"] == 1
    outside = sum(int((~mask[n] & (before[n] != sub[n])).sum()) for n in before)
    assert report.sub_outside == outside
    floats = [words.view(np.float32) for words in (full["f32"], sub["f32"])]
    near = int((np.abs(floats[0].astype(float) - floats[1]) <= 1e-5).sum())
    assert near > (full["f32"] == sub["f32"]).sum(), "the tolerance matters here"
    share = report.everything.full_and_sub["1e-05"]
    assert share is not None
    assert share * everything >= equal + near - int((full["f32"] == sub["f32"]).sum()) - 0.5


def command(*arguments: str | Path) -> str:
    line = [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)]
    process = subprocess.run(line, capture_output=True, check=False, encoding="utf-8")
    assert process.returncode == 0, process.stderr
    return process.stdout


# A limit on open files below the number of shards times the number of deltas.
FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from rlsparse_store.cli import main
main()
"""


def test_the_base_is_opened_once(tmp_path: Path) -> None:
    base = {f"w{number}": bf16_tensor(number, 9) for number in range(15)}
    shards = [{name: tensor} for name, tensor in base.items()]
    save_sharded(tmp_path / "base", *shards)
    steps = [
        save(tmp_path / f"s{step}", {**base, "w3": tune(base["w3"], step, 0.5)})
        for step in range(10)
    ]
    encode_run(tmp_path / "base", steps, tmp_path / "run")
    arguments = ("series", tmp_path / "run", "--base", tmp_path / "base", "--json")
    command = [sys.executable, "-P", "-c", FEW_FILES, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, check=False, text=True)
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)["steps"]) == 10


def test_commands(work: Path) -> None:
    base = ("--base", work / "base")
    report = json.loads(command("compare", work / "run", *base, "--json"))
    assert (report["schema_version"], len(report["pairs"])) == (1, 3)
    text = command("compare", work / "run/step-9", work / "run/step-10", *base, "--groups")
    for words in ("step-9, step-10", "and magnitude", "q_proj", "Words by the number of deltas"):
        assert words in text
    report = json.loads(command("series", work / "run", *base, "--json"))
    assert [step["name"] for step in report["steps"]] == ["step-9", "step-10", "step-11"]
    assert "changed back" in command("series", work / "run", *base)
    pair = (work / "run/step-9", work / "step-10")
    assert json.loads(command("match", *pair, *base, "--json"))["schema_version"] == 1
    assert "base and full" in command("match", *pair, *base)

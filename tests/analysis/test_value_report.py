"""The report of values, compared with torch and NumPy on whole tensors."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zstandard
from pairs import Tensor, bf16_tensor, random_tensor, save, tune
from safetensors.torch import load_file

from rlsparse_store.analysis import measure_values, open_pair, over_base, tensor_pairs
from rlsparse_store.analysis.numeric import CASTS, as_floats, cast_words
from rlsparse_store.delta import encode_delta
from rlsparse_store.format.dtypes import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.analysis import ValueReport

INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def everything() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    base = {
        "model.layers.0.mlp.up_proj.weight": bf16_tensor(0, 60, 50),
        "model.layers.0.self_attn.q_proj.weight": bf16_tensor(1, 40, 50),
        "model.layers.1.mlp.up_proj.weight": bf16_tensor(2, 60, 50),
        "model.layers.1.mlp.experts.3.up_proj.weight": random_tensor(3, "F32", 20, 30),
        "f16": random_tensor(4, "F16", 31, 33),
        "f64": Tensor("F64", (200,), np.random.default_rng(5).normal(0, 1, 200).tobytes()),
        "f8": random_tensor(6, "F8_E4M3", 100, 20),
        "i8": random_tensor(7, "I8", 999),
        "i64": random_tensor(8, "I64", 100),
        "bool": Tensor("BOOL", (50,), bytes([0, 1] * 25)),
        "same": bf16_tensor(9, 30, 30),
        "grown": bf16_tensor(10, 20, 30),
        "removed": bf16_tensor(11, 10),
        "scalar": bf16_tensor(12),
        "empty": Tensor("BF16", (0, 4), b""),
    }
    tuned = {name: tensor for name, tensor in base.items() if name != "removed"}
    for number, name in enumerate(list(tuned)[:8]):
        kind: Any = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
        words = tuned[name].words(kind[DTYPES[tuned[name].dtype].bits // 8])
        rng = np.random.default_rng(number)
        hit = rng.random(words.size) < 0.3
        words[hit] += rng.integers(1, 9, int(hit.sum())).astype(words.dtype)
        words[::17] ^= words.dtype.type(1 << (8 * words.itemsize - 1))
        tuned[name] = tuned[name].with_words(words)
    grown = base["grown"]
    tuned["grown"] = Tensor("BF16", (25, 30), tune(grown, 1, 0.2).data + bytes(5 * 30 * 2))
    tuned["added"] = bf16_tensor(13, 7, 7)
    return base, tuned


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    base, tuned = everything()
    encode_delta(save(folder / "base", base), save(folder / "tuned", tuned), folder / "delta")
    return folder


@pytest.fixture(params=["pair", "delta"])
def report(
    request: pytest.FixtureRequest, work: Path, monkeypatch: pytest.MonkeyPatch
) -> ValueReport:
    """With small blocks, so that tensors have several."""
    monkeypatch.setattr(tensor_pairs, "BLOCK_WORDS", 64)
    if request.param == "pair":
        with open_pair(work / "base", work / "tuned") as pair:
            return measure_values(pair, threads=2)
    with over_base(work / "delta", base=work / "base") as pair:
        return measure_values(pair, threads=2)


def sides(work: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The compared rows of both sides, as torch reads them."""
    base = load_file(work / "base" / "model.safetensors")
    tuned = load_file(work / "tuned" / "model.safetensors")
    shared = {}
    for name, after in tuned.items():
        if name in base:
            before = base[name]
            shared[name] = before, after[: len(before)] if before.dim() else after
    return shared


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(INTS[tensor.element_size()])


def test_counts_are_exact(report: ValueReport, work: Path) -> None:
    shared = sides(work)
    changed = {n: int((bits(a) != bits(b)).sum()) for n, (a, b) in shared.items()}
    assert {t.name: t.changed for t in report.tensors} == changed
    words = {name: before.numel() for name, (before, _) in shared.items()}
    assert {t.name: t.words for t in report.tensors} == words
    assert (report.words, report.changed) == (sum(words.values()), sum(changed.values()))
    densities = [changed[n] / words[n] if words[n] else 0.0 for n in words]
    assert report.mean_density == pytest.approx(np.mean(densities), rel=1e-12)
    assert report.inactive_ratio == sum(k == 0 for k in changed.values()) / len(changed)
    assert {u.name: u.reason for u in report.unmatched}.keys() == {"added", "removed"}
    assert report.tail_words == 5 * 30
    layers = {group.name: group.changed for group in report.layers}
    assert layers["0"] == sum(k for n, k in changed.items() if ".layers.0." in n)
    experts = {group.name: group.words for group in report.experts}
    assert experts == {"3": 600}


def test_tolerances_and_magnitudes(report: ValueReport, work: Path) -> None:
    within = dict.fromkeys(report.unchanged_within, 0)
    square = absolute = base_square = 0.0
    largest, flips, relative = 0.0, 0, 0
    for name, (before, after) in sides(work).items():
        old, new = before.to(torch.float64).view(-1), after.to(torch.float64).reshape(-1)
        differs = bits(before) != bits(after)
        delta = (new - old).abs()
        for tolerance in within:
            close = delta <= float(tolerance)
            within[tolerance] += int((close | ~differs).sum())
        limit = 1e-3 * torch.maximum(old.abs(), new.abs())
        relative += int(((delta <= limit) | ~differs).sum())
        moved = delta[differs & torch.isfinite(delta)]
        square += float((moved**2).sum())
        absolute += float(moved.sum())
        largest = max(largest, float(moved.max()) if moved.numel() else 0.0)
        finite = old[torch.isfinite(old)]
        base_square += float((finite**2).sum())
        top = 8 * before.element_size() - 1
        words = [bits(side).to(torch.int64) >> top & 1 for side in (before, after)]
        flips += int((words[0] != words[1]).sum())
        del name
    counted = {t: round(s * report.words) for t, s in report.unchanged_within.items()}
    assert counted == within
    assert round(report.unchanged_relative * report.words) == relative
    assert report.sign_flips == flips
    assert report.delta_norm == pytest.approx(square**0.5, rel=1e-9)
    assert report.largest_delta == largest
    assert report.mean_delta == pytest.approx(absolute / report.changed, rel=1e-9)
    assert report.relative_norm == pytest.approx((square / base_square) ** 0.5, rel=1e-5)


def test_rows_columns_and_steps(report: ValueReport, work: Path) -> None:
    tensors = {t.name: t for t in report.tensors}
    for name, (before, after) in sides(work).items():
        if before.dim() != 2 or before.numel() == 0:
            assert tensors[name].rows is None
            continue
        differs = (bits(before) != bits(after)).view(before.shape)
        assert tensors[name].rows_touched == int(differs.any(1).sum())
        assert tensors[name].columns_touched == int(differs.any(0).sum())
        assert (tensors[name].rows, tensors[name].columns) == tuple(before.shape)
    assert sum(report.steps) == report.changed
    assert len(report.steps) == len(report.step_labels) == 20


def test_top_rows(report: ValueReport, work: Path) -> None:
    counts = []
    for name, (before, after) in sides(work).items():
        if before.dim() == 2 and before.numel():
            rows = (bits(before) != bits(after)).view(before.shape).sum(1).tolist()
            counts += [(-count, name, row) for row, count in enumerate(rows) if count]
    expected = [(-count, name, row) for count, name, row in sorted(counts)[:10]]
    assert [(r.changed, r.tensor, r.row) for r in report.top_rows] == expected


def test_changes_by_exponent(report: ValueReport, work: Path) -> None:
    table = report.exponents
    assert table is not None
    assert table.dtype == "BF16"
    words: dict[int, int] = {}
    changed: dict[int, int] = {}
    for before, after in sides(work).values():
        if before.dtype is not torch.bfloat16:
            continue
        exponents = (bits(before).to(torch.int32) >> 7 & 0xFF).numpy()
        differs = (bits(before) != bits(after)).numpy()
        for exponent in np.unique(exponents).tolist():
            words[exponent] = words.get(exponent, 0) + int((exponents == exponent).sum())
            hit = differs & (exponents == exponent)
            changed[exponent] = changed.get(exponent, 0) + int(hit.sum())
    for exponent, n, k in zip(table.exponents, table.words, table.changed, strict=True):
        assert (n, k) == (words.get(exponent + 127, 0), changed.get(exponent + 127, 0))
    assert sum(table.words) == sum(words.values())


DTYPES_OF_TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


def test_large_integers_that_differ_are_not_near(tmp_path: Path) -> None:
    for name, more in (("base", 0), ("tuned", 1)):
        whole = np.array([(1 << 60) + more, 5])
        save(tmp_path / name, {"w": Tensor("I64", (2,), whole.tobytes())})
    with open_pair(tmp_path / "base", tmp_path / "tuned") as pair:
        assert set(measure_values(pair).unchanged_within.values()) == {0.5}


@pytest.mark.parametrize("code", DTYPES_OF_TORCH)
def test_every_value_of_a_small_dtype(code: str) -> None:
    kind: Any = np.uint16 if DTYPES[code].bits == 16 else np.uint8
    words = np.arange(1 << DTYPES[code].bits, dtype=np.uint32).astype(kind)
    signed = torch.from_numpy(words.view(f"i{words.itemsize}"))
    expected = signed.view(DTYPES_OF_TORCH[code]).to(torch.float32).numpy()
    values = as_floats(words, DTYPES[code])
    assert np.array_equal(values.astype(np.float32), expected, equal_nan=True)


def test_casts_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, 50_000) * 2.0 ** rng.integers(-20, 8, 50_000)).astype(np.float32)
    exact = as_floats(np.arange(127, dtype=np.uint8), DTYPES["F8_E4M3"]).astype(np.float32)
    ties = (exact[:-1] + exact[1:]) / 2
    values = np.concatenate([values, ties, -ties, exact, [0.0, -0.0]]).astype(np.float32)
    values = values[np.abs(values) <= 448]
    for code, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = torch.from_numpy(values).to(kind).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(cast_words(values, code), expected)
    small = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(cast_words(values, "F8_E4M3"), small)
    assert set(CASTS) == {"F32", "F16", "BF16", "F8_E4M3"}


# --- Scopes, warnings, ranks --------------------------------------------------------------------


def test_scopes(work: Path) -> None:
    def measured(**options: Any) -> ValueReport:  # noqa: ANN401 - of measure_values
        with open_pair(work / "base", work / "tuned") as pair:
            return measure_values(pair, **options)

    matched, everything_ = measured(), measured(scope="all")
    assert everything_.words == matched.words + 5 * 30 + 49
    assert everything_.changed == matched.changed + 5 * 30 + 49
    linear = measured(scope="linear")
    assert {t.name for t in linear.tensors} == {
        t.name for t in matched.tensors if "layers" in t.name
    }
    dropped = measured(align_rows=False)
    assert ("grown", "resized") in {(u.name, u.reason) for u in dropped.unmatched}
    assert dropped.words == matched.words - 600
    with pytest.raises(ValueError, match="scope"):
        measured(scope="some")


def warnings_for(tmp_path: Path, base: dict[str, Tensor], tuned: dict[str, Tensor]) -> str:
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", tuned)
    with open_pair(tmp_path / "base", tmp_path / "tuned") as pair:
        return " | ".join(measure_values(pair).cautions)


def test_merged_adapter_warning(tmp_path: Path) -> None:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj")
    base = {
        f"model.layers.{n}.self_attn.{kind}.weight": bf16_tensor(n, 32, 32)
        for n in range(3)
        for kind in kinds
    }
    base["model.norm.weight"] = bf16_tensor(9, 32)
    tuned = {n: tune(t, 1, 0.9) if "q_proj" in n or "v_proj" in n else t for n, t in base.items()}
    assert "merged adapter (LoRA): only q_proj, v_proj" in warnings_for(tmp_path, base, tuned)


def test_other_warnings(tmp_path: Path) -> None:
    base = {"a": bf16_tensor(0, 64, 64), "b": bf16_tensor(1, 64, 64), "c": bf16_tensor(2, 8, 8)}
    unrelated = {n: bf16_tensor(5, *t.shape) for n, t in base.items()}
    assert "probably the wrong base" in warnings_for(tmp_path / "1", base, unrelated)
    wide = {**base, "c": random_tensor(3, "F32", 8, 8)}
    assert "dtype mismatch: 1 tensors, such as c" in warnings_for(tmp_path / "2", base, wide)
    grown = {**base, "c": bf16_tensor(2, 9, 8)}
    assert "resized: c" in warnings_for(tmp_path / "3", base, grown)
    packed = {"w.qweight": random_tensor(1, "I32", 4, 4)}
    assert "quantized storage" in warnings_for(tmp_path / "4", packed, packed)
    assert warnings_for(tmp_path / "5", base, base) == ""


def test_compressed_encodings(work: Path) -> None:
    with open_pair(work / "base", work / "tuned") as pair:
        sizes = {e.name: e.nbytes for e in measure_values(pair, compressed=True).encodings}
    xor = 0
    for before, after in sides(work).values():
        if not torch.equal(bits(before), bits(after)):
            different = (bits(before) ^ bits(after)).numpy().tobytes()
            compressor = zstandard.ZstdCompressor(level=1).compressobj()
            xor += len(compressor.compress(different) + compressor.flush())
    assert sizes["XOR, zstd-1"] == xor
    assert 0 < sizes["gap of 16 or 32 bits, value, zstd-1"] < sizes["int32 index, value"]


def test_untied_tensors_warning(tmp_path: Path) -> None:
    embedding = bf16_tensor(0, 90, 60)
    tuned = {"model.embed_tokens.weight": tune(embedding, 1), "lm_head.weight": tune(embedding, 2)}
    warnings = warnings_for(tmp_path, {"model.embed_tokens.weight": embedding}, tuned)
    assert "untied: lm_head.weight and model.embed_tokens.weight" in warnings


def test_rank_of_a_low_rank_update(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, (40, 30)).astype(np.float32)
    update = (rng.normal(0, 1, (40, 2)) @ rng.normal(0, 1, (2, 30))).astype(np.float32)
    for name, values in (("base", base), ("tuned", base + update)):
        save(tmp_path / name, {"w": Tensor("F32", (40, 30), values.tobytes())})
    with open_pair(tmp_path / "base", tmp_path / "tuned") as pair:
        (rank,) = measure_values(pair, rank=True).ranks
    assert rank.energy_rank == 2
    assert 1 <= rank.stable_rank <= 2


# --- The command --------------------------------------------------------------------------------


def inspect(*arguments: str | Path) -> str:
    command = [sys.executable, "-P", "-m", "rlsparse_store", "inspect", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_command_over_the_base(work: Path) -> None:
    alone = json.loads(inspect(work / "delta", "--json"))
    assert "values" not in alone
    delta = json.loads(inspect(work / "delta", "--base", work / "base", "--json"))
    assert delta["values"]["schema_version"] == 1
    pair = json.loads(inspect(work / "base", work / "tuned", "--json"))
    assert pair["values"]["steps"] == delta["values"]["steps"]
    assert pair["values"]["encodings"][0]["nbytes"] == delta["delta_bytes"]
    text = inspect(work / "delta", "--base", work / "base", "--rank")
    for heading in ("By the base's magnitude", "Size of the changes", "Ranks of sampled updates"):
        assert heading in text
    assert "not compared: added, 49 elements" in text
    first = inspect(work / "base", work / "tuned", "--preset", "mukherjee")
    assert "sparsity" in first


def test_command_as_csv(work: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(inspect(work / "delta", "--csv"))))
    assert {row["name"] for row in rows} == set(everything()[1])
    assert "delta_norm" not in rows[0]
    rows = list(csv.DictReader(io.StringIO(inspect(work / "base", work / "tuned", "--csv"))))
    measured = {row["name"]: row["delta_norm"] for row in rows}
    assert float(measured["f16"]) > 0
    assert measured["added"] == ""

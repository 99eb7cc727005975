"""The generator of checkpoint pairs: what the size and speed targets are measured on."""

from __future__ import annotations

import filecmp
import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

import make_pair
from make_pair import DTYPES, Kind, Model, Options, Tensor

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 1_000_000  # words: a few layers, and embeddings of more than one chunk


def write(out: Path, model: Model, options: Options | None = None) -> make_pair.Written:
    return make_pair.write_pair(out, model, options or Options())


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Load all shards, and see that no two of them hold the same tensor."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shard = load_file(path)
        assert shard
        assert not tensors.keys() & shard.keys()
        tensors |= shard
    return tensors


def words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def changed(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int((words(base[name]) != words(tuned[name])).sum()) for name in base}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("density", [0.002, 0.05, 0.5])
def test_density_is_near_the_one_asked_for(tmp_path: Path, dtype: str, density: float) -> None:
    model = make_pair.llama(SMALL, dtype)
    written = write(tmp_path, model, Options(dtype=dtype, density=density))
    differ = changed(load(tmp_path / "base"), load(tmp_path / "tuned"))
    assert sum(differ.values()) == written.changed
    assert written.density == pytest.approx(density, rel=0.1)


@pytest.mark.parametrize("density", [1e-3, 1e-4])
def test_low_densities_are_met_too(tmp_path: Path, density: float) -> None:
    written = write(tmp_path, make_pair.single(4_000_000, "BF16"), Options(density=density))
    assert [path.name for path in (tmp_path / "base").glob("*.safetensors")] == [
        "model.safetensors"
    ]
    # Five standard deviations of a count of rare events.
    expected = 4_000_000 * density
    assert abs(written.changed - expected) < 5 * math.sqrt(expected)


def test_density_zero_changes_nothing(tmp_path: Path) -> None:
    assert write(tmp_path, make_pair.llama(SMALL, "F16"), Options("F16", 0)).changed == 0
    match, mismatch, errors = filecmp.cmpfiles(
        tmp_path / "base",
        tmp_path / "tuned",
        [path.name for path in (tmp_path / "base").iterdir()],
        shallow=False,
    )
    assert len(match) == 6  # four shards, the index, the config
    assert not mismatch
    assert not errors


def test_a_move_is_the_noise_rounded_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    ties = np.arange(0x3F800000, 0x3F900000, 0x8000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, ties, -ties, [0.0, -0.0]]).astype(np.float32)
    for name, torch_type in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = words(torch.from_numpy(values).to(torch_type)).numpy().view(np.uint16)
        encoded = DTYPES[name].encode(values)
        np.testing.assert_array_equal(encoded, expected)
        np.testing.assert_array_equal(DTYPES[name].encode(DTYPES[name].decode(encoded)), encoded)


def test_same_seed_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    model = make_pair.llama(SMALL, "BF16")
    for name, options in (
        ("a", Options(seed=7, threads=1)),
        ("b", Options(seed=7, threads=3)),
        ("c", Options(seed=8)),
        ("d", Options(seed=7, density=0.3)),
    ):
        write(tmp_path / name, model, options)
    a, b, c, d = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*.safetensors")
        }
        for name in "abcd"
    )
    assert a == b
    assert all(a[path] != c[path] for path in a)
    # The base is that of the seed, whatever the tuning does to it.
    assert all((a[path] == d[path]) == path.startswith("base") for path in a)


def test_shards_and_index_partition_the_names(tmp_path: Path) -> None:
    model = make_pair.llama(SMALL, "BF16")
    write(tmp_path, model, Options(shards=3, tuned_shards=5))
    for side, shards in (("base", 3), ("tuned", 5)):
        folder = tmp_path / side
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        found: dict[str, str] = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}
                found |= dict.fromkeys(file.keys(), path.name)
        assert index["weight_map"] == found
        assert set(found.values()) == {
            f"model-{shard:05}-of-{shards:05}.safetensors" for shard in range(1, shards + 1)
        }
        loaded = load(folder)
        assert {name: tuple(loaded[name].shape) for name in loaded} == {
            tensor.name: tensor.shape for tensor in model.tensors
        }
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in loaded.values())


def test_llama_is_of_the_size_asked_for_and_its_rows_and_norms_hardly_move(tmp_path: Path) -> None:
    model = make_pair.llama(SMALL, "BF16")
    written = write(tmp_path, model, Options(density=0.2))
    assert written.words == pytest.approx(SMALL, rel=0.001)
    base, tuned = load(tmp_path / "base"), load(tmp_path / "tuned")
    differ = changed(base, tuned)
    norms = [tensor for tensor in model.tensors if tensor.kind is Kind.NORM]
    assert sum(differ[norm.name] for norm in norms) < 0.05 * sum(norm.words for norm in norms)
    name = "model.embed_tokens.weight"
    untouched = (words(base[name]) == words(tuned[name])).all(dim=1).float().mean()
    assert untouched.item() == pytest.approx(0.6, abs=0.1)
    assert differ["lm_head.weight"] / base["lm_head.weight"].numel() > 0.2


def test_experts_are_as_many_as_asked_and_half_of_them_change(tmp_path: Path) -> None:
    model = make_pair.experts(1001, 1001 * 512, "BF16", layers=7)
    names = [tensor.name for tensor in model.tensors]
    assert len(set(names)) == 1001
    assert names[0] == "model.layers.0.mlp.experts.0.gate_proj.weight"
    assert write(tmp_path, model).density == pytest.approx(0.02, rel=0.05)
    differ = changed(load(tmp_path / "base"), load(tmp_path / "tuned"))
    assert sum(map(bool, differ.values())) == 501


@pytest.mark.parametrize(
    ("sizes", "shards", "files"),
    [
        ([4, 4, 4, 4], 2, [0, 0, 1, 1]),
        ([100, 1, 1], 3, [0, 1, 2]),
        ([1, 1, 100], 3, [0, 1, 2]),
        ([1, 1], 5, [0, 1]),
        ([3], 1, [0]),
    ],
)
def test_no_shard_is_empty(sizes: list[int], shards: int, files: list[int]) -> None:
    tensors = [Tensor(str(number), (size,)) for number, size in enumerate(sizes)]
    layout = make_pair.plan_layout(tensors, 2, shards)
    assert layout.file.tolist() == files
    for shard in set(files):
        first, last = layout.first[shard], layout.first[shard + 1]
        assert layout.offset[first] == 0
        assert layout.offset[first:last].tolist() == [
            2 * sum(sizes[first:at]) for at in range(first, last)
        ]


def test_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(make_pair.main, [str(tmp_path / "pair"), *arguments])
        return result.exit_code, result.output

    code, output = run("--gib", "0.001", "--layers", "2", "--dtype", "F16", "--tuned-shards", "2")
    assert code == 0, output
    assert "words changed (2." in output or "words changed (1.9" in output
    assert json.loads((tmp_path / "pair/base/config.json").read_text())["num_hidden_layers"] == 2
    assert len(list((tmp_path / "pair/tuned").glob("*.safetensors"))) == 2

    code, output = run("--single", "10")
    assert code == 1
    assert "File exists" in output
    assert run("--single", "10", "--tensors", "10")[0] == 2
    code, output = run("--gib", "0.00001")
    assert code == 2
    assert "too few" in output
    code, output = run("--tensors", "10", "--density", "0.6")
    assert code == 2
    assert "0.500 of the words can move" in output

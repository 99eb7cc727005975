"""Which files make up a checkpoint, in folders as savers, mergers and downloads leave them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pairs import (
    INDEX,
    SINGLE,
    bf16_tensor,
    contents,
    file_bytes,
    prove,
    random_tensor,
    save,
    save_sharded,
    tune,
    write_index,
)

from rlsparse_store.delta import encode_delta, verify_delta
from rlsparse_store.errors import CheckpointError, NotFoundError, PickleRefusedError, RlsparseError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from pairs import Tensors

A: Tensors = {"a": bf16_tensor(1, 40, 30)}
B: Tensors = {"b": bf16_tensor(2, 40, 30)}
TUNED_A: Tensors = {"a": tune(A["a"], 3)}
TUNED_B: Tensors = {"b": tune(B["b"], 4)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refused(path: Path, match: str, error: type[RlsparseError] = CheckpointError) -> str:
    with pytest.raises(error, match=match) as raised, open_checkpoint(path):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def files_of(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [file.name for file in checkpoint.files]


# --- incomplete ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[FIRST], [SECOND], [FIRST, SECOND]])
def test_shards_without_their_index_are_no_checkpoint(tmp_path: Path, names: list[str]) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / INDEX).unlink()
    for name in {FIRST, SECOND}.difference(names):
        (folder / name).unlink()
    refused(folder, "incomplete.*no index")


@pytest.mark.parametrize("width", [5, 6])
def test_a_shard_that_is_the_only_one_is_a_checkpoint(tmp_path: Path, width: int) -> None:
    name = f"model-00001-of-{1:0{width}}.safetensors"
    folder = save(tmp_path / "m", A)
    (folder / SINGLE).rename(folder / name)
    assert files_of(folder) == [name]
    write_index(folder, {"a": name}, {})
    assert files_of(folder) == [name]


def test_files_that_no_index_lists_are_named(tmp_path: Path) -> None:
    for name in ("first.safetensors", "second.safetensors"):
        (tmp_path / name).write_bytes(file_bytes(A))
    refused(tmp_path, "2 safetensors files, first.safetensors, second.safetensors")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / SECOND).unlink()
    refused(folder, f"{SECOND} is missing")
    (folder / SECOND).symlink_to(tmp_path / "gone")
    refused(folder, "a link to a file that is gone", NotFoundError)


def test_too_many_open_files(tmp_path: Path) -> None:
    """All shards are open at once."""
    names = [f"model-{n:05}-of-00040.safetensors" for n in range(1, 41)]
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(file_bytes({f"t{n}": A["a"]}))
    write_index(tmp_path, {f"t{n}": name for n, name in enumerate(names)}, {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 20, limits[1]))
    try:
        refused(tmp_path, r"Too many open files.*raise the limit \(ulimit -n\)")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_index_of_another_save_is_called_one(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    write_index(folder, dict.fromkeys("ab", "model-00001-of-00001.safetensors"), {})
    refused(folder, f"{INDEX} lists .* and none of the 2 shards here.*another save")


def test_a_file_that_is_no_shard_does_not_tell_of_another_save(tmp_path: Path) -> None:
    """A part of a download: the index, and Mistral's own file, which it does not list."""
    (tmp_path / "consolidated.safetensors").write_bytes(file_bytes(A))
    write_index(tmp_path, dict.fromkeys("ab", SECOND), {})
    refused(tmp_path, f"{SECOND} is missing; copy or download")


# --- saved twice -----------------------------------------------------------------------------


def test_pickled_weights_that_are_newer_are_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    pickled = folder / "pytorch_model-00001-of-00002.bin"
    pickled.touch()
    for age, count in ((-60, 0), (60, 1)):
        os.utime(pickled, (time.time() + age,) * 2)
        with open_checkpoint(folder) as checkpoint:
            assert sum("newer than the safetensors" in note for note in checkpoint.notes) == count


def test_times_of_a_download_tell_nothing(tmp_path: Path) -> None:
    """A repository that has both formats is downloaded in any order."""
    folder = save(tmp_path / "m", A)
    (folder / "pytorch_model.bin").touch()
    os.utime(folder / "pytorch_model.bin", (time.time() + 60,) * 2)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(".cache"))
    for place in (folder, snapshot):
        with open_checkpoint(place) as checkpoint:
            assert checkpoint.notes == ()


def test_loaders_that_disagree_are_named(tmp_path: Path) -> None:
    """Transformers reads the single file, vLLM what the index lists."""
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / SINGLE).write_bytes(file_bytes(A | B))
    assert f"{SINGLE}, which transformers reads" in refused(folder, "two checkpoints")
    assert files_of(folder / SINGLE) == [SINGLE]
    (folder / SINGLE).unlink()
    assert files_of(folder) == [FIRST, SECOND]


@pytest.mark.parametrize("other", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_other_weights_beside_the_model_are_not_read(tmp_path: Path, other: str) -> None:
    folder = save(tmp_path / "m", A)
    (folder / other).write_bytes(file_bytes(B))
    write_index(folder, {"b": FIRST}, {})
    (folder / INDEX).rename(folder / "model.safetensors.index.fp32.json")
    assert files_of(folder) == [SINGLE]
    sharded = save_sharded(tmp_path / "s", A, B)
    (sharded / other).write_bytes(file_bytes(B))
    assert files_of(sharded) == [FIRST, SECOND]


def test_what_macos_leaves_beside_files_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    (folder / "._weights.safetensors").write_bytes(b"\0\5\26\7Mac OS X")
    assert files_of(folder) == ["weights.safetensors"]


# --- an index that its shards do not bear out -------------------------------------------------


def test_an_entry_without_a_tensor(tmp_path: Path) -> None:
    base = save_sharded(tmp_path / "base", A, B)
    write_index(base, {"a": FIRST, "b": SECOND, "mtp.fc": SECOND}, {})
    with open_checkpoint(base) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert "mtp.fc" in checkpoint.oddities[0]
    prove(base, save(tmp_path / "tuned", TUNED_A | TUNED_B), tmp_path)
    with pytest.raises(CheckpointError, match="repair the index"):
        encode_delta(tmp_path / "tuned", base, tmp_path / "back")


def test_of_a_tensor_in_two_shards_the_index_decides(tmp_path: Path) -> None:
    other: Tensors = {"a": random_tensor(9, "BF16", 40, 30)}
    rest: Tensors = {"c": bf16_tensor(5, 40, 30)}
    base = save_sharded(tmp_path / "base", A | rest, other | B)
    for file, expected in ((FIRST, A["a"]), (SECOND, other["a"])):
        write_index(base, {"a": file, "b": SECOND, "c": FIRST}, {})
        with open_checkpoint(base) as checkpoint:
            assert read(checkpoint, "a") == expected.data
    prove(base, save(tmp_path / "tuned", TUNED_A | TUNED_B | rest), tmp_path)
    with pytest.raises(CheckpointError, match="two shards"):
        encode_delta(tmp_path / "tuned", base, tmp_path / "back")
    write_index(base, {"c": FIRST, "b": SECOND}, {})
    refused(base, f"'a': stands in {FIRST} and in {SECOND}")


def read(checkpoint: Checkpoint, name: str) -> bytes:
    tensor = checkpoint.tensors[name]
    return checkpoint.read(tensor, 0, tensor.nbytes).tobytes()


# --- other names for the index ---------------------------------------------------------------

NAMED = {
    "diffusers": (
        "diffusion_pytorch_model-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ),
    "variant": ("model.fp16-0000{}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
    "mistral": ("consolidated-0000{}-of-00002.safetensors", "consolidated.safetensors.index.json"),
}


def save_named(folder: Path, kind: str, *shards: Tensors) -> Path:
    pattern, index = NAMED[kind]
    save_sharded(folder, *shards)
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").rename(
            folder / pattern.format(number)
        )
    (folder / INDEX).unlink()
    weight_map = {n: pattern.format(k) for k, shard in enumerate(shards, 1) for n in shard}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", NAMED)
def test_the_only_index_counts_whatever_its_name(tmp_path: Path, kind: str) -> None:
    base = save_named(tmp_path / "base", kind, A, B)
    tuned = save_named(tmp_path / "tuned", kind, TUNED_A, TUNED_B)
    prove(base, tuned, tmp_path)
    assert not list((tmp_path / "delta").glob("*.safetensors"))


def test_two_indexes_of_other_names_are_named(tmp_path: Path) -> None:
    save_named(tmp_path / "m", "variant", A, B)
    save_named(tmp_path / "n", "mistral", A, B)
    for name, data in contents(tmp_path / "n").items():
        (tmp_path / "m" / name).write_bytes(data)
    refused(tmp_path / "m", "2 indexes, consolidated")


def test_diffusers_takes_the_file_of_its_own_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    (folder / SINGLE).rename(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(file_bytes(B))
    assert files_of(folder) == ["diffusion_pytorch_model.safetensors"]


# --- no safetensors --------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
NOT_WEIGHTS = {
    "pointer": (POINTER, "git lfs pull"),
    "page": (b"<!DOCTYPE html><html><body>Entry not found</body></html>", "text, not a"),
    "message": (b"Entry not found", "text, not a"),
    "pickle": (b"PK\x03\x04" + bytes(range(128, 160)), "pickled"),
    "gguf": (b"GGUF\x03\0\0\0\xff\xff\xff\xff" + bytes(24), "GGUF|cut short"),
    "short": (b"404", "too short.*download"),
    "zeros": (bytes(4096), "zeros, so it was not written to its end.*download"),
    "gzip": (b"\x1f\x8b" + bytes(range(30, 90)), "not a safetensors file.*download"),
    "cut": (file_bytes(A)[:100], "."),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_stands_in_for_weights_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    data, match = NOT_WEIGHTS[kind]
    folder = save(tmp_path / "m", A)
    (folder / SINGLE).write_bytes(data)
    refused(folder, match)


def test_a_pointer_to_an_index(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / INDEX).write_bytes(POINTER)
    refused(folder, "git-lfs pointer")


RANKS = {
    "verl": (["model_world_size_2_rank_0.pt", "huggingface/config.json"], "verl.model_merger"),
    "dcp": ([".metadata", "__0_0.distcp"], "accelerate merge-weights"),
    "trainer": (["pytorch_model_fsdp_0/__0_0.distcp", "config.json"], "accelerate merge-weights"),
    "deepspeed": (
        ["global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"],
        "zero_to_fp32.py",
    ),
    "megatron": (["iter_0000100/mp_rank_00/model_optim_rng.pt"], "Megatron"),
}


@pytest.mark.parametrize("kind", RANKS)
def test_the_parts_of_ranks_are_refused_with_what_merges_them(tmp_path: Path, kind: str) -> None:
    names, match = RANKS[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    refused(tmp_path, match, PickleRefusedError)
    if "/" not in names[0]:
        refused(tmp_path / names[0], match if names[0][0] != "." else ".", CheckpointError)


def test_folders_within_that_hold_weights_are_named(tmp_path: Path) -> None:
    for step in (100, 200):
        save(tmp_path / f"checkpoint-{step}", A)
    (tmp_path / "training_args.bin").touch()
    refused(tmp_path, "checkpoint-100/, checkpoint-200/")


def test_the_base_of_a_case_stays_the_base(tmp_path: Path) -> None:
    """A file by its path is read whatever the folder says."""
    folder = save_sharded(tmp_path / "m", A, B)
    encode_delta(folder, save(tmp_path / "t", TUNED_A | TUNED_B), tmp_path / "delta")
    assert verify_delta(tmp_path / "delta", base=folder).decoded

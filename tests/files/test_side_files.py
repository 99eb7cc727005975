"""The files beside the weights: what a model needs to load travels, and nothing that runs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from pairs import SINGLE, bf16_tensor, contents, file_bytes, prove, save, tune

from rlsparse_store.delta import apply_delta, encode_delta
from rlsparse_store.errors import CheckpointError, NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.copy import copy_source
from rlsparse_store.files.side_files import NO_RESUME, open_side_files

if TYPE_CHECKING:
    from pathlib import Path

    from pairs import Tensors

A: Tensors = {"a": bf16_tensor(1, 40, 30)}
TUNED: Tensors = {"a": tune(A["a"], 2)}

CARRIED = [
    "LICENSE",
    "LICENSE.txt",
    "README.md",
    "added_tokens.json",
    "additional_chat_templates/tool.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "modeling_own.py",
    "params.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.model.v3",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
]
SKIPPED = [
    "additional_chat_templates/evil.pt",
    "global_step5/",
    "model.fp16.safetensors",
    "optimizer.pt",
    "pytorch_model.bin",
    "rng_state.pth",
    "run.py",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_text("{}" if name.endswith(".json") else name)


def test_side_files_are_an_allow_list(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    fill(folder, [*CARRIED, *SKIPPED, ".gitattributes", ".git/config"])
    with open_checkpoint(folder) as checkpoint, open_side_files(checkpoint) as sides:
        assert sorted(sides.files) == sorted(CARRIED)
        assert sides.skipped == sorted(SKIPPED)
        for name, source in sides.files.items():
            assert copy_source(source, tmp_path / "out" / name) == source.nbytes
    assert {name: (folder / name).read_bytes() for name in CARRIED} == contents(tmp_path / "out")


def test_what_is_skipped_is_listed_and_training_state_is_said_to_be_lost(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", A), save(tmp_path / "tuned", TUNED)
    assert encode_delta(base, tuned, tmp_path / "plain").notes == []
    fill(tuned, SKIPPED)
    (tuned / SINGLE).touch()
    report = encode_delta(base, tuned, tmp_path / "delta")
    assert report.skipped_files == ["additional_chat_templates/", *sorted(SKIPPED)[1:]]
    assert report.notes == [NO_RESUME]


def test_a_large_file_and_a_folder_are_no_side_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    (folder / "config.json").mkdir()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate((256 << 20) + 1)
    (folder / "vocab.json").symlink_to(tmp_path / "nowhere")
    with open_checkpoint(folder) as checkpoint, open_side_files(checkpoint) as sides:
        assert not sides.files
        assert sides.skipped == ["config.json/", "tokenizer.json", "vocab.json"]
        assert any("tokenizer.json was not copied" in note for note in sides.notes)


def test_one_pattern_may_be_a_text(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    fill(folder, ["config.json", "notes.txt", "c"])
    with (
        open_checkpoint(folder) as checkpoint,
        open_side_files(checkpoint, "notes.txt", "config.json") as sides,
    ):
        assert list(sides.files) == ["notes.txt"]


# --- modules ---------------------------------------------------------------------------------

CODE = {
    "config.json": json.dumps({"auto_map": {"AutoModel": "modelling.Own", "X": "o/r--other.Y"}}),
    "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["tok.Slow", None]}}),
    "modelling.py": "from .layers import Layer\nif x:\n    from . import extra\n",
    "layers.py": "import os\ndef f():\n    from .deep.inner import thing\nclass Layer: ...\n",
    "deep/__init__.py": "",
    "deep/inner.py": "from ..shared import thing\nfrom ... import outside\n",
    "shared.py": "raise SystemExit('it was run')\n",
    "extra.py": "from .layers import *\n",
    "tok.py": "this is no Python",
}


def test_helper_modules_are_found_by_parsing(tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", TUNED)
    for name, text in {**CODE, "unrelated.py": "", "deep/other.py": "", "other.py": ""}.items():
        (tuned / name).parent.mkdir(exist_ok=True)
        (tuned / name).write_text(text)
    report = encode_delta(save(tmp_path / "base", A), tuned, tmp_path / "delta")
    assert report.carried_files == sorted(CODE)
    assert report.skipped_files == ["deep/other.py", "other.py", "unrelated.py"]
    apply_delta(tmp_path / "delta", tmp_path / "out", base=tmp_path / "base")
    assert {*contents(tmp_path / "out")} == {*CODE, SINGLE}


def sentence_transformer(folder: Path) -> Path:
    parts = ["", "1_Pooling", "2_Dense"]
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    kinds.append("custom_st.Dense")
    modules = [{"path": p, "type": k} for p, k in zip(parts, kinds, strict=True)]
    (folder / "modules.json").write_text(json.dumps(modules))
    fill(folder, ["custom_st.py", "1_Pooling/config.json", "2_Dense/config.json"])
    return folder


def test_the_modules_of_sentence_transformers_come_back(tmp_path: Path) -> None:
    base = save(tmp_path / "base", A)
    tuned = sentence_transformer(save(tmp_path / "tuned", TUNED))
    (tuned / "2_Dense" / SINGLE).write_bytes(file_bytes(A))
    prove(base, tuned, tmp_path)


def test_a_pickled_module_is_named(tmp_path: Path) -> None:
    tuned = sentence_transformer(save(tmp_path / "tuned", TUNED))
    (tuned / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    report = encode_delta(save(tmp_path / "base", A), tuned, tmp_path / "delta")
    assert report.skipped_files == ["2_Dense/pytorch_model.bin"]
    assert any("2_Dense/pytorch_model.bin was not copied" in note for note in report.notes)


# --- opened with the weights -----------------------------------------------------------------


@pytest.mark.parametrize("names", [["config.json", "tokenizer.json"], []])
def test_a_folder_deleted_while_it_is_read(tmp_path: Path, names: list[str]) -> None:
    base, tuned = save(tmp_path / "base", A), save(tmp_path / "tuned", TUNED)
    fill(tuned, names)

    def delete(done: int, total: int) -> None:
        del done, total
        shutil.rmtree(tuned, ignore_errors=True)

    encode_delta(base, tuned, tmp_path / "delta", progress=delete)
    assert {*names} <= {*contents(tmp_path / "delta")}


def test_a_folder_deleted_while_it_is_opened(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    fill(folder, ["config.json"])
    with open_checkpoint(folder) as checkpoint:
        shutil.rmtree(folder)
        with pytest.raises(CheckpointError, match="removed or moved"):
            open_side_files(checkpoint)


def test_a_side_file_written_to_meanwhile_is_an_error(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", A), save(tmp_path / "tuned", TUNED)
    fill(tuned, ["config.json"])

    def write(done: int, total: int) -> None:
        del done, total
        (tuned / "config.json").write_text("something longer")

    with pytest.raises(Exception, match="was changed"):
        encode_delta(base, tuned, tmp_path / "delta", progress=write)
    assert not (tmp_path / "delta").exists()


def test_a_pointer_among_the_side_files_is_named(tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", TUNED)
    (tuned / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    report = encode_delta(save(tmp_path / "base", A), tuned, tmp_path / "delta")
    assert report.notes == ["tokenizer.json is a git-lfs pointer, not the file itself"]


# --- by name ---------------------------------------------------------------------------------


def test_include_and_exclude(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", A), save(tmp_path / "tuned", TUNED)
    fill(tuned, ["config.json", "trainer_state.json", "chat_template.jinja", "optimizer.pt"])
    options = {"include": ["trainer_state.json"], "exclude": ["*.jinja"]}
    report = encode_delta(base, tuned, tmp_path / "delta", **options)  # type: ignore[arg-type]
    assert report.carried_files == ["config.json", "trainer_state.json"]
    apply_delta(tmp_path / "delta", tmp_path / "out", base=base)
    assert (tmp_path / "out" / "trainer_state.json").exists()
    with pytest.raises(NotFoundError, match="--include names it"):
        encode_delta(base, tuned, tmp_path / "d2", include=["nothing.json"])
    with pytest.raises(CheckpointError, match="only text"):
        encode_delta(base, tuned, tmp_path / "d3", include=["optimizer.pt"])

"""The command line in real processes: text, JSON, exit codes, one-line errors, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pairs import (
    INDEX,
    SINGLE,
    Tensor,
    Tensors,
    bf16_tensor,
    contents,
    file_bytes,
    save,
    tune,
    write_index,
)

import rlsparse_store
from rlsparse_store.delta import encode_delta
from rlsparse_store.delta.open import open_delta
from rlsparse_store.errors import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = ("encode", "apply", "verify", "inspect", "demo")
KEYS = {"elements", "changed", "density"}
BOMB = b"cposix\n_exit\n(I66\ntR."  # unpickling this ends the process with exit code 66
HOSTILE = "evil\x1b[31m\n\u202egnp"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
STEP_LABELS = ["-1", "-2", "-3", "<=-4", "+1", "+2", "+3", ">=+4"]


def environment(*first: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(map(str, first))
    return {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath} | more


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)]


def run(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=env or environment(),
        cwd=cwd,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=60,
    )


def succeed(*arguments: str | Path) -> str:
    """Run a command that succeeds without output on standard error."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def succeed_json(*arguments: str | Path) -> dict[str, Any]:
    value = json.loads(succeed(*arguments, "--json"))
    assert isinstance(value, dict)
    return value


def fail(code: int, *arguments: str | Path) -> str:
    """Run a command that fails, and return its one-line error."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("rlsparse: ")
    assert done.stderr.endswith("\n")
    assert len(done.stderr.splitlines()) == 1
    assert not RAW.search(done.stderr)
    return done.stderr


@dataclass(frozen=True)
class Pair:
    """A pair, its delta, and the output of encode."""

    base: Path
    tuned: Path
    delta: Path
    report: dict[str, Any]
    tensors: tuple[Tensors, Tensors]


def small_tensors() -> tuple[Tensors, Tensors]:
    base = {
        "model.embed_tokens.weight": bf16_tensor(1, 100, 64),
        "model.layers.0.mlp.up_proj.weight": bf16_tensor(2, 64, 48),
        "model.norm.weight": bf16_tensor(3, 64),
    }
    tuned = {name: tune(t, 9) if "norm" not in name else t for name, t in base.items()}
    return base, tuned


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    tensors = small_tensors()
    base, tuned = save(root / "base", tensors[0]), save(root / "tuned", tensors[1])
    for folder in (base, tuned):
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (tuned / "training_args.bin").write_bytes(BOMB)
    (tuned / "optimizer.pt").write_bytes(BOMB)
    report = succeed_json("encode", base, tuned, "-o", root / "delta")
    return Pair(base, tuned, root / "delta", report, tensors)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """An empty output folder; asserts that no temporary folder remains."""
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    assert not list((tmp_path / "work").glob(".*"))


def damaged(pair: Pair, folder: Path, position: float, *, cut: bool = False) -> Path:
    """Copy the delta with a bit flipped, or truncated, at a relative position."""
    copy = Path(shutil.copytree(pair.delta, folder))
    file = copy / "rlsparse" / "delta.safetensors"
    data = bytearray(file.read_bytes())
    place = int(position * (len(data) - 1))
    data[place] ^= 1
    file.write_bytes(data[:place] if cut else data)
    return copy


# Success -------------------------------------------------------------------------------------


def brute_force(base: Tensor, tuned: Tensor) -> dict[str, Any]:
    old, new = (
        np.where(w < 1 << 15, w, (1 << 15) - w)
        for w in (t.words(np.uint16).astype(int) for t in (base, tuned))
    )
    moved = (new - old)[new != old]
    steps = [int((moved == -k).sum()) for k in (1, 2, 3)] + [int((moved <= -4).sum())]
    steps += [int((moved == k).sum()) for k in (1, 2, 3)] + [int((moved >= 4).sum())]
    return {
        "elements": new.size,
        "changed": moved.size,
        "density": moved.size / new.size,
        "steps": steps,
    }


def test_json_of_encode_equals_brute_force(pair: Pair) -> None:
    report, (base, tuned) = pair.report, pair.tensors
    assert report["schema_version"] == 1
    assert report["step_labels"] == STEP_LABELS
    found = {t["name"]: t for t in report["tensors"]}
    assert list(found) == sorted(tuned)
    expected = {name: brute_force(base[name], tuned[name]) for name in tuned}
    for name, numbers in expected.items():
        assert {key: found[name][key] for key in numbers} == numbers
    changed = sum(numbers["changed"] for numbers in expected.values())
    elements = sum(numbers["elements"] for numbers in expected.values())
    delta_bytes = sum(file.stat().st_size for file in (pair.delta / "rlsparse").iterdir())
    assert changed > 100
    assert (report["changed"], report["elements"]) == (changed, elements)
    assert report["density"] == changed / elements
    assert report["delta_bytes"] == delta_bytes
    assert report["bits_per_changed"] == 8 * delta_bytes / changed
    assert report["tuned_bytes"] == 2 * elements


def test_inspect_of_delta_and_of_pair_agree_with_encode(pair: Pair) -> None:
    of_pair = succeed_json("inspect", pair.base, pair.tuned)
    assert of_pair.pop("values")["changed"] == pair.report["changed"]
    assert of_pair == pair.report
    report = succeed_json("inspect", pair.delta)
    assert report == {key: pair.report[key] for key in report}
    assert report.keys() >= KEYS | {"schema_version", "bits_per_changed", "delta_bytes"}
    assert all(tensor.keys() >= KEYS for tensor in report["tensors"])


def test_pickled_extras_are_listed_and_not_copied(pair: Pair) -> None:
    assert pair.report["skipped_files"] == ["optimizer.pt", "training_args.bin"]
    assert pair.report["carried_files"] == ["config.json", "tokenizer.json"]
    files = {"config.json", "tokenizer.json", "rlsparse/delta.safetensors"}
    assert set(contents(pair.delta)) == files


def test_text_of_encode_agrees_with_json(pair: Pair, work: Path) -> None:
    text = succeed("encode", pair.base, pair.tuned, "-q", "-o", work / "delta")
    assert text.startswith(f"wrote {work / 'delta'}\n")
    assert f"{pair.report['changed']:,} of {pair.report['elements']:,} weights changed" in text
    assert "skipped: optimizer.pt, training_args.bin\n" in text
    assert "copied: config.json, tokenizer.json\n" in text
    assert contents(work / "delta") == contents(pair.delta)


def test_text_of_inspect_has_every_table(pair: Pair) -> None:
    text = succeed("inspect", pair.delta)
    for part in ("Steps", "By layer", "By kind of module", "By tensor", *pair.tensors[1]):
        assert part in text
    assert f"{pair.report['changed']:,} of {pair.report['elements']:,} weights changed" in text


@pytest.mark.parametrize("extra", [["--json"], []])
def test_apply_gives_the_same_files(pair: Pair, work: Path, extra: list[str]) -> None:
    text = succeed("apply", pair.delta, "--base", pair.base, "-o", work / "out", *extra)
    if extra:
        report = json.loads(text)
        assert (report["files"], report["tensors"]) == ([SINGLE], 3)
        assert report["tuned_digest"] == pair.report["tuned_digest"]
    else:
        assert text.startswith(f"wrote {work / 'out'}\n")
    expected = contents(pair.tuned)
    del expected["optimizer.pt"], expected["training_args.bin"]
    assert contents(work / "out") == expected


def test_verify_reports_its_checks(pair: Pair) -> None:
    both = ("--base", pair.base, "--tuned", pair.tuned)
    report = succeed_json("verify", pair.delta, *both)
    assert (report["base_checked"], report["decoded"], report["tuned_checked"]) == (True,) * 3
    assert succeed_json("verify", pair.delta)["decoded"] is False
    assert succeed("verify", pair.delta, *both).startswith("ok\n")


def test_version() -> None:
    assert rlsparse_store.__version__ in succeed("--version")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_no_large_library(name: str) -> None:
    whole = [*command(), *([name] if name else []), "--help"]
    whole[1:1] = ["-X", "importtime"]
    done = subprocess.run(whole, env=environment(), capture_output=True, check=True, text=True)
    assert done.stdout.startswith(f"Usage: rlsparse {name}".rstrip())
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "rlsparse_store" in loaded
    assert not loaded & {"torch", "transformers", "matplotlib", "huggingface_hub"}


# Progress ------------------------------------------------------------------------------------


def on_terminal(*arguments: str | Path, columns: int = 80, only_errors: bool = True) -> str:
    """Run a command on a terminal, or only its standard error; return what the terminal got."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, columns))
    stdout = subprocess.DEVNULL if only_errors else side
    with subprocess.Popen(
        command(*arguments), env=environment(), stdout=stdout, stderr=side
    ) as process:
        os.close(side)
        text = b""
        try:
            while part := os.read(main, 1000):
                text += part
        except OSError:  # Linux reports the end of a terminal as an error
            pass
        finally:
            os.close(main)
        assert process.wait(60) == 0
    return text.decode()


def test_progress_is_shown_on_a_terminal_and_cleared(pair: Pair, work: Path) -> None:
    text = on_terminal("encode", pair.base, pair.tuned, "-o", work / "delta")
    assert "\rencode: " in text
    assert text.rpartition("\r")[0].rpartition("\r")[2].strip() == ""


def test_quiet_shows_no_progress(pair: Pair, work: Path) -> None:
    assert on_terminal("encode", pair.base, pair.tuned, "-q", "-o", work / "delta") == ""


@pytest.mark.parametrize("columns", [60, 200])
def test_tables_fit_the_terminal(pair: Pair, columns: int) -> None:
    text = on_terminal("inspect", "-q", pair.delta, columns=columns, only_errors=False)
    lines = text.splitlines()
    assert max(map(len, lines[lines.index("By tensor") :])) <= columns
    whole = succeed("inspect", pair.delta)
    assert text.split() == whole.split(), "nothing is left out"
    assert (lines == whole.splitlines()) == (columns == 200)


# Failure -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ([], "Commands:"),
        (["encode", "a", "b", "--out", "c", "--frobnicate"], "--frobnicate"),
        (["encode", "a", "b"], "--out"),
        (["inspect", "a", "b", "c"], "DELTA"),
        (["encode", "a", "b", "-o", "c", "--cast", "fp8"], "bf16"),
        (["verify", "a", "--threads", "0"], "--threads"),
        (["encode", "a", "b", "-o", ""], "variable"),
        (["encode", "a", "b", "--out="], "--out= is empty"),
        (["encode", "a", "b", "-o", "c", "--device", "mars"], "'mars' is not a device"),
        (["inspect", "delta", "--json", "--csv"], "--json and --csv exclude each other"),
        (["mask", "a", "-o", "b", "--tolerance", "nan"], "--tolerance"),
        (["mask", "a", "-o", "b", "--tolerance", "-1"], "--tolerance"),
        (["mask", "a", "-o", "b", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_usage(arguments: list[str], remedy: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_apply_without_base_names_the_remedy(pair: Pair, work: Path) -> None:
    done = run("apply", pair.delta, "-o", work / "out")
    assert done.returncode == 4
    assert done.stderr.endswith("give the base (--base BASE, or base=)\n")
    assert contents(work) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "{base}", "{nowhere}", "-o", "{out}"],
        ["encode", "{nowhere}", "{tuned}", "-o", "{out}"],
        ["apply", "{nowhere}", "-b", "{base}", "-o", "{out}"],
        ["apply", "{delta}", "-b", "{nowhere}", "-o", "{out}"],
        ["verify", "{nowhere}"],
        ["verify", "{delta}", "-t", "{nowhere}"],
        ["inspect", "{nowhere}"],
        ["inspect", "{base}", "{nowhere}"],
    ],
)
def test_missing_path(pair: Pair, work: Path, arguments: list[str]) -> None:
    places = {"base": pair.base, "tuned": pair.tuned, "delta": pair.delta}
    places |= {"nowhere": work / "nowhere", "out": work / "out"}
    line = fail(4, *(part.format_map(places) for part in arguments))
    assert str(work / "nowhere") in line
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("path", ["/dev/null", "x" * 300])
def test_unusable_path(pair: Pair, path: str) -> None:
    assert path in fail(1, "inspect", pair.base, path)
    fail(1 if len(path) > 255 else 4, "inspect", path)


def test_folder_of_deltas_is_rejected_as_delta(pair: Pair, work: Path) -> None:
    line = fail(4, "apply", pair.delta.parent, "-b", pair.base, "-o", work / "out")
    assert line.endswith(f"by --subfolder, such as {pair.delta.name}\n")
    assert "so it is no delta" in fail(4, "inspect", pair.base)
    for part in ("rlsparse", "rlsparse/delta.safetensors", "config.json"):
        line = fail(4, "inspect", pair.delta / part)
        assert line.endswith(f"is a part of the delta {pair.delta}: give that folder\n")


def test_delta_is_rejected_as_checkpoint(pair: Pair, work: Path) -> None:
    line = fail(1, "encode", pair.base, pair.delta, "-o", work / "out")
    assert "is a delta, not a tuned checkpoint; rebuild" in line


def test_a_tuned_checkpoint_that_is_too_large_is_refused_before_it_is_written(
    pair: Pair, work: Path
) -> None:
    nbytes = sum(len(tensor.data) for tensor in pair.tensors[1].values())
    for words in (("apply", pair.delta, "-o", work / "out"), ("verify", pair.delta)):
        bounded = (*words, "--base", pair.base, "-q", "--max-tuned-bytes")
        message = fail(1, *bounded, str(nbytes - 1))
        assert f"takes {nbytes} bytes, more than {nbytes - 1}" in message
        assert not (work / "out").exists() or words[0] == "verify"
        succeed(*bounded, str(nbytes))
    with open_delta(pair.delta, base=pair.base, max_tuned_bytes=nbytes) as opened:
        assert len(opened) == len(pair.tensors[1])
    with pytest.raises(TooLargeError, match="max_tuned_bytes"):
        open_delta(pair.delta, base=pair.base, max_tuned_bytes=nbytes - 1)


def test_wrong_base(pair: Pair, work: Path) -> None:
    line = fail(3, "apply", pair.delta, "-b", pair.tuned, "-o", work / "out")
    assert str(pair.tuned) in line
    assert "'model.embed_tokens.weight'" in line
    assert list(work.iterdir()) == []
    fail(3, "verify", pair.delta, "-b", pair.tuned)


def test_verify_with_another_checkpoint(pair: Pair) -> None:
    line = fail(3, "verify", pair.delta, "-t", pair.base)
    assert str(pair.base) in line
    assert "'model.embed_tokens.weight'" in line


@pytest.mark.parametrize("position", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_delta(pair: Pair, tmp_path: Path, work: Path, position: float, cut: bool) -> None:  # noqa: FBT001
    copy = damaged(pair, tmp_path / "copy", position, cut=cut)
    line = fail(3, "apply", copy, "-b", pair.base, "-o", work / "out")
    assert str(copy / "rlsparse") in line
    assert list(work.iterdir()) == []
    fail(3, "verify", copy)


def test_existing_output_is_not_overwritten(pair: Pair, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "precious").write_text("mine")
    line = fail(1, "encode", pair.base, pair.tuned, "-o", work / "out")
    assert str(work / "out") in line
    assert "choose another place" in line
    fail(1, "apply", pair.delta, "-b", pair.base, "-o", work / "out")
    assert contents(work) == {"out/precious": b"mine"}


def test_base_without_shared_tensor_gives_a_warning(pair: Pair, tmp_path: Path, work: Path) -> None:
    other = save(tmp_path / "other", {"another": bf16_tensor(9, 40)})
    assert "warning: has no tensor with a name and shape of the base" in succeed(
        "encode", pair.base, other, "-o", work / "o"
    )
    assert "warning" not in succeed("encode", pair.base, pair.tuned, "-o", work / "out")


def test_empty_output_folder_is_accepted(pair: Pair, work: Path) -> None:
    (work / "out").mkdir()
    succeed("encode", pair.base, pair.tuned, "-o", work / "out")
    assert contents(work / "out") == contents(pair.delta)


def test_float32_over_bfloat16(pair: Pair, tmp_path: Path, work: Path) -> None:
    values = np.random.default_rng(7).normal(0, 1, (100, 64)).astype(np.float32)
    wide = {"model.embed_tokens.weight": Tensor("F32", (100, 64), values.tobytes())}
    tuned = save(tmp_path / "wide", pair.tensors[1] | wide)
    line = fail(1, "encode", pair.base, tuned, "-o", work / "new" / "out")
    for part in (str(tuned), "'model.embed_tokens.weight'", "--cast bf16", "--keep-dtype"):
        assert part in line
    assert not (work / "new" / "out").exists()
    assert not list((work / "new").glob(".*"))
    succeed("encode", pair.base, tuned, "-o", work / "whole", "--keep-dtype")
    assert "lossy" in succeed("encode", pair.base, tuned, "-o", work / "cast", "--cast", "bf16")


def test_pickled_weights_are_refused(pair: Pair, tmp_path: Path, work: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(BOMB)
    line = fail(1, "encode", pair.base, tmp_path / "old", "-o", work / "out")
    assert str(tmp_path / "old") in line
    assert "save_pretrained" in line
    fail(1, "encode", pair.base, tmp_path / "old" / "pytorch_model.bin", "-o", work / "out")
    assert list(work.iterdir()) == []


def test_demo_without_torch_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError('blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    done = run("demo", "-o", tmp_path / "out", env=environment(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "pip install '.[demo]'" in done.stderr
    assert not (tmp_path / "out").exists()


# Hostile names -------------------------------------------------------------------------------


def test_hostile_tensor_name_in_a_checkpoint(pair: Pair, tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", {HOSTILE: bf16_tensor(1, 8)})
    line = fail(1, "inspect", pair.base, tuned)
    assert str(tuned / SINGLE) in line
    assert "evil" in line


def test_invisible_marks_in_a_tensor_name_are_escaped(pair: Pair, tmp_path: Path) -> None:
    # Line separator, right-to-left mark, Arabic letter mark: the format allows them in names.
    tuned = save(tmp_path / "tuned", {"a\u2028b\u200fc\u061cd": bf16_tensor(1, 8)})
    assert not re.search("[\u2028\u200f\u061c]", succeed("inspect", pair.base, tuned))


def test_hostile_file_name_in_an_index(pair: Pair, tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", pair.tensors[1])
    name = f"../{HOSTILE}.safetensors"
    (tuned / SINGLE).unlink()
    (tuned / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(pair.tensors[1], name)}))
    assert str(tuned / INDEX) in fail(1, "inspect", pair.base, tuned)


def test_hostile_tensor_name_in_a_delta(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsparse_store.format.names._UNSAFE", re.compile("(?!)"))
    tuned = save(tmp_path / "tuned", {HOSTILE: bf16_tensor(1, 8)})
    encode_delta(pair.base, tuned, tmp_path / "delta")
    for arguments in (["inspect"], ["verify"], ["inspect", "--json"]):
        assert str(tmp_path / "delta") in fail(3, *arguments, tmp_path / "delta")


def test_hostile_names_of_side_files_and_outputs(pair: Pair, tmp_path: Path) -> None:
    tuned = save(tmp_path / HOSTILE, pair.tensors[1])
    (tuned / (HOSTILE + ".bin")).write_bytes(BOMB)
    (tuned / os.fsdecode(b"\xff.bin")).write_bytes(BOMB)
    for arguments in (["encode", "-o", tmp_path / (HOSTILE + "delta")], ["inspect"]):
        text = succeed(*arguments, pair.base, tuned)
        assert ("skipped" in text) == (arguments[0] == "encode")
        assert not RAW.search(text)


# Standard output -----------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["--json"], ["--csv"]])
def test_broken_pipe_is_quiet(pair: Pair, extra: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # so that the very first write meets a broken pipe
    whole = command("inspect", pair.delta, *extra)
    try:
        done = subprocess.run(
            whole, env=environment(), stdout=write, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode != 0


def test_output_to_head(pair: Pair) -> None:
    whole = f"'{sys.executable}' -P -m rlsparse_store inspect '{pair.delta}' | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", whole], env=environment(), capture_output=True, check=True, text=True
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["push", "--help"],
        ["inspect", "{delta}"],
        ["inspect", "{delta}", "--json"],
        ["inspect", "{delta}", "--csv"],
        ["encode", "{base}", "{tuned}", "-o", "{out}"],
    ],
    ids=" ".join,
)
def test_full_standard_output_is_reported(
    pair: Pair, work: Path, arguments: list[str], unbuffered: str
) -> None:
    places = {"base": pair.base, "tuned": pair.tuned, "delta": pair.delta, "out": work / "out"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(*(part.format_map(places) for part in arguments)),
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
    stderr = "rlsparse: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, stderr)
    if "encode" in arguments:
        assert contents(work / "out") == contents(pair.delta)


def test_closed_standard_output_is_no_error(pair: Pair) -> None:
    whole = f"'{sys.executable}' -P -m rlsparse_store inspect '{pair.delta}' >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", whole], env=environment(), capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(pair: Pair, work: Path, closed: str) -> None:
    """The delta's files do not get their descriptors."""
    arguments = f"encode '{pair.base}' '{pair.tuned}' -o '{work / 'delta'}' {closed}"
    whole = f"'{sys.executable}' -P -m rlsparse_store {arguments}"
    done = subprocess.run(["/bin/sh", "-c", whole], env=environment(), check=False)
    assert done.returncode == 0
    succeed("verify", work / "delta", "--base", pair.base)


def test_many_shards_are_open_at_once(tmp_path: Path) -> None:
    """The soft limit of macOS is 256 files, and some checkpoints have over a thousand."""
    for side, density in (("base", 0.0), ("tuned", 0.3)):
        (tmp_path / side).mkdir()
        names = {f"t{n}": f"model-{n + 1:05}-of-00060.safetensors" for n in range(60)}
        for n, name in enumerate(names):
            tensors = {name: tune(bf16_tensor(n, 40), n, density)}
            (tmp_path / side / names[name]).write_bytes(file_bytes(tensors))
        write_index(tmp_path / side, names, {})
    whole = f"ulimit -Sn 64; '{sys.executable}' -P -m rlsparse_store encode base tuned -o delta"
    done = subprocess.run(
        ["/bin/sh", "-c", whole],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("~/base", "did you mean {home}/base?"),
        ("file:///models/base", "give its path, /models/base"),
        ("https://huggingface.co/org/name", "for the repository on the Hub write org/name"),
        ("https://huggingface.co/org/name/tree/v2", "on the Hub write org/name@v2"),
        ("models/org/name", "on the Hub write org/name"),
        ("hf://org/name/", "on the Hub write org/name"),
        ("ftp://host/base", "a URL that is not read; give a folder"),
    ],
)
def test_a_place_in_other_words_names_the_right_ones(
    pair: Pair, work: Path, place: str, remedy: str
) -> None:
    home = work / "home"
    (home / "base").mkdir(parents=True)
    done = run("encode", place, pair.tuned, "-o", work / "d", env=environment(HOME=str(home)))
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert remedy.format(home=home) in done.stderr


@pytest.mark.parametrize("more", [[], ["--run"]])
def test_a_home_that_the_shell_left_is_no_folder(pair: Pair, work: Path, more: list[str]) -> None:
    arguments: list[str | Path] = ["encode", pair.base, pair.tuned, "--out=~/delta", *more]
    done = run(*arguments, env=environment(HOME=str(work)), cwd=work)
    assert done.returncode == 1
    assert f"give {work / 'delta'}" in done.stderr
    assert not list(work.iterdir())


def test_output_in_ascii_is_no_error(pair: Pair) -> None:
    done = run("inspect", pair.delta, env=environment(PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")


# Signals -------------------------------------------------------------------------------------

# A test run in the background may have been started with SIGINT ignored, which is inherited.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
ENCODE = LISTEN + "from rlsparse_store.cli import main; main()"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A pair of 64 MiB checkpoints that repeat one tile."""
    root = tmp_path_factory.mktemp("large")
    tile = bf16_tensor(1, 1 << 10, 1 << 10)
    other = tune(tile, 2, density=0.05)
    for name, part in (("base", tile), ("tuned", other)):
        tensors = {f"layers.{n}.weight": part for n in range(32)}
        (root / name).mkdir()
        (root / name / SINGLE).write_bytes(file_bytes(tensors))
    yield root / "base", root / "tuned"
    shutil.rmtree(root)


def wait_for_temporary(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not list(folder.glob(".*.tmp-*")):
        assert process.poll() is None, "it ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "code", "stderr"),
    [(signal.SIGINT, 130, "rlsparse: interrupted"), (signal.SIGTERM, 143, "")],
)
def test_signal_leaves_nothing_behind(
    large: tuple[Path, Path], work: Path, number: signal.Signals, code: int, stderr: str
) -> None:
    whole = [sys.executable, "-P", "-c", ENCODE, "encode", *map(str, large)]
    # One thread: on a busy machine, two may be done before the signal arrives.
    whole += ["-o", str(work / "delta"), "--threads", "1"]
    with subprocess.Popen(
        whole,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_temporary(work, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (code, "", stderr)
    assert list(work.iterdir()) == []


LOSE = """
import signal, sys, time, weakref
from rlsparse_store.cli.signals import end_in_order

class Watched:
    pass

end_in_order()
try:
    watched = Watched()
    callback = weakref.ref(watched, lambda _: signal.raise_signal(int(sys.argv[1])))
    del watched  # the callback runs here, and no exception leaves it
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pass
    print("it went on")
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize(
    ("number", "code", "stderr"),
    [(signal.SIGINT, 130, "rlsparse: interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_signal_in_a_destructor_is_not_lost(number: signal.Signals, code: int, stderr: str) -> None:
    whole = [sys.executable, "-P", "-c", LISTEN + LOSE, str(int(number))]
    done = subprocess.run(whole, env=environment(), capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", stderr)

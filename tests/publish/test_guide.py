"""The guide to publishing, from top to bottom, against a Hub on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.delta import inspect_run

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

GUIDE = Path(__file__).parents[2] / "specs/guides/publishing.md"
BASE = {"a": bf16_tensor(0, 300, 200), "still": bf16_tensor(1, 200, 100)}
RUN = "me/qwen2.5-7b-grpo-run"


def save_checkpoint(place: Path, step: int) -> None:
    """Save a checkpoint as a trainer does, with a reward."""
    save(place, {**BASE, "a": tune(BASE["a"], step)})
    (place / "config.json").write_text("{}")
    log = [{"step": step, "reward": step / 1000}]
    state = {"global_step": step, "log_history": log}
    (place / "trainer_state.json").write_text(json.dumps(state))


def test_the_guide(tmp_path: Path, hub: LoopbackHub) -> None:
    work = tmp_path / "work"
    hub.commit("Qwen/Qwen2.5-7B", contents(save(tmp_path / "base", BASE)))
    for step in (200, 400):
        save_checkpoint(work / f"checkpoint-{step}", step)
    save_checkpoint(work / "more" / "checkpoint-600", 600)
    blocks = re.findall(r"(?:^    rlsparse [^\n]*\n)+", GUIDE.read_text(), re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        run_block(textwrap.dedent(block), work, hub, tmp_path / "home")
        if "more/checkpoint" in block:
            assert len(hub.repos[RUN].commits) == 3, "one commit each"
            rebuilt = contents(work / "REBUILT")
            assert (
                rebuilt["model.safetensors"]
                == (work / "more/checkpoint-600/model.safetensors").read_bytes()
            )
    pulled = [entry.folder for entry in inspect_run(work / "PULLED-RUN").deltas]
    assert pulled == ["checkpoint-200-again", "checkpoint-400", "checkpoint-600"]
    assert [entry.folder for entry in inspect_run(work / "BEST").deltas] == ["checkpoint-600"]


def run_block(block: str, work: Path, hub: LoopbackHub, home: Path) -> None:
    """Run the lines of a shell, each of which must succeed."""
    command = f'rlsparse() {{ "{sys.executable}" -P -m rlsparse_store "$@"; }}\nset -e\n{block}'
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        env={"PATH": "/usr/bin:/bin", **hub.environment(home)},
        cwd=work,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"

"""The integration with vLLM, as far as it goes without vLLM, and whether it was run with it.

Real engines run in ``tools/engines/vllm_matrix.py``, whose result is committed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pairs import bf16_tensor, save, tune

from rlsparse_store import encode_delta, encode_run, open_delta
from rlsparse_store.delta.open import DeltaCheckpoint
from rlsparse_store.errors import BaseMismatchError, FormatError, NotFoundError
from rlsparse_store.integrations.vllm import walk
from rlsparse_store.integrations.vllm.verified import forget_all, verify_once

if TYPE_CHECKING:
    from pathlib import Path


def test_vllm_finds_the_plugin_and_importing_the_integration_loads_no_vllm() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins", name="rlsparse")
    assert {point.value for point in points} == {"rlsparse_store.integrations.vllm.plugin:register"}
    program = (
        "import sys, rlsparse_store.integrations.vllm.plugin, rlsparse_store.integrations.vllm\n"
        "sys.exit(bool({'vllm', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_a_delta_is_verified_once_for_each_version_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"w": bf16_tensor(1, 64, 64)}
    folder, delta = save(tmp_path / "base", base), tmp_path / "delta"
    encode_delta(folder, save(tmp_path / "tuned", {"w": tune(base["w"], 1)}), delta)
    done: list[DeltaCheckpoint] = []
    verify = DeltaCheckpoint.verify

    def note(tuned: DeltaCheckpoint) -> None:
        verify(tuned)
        done.append(tuned)

    monkeypatch.setattr(DeltaCheckpoint, "verify", note)
    forget_all()

    def open_verified() -> None:
        with open_delta(delta, base=folder, framework="bits") as tuned:
            verify_once(tuned)

    open_verified()
    open_verified()
    assert len(done) == 1
    file = next((delta / "rlsparse").glob("*.safetensors"))
    stored = file.read_bytes()
    damaged = bytearray(stored)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    for _ in range(2):  # what failed is not remembered
        with pytest.raises(FormatError):
            open_verified()
    file.write_bytes(stored)
    open_verified()
    shutil.rmtree(folder)
    save(folder, {"w": tune(base["w"], 2)})
    with pytest.raises(BaseMismatchError):
        open_verified()
    assert len(done) == 2


class Engine:
    """Notes what is called; what these calls do in an engine is checked with real ones."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        self.calls.append((method, *args))

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")


def test_walk_visits_steps_in_order_and_names_what_is_missing(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(1, 64, 64)}
    steps = [2, 10, 9]
    for step in steps:
        save(tmp_path / f"step-{step}", {"w": tune(base["w"], step)})
    run = tmp_path / "run"
    encode_run(save(tmp_path / "base", base), [tmp_path / f"step-{n}" for n in steps], run)
    engine = Engine()
    assert [name for name, _ in walk(engine, run)] == ["step-2", "step-9", "step-10"]
    assert engine.calls[1:5] == [
        ("start_weight_update",),
        ("update_weights", {"place": str(run / "step-2")}),
        ("finish_weight_update",),
        "reset_prefix_cache",
    ]
    assert [name for name, _ in walk(engine, run, only=["step-10"])] == ["step-10"]
    with pytest.raises(NotFoundError, match="no checkpoint step-11"):
        next(walk(engine, run, only=["step-11"]))
    with pytest.raises(NotFoundError, match="holds no delta"):
        next(walk(engine, tmp_path / "base"))

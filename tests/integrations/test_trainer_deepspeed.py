"""Trainers whose checkpoints are deltas, with DeepSpeed on two ranks."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from models import moe, small_llama

pytestmark = pytest.mark.skipif(
    not (find_spec("deepspeed") and find_spec("trl")),
    reason="needs DeepSpeed and TRL, which the extra for tests installs",
)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero(tmp_path: Path, stage: int) -> None:
    # ZeRO 3 splits fused experts. ZeRO 1 and 2 save two copies of tied weights.
    model = moe() if stage == 3 else small_llama(tied=True)
    model.save_pretrained(tmp_path / "base")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[1] / "support" / "deepspeed_ranks.py"
    command = [sys.executable, str(script), str(tmp_path), str(stage), str(port)]
    subprocess.run(command, check=True, timeout=900)

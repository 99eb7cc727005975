"""The kernels, which never ran on a GPU, run on one only where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from pairs import bf16_tensor, save

from rlsparse_store.frameworks.torch import VARIABLE, Torch, runs_kernels
from rlsparse_store.torch import DeltaEncoder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("value", "runs"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_a_variable_asks_for_decoding(
    monkeypatch: pytest.MonkeyPatch, value: str | None, *, runs: bool
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert runs_kernels(torch.device("cuda:0")) == runs
    assert (Torch("cuda:0").device is not None) == runs
    assert not runs_kernels(torch.device("cpu"))


def test_a_device_asks_for_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(tmp_path / "base", {"w": bf16_tensor(0, 10, 10)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(VARIABLE, "1")
    with DeltaEncoder(base) as encoder:
        assert "device='cpu'" in repr(encoder)

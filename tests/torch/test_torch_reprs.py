"""Reprs: one short line, without tensors and secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pairs import bf16_tensor, save, tune
from safetensors.torch import load_file

from rlsparse_store.delta import encode_delta
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.torch import DeltaEncoder, DeltaSwitch, DeviceCoder, Mask, freeze_outside

if TYPE_CHECKING:
    from pathlib import Path


def mask(digest: str | None = None) -> Mask:
    return Mask({"weight": torch.tensor([0b101], dtype=torch.uint8)}, {"weight": (2, 3)}, digest)


def test_encoder(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"w": bf16_tensor(1, 8)})
    with DeltaEncoder(base, device="cpu", keep="host") as encoder:
        assert repr(encoder) == f"DeltaEncoder({str(base)!r}, device='cpu', keep='host')"


def test_switch(tmp_path: Path) -> None:
    base = {"w": bf16_tensor(1, 8, 64)}
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", {"w": tune(base["w"], 2)})
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    with DeltaSwitch(load_file(tmp_path / "base/model.safetensors")) as switch:
        assert repr(switch) == "DeltaSwitch(dict, current=None, deltas=0, nbytes=0)"
        switch.to(tmp_path / "delta")
        start = f"DeltaSwitch(dict, current={str(tmp_path / 'delta')!r}, deltas=1, nbytes="
        assert repr(switch).startswith(start)


def test_mask() -> None:
    assert repr(mask()) == "Mask(tensors=1, weights=6)"
    assert repr(mask("ab" * 32)) == "Mask(tensors=1, weights=6, base_digest='abababab…')"


def test_frozen() -> None:
    model = torch.nn.Linear(3, 2)
    frozen = freeze_outside(model, mask(), torch.optim.SGD(model.parameters()))
    assert repr(frozen) == "Frozen(Linear, parameters=2, released=False)"
    frozen.release()
    assert repr(frozen) == "Frozen(Linear, parameters=2, released=True)"


def test_hub_access_hides_its_token() -> None:
    assert repr(HubAccess(token="secret", timeout=5)) == (  # noqa: S106 - a made-up token
        "HubAccess(cache_dir=None, local_files_only=False, timeout=5)"
    )


def test_device_coder() -> None:
    assert repr(DeviceCoder("cpu")) == "DeviceCoder('cpu')"

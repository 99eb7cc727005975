"""Names of weights in memory: wrapped layers, adapters, fused experts, renamed towers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import adamw, moe, move_weights, small_llama

from rlsparse_store.analysis.masks import write_mask
from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import CheckpointError, ImplausibleWarning, RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.torch import DeltaEncoder, Mask, freeze_outside, load_mask, weight_views

if TYPE_CHECKING:
    from pathlib import Path

transformers: Any = pytest.importorskip("transformers")


class Layer(torch.nn.Module):
    """Puts a name of a wrapper before that of a layer, as torch.compile does."""

    def __init__(self, name: str, layer: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    small_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_layers_that_are_wrapped_one_by_one_keep_their_names(
    base: Path, tmp_path: Path, name: str
) -> None:
    model: Any = small_llama()
    move_weights(model, seed=1, density=0.05)
    model.save_pretrained(tmp_path / "tuned")
    model.model.layers[0] = Layer(name, model.model.layers[0])
    with DeltaEncoder(base, device="cpu") as encoder, open_checkpoint(base) as checkpoint:
        for place, given in (("a", model), ("b", model.state_dict())):
            report = encoder.encode(given, tmp_path / place)
            assert not report.whole
            assert not report.removed
            assert {tensor.name for tensor in report.tensors} == checkpoint.tensors.keys()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "merge_and_unload()"),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "merge_and_unload()"),
    ],
)
def test_an_adapter_is_refused_with_the_call_that_merges_it(
    base: Path, tmp_path: Path, name: str, call: str
) -> None:
    state = {**small_llama().state_dict(), name: torch.zeros(4, 4)}
    with (
        DeltaEncoder(base, device="cpu") as encoder,
        pytest.raises(RlsparseError, match="adapter") as caught,
    ):
        encoder.encode(state, tmp_path / "delta")
    assert call in str(caught.value)


def test_the_encoder_warns_and_stores(base: Path, tmp_path: Path) -> None:
    with DeltaEncoder(base, device="cpu") as encoder:
        with pytest.warns(ImplausibleWarning, match="nothing changed"):
            same = encoder.encode(small_llama(), tmp_path / "same")
        assert same.warnings
        other = {f"other.{n}": torch.ones(8, 8) for n in range(12)}
        with pytest.warns(ImplausibleWarning, match="another model"):
            encoder.encode(other, tmp_path / "other")


# --- renamed and fused -----------------------------------------------------------------------


def vision() -> Any:  # noqa: ANN401 - theirs
    """A model whose towers have other names in memory than in its files."""
    torch.manual_seed(0)
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_scaling": rope,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)


MAKERS = {"moe": moe, "vision": vision}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_mask_finds_weights_under_the_names_of_their_files(tmp_path: Path, kind: str) -> None:
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path / "base")
    move_weights(model, seed=1, density=0.05)
    model.save_pretrained(tmp_path / "tuned")
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    write_mask([tmp_path / "delta"], tmp_path / "mask.safetensors", base=tmp_path / "base")
    mask = load_mask(tmp_path / "mask.safetensors")
    trained = MAKERS[kind]()
    tuned = {name: tensor.clone() for name, tensor in model.named_parameters()}
    before = {name: tensor.detach().clone() for name, tensor in trained.named_parameters()}
    optimizer = adamw(trained.parameters())
    frozen = freeze_outside(trained, mask, optimizer)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.grad = torch.ones_like(parameter)
    frozen._before_step()
    allowed = {name: p.grad != 0 for name, p in trained.named_parameters()}
    # Exactly what the delta changes, wherever it is in memory.
    for name, parameter in before.items():
        assert torch.equal(allowed[name], tuned[name] != parameter), name
    assert sum(int(flags.sum()) for flags in allowed.values()) == mask.count()
    with pytest.raises(CheckpointError, match="a saved part of one"):
        freeze_outside(trained, Mask({"x": mask._bits[next(iter(mask))]}, {"x": (1,)}), optimizer)


def test_fused_experts_are_translated_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moe()
    model.save_pretrained(tmp_path / "base")
    move_weights(model, seed=1, density=0.05)
    with DeltaEncoder(tmp_path / "base", device="cpu") as encoder:
        report = encoder.encode(model, tmp_path / "delta")
        assert not report.whole
        assert any(".experts.3." in tensor.name for tensor in report.tensors)
        with pytest.raises(RlsparseError, match="pass the model itself"):
            encoder.encode(model.state_dict(), tmp_path / "refused")
        monkeypatch.setattr(weight_views, "is_dtensor", lambda tensor: tensor.dim() == 3)
        with pytest.raises(RlsparseError, match="gather the model first"):
            encoder.encode(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()

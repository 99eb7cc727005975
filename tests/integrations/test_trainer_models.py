"""Models whose checkpoints become deltas, and those that are refused when a trainer is attached."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import small_llama
from safetensors.torch import save_file
from trainers import make_trainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlsparse_store import apply_delta, from_delta
from rlsparse_store.errors import (
    DtypeMismatchError,
    ImplausibleError,
    RlsparseError,
    UnsupportedModelError,
)
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.weights import restore_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopback_hub import LoopbackHub

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def save_base(model: Any, folder: Path) -> Path:  # noqa: ANN401
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(small_llama(), tmp_path_factory.mktemp("model") / "base")


def tied(folder: Path) -> Any:  # noqa: ANN401
    if not folder.exists():
        torch.manual_seed(1)
        save_base(Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)), folder)
    return Qwen3ForCausalLM.from_pretrained(folder)


def experts(folder: Path) -> Any:  # noqa: ANN401
    if not folder.exists():
        torch.manual_seed(1)
        save_base(Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **EXPERTS)), folder)
    return Qwen3MoeForCausalLM.from_pretrained(folder)


def tied_experts(folder: Path) -> None:
    config = Qwen3MoeConfig(**SHAPE, **EXPERTS, tie_word_embeddings=True)
    save_base(Qwen3MoeForCausalLM(config), folder)


def llama(folder: Path) -> Any:  # noqa: ANN401
    if not folder.exists():
        save_base(small_llama(), folder)
    return LlamaForCausalLM.from_pretrained(folder)


def grown(folder: Path) -> Any:  # noqa: ANN401
    model = llama(folder)
    torch.manual_seed(2)
    model.resize_token_embeddings(70)
    return model


def partly_frozen(folder: Path) -> Any:  # noqa: ANN401
    model = llama(folder)
    model.model.embed_tokens.weight.requires_grad_(requires_grad=False)
    return model


class Plain(torch.nn.Module):
    """A model that transformers knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed = torch.nn.Embedding(64, 16)
        self.head = torch.nn.Linear(16, 64)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.embed(input_ids))
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return {"loss": loss}


def plain(folder: Path) -> Any:  # noqa: ANN401
    model = Plain().to(torch.bfloat16)
    if not folder.exists():
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("make", [tied, experts, grown, partly_frozen, plain])
def test_checkpoints_and_resuming_are_exact(make: Callable[[Path], Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    make(base)
    make_trainer(base, tmp_path / "plain", make(base)).train()
    trainer = make_trainer(base, tmp_path / "out", make(base))
    store_as_deltas(trainer, base)
    trainer.train()
    expected = {
        step: (tmp_path / "plain" / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        for step in (2, 6)
    }
    for step, weights in expected.items():
        again = tmp_path / f"again-{step}"
        apply_delta(tmp_path / "out" / f"checkpoint-{step}", again, base=base)
        assert (again / "model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    trainer = make_trainer(base, tmp_path / "out", make(base))
    store_as_deltas(trainer, base)
    trainer.train(resume_from_checkpoint=True)
    apply_delta(tmp_path / "out" / "checkpoint-6", tmp_path / "resumed", base=base)
    assert (tmp_path / "resumed" / "model.safetensors").read_bytes() == expected[6]
    if make is not plain:
        loaded = from_delta(base, tmp_path / "out" / "checkpoint-6").state_dict()
        for name, tensor in trainer.model.state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(loaded[name].view(torch.int16), tensor.view(torch.int16)), name


def test_frozen_weights_may_be_exact_copies_in_float32(base: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    model.model.norm.float().requires_grad_(requires_grad=False)
    folder = tmp_path / "out" / "checkpoint-1"
    trainer = make_trainer(base, tmp_path / "out", model)
    store_as_deltas(trainer, base, background=False)
    trainer.save_model(str(folder), _internal_call=True)
    apply_delta(folder, tmp_path / "again", base=base)
    make_trainer(base, tmp_path / "plain", model).save_model(str(tmp_path / "plain"))
    expected = (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == expected


# --- Refusals -----------------------------------------------------------------------------------


def other_values() -> Any:  # noqa: ANN401
    torch.manual_seed(9)
    model = small_llama()
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data)
    return model


def wider() -> Any:  # noqa: ANN401
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]


def deeper() -> Any:  # noqa: ANN401
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [other_values, wider, deeper])
def test_a_base_that_is_not_the_models_is_refused(
    base: Path, tmp_path: Path, make: Callable[[], Any]
) -> None:
    trainer = make_trainer(base, tmp_path / "out", make())
    with pytest.raises(ImplausibleError, match="give the checkpoint that it was loaded from"):
        store_as_deltas(trainer, base)
    assert type(trainer).__mro__[1].__name__ != "DeltaHooks"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_dtype_is_refused(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    trainer = make_trainer(base, tmp_path / "out", model)
    with pytest.raises(DtypeMismatchError, match='load it with dtype="auto"'):
        store_as_deltas(trainer, base)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"save_total_limit": 1}, {}, "save_total_limit=2, keep=1 or background=False"),
        (
            {"save_total_limit": 2, "metric_for_best_model": "loss"},
            {},
            "save_total_limit=3, keep=1 or background=False",
        ),
        ({"hub_strategy": "every_save"}, {}, 'keep=1 or hub_strategy="end"'),
        ({"hub_strategy": "checkpoint"}, {}, "background=False and keep=0"),
        ({"hub_strategy": "all_checkpoints"}, {"background": False, "keep": 1}, "keep=0"),
    ],
)
def test_settings_that_do_not_work_are_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    trainer = make_trainer(base, tmp_path / "out", **settings)
    # Trainer would connect to the Hub.
    trainer.args.push_to_hub = "hub_strategy" in settings
    with pytest.raises(RlsparseError, match=message):
        store_as_deltas(trainer, base, **options)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"save_total_limit": 1}, {"background": False}),
        ({"save_total_limit": 1}, {"keep": 1}),
        ({"hub_strategy": "end"}, {}),
        ({"hub_strategy": "every_save"}, {"keep": 1}),
        ({"hub_strategy": "checkpoint"}, {"background": False}),
    ],
)
def test_settings_that_work(
    base: Path, tmp_path: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    trainer = make_trainer(base, tmp_path / "out", **settings)
    trainer.args.push_to_hub = "hub_strategy" in settings
    store_as_deltas(trainer, base, **options)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("peft_config", "PEFT"),
        ("_hf_peft_config_loaded", "PEFT"),
        ("hf_quantizer", "quantised"),
        ("_tp_size", "split over ranks"),
    ],
)
def test_models_that_are_not_whole_are_refused(
    base: Path, tmp_path: Path, attribute: str, message: str
) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    setattr(trainer.model, attribute, 2)
    with pytest.raises(UnsupportedModelError, match=message):
        store_as_deltas(trainer, base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"zero_optimization": {"stage": 3}},
            '"stage3_gather_16bit_weights_on_model_save" to true',
        ),
        ({"zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}}, "leave"),
    ],
)
def test_settings_of_deepspeed_that_do_not_work_are_refused(
    base: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    trainer.is_deepspeed_enabled = True
    plugin = SimpleNamespace(
        deepspeed_config=config, zero_stage=config["zero_optimization"]["stage"]
    )
    state = SimpleNamespace(deepspeed_plugin=plugin)
    # accelerate has none without DeepSpeed.
    trainer.accelerator = SimpleNamespace(state=state, unwrap_model=lambda model, **_: model)
    with pytest.raises(UnsupportedModelError, match=message):
        store_as_deltas(trainer, base)


def test_a_trainer_is_attached_once(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    store_as_deltas(trainer, base)
    with pytest.raises(RlsparseError, match="already"):
        store_as_deltas(trainer, base)
    with pytest.raises(TypeError, match="str is not a Trainer"):
        store_as_deltas("trainer", base)
    with pytest.raises(ValueError, match="queue at least 0"):
        store_as_deltas(make_trainer(base, tmp_path / "other"), base, queue=-1)


def test_an_adapter_in_the_weights_is_refused(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    model: Any = trainer.model
    layer = model.model.layers[0].mlp.up_proj
    layer.lora_A = torch.nn.Linear(64, 2)
    with pytest.raises(RlsparseError, match="adapter"):
        store_as_deltas(trainer, base)


def test_a_checkpoint_of_another_model_is_not_restored(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path / "out")
    store_as_deltas(trainer, base)
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-6"
    with trainer.open_delta(checkpoint) as delta:  # type: ignore[attr-defined]
        with pytest.raises(UnsupportedModelError, match="resume with the model that was saved"):
            restore_weights(wider(), delta)
        with pytest.raises(UnsupportedModelError, match="is in the model and not in the delta"):
            restore_weights(deeper(), delta)
        with pytest.raises(DtypeMismatchError, match="which would round it"):
            restore_weights(LlamaForCausalLM.from_pretrained(base, dtype=torch.float16), delta)


# --- The Hub ------------------------------------------------------------------------------------


PUSH = """
import sys
from pathlib import Path
from trainers import make_trainer
from rlsparse_store.integrations.trainer import store_as_deltas
base, out = map(Path, sys.argv[1:])
for strategy, options in (
    ("end", {}), ("checkpoint", {"background": False}), ("every_save", {"keep": 1})
):
    settings = {"push_to_hub": True, "hub_model_id": f"org/{strategy}", "hub_strategy": strategy}
    settings["hub_always_push"] = True
    trainer = make_trainer(base, out / strategy, **settings)
    store_as_deltas(trainer, base, **options)
    trainer.train()
    if strategy == "every_save":
        trainer._finish_current_push()
    else:
        trainer.push_to_hub()
"""


def test_pushing_to_the_hub(base: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    support = Path(__file__).parents[1] / "support"
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(support)}
    command = [sys.executable, "-c", PUSH, str(base), str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
    last_full = tmp_path / "every_save" / "checkpoint-6" / "model.safetensors"
    assert hub.files("org/every_save")["model.safetensors"] == last_full.read_bytes()
    for strategy in ("end", "checkpoint"):
        checkpoint = tmp_path / strategy / "checkpoint-6"
        apply_delta(checkpoint, tmp_path / f"again-{strategy}", base=base)
        pushed = hub.files(f"org/{strategy}")
        weights = tmp_path / f"again-{strategy}" / "model.safetensors"
        assert pushed["model.safetensors"] == weights.read_bytes()
        last = {name for name in pushed if name.startswith("last-checkpoint/")}
        if strategy == "end":
            assert not last
        else:
            delta = "rlsparse/delta.safetensors"
            assert pushed[f"last-checkpoint/{delta}"] == (checkpoint / delta).read_bytes()
        assert not any(name.startswith("_rlsparse") for name in pushed)


# --- Several ranks ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "masters", "grpo"])
def test_two_ranks(tmp_path: Path, kind: str) -> None:
    if kind == "grpo":
        pytest.importorskip("trl")
    else:
        # With FSDP, Trainer saves two copies of tied weights.
        make = {"ddp": llama, "fsdp": tied_experts, "masters": tied}[kind]
        make(tmp_path / "base")
    script = Path(__file__).parents[1] / "support" / "trainer_ranks.py"
    command = [sys.executable, str(script), str(tmp_path), kind, str(free_port())]
    subprocess.run(command, check=True, timeout=300)

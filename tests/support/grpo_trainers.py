"""A tiny trainer of TRL, which tests import only where TRL is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import LlamaForCausalLM

from rlsparse_store.demo.policy import PolicyShape
from rlsparse_store.demo.task import new_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = PolicyShape(hidden_size=32, intermediate_size=48, layers=1, heads=2, initial_std=0.05)


def ones(completions: list[str], **_: Any) -> list[float]:  # noqa: ANN401
    """A reward."""
    return [float(text.count("1")) for text in completions]


def prompts() -> Any:  # noqa: ANN401 - theirs
    """Prompts of the demonstration's task."""
    from datasets import Dataset  # noqa: PLC0415 - see above

    return Dataset.from_list([{"prompt": f"{n:02d}+{20 - n:02d}="} for n in range(16)])


def grpo_settings(out: Path, steps: int, **more: Any) -> Any:  # noqa: ANN401 - theirs
    """Settings that save every two steps."""
    from trl import GRPOConfig  # noqa: PLC0415 - see above

    given = {
        "max_steps": steps,
        "save_steps": 2,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 3,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 7,
    }
    return GRPOConfig(str(out), **given | more)


def grpo_trainer(base: Path, settings: Any) -> Any:  # noqa: ANN401 - theirs
    """A trainer of a model in the base's dtype."""
    from trl import GRPOTrainer  # noqa: PLC0415 - see above

    tokenizer = new_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "="  # noqa: S105 - not a password
    model = LlamaForCausalLM.from_pretrained(base)
    return GRPOTrainer(model, ones, settings, train_dataset=prompts(), processing_class=tokenizer)

"""The methods of Trainer, of accelerate and of transformers that deltas depend on.

Most are private, and a release may change any of them. So they are compared when a trainer is
attached, and not met in the middle of training.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from accelerate import Accelerator
from accelerate.utils import save_fsdp_optimizer
from transformers import Trainer
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["require_methods"]

_OVERRIDDEN: Final = {
    "save_model": ("output_dir", "_internal_call"),
    "_save_checkpoint": ("model", "trial"),
    "_save": ("output_dir", "state_dict"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_best_model": (),
}
"""Methods of Trainer that are overridden, and all of their arguments."""

_CALLED: Final[tuple[tuple[Callable[..., Any], str, tuple[str, ...]], ...]] = (
    (Trainer.train, "transformers", ("self", "resume_from_checkpoint")),
    (revert_weight_conversion, "transformers", ("model", "state_dict")),
    (remove_tied_weights_from_state_dict, "transformers", ("state_dict", "model")),
    (Accelerator.get_state_dict, "accelerate", ("self", "model")),
    (Accelerator.unwrap_model, "accelerate", ("self", "model")),
    (
        save_fsdp_optimizer,
        "accelerate",
        ("fsdp_plugin", "accelerator", "optimizer", "model", "output_dir"),
    ),
)
"""Functions that are called, their distributions, and their first arguments."""


def require_methods(trainer: type[Trainer]) -> None:
    """Require that the installed releases have the methods that deltas need.

    Args:
        trainer: The class of the trainer, which may have overridden some of them.

    Raises:
        RlsparseError: One is missing or takes other arguments.
    """
    for name, expected in _OVERRIDDEN.items():
        found = getattr(Trainer, name, None)
        if found is None or _arguments(found)[1:] != expected:
            raise _incompatible("transformers", f"Trainer.{name}", expected)
        if not _takes(getattr(trainer, name), expected):
            msg = (
                f"{trainer.__name__}.{name} does not take the arguments of Trainer's "
                f"({', '.join(expected)}): let it take them"
            )
            raise RlsparseError(msg)
    for function, distribution, expected in _CALLED:
        if _arguments(function)[: len(expected)] != expected:
            raise _incompatible(distribution, function.__qualname__, expected)


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _takes(method: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    """Whether a method takes these arguments, by place and by name."""
    signature = inspect.signature(method)
    try:
        signature.bind(None, *arguments)
        signature.bind(None, **dict.fromkeys(arguments))
    except TypeError:
        return False
    return True


def _incompatible(distribution: str, name: str, expected: tuple[str, ...]) -> RlsparseError:
    arguments = ", ".join(argument for argument in expected if argument != "self")
    msg = (
        f"{distribution} {version(distribution)} has no {name}({arguments}), which deltas need: "
        "install a release that was tried (transformers 5.23, accelerate 1.15), or store finished "
        "checkpoints with rlsparse watch"
    )
    return RlsparseError(msg)

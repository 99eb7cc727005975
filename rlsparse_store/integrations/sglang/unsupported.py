"""What SGLang would not serve right from a delta, or was not tried with one, refused by name."""

from __future__ import annotations

from typing import Any, Final

from rlsparse_store.errors import UnsupportedModelError

__all__ = ["check_engine"]

LOAD_FORMATS: Final = ("auto", "safetensors")
"""Load formats that read tensors by the function that the hook stands around."""


def check_engine(model_config: Any, load_format: str) -> None:  # noqa: ANN401 - SGLang's
    """Refuse a delta where another way of loading, or of computing, is asked for.

    Args:
        model_config: The engine's configuration of the model.
        load_format: How it loads weights.

    Raises:
        UnsupportedModelError: It is refused; the message names the option.
    """
    # Only within SGLang's processes.
    from sglang.srt.runtime_context import get_lora, get_model, get_parallel  # noqa: PLC0415

    load_format = str(getattr(load_format, "value", load_format))
    found = {
        f"--load-format {load_format}": load_format not in LOAD_FORMATS,
        f"--quantization {model_config.quantization}": model_config.quantization is not None,
        "--enable-lora": get_lora().enable_lora,
        "--startup-weight-load-mode overlap": get_model().is_startup_weight_load_overlap,
        "speculative decoding": model_config.is_draft_model
        or model_config.speculative_algorithm is not None,
        "--pp-size": get_parallel().pp_size > 1,
    }
    refused = [option for option, is_asked_for in found.items() if is_asked_for]
    if refused:
        msg = (
            f"SGLang does not load a delta with {', '.join(refused)}; rebuild the checkpoint "
            "(rlsparse apply) and serve that"
        )
        raise UnsupportedModelError(msg)

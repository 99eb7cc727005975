"""A server of SGLang in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from server import PROMPT, Server

__all__ = ["SglangServer", "sglang_environment"]

_OPTIONS: Final = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--sampling-backend": "pytorch",
    "--dtype": "bfloat16",
    "--context-length": "128",
    "--max-total-tokens": "2048",
    "--mem-fraction-static": "0.1",
}


def sglang_environment(python: str, settings: str | None) -> dict[str, str]:
    """The variables with which SGLang runs on a machine without a GPU.

    Args:
        python: The interpreter of its environment.
        settings: The variable that configures deltas, if any.
    """
    variables = os.environ | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        # A process that fails ends at once, without dumps of a GPU.
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return variables if settings is None else variables | {"RLSPARSE_SGLANG": settings}


class SglangServer(Server):
    """A server of SGLang.

    Args:
        python: The interpreter of SGLang's environment.
        model: The model.
        settings: The variable that configures deltas, if any.
    """

    def __init__(self, python: str, model: str, settings: str | None) -> None:
        words = [python, "-m", "sglang.launch_server", "--model-path", model]
        words += [word for option in _OPTIONS.items() for word in option]
        # The tokenizers of the cases do not know its words.
        words.append("--skip-server-warmup")
        super().__init__(words, sglang_environment(python, settings))

    def complete(self) -> object:
        """What the server computes for a prompt: tokens and log-probabilities."""
        sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
        body = {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
        code, answer = self.post("generate", body)
        return answer["meta_info"]["output_token_logprobs"] if code == 200 else code

    def update(self, place: str | Path) -> tuple[int, Any]:
        """Load a delta or a checkpoint into the server; the HTTP status and the answer."""
        return self.post("update_weights_from_disk", {"model_path": str(place)})

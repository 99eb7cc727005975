#!/usr/bin/env python3
"""Start an engine once, run some actions on it, and print what it computes after each, as JSON.

The argument is JSON, too: ``{"engine": {"model": "…"}, "actions": [["observe"], …]}``. With
``keep_weights``, an engine of one rank keeps its weights beside packed copies of them. With the
environment variable ``PROBE_PLAIN``, it packs none, on any number of ranks. With ``--serve``, see
:func:`serve`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vllm import LLM, SamplingParams, _custom_ops
from vllm.lora.request import LoRARequest

from rlsparse_store.integrations.vllm import verified, walk

PROMPTS: Final = [[5, 9, 13, 21], [30, 31, 32, 33, 34, 35], [7] * 9, [50, 3, 44]]
MARK: Final = "PROBE "

if "PROBE_PLAIN" in os.environ:
    # vLLM's own fallback, which computes with the parameters. Its workers import this module, too.
    setattr(_custom_ops, "_supports_onednn", False)  # noqa: B010 - vLLM has no option for it


def weight_hashes(worker: Any) -> dict[str, str]:  # noqa: ANN401 - vLLM's
    """SHA-256 of each parameter of a rank that is not empty."""
    import hashlib  # noqa: PLC0415 - the function runs in the worker, which gets nothing else

    import torch  # noqa: PLC0415

    return {
        name: hashlib.sha256(value.detach().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, value in worker.model_runner.model.named_parameters()
        if value.numel()
    }


def keep_weights() -> None:
    """Keep the weights that the CPU's packed copies are made of, so that they can be hashed."""
    from vllm.model_executor.layers import utils  # noqa: PLC0415 - in this process only

    dispatch = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: dispatch(  # noqa: ARG005
        layer, remove_weight=False
    )


def spoil(worker: Any) -> None:  # noqa: ANN401 - vLLM's
    """Change a bit of a weight behind the engine's back."""
    import torch  # noqa: PLC0415 - as above

    weight = next(p for p in worker.model_runner.model.parameters() if p.numel())
    weight.data.reshape(-1)[:1].view(torch.int16).bitwise_xor_(1)


def forget(folder: str) -> None:
    """Drop a checkpoint's files from the system's cache, so that they are read from storage."""
    for file in Path(folder).rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def observe(llm: LLM, adapter: str | None = None) -> dict[str, Any]:
    """Tokens, log-probabilities of them and of the prompt, and hashes of weights by rank.

    Args:
        llm: The engine.
        adapter: Folder of a LoRA adapter to compute with. With adapters, vLLM's CPU path computes
            no log-probabilities of prompts.
    """
    of_prompts = None if llm.llm_engine.vllm_config.lora_config else 1
    sampling = SamplingParams(temperature=0, max_tokens=12, logprobs=3, prompt_logprobs=of_prompts)
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in PROMPTS],
        sampling,
        use_tqdm=False,
        lora_request=None if adapter is None else LoRARequest("adapter", 1, adapter),
    )
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [_numbers(output.outputs[0].logprobs) for output in outputs],
        "prompt_logprobs": [_numbers((output.prompt_logprobs or [])[1:]) for output in outputs],
        "weights": llm.collective_rpc(weight_hashes),
    }


def _numbers(positions: Any) -> list[list[tuple[int, str]]]:  # noqa: ANN401 - vLLM's
    return [
        sorted((token, value.logprob.hex()) for token, value in position.items())
        for position in positions
    ]


def act(llm: LLM, action: list[Any]) -> dict[str, Any]:
    """Run one action; an error is part of what was seen."""
    kind, *arguments = action
    if kind == "adapter":
        return observe(llm, *arguments)
    if kind == "walk":
        return {"walk": {name: observe(engine) for name, engine in walk(llm, *arguments)}}
    if kind == "timed":
        return run(llm, *arguments)
    return {**run(llm, kind, *arguments), **observe(llm)}


def run(llm: LLM, kind: str, *arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - as in JSON
    """Change the engine; the seconds that it took, or the error."""
    started = time.perf_counter()
    try:
        if kind == "reload":
            llm.collective_rpc("reload_weights", kwargs={"weights_path": arguments[0]})
            llm.reset_prefix_cache()
        elif kind == "forget":
            forget(*arguments)
        elif kind == "unverify":
            verified.forget_all()
        elif kind == "spoil":
            llm.collective_rpc(spoil)
        elif kind == "begin":
            llm.collective_rpc("init_weight_transfer_engine", args=({},))
        elif kind == "update":
            llm.collective_rpc("init_weight_transfer_engine", args=({},))
            llm.collective_rpc("start_weight_update")
            try:
                llm.collective_rpc("update_weights", args=({"place": arguments[0]},))
            finally:
                with suppress(Exception):
                    llm.collective_rpc("finish_weight_update")
            llm.reset_prefix_cache()
    except Exception as error:  # noqa: BLE001 - reported
        return {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - started}


def probe(asked: dict[str, Any]) -> None:
    """Run a probe, and print what was seen."""
    if asked.get("keep_weights"):
        keep_weights()
    started = time.perf_counter()
    llm = LLM(dtype="bfloat16", enforce_eager=True, max_model_len=128, seed=0, **asked["engine"])
    seconds = time.perf_counter() - started
    seen = [act(llm, action) for action in asked["actions"]]
    sys.stdout.write(MARK + json.dumps({"start": seconds, "seen": seen}) + "\n")


def serve() -> None:
    """Run a probe for each line of JSON, in a fork, since importing takes longer than most probes.

    A line has what is ``asked``, the file ``out`` for what the probe prints, and a ``limit`` in
    seconds. A line is printed when it has ended.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            sys.stdout.write("ended\n")
            sys.stdout.flush()
            continue
        signal.alarm(request["limit"])
        out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        try:
            probe(request["asked"])
        except BaseException:  # noqa: BLE001 - reported
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        probe(json.loads(sys.argv[1]))

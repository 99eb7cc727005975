#!/usr/bin/env python3
"""Start engines of SGLang, run some actions on each, and write what it computes after each.

Each line of the input is JSON: ``{"folder": "…", "settings": "…", "engine": {"model_path": "…"},
"actions": [["observe"], …]}``. The engine runs in a process of its own in that folder, and what it
writes goes to ``log`` there; then a line is printed. SGLang, whose import takes most of the time of
a start, is imported once: the engine's processes are forks of this one.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers import detokenizer_manager  # noqa: F401 - for the forks
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.models import registry  # noqa: F401 - as above

PROMPTS: Final = [[5, 9, 13, 21], [30, 31, 32, 33, 34, 35], [7] * 9, [50, 3, 44]]
MARK: Final = "PROBE "
LIMIT: Final = 600
"""Seconds that an engine may take."""

OPTIONS: Final = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "dtype": "bfloat16",
    "max_total_tokens": 2048,
    "context_length": 128,
    "mem_fraction_static": 0.1,
}
"""Options with which SGLang runs on a machine without a GPU."""

BREAK: Final = "break"
"""A file of this name in the folder where the probe runs breaks one load of weights halfway."""
BREAK_ONE: Final = "break-one"
"""A file of this name breaks what the last rank checks before one update."""


def run_breakable_scheduler(*arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - SGLang's
    """SGLang's scheduler, with a loading of weights that can be broken once."""
    from sglang.srt.models.llama import LlamaForCausalLM  # noqa: PLC0415 - in its process only

    from rlsparse_store.integrations.sglang.hooks import DeltaHooks  # noqa: PLC0415 - as above

    load, prepare = LlamaForCausalLM.load_weights, DeltaHooks._prepare  # noqa: SLF001 - to break it
    rank = (
        inspect.signature(run_scheduler_process).bind(*arguments, **keywords).arguments["tp_rank"]
    )

    def break_load(model: Any, weights: Any) -> Any:  # noqa: ANN401 - SGLang's
        if not _is_asked_for(BREAK):
            return load(model, weights)
        load(model, [next(weights) for _ in range(5)])
        msg = "the load was broken"
        raise RuntimeError(msg)

    def break_one(*checked: Any) -> Any:  # noqa: ANN401 - the hook's
        if rank == 1 and _is_asked_for(BREAK_ONE):
            msg = "one rank fails"
            raise OSError(msg)
        return prepare(*checked)

    LlamaForCausalLM.load_weights = break_load
    DeltaHooks._prepare = break_one  # type: ignore[assignment, method-assign]  # noqa: SLF001 - as above
    run_scheduler_process(*arguments, **keywords)


def _is_asked_for(name: str) -> bool:
    """Whether a file is there, which is then removed."""
    is_there = Path(name).exists()
    Path(name).unlink(missing_ok=True)
    return is_there


def observe(engine: Engine) -> dict[str, Any]:
    """Tokens, and log-probabilities of them, of those next to them, and of the prompt."""
    outputs = engine.generate(
        input_ids=PROMPTS,
        sampling_params={"temperature": 0, "max_new_tokens": 12, "ignore_eos": True},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=3,
    )
    found = [output["meta_info"] for output in outputs]
    return {
        "tokens": [output["output_ids"] for output in outputs],
        "logprobs": [_numbers(one["output_top_logprobs"]) for one in found],
        "prompt_logprobs": [_numbers([one["input_token_logprobs"][1:]]) for one in found],
    }


def _numbers(positions: list[Any]) -> list[list[tuple[int, str]]]:
    return [[(token, number.hex()) for number, token, _ in position] for position in positions]


def act(engine: Engine, action: list[str]) -> dict[str, Any]:
    """Run one action; an error is part of what was seen."""
    kind, *places = action
    seconds, error = 0.0, None
    if kind in {"update", BREAK, BREAK_ONE}:
        if kind != "update":
            Path(kind).touch()
        started = time.perf_counter()
        is_done, message, *_ = engine.update_weights_from_disk(places[0])
        seconds, error = time.perf_counter() - started, None if is_done else message
    found = observe(engine)
    return found | ({"seconds": seconds} if error is None else {"error": error})


def run(asked: dict[str, Any]) -> NoReturn:
    """Run one engine in this process, and end it."""
    signal.alarm(LIMIT)
    os.chdir(asked["folder"])
    log = os.open("log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if asked["settings"] is not None:
        os.environ["RLSPARSE_SGLANG"] = asked["settings"]
    try:
        if {BREAK, BREAK_ONE} & {kind for kind, *_ in asked["actions"]}:
            Engine.run_scheduler_process_func = staticmethod(run_breakable_scheduler)
        engine = Engine(skip_tokenizer_init=True, log_level="info", **OPTIONS, **asked["engine"])
        seen = [act(engine, action) for action in asked["actions"]]
        sys.stdout.write(MARK + json.dumps({"seen": seen}) + "\n")
        engine.shutdown()
    except BaseException:  # noqa: BLE001 - it is in the log
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Run the engines that the input asks for, one after the other."""
    multiprocessing.set_start_method("fork", force=True)
    # SGLang asks for processes that import it anew.
    multiprocessing.set_start_method = lambda *_, **__: None
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(json.loads(line))
        os.waitpid(process, 0)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

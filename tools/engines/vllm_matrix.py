#!/usr/bin/env python3
"""Run vLLM on full checkpoints and on deltas, and compare what it computes, bit for bit.

    python tools/engines/vllm_matrix.py CASES --python ENV/bin/python            # everything
    python tools/engines/vllm_matrix.py CASES --python ENV/bin/python --quick    # one model

Each check starts real engines in processes of their own. The full matrix writes
``tools/engines/results/vllm.json``, with the digest of the integration's code.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from comparison import Checks, Seen, make_cases, write_result
from server import VllmServer, vllm_environment

HERE: Final = Path(__file__).parent
LIMIT: Final = 600
"""Seconds that an engine may take."""

SAME: Final = ("tokens", "logprobs", "prompt_logprobs", "weights")


@dataclass
class Engines(Checks):
    """Starts engines and keeps what was compared.

    Attributes:
        python: The interpreter of vLLM's environment.
    """

    python: str

    def run(self, *actions: list[Any], ranks: int = 1, **engine: Any) -> list[Seen]:  # noqa: ANN401
        """Start an engine, act on it, and return what it computed after each action."""
        environment = vllm_environment(self.python)
        if ranks == 1:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        else:
            environment |= {
                "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks))),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            }
            engine["tensor_parallel_size"] = ranks
        asked = {"engine": engine, "actions": actions, "keep_weights": ranks == 1}
        done = subprocess.run(
            [self.python, str(HERE / "probe.py"), json.dumps(asked)],
            env=environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT,
        )
        answer = next((x for x in done.stdout.splitlines() if x.startswith("PROBE ")), None)
        if answer is None:
            return [{"error": done.stdout + done.stderr}] * max(1, len(actions))
        return list(json.loads(answer.removeprefix("PROBE "))["seen"])


def serving(case: Path, *, roots: bool = True, **options: str) -> dict[str, Any]:
    """An engine's options for deltas."""
    extra: dict[str, Any] = dict(options)
    if roots:
        extra["roots"] = [str(case / "run"), str(case / "bad")]
    return {
        "load_format": "rlsparse",
        "model_loader_extra_config": extra,
        "weight_transfer_config": {"backend": "rlsparse"},
    }


def check_loading(engines: Engines, case: Path, ranks: int) -> None:
    """Deltas load as the full checkpoints do, by both ways to name them."""
    name = f"{case.name}, {ranks} rank{'s' if ranks > 1 else ''}"
    delta, base = str(case / "run" / "step-1"), str(case / "base")
    full = engines.run(["observe"], ranks=ranks, model=str(case / "step-1"))[0]
    plain = engines.run(["observe"], ranks=ranks, model=base)[0]
    engines.differ(f"{name}: base and tuned differ", plain, full)
    seen = engines.run(["observe"], ranks=ranks, model=delta, **serving(case, base=base))[0]
    engines.same(f"{name}: the delta as the model", full, seen)
    seen = engines.run(["observe"], ranks=ranks, model=base, **serving(case, delta=delta))[0]
    engines.same(f"{name}: the base as the model, with a delta", full, seen)


def check_live(engines: Engines, case: Path, ranks: int, steps: int) -> None:
    """A running engine goes through a run, and back to its base, and refuses what is bad."""
    name = f"{case.name}, {ranks} rank{'s' if ranks > 1 else ''}, running"
    run, base = case / "run", str(case / "base")
    names = [f"step-{step}" for step in range(1, steps + 1)]
    damaged = case / "bad" / "damaged"
    full = {n: engines.run(["observe"], ranks=ranks, model=str(case / n))[0] for n in names}
    tied = "tied" in case.name
    actions: list[list[Any]] = [
        ["observe"],
        ["walk", str(run)],
        ["update", base],
        ["update", str(damaged)],
        ["update", str(case / "step-1")],
        ["update", str(run / "step-1")],
        ["reload", base],
        ["reload", str(run / names[-1])],
    ]
    if ranks > 1:
        # By the same means, and an error leaves vLLM confused about its ranks.
        actions = [action for action in actions if action[0] != "reload"]
    seen = engines.run(*actions, ranks=ranks, model=base, **serving(case))
    walked = seen[1].get("walk", {})
    for step in names:
        engines.same(f"{name}: walked to {step}", full[step], walked.get(step, seen[1]))
    engines.same(f"{name}: back to the base", seen[0], seen[2])
    engines.refused(f"{name}: a damaged delta", seen[3], "damaged", seen[0])
    engines.refused(f"{name}: a place outside the roots", seen[4], "may not load", seen[0])
    engines.same(f"{name}: a delta after an error", full["step-1"], seen[5])
    if ranks > 1:
        return
    if tied:
        engines.refused(f"{name}: reload_weights", seen[6], "tied embeddings", full["step-1"])
        return
    engines.same(f"{name}: reload_weights of the base", seen[0], seen[6])
    engines.same(f"{name}: reload_weights of a delta", full[names[-1]], seen[7])


def check_refusals(engines: Engines, cases: Path) -> None:
    """What cannot be right is refused by name."""
    llama, moe, tied = (cases / name for name in ("llama", "qwen3-moe", "qwen3-tied"))
    delta = str(llama / "run" / "step-1")
    seen = engines.run(model=delta, **serving(llama, base=str(llama / "step-2")))[0]
    engines.refused("another base", seen, "wrong base")
    seen = engines.run(model=str(tied / "base"), **serving(llama, delta=delta))[0]
    engines.refused("another architecture", seen, "differs from the engine's")
    options = serving(llama, base=str(llama / "base"))
    seen = engines.run(model=str(llama / "bad" / "damaged"), **options)[0]
    engines.refused("a damaged delta as the model", seen, "damaged")
    base = str(moe / "base")
    first, second = engines.run(
        ["observe"], ["update", str(moe / "run" / "step-1")], model=base, **serving(moe)
    )
    engines.refused("a mixture of experts, running on the CPU", second, "repacks experts", first)
    seen = engines.run(model=delta, quantization="bitsandbytes", **serving(llama))[0]
    engines.check("bitsandbytes is an error", passed="error" in seen)


def measure_switch(engines: Engines, case: Path) -> None:
    """Seconds to switch a running engine to another step, and to load it whole."""
    run, base = case / "run", str(case / "base")
    steps = [str(run / "step-1"), str(run / "step-2")] * 2
    full = [str(case / "step-1"), str(case / "step-2")] * 2
    seen = engines.run(*(["update", step] for step in steps), model=base, **serving(case))
    checks = engines.run(*(["verify", step, base] for step in steps), model=base)
    engines.times["check of a delta"] = min(one["seconds"] for one in checks[1:])
    engines.times["update to a delta, with its check"] = min(
        one.get("seconds", 1e9) for one in seen[1:]
    )
    seen = engines.run(*(["reload", step] for step in full), model=base)
    engines.times["reload of the full checkpoint"] = min(one["seconds"] for one in seen[1:])


def check_server(engines: Engines, case: Path) -> None:
    """A server goes from its base to deltas and back, and serves on after a bad one."""
    base, run = str(case / "base"), case / "run"
    with VllmServer(engines.python, base, serving(case)) as server:
        before = server.complete()
        codes, texts = [], []
        for place in (run / "step-1", case / "base", case / "bad" / "damaged", run / "step-2"):
            codes.append(server.update(place))
            texts.append(server.complete())
    whole = {}
    for step in ("step-1", "step-2"):
        with VllmServer(engines.python, str(case / step), {}) as server:
            whole[step] = server.complete()
    engines.check("server: to a delta", passed=codes[0] == 200 and texts[0] == whole["step-1"])
    engines.check("server: and back", passed=codes[1] == 200 and texts[1] == before != texts[0])
    engines.check("server: a bad delta is 500", passed=codes[2] == 500 and texts[2] == before)
    engines.check("server: then a good one", passed=codes[3] == 200 and texts[3] == whole["step-2"])


@click.command()
@click.argument("cases", type=click.Path(path_type=Path))
@click.option("--python", required=True, help="Interpreter of an environment with vLLM.")
@click.option("--quick", is_flag=True, help="One model on one rank; writes no result.")
def main(cases: Path, python: str, *, quick: bool) -> None:
    """Compare vLLM on full checkpoints and on deltas."""
    steps = {"llama": 10, "qwen3-tied": 3, "qwen3-moe": 2, "llama-large": 2}
    make_cases(python, cases, {"llama": 3} if quick else steps)
    engines = Engines(SAME, python)
    llama = cases / "llama"
    if "error" in engines.run(["observe"], model=str(llama / "base"))[0]:
        click.echo("vLLM does not run here, full checkpoints neither")
        sys.exit(3)
    if quick:
        check_loading(engines, llama, 1)
        check_live(engines, llama, 1, 3)
    else:
        for name in ("llama", "qwen3-tied", "qwen3-moe"):
            for ranks in (1, 2):
                check_loading(engines, cases / name, ranks)
        check_live(engines, llama, 1, 10)
        check_live(engines, llama, 2, 3)
        check_live(engines, cases / "qwen3-tied", 1, 3)
        check_refusals(engines, cases)
        check_server(engines, llama)
        measure_switch(engines, cases / "llama-large")
        write_result("vllm", engines, python)
    click.echo(f"{len(engines.lines)} checks, {len(engines.wrong)} failed")
    sys.exit(bool(engines.wrong))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Run SGLang on full checkpoints and on deltas, and compare what it computes, bit for bit.

    python tools/engines/sglang_matrix.py CASES --python ENV/bin/python            # everything
    python tools/engines/sglang_matrix.py CASES --python ENV/bin/python --quick    # one model

A functional test: the environment stands in for SGLang's kernels. Each check starts real engines
in processes of their own. The full matrix writes ``tools/engines/results/sglang.json``, with the
digest of the integration's code.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from comparison import Checks, Seen, make_cases, write_result
from sglang_server import SglangServer, sglang_environment

HERE: Final = Path(__file__).parent
GUIDE: Final = HERE.parents[1] / "specs" / "guides" / "serving-sglang.md"
LIMIT: Final = 600
"""Seconds that an engine may take."""

SAME: Final = ("tokens", "logprobs", "prompt_logprobs")
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Engines(Checks):
    """Starts engines and keeps what was compared.

    Attributes:
        python: The interpreter of SGLang's environment.
    """

    python: str

    def run(
        self,
        model: Path | str,
        *actions: list[Any],
        settings: str | None = None,
        variables: dict[str, str] | None = None,
        **engine: Any,  # noqa: ANN401 - SGLang's options
    ) -> list[Seen]:
        """Start an engine, act on it, and return what it computed after each action.

        Args:
            model: The model.
            actions: What to do; by default, to observe.
            settings: The variable that configures deltas, if any.
            variables: More environment variables.
            engine: SGLang's options.
        """
        acts = [[str(word) for word in action] for action in actions or (["observe"],)]
        asked = {"engine": {"model_path": str(model), **engine}, "actions": acts}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [self.python, str(HERE / "sglang_probe.py"), json.dumps(asked)],
                env=sglang_environment(self.python, settings) | (variables or {}),
                cwd=folder,
                capture_output=True,
                check=False,
                text=True,
                timeout=LIMIT,
            )
        answer = next((x for x in done.stdout.splitlines() if x.startswith("PROBE ")), None)
        if answer is None:
            return [{"error": done.stdout + done.stderr}] * len(acts)
        return list(json.loads(answer.removeprefix("PROBE "))["seen"])


def serving(case: Path, **places: str) -> str:
    """The variable that configures deltas."""
    return json.dumps({**places, "roots": [str(case / "run"), str(case / "bad")]})


def check_model(engines: Engines, case: Path) -> None:
    """An engine goes from full checkpoint to full checkpoint, and others the same by deltas."""
    name, run, base = case.name, case / "run", case / "base"
    one, two, refused = engines.run(
        case / "step-1", ["observe"], ["update", case / "step-2"], ["update", run / "step-1"]
    )
    engines.refused(f"{name}: a server without the variable", refused, "may not load", two)

    start, *seen = engines.run(
        base,
        ["observe"],
        ["update", run / "step-1"],
        ["update", base],
        ["update", case / "bad" / "damaged"],
        ["update", case / "step-1"],
        ["update", run / "step-2"],
        ["update", run / "step-1"],
        settings=serving(case),
    )
    engines.differ(f"{name}: base and tuned differ", start, one)
    engines.same(f"{name}: from the base to a delta", one, seen[0])
    engines.same(f"{name}: back to the base", start, seen[1])
    engines.refused(f"{name}: a damaged delta", seen[2], "are damaged", start)
    engines.refused(f"{name}: a place outside the roots", seen[3], "may not load", start)
    engines.same(f"{name}: a delta after an error", two, seen[4])
    engines.same(f"{name}: from delta to delta", one, seen[5])

    settings = serving(case, base=str(base))
    seen = engines.run(
        run / "step-1", ["observe"], ["update", run / "step-2"], ["update", base], settings=settings
    )
    engines.same(f"{name}: the delta as the model", one, seen[0])
    engines.same(f"{name}: from there to another", two, seen[1])
    engines.same(f"{name}: and to the base", start, seen[2])


def check_rollback(engines: Engines, case: Path) -> None:
    """A load that breaks halfway leaves the engine with the weights that it had."""
    step = case / "run" / "step-1"
    first, broken, fine, again = engines.run(
        case / "base",
        ["observe"],
        ["break", step],
        ["update", step],
        ["break", case / "base"],
        settings=serving(case),
    )
    engines.refused("a load that breaks, to a delta", broken, "the load was broken", first)
    engines.refused("a load that breaks, from a delta", again, "the load was broken", fine)


def check_ranks(engines: Engines, case: Path) -> None:
    """Two ranks update their weights, or none does."""
    binding = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    one = engines.run(case / "step-1", tp_size=2, variables=binding)[0]
    first, tuned, broken, again = engines.run(
        case / "base",
        ["observe"],
        ["update", case / "run" / "step-1"],
        ["break-one", case / "base"],
        ["update", case / "base"],
        settings=serving(case),
        variables=binding,
        tp_size=2,
    )
    engines.same("two ranks: from the base to a delta", one, tuned)
    engines.refused("two ranks: an error of one", broken, "one rank fails", tuned)
    engines.same("two ranks: back to the base", first, again)


def check_hub(engines: Engines, case: Path) -> None:
    """Ids of the Hub, from its cache: a delta finds its base by content."""
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in (("base", case / "base"), ("grpo", case / "run" / "step-1")):
            repo = Path(cache, f"models--org--{name}")
            shutil.copytree(folder, repo / "snapshots" / COMMIT)
            (repo / "refs").mkdir()
            (repo / "refs" / "main").write_text(COMMIT)
        seen = engines.run("org/grpo", variables={"HF_HUB_CACHE": cache})[0]
        engines.same("an id of the Hub", engines.run(case / "step-1")[0], seen)


def check_refusals(engines: Engines, cases: Path) -> None:
    """What cannot be right, or was not tried, is refused by name."""
    llama, tied = cases / "llama", cases / "qwen3-tied"
    delta, settings = llama / "run" / "step-1", serving(llama, base=str(llama / "base"))
    seen = engines.run(delta, settings=serving(llama, base=str(llama / "step-2")))[0]
    engines.refused("another base", seen, "wrong base")
    seen = engines.run(llama / "bad" / "damaged", settings=settings)[0]
    engines.refused("a damaged delta as the model", seen, "are damaged")
    seen = engines.run(delta, settings="{")[0]
    engines.refused("a variable that is not JSON", seen, "RLSPARSE_SGLANG: is not JSON")
    seen = engines.run(delta, settings=settings, variables={"SGLANG_PLUGINS": "another"})[0]
    engines.refused("the plugin disabled", seen, "Cannot find any model weights")
    first, second = engines.run(
        tied / "base", ["observe"], ["update", delta], settings=serving(llama)
    )
    engines.refused("another architecture", second, "differs from the engine's", first)
    lora: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": 8,
        "lora_target_modules": ["q_proj"],
    }
    options: dict[str, dict[str, Any]] = {
        "--load-format layered": {"load_format": "layered"},
        "--load-format dummy": {"load_format": "dummy"},
        "--quantization fp8": {"quantization": "fp8"},
        "--quantization bitsandbytes": {"quantization": "bitsandbytes"},
        "--enable-lora": lora,
        "--startup-weight-load-mode overlap": {"startup_weight_load_mode": "overlap"},
    }
    for option, chosen in options.items():
        seen = engines.run(delta, settings=settings, **chosen)[0]
        engines.refused(option, seen, f"does not load a delta with {option}")
    first, second = engines.run(
        llama / "base", ["observe"], ["update", delta], settings=settings, **lora
    )
    engines.refused("--enable-lora, running", second, "a delta with --enable-lora", first)


def check_versions(engines: Engines) -> None:
    """Releases that were not tried get no hooks, and say so in the log."""
    updater = "sglang.srt.model_executor.model_runner_components.weight_updater"
    changes = {
        "too old": "import sglang.version as v; v.__version_tuple__ = (0, 5, 22)",
        "is another": f"import {updater} as u; del u.WeightUpdater.update_weights_from_disk",
    }
    load = (
        "import logging; logging.basicConfig();"
        "from sglang.srt.plugins import load_plugins; load_plugins();"
        "from sglang.srt.plugins.hook_registry import HookRegistry; print(len(HookRegistry._hooks))"
    )
    for message, change in changes.items():
        done = subprocess.run(
            [engines.python, "-c", f"{change}\n{load}"],
            env=sglang_environment(engines.python, None),
            capture_output=True,
            check=True,
            text=True,
        )
        passed = message in done.stderr and done.stdout.splitlines()[-1] == "0"
        engines.check(
            f"an SGLang that {message}", passed=passed, detail="" if passed else done.stderr
        )


def check_server(engines: Engines, case: Path) -> None:
    """A server goes from its base to deltas and back, and serves on after a bad one."""
    with SglangServer(engines.python, str(case / "step-1"), None) as server:
        whole = [server.complete()]
        server.update(case / "step-2")
        whole.append(server.complete())
    with SglangServer(engines.python, str(case / "base"), serving(case)) as server:
        before, seen, messages = server.complete(), [], []
        for place in ("run/step-1", "base", "bad/damaged", "run/step-2"):
            code, answer = server.update(case / place)
            seen.append((code, server.complete()))
            messages.append(answer["message"])
        is_logged = "are damaged" in messages[2] and messages[2] in server.log()
    engines.check("server: to a delta", passed=seen[0] == (200, whole[0]))
    engines.check("server: and back", passed=seen[1] == (200, before) != seen[0])
    engines.check("server: a bad delta is 400", passed=seen[2] == (400, before))
    engines.check("server: and its error is in the log", passed=is_logged)
    engines.check("server: then a good one", passed=seen[3] == (200, whole[1]))


def check_guide(engines: Engines, case: Path) -> None:
    """The guide's Python goes through a run."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    chosen = (
        "import functools, sglang; from sglang_probe import OPTIONS;"
        "sglang.Engine = functools.partial(sglang.Engine, **OPTIONS)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, target in (("models/base", case / "base"), ("runs/grpo", case / "run")):
            Path(folder, name).parent.mkdir()
            Path(folder, name).symlink_to(target)
        done = subprocess.run(
            [engines.python, "-c", "\n".join([chosen, *code])],
            env=sglang_environment(engines.python, json.dumps({"roots": ["runs/grpo"]}))
            | {"PYTHONPATH": str(HERE)},
            cwd=folder,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("step-")]
    expected = sorted(step.name for step in (case / "run").glob("step-*"))
    passed = [line.split()[0] for line in lines] == expected and "RLSPARSE" not in done.stdout
    engines.check("the guide", passed=passed, detail="" if passed else done.stdout + done.stderr)


@click.command()
@click.argument("cases", type=click.Path(path_type=Path))
@click.option("--python", required=True, help="Interpreter of an environment with SGLang.")
@click.option("--quick", is_flag=True, help="One model; writes no result.")
def main(cases: Path, python: str, *, quick: bool) -> None:
    """Compare SGLang on full checkpoints and on deltas."""
    cases = cases.absolute()
    names = ("llama",) if quick else ("llama", "qwen3-tied", "qwen3-moe")
    make_cases(python, cases, dict.fromkeys(names, 2))
    engines = Engines(SAME, python)
    llama = cases / "llama"
    if "error" in engines.run(llama / "base")[0]:
        click.echo("SGLang does not run here, full checkpoints neither")
        sys.exit(3)
    for name in names:
        check_model(engines, cases / name)
    if not quick:
        check_ranks(engines, llama)
        check_rollback(engines, llama)
        check_hub(engines, llama)
        check_refusals(engines, cases)
        check_versions(engines)
        check_server(engines, llama)
        check_guide(engines, llama)
        write_result("sglang", engines, python)
    click.echo(f"{len(engines.lines)} checks, {len(engines.wrong)} failed")
    sys.exit(bool(engines.wrong))


if __name__ == "__main__":
    main()

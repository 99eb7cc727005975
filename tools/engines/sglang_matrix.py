#!/usr/bin/env python3
"""Run SGLang on full checkpoints and on deltas, and compare what it computes, bit for bit.

    python tools/engines/sglang_matrix.py CASES --python ENV/bin/python           # everything
    python tools/engines/sglang_matrix.py CASES llama --python ENV/bin/python     # a part

A functional test: the environment stands in for SGLang's kernels. Each check starts real engines
in processes of their own. What is found goes to ``tools/engines/results/sglang.json``, with the
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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bucket_run import run_in_bucket
from comparison import Checks, Seen, make_cases, write_result
from sglang_server import SglangServer, sglang_environment

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).parent
GUIDE: Final = HERE.parents[1] / "specs" / "guides" / "serving-sglang.md"
LIMIT: Final = 600
"""Seconds that an engine may take."""

SAME: Final = ("tokens", "logprobs", "prompt_logprobs")
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


class Probe:
    """A process that starts engines.

    Args:
        python: The interpreter of SGLang's environment.
        variables: More environment variables.
    """

    def __init__(self, python: str, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "sglang_probe.py")],
            env=sglang_environment(python, None) | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, asked: dict[str, Any]) -> str:
        """Start an engine, act on it, and return what it wrote."""
        ends = self._process.stdin, self._process.stdout
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({**asked, "folder": folder}), file=ends[0], flush=True)
            if ends[1] is None or not ends[1].readline():
                msg = "SGLang does not run here"
                raise RuntimeError(msg)
            return Path(folder, "log").read_text("utf-8", errors="replace")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclass
class Engines(Checks):
    """Starts engines and keeps what was compared.

    Attributes:
        python: The interpreter of SGLang's environment.
    """

    python: str

    @cached_property
    def probe(self) -> Probe:
        """The process that starts engines."""
        return Probe(self.python, {})

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
            variables: More environment variables, for a process of its own.
            engine: SGLang's options.
        """
        acts = [[str(word) for word in action] for action in actions or (["observe"],)]
        options = {"model_path": str(model), **engine}
        asked = {"settings": settings, "engine": options, "actions": acts}
        probe = self.probe if variables is None else Probe(self.python, variables)
        log = probe.run(asked)
        if variables is not None:
            probe.close()
        answer = next((x for x in log.splitlines() if x.startswith("PROBE ")), None)
        if answer is None:
            return [{"error": log}] * len(acts)
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
    engines.refused("rollback: to the base", broken, "the load was broken", first)
    engines.refused("rollback: to a delta", again, "the load was broken", fine)


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
    engines.same("ranks: from the base to a delta", one, tuned)
    engines.refused("ranks: an error of one", broken, "one rank fails", tuned)
    engines.same("ranks: back to the base", first, again)


def check_hub(engines: Engines, case: Path) -> None:
    """Ids of the Hub, from its cache: a delta finds its base by content."""
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in (("base", case / "base"), ("grpo", case / "run" / "step-1")):
            repo = Path(cache, f"models--org--{name}")
            shutil.copytree(folder, repo / "snapshots" / COMMIT)
            (repo / "refs").mkdir()
            (repo / "refs" / "main").write_text(COMMIT)
        seen = engines.run("org/grpo", variables={"HF_HUB_CACHE": cache})[0]
        engines.same("hub: an id as the model", engines.run(case / "step-1")[0], seen)


def check_bucket(engines: Engines, case: Path) -> None:
    """An engine goes from its base to a step of a run in object storage, and back."""
    with run_in_bucket(case) as (run, variables):
        base = case / "base"
        seen = engines.run(
            base,
            ["observe"],
            ["update", f"{run}/step-1"],
            ["update", f"{run}2/step-1"],
            ["update", base],
            settings=json.dumps({"base": str(base), "roots": [run]}),
            variables=variables,
        )
    one = engines.run(case / "step-1")[0]
    engines.same("bucket: from the base to a step of a run", one, seen[1])
    engines.refused("bucket: outside the roots", seen[2], "may not load", one)
    engines.same("bucket: back to the base", seen[0], seen[3])


def check_refusals(engines: Engines, cases: Path) -> None:
    """What cannot be right, or was not tried, is refused by name."""
    llama, tied = cases / "llama", cases / "qwen3-tied"
    delta, settings = llama / "run" / "step-1", serving(llama, base=str(llama / "base"))
    seen = engines.run(delta, settings=serving(llama, base=str(llama / "step-2")))[0]
    engines.refused("refusals: another base", seen, "wrong base")
    seen = engines.run(llama / "bad" / "damaged", settings=settings)[0]
    engines.refused("refusals: a damaged delta as the model", seen, "are damaged")
    seen = engines.run(delta, settings="{")[0]
    engines.refused("refusals: a variable that is not JSON", seen, "RLSPARSE_SGLANG: is not JSON")
    seen = engines.run(delta, settings=settings, variables={"SGLANG_PLUGINS": "another"})[0]
    engines.refused("refusals: the plugin disabled", seen, "Cannot find any model weights")
    first, second = engines.run(
        tied / "base", ["observe"], ["update", delta], settings=serving(llama)
    )
    engines.refused("refusals: another architecture", second, "differs from the engine's", first)
    lora = {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj"]}
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
        engines.refused(f"refusals: {option}", seen, f"does not load a delta with {option}")


def check_versions(engines: Engines) -> None:
    """Releases that were not tried get no hooks, and say so in the log."""
    updater = "sglang.srt.model_executor.model_runner_components.weight_updater"
    changes = {
        "is too old": "import sglang.version as v; v.__version_tuple__ = (0, 5, 22)",
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
            f"versions: an SGLang that {message}",
            passed=passed,
            detail="" if passed else done.stderr,
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
    passed = [line.split()[0] for line in lines] == ["step-1", "step-2"] and not any(
        "runs/grpo" in line for line in lines
    )
    engines.check(
        "guide: its Python runs", passed=passed, detail="" if passed else done.stdout + done.stderr
    )


PARTS: Final[dict[str, Callable[[Engines, Path], None]]] = {
    "llama": lambda engines, cases: check_model(engines, cases / "llama"),
    "qwen3-tied": lambda engines, cases: check_model(engines, cases / "qwen3-tied"),
    "qwen3-moe": lambda engines, cases: check_model(engines, cases / "qwen3-moe"),
    "ranks": lambda engines, cases: check_ranks(engines, cases / "llama"),
    "rollback": lambda engines, cases: check_rollback(engines, cases / "llama"),
    "bucket": lambda engines, cases: check_bucket(engines, cases / "llama"),
    "hub": lambda engines, cases: check_hub(engines, cases / "llama"),
    "refusals": check_refusals,
    "versions": lambda engines, _: check_versions(engines),
    "server": lambda engines, cases: check_server(engines, cases / "llama"),
    "guide": lambda engines, cases: check_guide(engines, cases / "llama"),
}


@click.command()
@click.argument("cases", type=click.Path(path_type=Path))
@click.argument("parts", type=click.Choice(list(PARTS)), nargs=-1)
@click.option("--python", required=True, help="Interpreter of an environment with SGLang.")
def main(cases: Path, parts: tuple[str, ...], python: str) -> None:
    """Compare SGLang on full checkpoints and on deltas, in all PARTS or in those named."""
    cases, parts = cases.absolute(), parts or tuple(PARTS)
    make_cases(python, cases, dict.fromkeys(("llama", "qwen3-tied", "qwen3-moe"), 2))
    engines = Engines(SAME, python)
    for part in parts:
        PARTS[part](engines, cases)
    write_result("sglang", engines, python, parts)
    click.echo(f"{len(engines.lines)} checks, {len(engines.wrong)} failed")
    sys.exit(bool(engines.wrong))


if __name__ == "__main__":
    main()

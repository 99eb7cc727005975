#!/usr/bin/env python3
"""Run vLLM on full checkpoints and on deltas, and compare what it computes, bit for bit.

    python tools/engines/vllm_matrix.py CASES --python ENV/bin/python            # everything
    python tools/engines/vllm_matrix.py CASES --python ENV/bin/python --quick    # one model

Each check starts real engines in processes of their own. The full matrix writes
``tools/engines/results/vllm.json``, with the digest of the integration's code.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
from safetensors.torch import load_file, save_file

from rlsparse_store import encode_delta

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

from loopback_hub import LoopbackHub

from bucket_run import run_in_bucket
from comparison import Checks, Seen, make_cases, write_result
from server import VllmServer, vllm_environment

HERE: Final = Path(__file__).parent
GUIDE: Final = HERE.parents[1] / "specs" / "guides" / "serving.md"
LIMIT: Final = 600
"""Seconds that an engine may take."""

PROBE: Final = str(HERE / "probe.py")
ROUNDS: Final = 7
"""How often a time is measured; the least counts."""

SAME: Final = ("tokens", "logprobs", "prompt_logprobs", "weights")


@dataclass
class Engines(Checks):
    """Starts engines and keeps what was compared.

    Attributes:
        python: The interpreter of vLLM's environment.
    """

    python: str
    _full: dict[str, Seen] = field(default_factory=dict)
    _served: dict[Path, object] = field(default_factory=dict)
    _importers: dict[bool, subprocess.Popen[str]] = field(default_factory=dict)

    def checkpoint(self, folder: Path, **options: Any) -> Seen:  # noqa: ANN401
        """What vLLM computes with a full checkpoint; each engine is started once.

        Args:
            folder: The checkpoint.
            options: As for :meth:`run`.
        """
        key = json.dumps([str(folder), options])
        if key not in self._full:
            self._full[key] = self.run(["observe"], model=str(folder), **options)[0]
        return self._full[key]

    def served(self, folder: Path) -> object:
        """What a server computes with a full checkpoint; each server is started once."""
        if folder not in self._served:
            with VllmServer(self.python, str(folder), {}) as server:
                self._served[folder] = server.complete()
        return self._served[folder]

    def run(
        self,
        *actions: list[Any],
        ranks: int = 1,
        plain: bool = False,
        **engine: Any,  # noqa: ANN401
    ) -> list[Seen]:
        """Start an engine, act on it, and return what it computed after each action.

        Args:
            actions: As the probe takes them.
            ranks: Processes of the engine.
            plain: Whether the CPU computes with the parameters, and not with packed copies. Then
                nothing else is kept.
            engine: Options of ``vllm.LLM``.
        """
        keep = ranks == 1 and not plain
        asked: dict[str, Any] = {"engine": engine, "actions": actions, "keep_weights": keep}
        if ranks == 1:
            printed = self._fork(asked, plain=plain)
        else:
            asked["engine"]["tensor_parallel_size"] = ranks
            binding = {
                "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks))),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            }
            printed = subprocess.run(
                [self.python, PROBE, json.dumps(asked)],
                env=self._environment(plain=plain) | binding,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                text=True,
                timeout=LIMIT,
            ).stdout
        answer = next((x for x in printed.splitlines() if x.startswith("PROBE ")), None)
        if answer is None:
            return [{"error": printed}] * max(1, len(actions))
        return list(json.loads(answer.removeprefix("PROBE "))["seen"])

    def _environment(self, *, plain: bool) -> dict[str, str]:
        return vllm_environment(self.python) | ({"PROBE_PLAIN": "1"} if plain else {})

    def _fork(self, asked: dict[str, Any], *, plain: bool) -> str:
        """What a probe prints that is forked from a process in which vLLM is imported."""
        if plain not in self._importers:
            self._importers[plain] = subprocess.Popen(
                [self.python, PROBE, "--serve"],
                env=self._environment(plain=plain) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        importer = self._importers[plain]
        assert importer.stdin is not None  # noqa: S101 - both are pipes
        assert importer.stdout is not None  # noqa: S101 - as above
        with tempfile.NamedTemporaryFile() as out:
            request = {"asked": asked, "out": out.name, "limit": LIMIT}
            importer.stdin.write(json.dumps(request) + "\n")
            importer.stdin.flush()
            while importer.stdout.readline() not in {"ended\n", ""}:
                pass  # what vLLM prints as it is imported
            return Path(out.name).read_text("utf-8", "replace")


def serving(case: Path, *, in_place: bool = False, **options: str) -> dict[str, Any]:
    """An engine's options for deltas.

    Args:
        case: The case. Its run and its bad deltas are places that the engine may load from.
        in_place: Whether weights are written in place.
        options: Further places.
    """
    return {
        "load_format": "rlsparse",
        "model_loader_extra_config": {
            "roots": [str(case / "run"), str(case / "bad")],
            **options,
        },
        "weight_transfer_config": {"backend": "rlsparse_sparse" if in_place else "rlsparse"},
    }


def check_loading(engines: Engines, case: Path, ranks: int) -> None:
    """Deltas load as the full checkpoints do, by both ways to name them."""
    name = f"{case.name}, {ranks} rank{'s' if ranks > 1 else ''}"
    delta, base = str(case / "run" / "step-1"), str(case / "base")
    full = engines.checkpoint(case / "step-1", ranks=ranks)
    plain = engines.checkpoint(case / "base", ranks=ranks)
    engines.differ(f"{name}: base and tuned differ", plain, full)
    seen = engines.run(["observe"], ranks=ranks, model=delta, **serving(case, base=base))[0]
    engines.same(f"{name}: the delta as the model", full, seen)
    if ranks == 1:
        seen = engines.run(["observe"], model=base, **serving(case, delta=delta))[0]
        engines.same(f"{name}: the base as the model, with a delta", full, seen)


def check_live(engines: Engines, case: Path, ranks: int, steps: int) -> None:
    """A running engine goes through a run, and back to its base, and refuses what is bad."""
    name = f"{case.name}, {ranks} rank{'s' if ranks > 1 else ''}, running"
    run, base = case / "run", str(case / "base")
    names = [f"step-{step}" for step in range(1, steps + 1)]
    damaged = case / "bad" / "damaged"
    full = {n: engines.checkpoint(case / n, ranks=ranks) for n in names}
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
    headed = str(tied / "bad" / "headed")
    seen = engines.run(model=headed, **serving(tied, base=str(tied / "base")))[0]
    engines.refused("tied embeddings with an output layer of its own", seen, "stores another one")


def check_in_place(engines: Engines, cases: Path) -> None:
    """Weights are written in place where that is proven, and else refused, by a reason."""
    for name, ranks in (("llama", 1), ("qwen3-tied", 1), ("llama", 2)):
        case = cases / name
        steps = ["step-1", "step-2"]
        full = [engines.checkpoint(case / step, ranks=ranks, plain=True) for step in steps]
        start, *seen = engines.run(
            ["observe"],
            *(["update", str(case / "run" / step)] for step in steps),
            ["update", str(case / "base")],
            ["update", str(case / "bad" / "damaged")],
            ["update", str(case / "run" / "absent")],
            ["update", str(case / "run" / "step-1")],
            ranks=ranks,
            plain=True,
            model=str(case / "base"),
            **serving(case, in_place=True),
        )
        what = f"{name}, {ranks} rank{'s' if ranks > 1 else ''}, in place"
        engines.differ(f"{what}: base and tuned differ", start, full[0])
        engines.same(f"{what}: to a step", full[0], seen[0])
        engines.same(f"{what}: from step to step", full[1], seen[1])
        engines.same(f"{what}: back to the base", start, seen[2])
        engines.refused(f"{what}: a damaged delta", seen[3], "damaged", start)
        engines.refused(f"{what}: no such delta", seen[4], "no such file", start)
        engines.same(f"{what}: a delta after errors", full[0], seen[5])
    llama, moe = cases / "llama", cases / "qwen3-moe"
    delta, base = str(llama / "run" / "step-1"), str(llama / "base")
    options = serving(llama, in_place=True)
    # From a delta on: the proof reads what the engine holds.
    begun = engines.run(
        ["begin"], plain=True, model=delta, **serving(llama, in_place=True, base=base)
    )
    engines.check("in place, a delta as the model: proven", passed="error" not in begun[0])
    spoilt = engines.run(["spoil"], ["update", delta], plain=True, model=base, **options)
    engines.refused("in place, weights of another kind", spoilt[1], "does not hold", spoilt[0])
    packed = engines.run(["observe"], ["update", delta], model=base, **options)
    engines.refused("in place, packed weights", packed[1], "packed copy", packed[0])
    mixed = engines.run(
        ["observe"],
        ["update", str(moe / "run" / "step-1")],
        model=str(moe / "base"),
        **serving(moe, in_place=True),
    )
    engines.refused("in place, a mixture of experts", mixed[1], "repacks experts", mixed[0])


def check_quantized(engines: Engines, case: Path) -> None:
    """VLLM quantises a delta's tensors as it does the full checkpoint's."""
    base, delta = str(case / "base"), str(case / "run" / "step-1")
    online: dict[str, Any] = {"quantization": "fp8_per_channel"}
    full = engines.checkpoint(case / "step-1", **online)
    plain = engines.checkpoint(case / "base", **online)
    engines.differ("FP8 of bfloat16: base and tuned differ", plain, full)
    seen = engines.run(["observe"], model=delta, **online, **serving(case, base=base))[0]
    engines.same("FP8 of bfloat16: the delta as the model", full, seen)
    _, live = engines.run(["observe"], ["update", delta], model=base, **online, **serving(case))
    engines.same("FP8 of bfloat16: running, from the base to a delta", full, live)
    options = serving(case, in_place=True)
    before, live = engines.run(["observe"], ["update", delta], model=base, **online, **options)
    engines.refused("FP8 of bfloat16: in place", live, "weights of its own kind", before)
    for name in ("bitsandbytes", "gguf", "torchao"):
        refused = engines.run(model=delta, quantization=name, **serving(case, base=base))
        engines.check(f"{name} is an error", passed="error" in refused[0])


def check_adapters(engines: Engines, case: Path) -> None:
    """LoRA adapters work on top of a delta, and stay with the engine as its weights change."""
    base, delta = str(case / "base"), str(case / "run" / "step-1")
    actions = [["observe"], ["adapter", str(case / "adapter")]]
    lora: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    full = engines.run(*actions, model=str(case / "step-1"), **lora)
    engines.check("LoRA matters", passed=full[0]["tokens"] != full[1]["tokens"])
    loaded = engines.run(*actions, model=delta, **lora, **serving(case, base=base))
    live = engines.run(*actions, ["update", delta], *actions, model=base, **lora, **serving(case))
    for way, seen in (("the delta as the model", loaded), ("running", live[3:])):
        for what, one, other in zip(("without", "with"), full, seen, strict=True):
            engines.same(f"LoRA, {way}: {what} an adapter", one, other)
    plain = engines.run(*actions, plain=True, model=str(case / "step-1"), **lora)
    options = serving(case, in_place=True)
    live = engines.run(
        *actions, ["update", delta], *actions, plain=True, model=base, **lora, **options
    )
    for what, one, other in zip(("without", "with"), plain, live[3:], strict=True):
        engines.same(f"LoRA, in place: {what} an adapter", one, other)


def check_hub(engines: Engines, case: Path) -> None:
    """A server loads steps of a run on the Hub, over a base on the Hub."""
    folders = {"org/base": case / "base", "org/run": case / "run"}
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as cache:
        for repo, folder in folders.items():
            files = (file for file in folder.rglob("*") if file.is_file())
            hub.commit(repo, {f.relative_to(folder).as_posix(): f.read_bytes() for f in files})
        options = serving(case, delta="org/run", subfolder="step-1", base="org/base")
        places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": cache, "HF_HUB_OFFLINE": "0"}
        with VllmServer(engines.python, "org/base", options, places) as server:
            listings = Counter(r.path for r in hub.requests if "/api/models/" in r.path)
            texts, codes = [server.complete()], []
            for place, subfolder in (("org/run", "step-2"), ("org/base", ""), ("org/other", "")):
                codes.append(server.update(place, subfolder))
                texts.append(server.complete())
    engines.check("Hub: two updates, and one outside the roots", passed=codes == [200, 200, 500])
    whole = [engines.served(case / name) for name in ("step-1", "step-2", "base", "base")]
    engines.check("Hub: the steps of the run, and the base", passed=texts == whole)
    run = {
        path: times for path, times in listings.items() if path.startswith("/api/models/org/run")
    }
    engines.check("Hub: the run is listed once", passed=sum(run.values()) == 1, detail=f"{run}")


def check_bucket(engines: Engines, case: Path) -> None:
    """A server starts with a step of a run in object storage, and goes to another one."""
    with run_in_bucket(case) as (run, variables):
        options = serving(case, delta=f"{run}/step-1", base=str(case / "base"))
        options["model_loader_extra_config"]["roots"] = [run]
        with VllmServer(engines.python, str(case / "base"), options, variables) as server:
            texts, codes = [server.complete()], []
            for place in (f"{run}/step-2", f"{run}2/step-1", str(case / "base")):
                codes.append(server.update(place))
                texts.append(server.complete())
    engines.check(
        "bucket: an update, one outside the roots, the base", passed=codes == [200, 500, 200]
    )
    whole = [engines.served(case / name) for name in ("step-1", "step-2", "step-2", "base")]
    engines.check("bucket: the steps of the run, and the base", passed=texts == whole)


def measure_switch(engines: Engines, case: Path) -> None:
    """Seconds to load a step into a running engine: the whole checkpoint, or its delta.

    All files are in the system's cache; or those of the step are not,
    as when a trainer elsewhere has just written them, and the base's are.
    """
    for way, in_place in (("layer by layer", False), ("in place", True)):
        timed: list[tuple[str, list[Any]]] = []
        for step in ("step-1", "step-2", "step-3"):
            full, delta = str(case / step), str(case / "run" / step)
            of_full, of_delta = ["reload", full], ["update", delta]
            if in_place:
                of_full = ["update", full]
            timed += [("", of_delta)]
            one_round = [
                ("full", of_full),
                ("delta, verified before", of_delta),
                ("", ["unverify"]),
                ("delta with its check", of_delta),
                ("", ["forget", full]),
                ("full, from storage", of_full),
                ("", ["forget", delta]),
                ("delta, verified before, from storage", of_delta),
            ]
            timed += [
                (f"{step}, {way}: {what}" if what else "", x) for what, x in one_round
            ] * ROUNDS
        actions = (["timed", *action] for _, action in timed)
        # The run's folder is one of the roots, the full checkpoints are beside it.
        options = serving(case, in_place=in_place)
        options["model_loader_extra_config"]["roots"] = [str(case)]
        seen = engines.run(*actions, plain=in_place, model=str(case / "base"), **options)
        failed = next((one["error"] for one in seen if "error" in one), None)
        engines.check(f"measured {way}", passed=failed is None, detail=(failed or "")[-600:])
        for (what, _), one in zip(timed, seen, strict=False):
            if what and failed is None:
                seconds = min(one["seconds"], engines.times.get(what, one["seconds"]))
                engines.times[what] = round(seconds, 4)


def check_server(engines: Engines, case: Path) -> None:
    """A server goes from its base to deltas and back, and serves on after a bad one."""
    base, run = str(case / "base"), case / "run"
    with VllmServer(engines.python, base, serving(case)) as server:
        before = server.complete()
        codes, texts = [], []
        for place in (run / "step-1", case / "base", case / "bad" / "damaged", run / "step-2"):
            codes.append(server.update(place))
            texts.append(server.complete())
    whole = {step: engines.served(case / step) for step in ("step-1", "step-2")}
    engines.check("server: to a delta", passed=codes[0] == 200 and texts[0] == whole["step-1"])
    engines.check("server: and back", passed=codes[1] == 200 and texts[1] == before != texts[0])
    engines.check("server: a bad delta is 500", passed=codes[2] == 500 and texts[2] == before)
    engines.check("server: then a good one", passed=codes[3] == 200 and texts[3] == whole["step-2"])


def check_guide(engines: Engines, case: Path) -> None:
    """The guide's Python goes through a run, in a folder with the guide's names."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    small = (
        "import functools, vllm; vllm.LLM = functools.partial("
        "vllm.LLM, enforce_eager=True, dtype='bfloat16', max_model_len=128)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, target in (("models/base", case / "base"), ("runs/grpo", case / "run")):
            Path(folder, name).parent.mkdir()
            Path(folder, name).symlink_to(target)
        done = subprocess.run(
            [engines.python, "-c", "\n".join([small, *code])],
            env=vllm_environment(engines.python) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            cwd=folder,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT,
        )
    names = [path.name for path in sorted((case / "run").glob("step-*"), key=_step)]
    printed = [x.split()[0] for x in done.stdout.splitlines() if x.startswith("step-")]
    passed = done.returncode == 0 and printed == names
    detail = "" if passed else (done.stdout + done.stderr)[-2000:]
    engines.check("guide: its Python runs", passed=passed, detail=detail)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def make_headed(case: Path) -> None:
    """Make a delta whose tuned checkpoint has an output layer that its configuration ties."""
    out = case / "bad" / "headed"
    if out.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        tuned = Path(folder, "tuned")
        shutil.copytree(case / "step-1", tuned)
        tensors = load_file(tuned / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
        save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
        encode_delta(case / "base", tuned, out)


@click.command()
@click.argument("cases", type=click.Path(path_type=Path))
@click.option("--python", required=True, help="Interpreter of an environment with vLLM.")
@click.option("--quick", is_flag=True, help="One model on one rank; writes no result.")
def main(cases: Path, python: str, *, quick: bool) -> None:
    """Compare vLLM on full checkpoints and on deltas."""
    steps = {"llama": 10, "qwen3-tied": 3, "qwen3-moe": 2, "llama-large": 3}
    make_cases(python, cases, {"llama": 3} if quick else steps)
    engines = Engines(SAME, python)
    llama = cases / "llama"
    if "error" in engines.checkpoint(llama / "base", ranks=1):
        click.echo("vLLM does not run here, full checkpoints neither")
        sys.exit(3)
    if quick:
        check_loading(engines, llama, 1)
        check_live(engines, llama, 1, 3)
        check_guide(engines, llama)
    else:
        for name in ("llama", "qwen3-tied", "qwen3-moe"):
            for ranks in (1, 2):
                check_loading(engines, cases / name, ranks)
        check_live(engines, llama, 1, 10)
        check_live(engines, llama, 2, 3)
        check_live(engines, cases / "qwen3-tied", 1, 3)
        make_headed(cases / "qwen3-tied")
        check_refusals(engines, cases)
        check_in_place(engines, cases)
        check_quantized(engines, llama)
        check_adapters(engines, llama)
        check_server(engines, llama)
        check_hub(engines, llama)
        check_bucket(engines, llama)
        check_guide(engines, llama)
        measure_switch(engines, cases / "llama-large")
        write_result("vllm", engines, python)
    click.echo(f"{len(engines.lines)} checks, {len(engines.wrong)} failed")
    sys.exit(bool(engines.wrong))


if __name__ == "__main__":
    main()

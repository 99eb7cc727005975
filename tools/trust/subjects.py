"""The commands under test: what each starts from, writes and acknowledges.

A subject has inputs, which no trial changes, and a work folder, which every trial starts from the
same state. The states after a clean run are what a disturbed one is compared with: deltas are
deterministic, so bytes decide.
"""

from __future__ import annotations

import gc
import http.client
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

from interposer import Outcome, Plan, Trials, run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

from rlsparse_store.format.strict_json import canonical

__all__ = [
    "COMMANDS",
    "HOME",
    "SUBJECTS",
    "Bench",
    "Subject",
    "Tree",
    "normal",
    "read_tree",
    "visible",
]

SUPPORT: Final = Path(__file__).resolve().parents[2] / "tests" / "support"

Tree = dict[str, bytes]
"""The files of a folder by their paths in it; folders end with a slash and are empty."""

HOME: Final = "home"
"""The Hub's cache, which is not this package's."""


def read_tree(folder: Path) -> Tree:
    """The files and folders of a work folder, without the Hub's cache."""
    found: Tree = {}
    for here, folders, files in os.walk(folder):
        if Path(here) == folder:
            folders[:] = [name for name in folders if name != HOME]
        above = os.path.relpath(here, folder)
        prefix = "" if above == "." else f"{above}/"
        found |= {f"{prefix}{name}/": b"" for name in folders}
        for name in files:
            found[f"{prefix}{name}"] = normal(name, Path(here, name).read_bytes())
    return found


def normal(path: str, note: bytes) -> bytes:
    """The content of a file; of a note, without the entry before it.

    That is another one if an earlier checkpoint was stored later.
    """
    if not path.endswith("entry.json"):
        return note
    try:
        fields = json.loads(note)
        if fields["checksum"] != xxhash.xxh3_64_hexdigest(canonical(fields["entry"])):
            return note
        return canonical(fields["entry"] | {"parent": None})
    except (ValueError, KeyError):
        return note


def visible(tree: Tree) -> Tree:
    """What a reader looks at: nothing that is hidden or among the system's temporary files."""
    return {path: data for path, data in tree.items() if not re.search(r"(^|/)\.|^tmp/.", path)}


def comparable(tree: Tree) -> Tree:
    """A tree whose lock has the same name and content after any number of commands.

    Python leaves the file by which it tests the folder for temporary ones, if it is killed there;
    and what was swept from a run leaves an empty folder.
    """
    locks, probe = re.compile(r"lock-\d+$"), re.compile(r"tmp/[a-z0-9_]{8}")
    return {
        locks.sub("lock", path): b"" if locks.search(path) else data
        for path, data in tree.items()
        if not probe.fullmatch(path) and path != "run/.run/swept/"
    }


def is_acknowledged(outcome: Outcome) -> bool:
    """Whether the command printed its report."""
    with suppress(ValueError):
        return isinstance(json.loads(outcome.out), dict)
    return outcome.code == 0


@dataclass
class Subject:
    """A command under test.

    Attributes:
        name: What it is called in results.
        prepare: Makes inputs and the state at the start.
        arguments: The command line.
        unit: The part of the work folder that a path belongs to, which changes at once.
        reruns: Calls after which a disturbed run has the state of an undisturbed one.
        is_done: Whether an outcome acknowledges the result.
        check: What else is required of a tree: returns what is wrong.
        is_remote: Whether the result is on the Hub.
        work: What runs in place of the command; returns the exit code.
    """

    name: str
    prepare: Callable[[Bench], None]
    arguments: Callable[[Bench], list[str]]
    unit: Callable[[str], str]
    reruns: int = 1
    check: Callable[[Bench, Tree], str] = lambda _bench, _tree: ""
    is_remote: bool = False
    is_done: Callable[[Outcome], bool] = is_acknowledged
    work: Callable[[list[str]], int] = run_command


@dataclass
class Bench:
    """The folders of a subject, its trials, and the states that it may leave.

    Attributes:
        root: Folder of everything, below which calls count.
        subject: The subject.
        hub: Endpoint of the test Hub.
        trials: Runs the trials.
        start: The work folder before a trial.
        done: The work folder after a clean run.
        settled: The work folder after further runs.
    """

    root: Path
    subject: Subject
    hub: TestHub
    trials: Trials
    start: Tree = field(default_factory=dict)
    done: Tree = field(default_factory=dict)
    settled: Tree = field(default_factory=dict)
    number: int = 0

    @property
    def inputs(self) -> Path:
        """What no trial changes."""
        return self.root / "in"

    @property
    def work(self) -> Path:
        """What a trial changes."""
        return self.root / "work"

    @property
    def kept(self) -> Path:
        """The work folder at the start of each trial."""
        return self.root / "start"

    @property
    def repo(self) -> str:
        """The repository of this trial."""
        return f"org/target-{self.number}"

    def make(self) -> None:
        """Make the inputs, and learn from clean runs which states there are."""
        for folder in (self.inputs, self.kept, self.work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (self.kept / "tmp").mkdir()
        self.subject.prepare(self)
        self.reset()
        self.start = read_tree(self.work)
        self._import_what_is_used()
        self.reset()
        self._run_clean()
        self.done = read_tree(self.work)
        for _ in range(self.subject.reruns + 1):
            self._run_clean()
        self.settled = comparable(read_tree(self.work))

    def reset(self) -> None:
        """Bring the work folder to its start."""
        shutil.rmtree(self.work)
        shutil.copytree(self.kept, self.work, symlinks=True)
        self.number += 1
        if self.subject.is_remote:
            self.hub.forget()

    def run(self, plan: Plan, kill_after: float | None = None) -> Outcome:
        """Run the command once."""
        arguments = self.subject.arguments(self)
        return self.trials.run(lambda: self.subject.work(arguments), plan, kill_after)

    def _run_clean(self) -> None:
        outcome = self.run(Plan())
        if outcome.code and "exists" not in outcome.err:
            msg = f"{self.subject.name} fails undisturbed: {outcome.err}"
            raise RuntimeError(msg)

    def _import_what_is_used(self) -> None:
        """Import what the command imports, for children that are forked later."""
        arguments = self.subject.arguments(self)
        listing = self.root / "modules"

        def work() -> int:
            code = self.subject.work(arguments)
            listing.write_text("\n".join(sys.modules))
            return code

        self.trials.run(work, Plan())
        for name in listing.read_text().split():
            if name not in sys.modules and not name.startswith("__"):
                with suppress(ImportError):
                    importlib.import_module(name)
        # A collection in a child would copy the pages of everything.
        gc.collect()
        gc.freeze()

    # --- the oracle ---------------------------------------------------------------------------

    def judge(self, outcome: Outcome) -> str:
        """What is torn or lost after a disturbed run; empty if nothing is."""
        return self.judge_tree(read_tree(self.work), is_done=self.subject.is_done(outcome))

    def judge_tree(self, tree: Tree, *, is_done: bool) -> str:
        """What is torn or lost in a work folder; empty if nothing is."""
        found, start, done = visible(tree), visible(self.start), visible(self.done)
        units = {self.subject.unit(path) for path in {*found, *start, *done}}
        for unit in sorted(units):
            now, before, after = (self._part(t, unit) for t in (found, start, done))
            if unit.endswith("run.json"):
                # Between both there are as many states as entries.
                if is_done and _rows(now) != _rows(after):
                    return f"lost after done: {unit}"
                continue
            if now not in (before, after):
                return f"torn: {unit} has {sorted(now)}"
            # A watcher may leave weights where they are: it asks again at its next look.
            if is_done and now != after and not unit.startswith("out/checkpoint"):
                return f"lost after done: {unit}"
        wrong = self.subject.check(self, found)
        if not wrong and self.subject.is_remote:
            wrong = self._judge_hub(is_done=is_done)
        return wrong

    def _part(self, tree: Tree, unit: str) -> Tree:
        return {path: data for path, data in tree.items() if self.subject.unit(path) == unit}

    def _judge_hub(self, *, is_done: bool) -> str:
        files = self.hub.files(self.repo)
        new = {path for path in files if path != ".gitattributes"}
        wanted = {"README.md", "rlsparse/delta.safetensors"}
        if new and not wanted <= new:
            return f"torn on the Hub: {sorted(new)}"
        if is_done and not new:
            return "lost on the Hub after done"
        return ""

    def judge_rerun(self) -> str:
        """Run the command again: it succeeds, and leaves what an undisturbed one leaves."""
        for _ in range(self.subject.reruns):
            outcome = self.run(Plan())
            is_there = outcome.code == 1 and "exists" in outcome.err
            if outcome.is_hung or (outcome.code and not is_there):
                return f"the next command fails: {outcome.code} {outcome.err.strip()}"
        now = comparable(read_tree(self.work))
        is_same = _rows(now) == _rows(self.settled)
        if {**now, "run/run.json": b""} != {**self.settled, "run/run.json": b""} or not is_same:
            more, less = sorted(now.keys() - self.settled), sorted(self.settled.keys() - now)
            other = sorted(p for p in now.keys() & self.settled if now[p] != self.settled[p])
            return f"the next command leaves more {more}, less {less}, other {other}"
        return self._judge_hub(is_done=True) if self.subject.is_remote else ""


# --- the test Hub ---------------------------------------------------------------------------------


class TestHub:
    """A process with the Hub of the tests. It must run before the Hub's client is imported."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        script = Path(__file__).with_name("hub_process.py")
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, script],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._ask(""))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None  # noqa: S101 - for the types
        assert self._process.stdout is not None  # noqa: S101
        if line:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def forget(self) -> None:
        """Forget what was uploaded."""
        self._ask("forget")

    def commit(self, repo: str, folder: Path) -> str:
        """Commit the files of a folder."""
        return self._ask(json.dumps([repo, str(folder)])).strip()

    def files(self, repo: str) -> list[str]:
        """The files of a repository; none if it does not exist."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", f"/api/models/{repo}/tree/main")
        answer = connection.getresponse()
        content = json.loads(answer.read() or b"[]")
        connection.close()
        return [file["path"] for file in content] if answer.status == 200 else []

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


# --- the subjects ---------------------------------------------------------------------------------


def _checkpoints(bench: Bench) -> dict[str, Any]:
    """A base of two shards and checkpoints tuned from it."""
    sys.path.insert(0, str(SUPPORT))
    pairs = importlib.import_module("pairs")
    tensors = {f"layers.{n}.weight": pairs.bf16_tensor(n, 60, 64) for n in range(4)}
    names = sorted(tensors)

    def save(folder: Path, tensors: Mapping[str, Any]) -> Path:
        halves = [{name: tensors[name] for name in part} for part in (names[:2], names[2:])]
        pairs.save_sharded(folder, *halves)
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        return folder

    def tuned(step: int) -> dict[str, Any]:
        return {name: pairs.tune(t, step, 0.05) for name, t in tensors.items()}

    return {"base": save(bench.inputs / "base", tensors), "save": save, "tuned": tuned}


def _trainer_folder(made: dict[str, Any], folder: Path, steps: range) -> None:
    for step in steps:
        place = made["save"](folder / f"checkpoint-{step}", made["tuned"](step))
        state = {"global_step": step, "log_history": [{"step": step, "reward": step / 100}]}
        (place / "trainer_state.json").write_text(json.dumps(state))


def _prepare_pair(bench: Bench) -> None:
    made = _checkpoints(bench)
    made["save"](bench.inputs / "tuned", made["tuned"](1))


def _first_folders(path: str) -> str:
    return "/".join(path.split("/")[:2])


def _encode() -> Subject:
    def arguments(bench: Bench) -> list[str]:
        pair = [str(bench.inputs / "base"), str(bench.inputs / "tuned")]
        return ["encode", *pair, "-o", str(bench.work / "new/delta"), "--json", "--threads", "1"]

    return Subject("encode", _prepare_pair, arguments, _first_folders)


def _encode_in_parent(bench: Bench, *arguments: str | Path) -> None:
    outcome = bench.trials.run(lambda: run_command([*map(str, arguments)]), Plan())
    if outcome.code:
        msg = f"cannot prepare: {outcome.err}"
        raise RuntimeError(msg)


def _apply() -> Subject:
    def prepare(bench: Bench) -> None:
        _prepare_pair(bench)
        here = bench.inputs
        _encode_in_parent(bench, "encode", here / "base", here / "tuned", "-o", here / "delta")

    def arguments(bench: Bench) -> list[str]:
        given = [str(bench.inputs / "delta"), "--base", str(bench.inputs / "base")]
        return ["apply", *given, "-o", str(bench.work / "new/out"), "--json", "--threads", "1"]

    return Subject("apply", prepare, arguments, _first_folders)


def _whole_entries(bench: Bench, found: Tree) -> str:
    """What an index names must be there, and what both states have must be named."""
    if "run/run.json" not in found:
        return "lost: run.json" if "run/run.json" in bench.start else ""
    try:
        rows = _rows(found)
    except ValueError:
        return "torn: run.json"
    known = [_rows(tree) for tree in (bench.start, bench.done, bench.settled)]
    for folder, row in rows.items():
        if row not in [rows.get(folder) for rows in known]:
            return f"torn: the row of {folder}"
        if f"run/{folder}/" not in found and f"run/{folder}/" in bench.done:
            return f"lost: {folder}, which the index names"
    kept = set.intersection(*({*rows} for rows in known)) if known else set()
    if kept - {*rows}:
        return f"lost from the index: {sorted(kept - {*rows})}"
    return ""


def _rows(tree: Tree) -> dict[str, dict[str, Any]]:
    """The rows of an index by folder; none if there is no index."""
    text = tree.get("run/run.json", b'{"entries": []}')
    return {row["folder"]: row | {"parent": None} for row in json.loads(text)["entries"]}


def _run() -> Subject:
    def prepare(bench: Bench) -> None:
        made = _checkpoints(bench)
        _trainer_folder(made, bench.inputs / "out", range(10, 40, 10))
        _encode_in_parent(
            bench,
            *("encode", bench.inputs / "base", bench.inputs / "out/checkpoint-10"),
            *("-o", bench.kept / "run", "--run"),
        )

    def arguments(bench: Bench) -> list[str]:
        given = [str(bench.inputs / "base"), str(bench.inputs / "out")]
        return ["encode", *given, "-o", str(bench.work / "run"), "--json", "--threads", "1"]

    return Subject("run", prepare, arguments, _first_folders, check=_whole_entries)


def _prune() -> Subject:
    def prepare(bench: Bench) -> None:
        made = _checkpoints(bench)
        _trainer_folder(made, bench.inputs / "out", range(10, 50, 10))
        run = bench.kept / "run"
        _encode_in_parent(bench, "encode", bench.inputs / "base", bench.inputs / "out", "-o", run)
        _encode_in_parent(bench, "prune", run, "--keep-every", "20")

    def arguments(bench: Bench) -> list[str]:
        rules = ["--keep-last", "1", "--grace", "0", "--pin", "checkpoint-20"]
        return ["prune", str(bench.work / "run"), *rules, "--json"]

    return Subject("prune", prepare, arguments, _first_folders, reruns=3, check=_whole_or_swept)


def _whole_or_swept(bench: Bench, found: Tree) -> str:
    """A pinned entry stays; others go away at once."""
    if "run/checkpoint-40/rlsparse/delta.safetensors" not in found:
        return "lost: checkpoint-40"
    return _whole_entries(bench, found)


def _watch() -> Subject:
    def prepare(bench: Bench) -> None:
        _trainer_folder(_checkpoints(bench), bench.kept / "out", range(10, 40, 10))

    def arguments(bench: Bench) -> list[str]:
        places = [str(bench.work / "out"), "-b", str(bench.inputs / "base")]
        thin = ["--once", "--settle", "0", "--thin", "1", "--yes", "--threads", "1", "-q"]
        return ["watch", *places, "-o", str(bench.work / "run"), *thin]

    def unit(path: str) -> str:
        # Its files are removed one after the other, each once the run stores them.
        return path if path.startswith("out/") else _first_folders(path)

    return Subject(
        "watch",
        prepare,
        arguments,
        unit,
        check=_stored_somewhere,
        reruns=2,
        is_done=lambda outcome: outcome.code == 0 and not outcome.err,
    )


def _stored_somewhere(bench: Bench, found: Tree) -> str:
    """The weights of each checkpoint are in its folder or in the run."""
    for path in bench.start:
        folder, _, name = path.removeprefix("out/").partition("/")
        if name.endswith(".safetensors") and path not in found:
            entry = f"run/{folder}/rlsparse/delta.safetensors"
            if found.get(entry) != bench.done.get(entry):
                return f"lost: {path}, which the run does not store"
    return _whole_entries(bench, found)


def _pull() -> Subject:
    def prepare(bench: Bench) -> None:
        _apply().prepare(bench)
        bench.hub.commit("org/delta", bench.inputs / "delta")

    def arguments(bench: Bench) -> list[str]:
        return ["pull", "org/delta", "-o", str(bench.work / "new/pulled"), "--json"]

    return Subject("pull", prepare, arguments, _first_folders)


def _push() -> Subject:
    def prepare(bench: Bench) -> None:
        _prepare_pair(bench)
        commit = bench.hub.commit("org/base", bench.inputs / "base")
        named = bench.inputs / "models--org--base" / "snapshots" / commit
        named.parent.mkdir(parents=True)
        shutil.copytree(bench.inputs / "base", named)

    def arguments(bench: Bench) -> list[str]:
        base = next((bench.inputs / "models--org--base" / "snapshots").iterdir())
        given = ["--base", str(base), "--tuned", str(bench.inputs / "tuned")]
        return ["push", *given, bench.repo, "--json"]

    return Subject("push", prepare, arguments, _first_folders, is_remote=True)


def _control() -> Subject:
    """A writer that writes in place: a rig that does not find it torn sees nothing."""

    def work(arguments: list[str]) -> int:
        source, target = map(Path, arguments)
        try:
            target.mkdir(exist_ok=True)
            for name in ("config.json", "model-00001-of-00002.safetensors"):
                data = (source / name).read_bytes()
                with (target / name).open("wb", buffering=0) as file:
                    file.write(data[:100])
                    file.write(data[100:])
        except OSError as error:
            print(f"rlsparse: {error}", file=sys.stderr)  # noqa: T201 - as the command does
            return 1
        print("{}", flush=True)  # noqa: T201 - it says that it is done
        return 0

    def arguments(bench: Bench) -> list[str]:
        return [str(bench.inputs / "tuned"), str(bench.work / "out")]

    return Subject("control", _prepare_pair, arguments, lambda path: path[:3], work=work)


COMMANDS: Final = ("encode", "run", "apply", "pull", "push", "prune", "watch")

SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {
    "encode": _encode,
    "run": _run,
    "apply": _apply,
    "pull": _pull,
    "push": _push,
    "prune": _prune,
    "watch": _watch,
    "control": _control,
}


def prepare_process(root: Path) -> dict[str, str]:
    """The variables that the library and the Hub's client read when they are imported."""
    return {
        "HF_HOME": str(root / "work" / HOME),
        "TMPDIR": str(root / "work" / "tmp"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }

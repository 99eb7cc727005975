#!/usr/bin/env python3
"""Give hostile files and repositories to every command that reads, under an audit hook.

    python tools/trust/strangers.py --seconds 60
    python tools/trust/strangers.py --all --models
    python tools/trust/strangers.py --only 'links: config.json to secret'

`hostile.py` has the strangers. Each gets a child process of its own, which reads it with the
commands and the Python interface while `audit.py` watches. With ``--models``, models are loaded
with `from_delta`, too. A fault is: a process started, a pickle, code or a module that is not ours,
a write outside the folders for output, a request to another host than the loopback Hub, a change
of the stranger or of the files around it, a trace of a payload, the content of the secret in any
output, a raw control character on the terminal, an untyped error, a death, more than ``MEMORY``
bytes, more than ``PATIENCE`` seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "support"))

from loopback_hub import LoopbackHub, client_environment

from audit import Watch
from forked import Died, Place, in_fork
from hostile import MARK, SECRET, Good, Stranger, strangers
from result import RESULTS, Fault, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEMORY: Final = 256 << 20
PATIENCE: Final = 120
CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Sandbox:
    """The folders of one child.

    Attributes:
        root: The folder with all of them.
    """

    root: Path

    @property
    def out(self) -> Path:
        """Where outputs go."""
        return self.root / "out"

    @property
    def stranger(self) -> Path:
        """The stranger."""
        return self.root / "given" / "stranger"

    @property
    def secret(self) -> Path:
        """A file that nothing may read out."""
        return self.root / "secret" / "secret.json"

    def writable(self, kind: str) -> list[Path]:
        """Where the child may write."""
        found = [self.out, self.root / "home", self.root / "tmp"]
        return [*found, self.stranger] if kind == "run" else found

    def make(self) -> None:
        """Make the folders."""
        for name in ("out", "given", "secret", "home", "tmp", "work"):
            (self.root / name).mkdir(parents=True)
        self.secret.write_bytes(SECRET)

    def state(self, kind: str) -> dict[str, str]:
        """What is outside of the writable folders: sizes and times, as reading leaves them."""
        skipped = {str(path) for path in self.writable(kind)}
        found = {}
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if f"{folder}/{name}" not in skipped]
            for name in (*folders, *files):
                path = Path(folder, name)
                about = path.lstat()
                link = path.readlink() if stat.S_ISLNK(about.st_mode) else ""
                found[str(path)] = f"{about.st_mode} {about.st_size} {about.st_mtime_ns} {link}"
        return found


def commands(kind: str, given: str, good: Good, out: Path) -> list[list[str]]:
    """The arguments of every command that reads such a thing; outputs are numbered."""
    base, tuned, delta = map(str, (good.base, good.tuned, good.delta))
    on, once = f"-b {base}", "--once --settle 0"
    any_delta = (
        *("inspect G", "inspect G --json", f"verify G {on}"),
        "push G me/pushed --yes --base-id org/base",
    )
    one_delta = (
        *(f"inspect G --all --values {on} --report N.html", f"inspect G --csv --values {on}"),
        *("verify G", f"verify G {on} --tuned {tuned}", f"apply G {on} -o N", "apply G -o N"),
        *(f"compare G {delta} {on} --groups", f"match {delta} G {on}"),
        *(f"mask G {on} -o N.safetensors", f"series G {delta} {on}"),
    )
    lines = {
        "delta": (*any_delta, *one_delta),
        "repo": (*any_delta, *one_delta, "pull G -o N", f"encode G {tuned} -o N"),
        "run": (
            *any_delta,
            *("inspect G --csv", "inspect G --summary", "inspect G --report N.html"),
            *(f"compare G {on}", f"series G {on}", f"diff G tuned tuned {on}"),
            *(f"apply G --only tuned {on} -o N", "prune G --keep-last 1 --dry-run"),
            *(f"encode {base} {tuned} --run -o G", f"watch {tuned} {on} -o G {once}"),
            "runs repair G",
        ),
        "checkpoint": (
            *(f"inspect {base} G --report N.html", f"inspect {base} G --all --csv --compressed"),
            *(f"encode {base} G -o N --force", f"encode G {tuned} -o N --force"),
            *(f"encode {base} G {tuned} -o N --force", f"verify {delta} -b G"),
            *(f"verify {delta} {on} --tuned G", f"apply {delta} -b G -o N"),
            f"watch {Path(given).parent} {on} -o N {once}",
        ),
    }
    found = []
    for number, line in enumerate(lines[kind]):
        words = [given if word == "G" else word for word in line.split()]
        places = {"N": out / f"{number}", "N.html": out / f"{number}.html"}
        places["N.safetensors"] = out / f"{number}.safetensors"
        found.append([str(places.get(word, word)) for word in words])
    return found


def read_in_python(
    kind: str, given: str, good: Good, *, models: bool
) -> Iterator[Callable[[], Any]]:
    """What the Python interface reads of such a thing."""
    import rlsparse_store  # noqa: PLC0415 - late

    def every_tensor() -> None:
        with rlsparse_store.open_delta(given, base=good.base, framework="bits") as opened:
            repr(opened)
            for name in opened:
                opened.get_tensor(name)
                opened.get_slice(name)[:1]

    def shown() -> None:
        report = rlsparse_store.inspect_delta(given)
        repr(report)
        report._repr_html_()

    if kind in ("delta", "repo"):
        yield every_tensor
        yield shown
        if models:
            yield partial(rlsparse_store.from_delta, good.base, given)
    if kind == "checkpoint" and models:
        yield partial(rlsparse_store.from_delta, given, good.delta)


@dataclass
class Findings:
    """What a child did: calls by outcome, what was wrong, and how many events were watched."""

    calls: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    events: int = 0


def call(work: Callable[[], Any], what: str, found: Findings) -> None:
    """Call something as the command line would, and note how it ended."""
    from rlsparse_store.errors import RlsparseError  # noqa: PLC0415 - late

    out, err = io.StringIO(), io.StringIO()
    outcome = "accepted"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            work()
        except (RlsparseError, click.ClickException, click.Abort):
            outcome = "refused"
        except SystemExit as end:
            outcome = "refused" if end.code else "accepted"
        except OSError as error:  # told in one line, with the place
            outcome = "refused by the system"
            if error.errno is None:
                found.problems.append(f"{what}: {type(error).__name__}: {error}"[:300])
        except BaseException as error:  # noqa: BLE001 - what is looked for
            outcome = "refused by transformers"
            if not _is_from_transformers(error):
                outcome = "untyped"
                found.problems.append(f"{what}: untyped {type(error).__name__}: {error}"[:300])
    found.calls[outcome] += 1
    text = out.getvalue() + err.getvalue()
    if CONTROL.search(text):
        found.problems.append(f"{what}: control characters on the terminal")
    if SECRET.decode().strip() in text:
        found.problems.append(f"{what}: the secret on the terminal")


def _is_from_transformers(error: BaseException) -> bool:
    """Whether transformers raised it, which refuses configurations with errors of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f"{os.sep}transformers{os.sep}" in frame.filename for frame in frames[-6:])


class Rig:
    """Runs strangers, each in a child.

    Args:
        folder: Where sandboxes are made.
        hub: The loopback Hub.
        models: Load models, too.
    """

    def __init__(self, folder: Path, hub: LoopbackHub, *, models: bool) -> None:
        self.folder, self.hub, self.models = folder, hub, models
        self.good = Good.make(folder / "good")
        self.strangers = strangers(self.good)
        # Every family early, however little time there is.
        self.order = list(range(len(self.strangers)))
        random.Random(1).shuffle(self.order)  # noqa: S311 - repeatable
        base = {path.name: path.read_bytes() for path in self.good.base.iterdir()}
        hub.commit("org/base", base)
        for number, stranger in enumerate(self.strangers):
            if stranger.kind == "repo":
                hub.commit(f"strangers/s{number}", stranger.files)

    def run(self, number: int) -> tuple[Counter[str], list[Fault]]:
        """Run one stranger."""
        stranger = self.strangers[number]
        sandbox = Sandbox(self.folder / "sandbox")
        sandbox.make()
        try:
            if stranger.make is not None:
                stranger.make(self.good, sandbox.stranger, str(sandbox.secret))
            before = sandbox.state(stranger.kind)
            if stranger.kind == "planted":
                found = self._in_a_shell(sandbox)
            else:
                given = str(sandbox.stranger)
                if stranger.kind == "repo":
                    given = f"strangers/s{number}"
                found = self._in_a_child(stranger, given, sandbox)
            found.problems += self._left(sandbox, before, stranger)
        finally:
            shutil.rmtree(sandbox.root)
        counts = Counter({"strangers": 1, "events watched": found.events})
        counts.update({"calls": found.calls.total(), **found.calls})
        name = f"{stranger.family}: {stranger.name}"
        return counts, [Fault(self._told(problem, name), name) for problem in found.problems]

    def _told(self, problem: str, name: str) -> str:
        return f"{name}: {problem}".replace(str(self.folder), "")

    def _in_a_child(self, stranger: Stranger, given: str, sandbox: Sandbox) -> Findings:
        work = partial(
            _read, stranger.kind, given, self.good, sandbox, self.hub.port, models=self.models
        )
        told = in_fork(work, PATIENCE)
        if isinstance(told, Died):
            return Findings(Counter(died=1), [f"call {told.place}: {told.how}"])
        calls, problems, events = told
        return Findings(Counter(calls), problems, events)

    def _in_a_shell(self, sandbox: Sandbox) -> Findings:
        """Run the installed command in the stranger's folder, where modules could be taken from."""
        found = Findings()
        program = Path(sys.executable).with_name("rlsparse")
        for arguments in (("inspect", "."), ("verify", "."), ("--help",), ("pull", "org/none")):
            command = [str(program), *arguments]
            environment = {"PATH": os.defpath, **os.environ}
            ended = subprocess.run(  # noqa: S603 - this project's own command
                command, cwd=sandbox.stranger, env=environment, capture_output=True, check=False
            )
            found.calls["accepted" if ended.returncode == 0 else "refused"] += 1
            if b"Traceback" in ended.stderr:
                found.problems.append(f"{arguments}: a traceback")
        return found

    def _left(self, sandbox: Sandbox, before: dict[str, str], stranger: Stranger) -> list[str]:
        """What is wrong with what was left."""
        after = sandbox.state(stranger.kind)
        changed = [path for path in {*before, *after} if before.get(path) != after.get(path)]
        found = [f"changed outside: {path}" for path in sorted(changed)]
        found += [f"a payload ran: {path}" for path in sandbox.root.rglob(MARK)]
        found += [f"the secret in {path.name}" for path in _with_secret(sandbox)]
        found += [
            f"the secret was published in {name}"
            for name, repo in self.hub.repos.items()
            for files in repo.commits.values()
            if any(SECRET.strip() in data for data in files.values())
        ]
        self.hub.repos = {
            name: repo for name, repo in self.hub.repos.items() if not name.startswith("me/")
        }
        found += [f"a token to another host: {path}" for path in self.hub.leaks]
        self.hub.leaks.clear()
        return found


def _with_secret(sandbox: Sandbox) -> Iterator[Path]:
    """Outputs with the secret; the largest are as sparse as what they were copied from."""
    for path in sandbox.out.rglob("*"):
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26
        if small and SECRET.strip() in path.read_bytes():
            yield path


def _read(
    kind: str, given: str, good: Good, sandbox: Sandbox, port: int, place: Place, *, models: bool
) -> tuple[Counter[str], list[str], int]:
    """In the child: read a stranger in every way, watched."""
    from rlsparse_store.cli.commands import rlsparse  # noqa: PLC0415 - late

    os.chdir(sandbox.root / "work")
    tempfile.tempdir = str(sandbox.root / "tmp")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak()
    watch = Watch(sandbox.writable(kind), port)
    watch.install()
    found = Findings()
    for number, arguments in enumerate(commands(kind, given, good, sandbox.out)):
        place.set(number)
        known = len(watch.violations)
        work = partial(rlsparse.main, arguments, prog_name="rlsparse", standalone_mode=False)
        call(work, " ".join(arguments), found)
        found.problems += [f"{arguments[0]}: {v}" for v in watch.violations[known:]]
    for read in read_in_python(kind, given, good, models=models):
        known = len(watch.violations)
        call(read, getattr(read, "__name__", "from_delta"), found)
        found.problems += [f"in Python: {v}" for v in watch.violations[known:]]
    found.problems += [f"imported {file}" for file in watch.strange_modules()]
    if not models and _peak() - before > MEMORY:
        found.problems.append(f"took {(_peak() - before) >> 20} MiB")
    return found.calls, found.problems, watch.events


def _peak() -> int:
    """The most memory that the process held since this was set back, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10


def control(port: int, folder: Path) -> None:
    """Do what a stranger wants, and require that all of it is noticed."""

    def work(_: Place) -> list[str]:
        watch = Watch([folder], port)
        watch.install()
        deeds: tuple[Callable[[], object], ...] = (
            lambda: (folder.parent / "outside").write_text("x"),
            lambda: (folder.parent / "outside").rename(folder / "inside"),
            lambda: os.system("true"),  # noqa: S605, S607 - the deed
            lambda: exec(compile("1", "/stranger.py", "exec")),  # noqa: S102 - the deed
            lambda: __import__("pickle").loads(b"cos\nsystem\n."),
            lambda: __import__("socket").create_connection(("127.0.0.1", 9), timeout=1),
        )
        for deed in deeds:
            with contextlib.suppress(OSError):
                deed()
        return watch.violations

    found = in_fork(work, PATIENCE)
    if isinstance(found, Died) or len(found) != 6:
        raise click.ClickException(f"the watch is blind: {found}")


def imported(*, models: bool) -> None:
    """Import what the children use, once for all of them."""
    names = [
        "huggingface_hub",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
    ]
    names += ["transformers.models.llama.modeling_llama"] if models else []
    package = importlib.import_module("rlsparse_store")
    for module in pkgutil.walk_packages(package.__path__, "rlsparse_store."):
        if module.name.split(".")[1] not in ("demo", "integrations", "torch", "gpu", "__main__"):
            names.append(module.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            importlib.import_module(name)


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--all", "whole", is_flag=True, help="Every stranger once, however long it takes.")
@click.option("--models", is_flag=True, help="Load models from them, too; needs transformers.")
@click.option("--only", help="The one of this name.")
def main(seconds: float, results: Path, *, whole: bool, models: bool, only: str | None) -> None:
    """Give hostile files and repositories to every command that reads."""
    result = Result.read("strangers", results)
    # A module that is compiled when it is first imported would count as a write outside.
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as temporary, LoopbackHub() as hub:
        folder = Path(temporary).resolve()
        os.environ.update(client_environment(hub.port, folder / "sandbox" / "home"))
        os.environ["MPLCONFIGDIR"] = str(folder)
        imported(models=models)
        control(hub.port, folder / "good")
        rig = Rig(folder, hub, models=models)
        result.describe(
            f"Gives {len(rig.strangers)} hostile files, runs and repositories to every command "
            "that reads, under an audit hook: no code, process, pickle, write outside, request to "
            "another host, leak, untyped error",
            {"strangers": 150},
        )
        if only is not None:
            names = [f"{one.family}: {one.name}" for one in rig.strangers]
            counts, faults = rig.run(names.index(only))
            click.echo(f"{dict(counts)}\n" + "\n".join(fault.what for fault in faults))
            return
        numbers = range(len(rig.strangers)) if whole else (s - 1 for s in result.seeds(seconds))
        for number in numbers:
            result.add(*rig.run(rig.order[number % len(rig.strangers)]))
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()

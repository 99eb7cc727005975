"""Start-up: imports, public names, and signals at any time."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlsparse_store
from rlsparse_store.errors import RlsparseError

MODULE = [sys.executable, "-P", "-m", "rlsparse_store"]
SCRIPT = [str(Path(sys.executable).with_name("rlsparse"))]

# Sends itself a signal when a module is looked for, or when Python is about to end. A test run in
# the background was started with SIGINT ignored, which is inherited.
SIGNALLED = """
import atexit, os, signal, sys
number, when = int(os.environ["NUMBER"]), os.environ["WHEN"]
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.environ["IGNORED"]:
    signal.signal(number, signal.SIG_IGN)
def send():
    os.kill(os.getpid(), number)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == when:
            send()
sys.meta_path.insert(0, Finder())
if when == "exit":
    atexit.register(send)
"""


def run(*command: str, path: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"PATH": os.defpath, "PYTHONPATH": "" if path is None else str(path), **more},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def run_with_signal(
    folder: Path, *command: str, when: str, number: int = 2, ignored: str = ""
) -> tuple[int, str]:
    """Run a command that sends itself a signal, and return the finished process."""
    (folder / "sitecustomize.py").write_text(SIGNALLED)
    done = run(*command, path=folder, NUMBER=str(number), WHEN=when, IGNORED=ignored)
    return done.returncode, done.stderr


# --- Names --------------------------------------------------------------------------------------


def test_public_names_exist_and_are_listed() -> None:
    for name in rlsparse_store.__all__:
        assert getattr(rlsparse_store, name).__name__ == name
    assert set(rlsparse_store.__all__) <= set(dir(rlsparse_store))
    with pytest.raises(AttributeError, match="no attribute 'encode_delt'"):
        getattr(rlsparse_store, "encode_delt")  # noqa: B009 - mypy knows that there is none


def test_names_in_a_fresh_process() -> None:
    lines = (
        "import pickle, rlsparse_store",
        "assert 'encode_delta' in dir(rlsparse_store)",
        "assert rlsparse_store.delta.measure_pair and rlsparse_store.errors.RlsparseError",
        "from rlsparse_store import *",
        "assert encode_delta is rlsparse_store.encode_delta is rlsparse_store.delta.encode_delta",
        "assert pickle.loads(pickle.dumps(RlsparseError)) is RlsparseError",
        "assert pickle.loads(pickle.dumps(apply_delta)) is apply_delta",
    )
    done = run(sys.executable, "-P", "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr


def test_old_names_warn_and_work() -> None:
    from rlsparse_store import container, delta  # noqa: PLC0415 - old homes

    for module in (container, delta):
        homes = module.__getattr__.__closure__
        assert homes is not None
        (names,) = [cell.cell_contents for cell in homes if isinstance(cell.cell_contents, dict)]
        for name in names:
            with pytest.warns(DeprecationWarning, match=rf"{name} is deprecated .* use rlsparse"):
                assert getattr(module, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_errors_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(RlsparseError("wrong", file="a")))  # noqa: S301 - our own
    assert (type(again), str(again)) == (RlsparseError, "a: wrong")


# --- Commands -----------------------------------------------------------------------------------


def test_help_lists_all_commands() -> None:
    folder = Path(rlsparse_store.__path__[0], "cli")
    names = sorted(
        path.stem.replace("_", "-")
        for path in folder.glob("*.py")
        if f"def {path.stem}_command(" in path.read_text()
    )
    listed = run(*MODULE, "--help").stdout.partition("Commands:\n")[2].splitlines()
    lines = [re.fullmatch(r"  ([\w-]+)  +([A-Z].*\.)", line) for line in listed]
    assert [line[1] for line in lines if line] == names
    assert len(lines) == len(names), "each has one whole line"
    for name in names:
        assert run(*MODULE, name, "--help").stdout.startswith(f"Usage: rlsparse {name} ")


def test_unknown_command_suggests_a_known_one() -> None:
    done = run(*MODULE, "inspekt")
    assert done.returncode == 2
    assert "No such command 'inspekt'" in done.stderr


# --- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    "when",
    [
        "rlsparse_store.cli.signals",
        "rlsparse_store.cli.exit_codes",
        "click",
        "rlsparse_store.cli.inspect",
        "numpy",
        "rlsparse_store.delta.verify",
        "exit",
    ],
)
def test_interrupt_at_any_time(tmp_path: Path, command: list[str], when: str) -> None:
    ended = run_with_signal(tmp_path, *command, "inspect", str(tmp_path / "nowhere"), when=when)
    if when == "exit":
        assert ended[1].startswith("rlsparse: /")
        ended = ended[0], ended[1].partition("\n")[2]
    assert ended == (130, "rlsparse: interrupted\n")


@pytest.mark.parametrize("number", [1, 2, 15])
def test_ignored_signal_stays_ignored(tmp_path: Path, number: int) -> None:
    for when in ("click", "exit"):
        ended = run_with_signal(
            tmp_path, *MODULE, "encode", "-h", when=when, number=number, ignored="1"
        )
        assert ended == (0, "")


# --- What a command turns off -------------------------------------------------------------------

# Runs commands without a collector, as the command line does, and counts what it finds then.
CYCLES = """
import gc, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pairs import bf16_tensor, save, tune
from rlsparse_store.delta import apply_delta, encode_delta, verify_delta
out = Path(sys.argv[2])
def run(name, tensors):
    base = {f"{i}.weight": bf16_tensor(i, 30, 40) for i in range(tensors)}
    tuned = {name: tune(tensor, 1) for name, tensor in base.items()}
    gc.collect()
    gc.disable()
    folder = out / name
    encode_delta(save(folder / "base", base), save(folder / "tuned", tuned), folder / "delta")
    apply_delta(folder / "delta", folder / "applied", base=folder / "base")
    verify_delta(folder / "delta", base=folder / "base")
    found = gc.collect()
    gc.enable()
    return found
run("first", 2)
print(run("few", 10), run("many", 500))
"""


def test_commands_leave_no_cycles_behind(tmp_path: Path) -> None:
    support = Path(__file__).parents[1] / "support"
    done = run(sys.executable, "-c", CYCLES, str(support), str(tmp_path))
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many < few + 100


def test_threads_for_linear_algebra_are_off_for_the_import_only(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        f"            open({str(seen)!r}, 'w').write(os.environ.get('OPENBLAS_NUM_THREADS', '-'))\n"
        "        if name.startswith('rlsparse_store.delta'):\n"
        "            assert 'OPENBLAS_NUM_THREADS' not in os.environ or os.environ['KEPT']\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    for variables, number in (
        ({"KEPT": ""}, "1"),
        ({"KEPT": "1", "OPENBLAS_NUM_THREADS": "3"}, "3"),
    ):
        done = run(*MODULE, "encode", "--help", path=tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        assert seen.read_text() == number


def test_an_error_of_a_finalizer_takes_one_line() -> None:
    script = """
from rlsparse_store.cli.signals import end_in_order
class Failing:
    def __del__(self):
        raise OSError(5, "broken", "a file")
end_in_order()
Failing()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, check=True, text=True
    )
    assert done.stderr == "rlsparse: warning: [Errno 5] broken: 'a file'\n"

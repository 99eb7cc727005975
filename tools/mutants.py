#!/usr/bin/env python3
"""Make mutants of the readers of deltas, and require that some vector notices each.

    python tools/mutants.py decoder
    python tools/mutants.py decoder --slice 1/40
    python tools/mutants.py library
    python tools/mutants.py library --only format/masks

A mutant is a reader with one small change: a comparison, a bound, a constant, an operator, a code,
a check that is left out. A vector notices it if it gives another outcome than the one listed. What
no vector notices survives: ``tools/conformance/survivors-*.txt`` lists the survivors that are
right, each with its reason; any other is a rule without a vector.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
import numpy as np
import xxhash

from conformance.mutation import Mutant, mutants
from conformance.readers import (
    DECODER,
    ROOT,
    is_expected,
    library_outcome,
    load_decoder,
    second_outcome,
)
from format_vectors.listing import VECTORS, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType

LIBRARY: Final = (
    *("format/bits", "format/content_bounds", "format/digests", "format/dtypes"),
    *("format/file_names", "format/frames", "format/header", "format/index/checks"),
    *("format/index/columns", "format/index/reader", "format/index/records", "format/limits"),
    *("format/manifest", "format/masks", "format/names", "format/order", "format/strict_json"),
    *("format/values", "format/words", "files/checkpoint_layout", "files/delta_reader"),
)
"""The library's readers, as paths in the package without the suffix."""

WRITING: Final = frozenset(
    (
        *("pack_flags", "pack_fields", "pack_varying", "encode_mask", "encode_steps"),
        *("encode_far", "bit_length", "compress", "compress_bytes", "_compress_blocks"),
        *("_as_single_segment", "narrow", "cast_to_bf16", "_common_prefix", "describe_file"),
        *("_is_ordered", "describe_index", "_weight_map", "stored_at", "checked"),
    )
)
"""Functions of these sources that only a writer of deltas calls: no vector may come by one."""

SECONDS: Final = 20
"""A mutant that computes for longer is noticed: it runs forever."""

PATIENCE: Final = 600
"""Seconds after which a mutant that waits is noticed, however busy the machine is."""

MEMORY: Final = 6 << 30
SURVIVED, NOTICED = 0, 1


@dataclass(frozen=True)
class Subject:
    """A source that is mutated, and how its mutants are tried.

    Attributes:
        path: The source.
        load: Makes the reader from a source: what it gives runs one vector.
    """

    path: Path
    load: Callable[[Mutant | None], Callable[[dict[str, Any]], bool]]


def _decoder_subject() -> Subject:
    bases: dict[str, Any] = {}

    def load_mutant(mutant: Mutant | None) -> Callable[[dict[str, Any]], bool]:
        module = load_decoder(None if mutant is None else mutant.source())
        if mutant is None or (mutant.function and not _is_hash(mutant.function)):
            _use_fast_hash(module)

        def run(vector: dict[str, Any]) -> bool:
            base = VECTORS / vector["base"]
            if mutant is None:
                bases.setdefault(vector["base"], module.read_checkpoint(base))
            try:
                # Read by the mutant where reading is what changed, which costs nothing.
                read = module.read_checkpoint(base)
            except module.Refused as error:
                return is_expected(error.code, vector["expected"])
            outcome = second_outcome(
                module, VECTORS / vector["delta"], read, vector.get("reader", {})
            )
            return is_expected(outcome, vector["expected"])

        return run

    return Subject(DECODER, load_mutant)


def _is_hash(function: str) -> bool:
    return function.startswith(("xxh3", "number", "fold", "avalanche", "mix", "lanes", "accum"))


def _use_fast_hash(module: ModuleType) -> None:
    """What is not under test need not be slow."""

    def rows(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in data], np.uint64)

    module.__dict__.update(xxh3=xxhash.xxh3_64_intdigest, xxh3_rows=rows)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module of the package another source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's, and nobody else's."""
        del path, target
        if name != self._name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the mutated source."""
        module.__file__ = str(self._path)
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)  # noqa: S102


def _library_subject(part: str) -> Subject:
    path = ROOT / "rlsparse_store" / f"{part}.py"
    name = "rlsparse_store." + part.replace("/", ".")

    def load_mutant(mutant: Mutant | None) -> Callable[[dict[str, Any]], bool]:
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(name, path, mutant.source()))

        def run(vector: dict[str, Any]) -> bool:
            delta, base = VECTORS / vector["delta"], VECTORS / vector["base"]
            outcome = library_outcome(delta, base, vector.get("reader", {}))
            return is_expected(outcome, vector["expected"])

        return run

    return Subject(path, load_mutant)


def _in_child(task: Callable[[int], int]) -> tuple[int, int]:
    """Run a task in a process of its own, which may write to a pipe.

    Returns:
        The process, and the end of the pipe to read from.
    """
    receive, send = os.pipe()
    process = os.fork()
    if process:
        os.close(send)
        return process, receive
    os.close(receive)
    status = NOTICED
    try:
        status = task(send)
    except BaseException:  # noqa: BLE001 - a mutant may fail in any way: that is noticed
        status = NOTICED
    finally:
        os._exit(status)


Covering: TypeAlias = dict[str, dict[int, list[int]]]
"""The numbers of the vectors that come by each line of each source."""


def _covering(subjects: list[Subject], vectors: list[dict[str, Any]]) -> Covering:
    """The vectors that come by each line of the sources, found out in a process of its own."""

    def task(send: int) -> int:
        lines: dict[str, dict[int, set[int]]] = {str(subject.path): {} for subject in subjects}
        run = subjects[0].load(None)
        number = 0

        def trace(frame: FrameType, event: str, _value: object) -> Any:  # noqa: ANN401 - itself
            of_source = lines.get(frame.f_code.co_filename)
            if of_source is None:
                return None
            if event in ("line", "call"):
                of_source.setdefault(frame.f_lineno, set()).add(number)
            return trace

        sys.settrace(trace)
        for i, vector in enumerate(vectors):
            number = i
            if not run(vector):
                os.write(2, f"{vector['id']} is not as listed, without any change\n".encode())
                return 2
        sys.settrace(None)
        found = {
            path: {line: sorted(numbers) for line, numbers in of_source.items()}
            for path, of_source in lines.items()
        }
        text = repr(found).encode()
        with os.fdopen(send, "wb") as pipe:
            pipe.write(text)
        return 0

    process, receive = _in_child(task)
    with os.fdopen(receive, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status):
        msg = "without any change, the vectors are not as listed"
        raise click.ClickException(msg)
    found: Covering = eval(text, {"__builtins__": {}})  # noqa: S307 - just written
    return found


def _try(subject: Subject, mutant: Mutant, vectors: Iterable[dict[str, Any]]) -> int:
    """Start a process that tries a mutant; its exit status is the answer."""

    def task(_send: int) -> int:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(PATIENCE)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run = subject.load(mutant)
        # Not map: a mutant's StopIteration would end it early, as if all vectors had been tried.
        return SURVIVED if all(run(vector) for vector in vectors) else NOTICED

    process, receive = _in_child(task)
    os.close(receive)
    return process


def _survivors(
    subject: Subject,
    chosen: list[Mutant],
    vectors: list[dict[str, Any]],
    covering: dict[int, list[int]],
    jobs: int,
) -> Iterator[Mutant]:
    _require_unread(subject, covering)
    running: dict[int, Mutant] = {}
    waiting = list(reversed(chosen))
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            numbers = sorted({i for line in mutant.lines for i in covering.get(line, ())})
            everywhere = not mutant.lines or _is_hash(mutant.function)
            tried = vectors if everywhere else [vectors[i] for i in numbers]
            running[_try(subject, mutant, tried)] = mutant
        process, status = os.wait()
        mutant = running.pop(process)
        if os.waitstatus_to_exitcode(status) == SURVIVED:
            yield mutant


def _require_unread(subject: Subject, covering: dict[int, list[int]]) -> None:
    """Fail if reading a vector runs a function that is left out as a writer's."""
    tree = ast.parse(subject.path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in WRITING:
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            if any(line in covering for line in body):
                msg = f"{subject.path.name}: {node.name} is run by reading: take it out of WRITING"
                raise click.ClickException(msg)


def _in_process(folder: Path) -> list[dict[str, Any]]:
    """The large vectors, made by a process of its own: this one must not load the library."""
    command = "import json, pathlib, sys; from format_vectors.large import large_vectors; "
    command += "print(json.dumps(large_vectors(pathlib.Path(sys.argv[1]))))"
    tools = ROOT / "tools"
    made = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-c", command, folder], cwd=tools, check=True, capture_output=True
    )
    entries: list[dict[str, Any]] = json.loads(made.stdout)
    return entries


def justified(which: str) -> dict[str, str]:
    """Survivors and their reasons: a reason on lines with ``#``, then the mutants it is for."""
    path = ROOT / "tools" / "conformance" / f"survivors-{which}.txt"
    found: dict[str, str] = {}
    reason = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            reason = line[1:].strip()
        elif line.strip():
            found[line.strip()] = reason
    return found


def _part(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    number, _, parts = value.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        msg = "give two numbers, such as 3/40"
        raise click.BadParameter(msg)
    return int(number), int(parts)


@click.command()
@click.argument("which", type=click.Choice(["decoder", "library"]))
@click.option("--slice", "part", default="1/1", callback=_part, help="One in so many mutants.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Mutants at a time.")
@click.option("--only", default="", help="Part of the paths of the sources, or of functions.")
def main(which: str, part: tuple[int, int], jobs: int, only: str) -> None:
    """Make mutants of a reader and print the score."""
    subjects = [_decoder_subject()] if which == "decoder" else list(map(_library_subject, LIBRARY))
    # The definitions in NumPy are under test, which native kernels would stand in for.
    os.environ["RLSPARSE_BACKEND"] = "numpy"
    right = justified(which)
    start, tried, wrong, survived = time.monotonic(), 0, 0, 0
    folder = tempfile.TemporaryDirectory()
    vectors = [*load()["vectors"], *_in_process(Path(folder.name))]
    covering = _covering(subjects, vectors)
    for subject in subjects:
        source = subject.path.read_text(encoding="utf-8")
        made = [mutant for mutant in mutants(source) if mutant.function not in WRITING]
        chosen = [
            mutant
            for number, mutant in enumerate(made)
            if number % part[1] == part[0] - 1 and only in f"{subject.path}: {mutant.function}"
        ]
        if not chosen:
            continue
        prefix = "" if which == "decoder" else f"{subject.path.relative_to(ROOT)}: "
        lines = covering[str(subject.path)]
        found = {prefix + m.name for m in _survivors(subject, chosen, vectors, lines, jobs)}
        unlisted = found - right.keys()
        for name in sorted(unlisted):
            click.echo(name)
        for name in sorted({prefix + m.name for m in chosen} & right.keys() - found):
            click.echo(f"# noticed, and still listed: {name}")
        tried, survived, wrong = tried + len(chosen), survived + len(found), wrong + len(unlisted)
        if which == "library":
            click.echo(
                f"# {prefix}{len(chosen) - len(found)} of {len(chosen)} noticed, "
                f"{len(found - unlisted)} justified, {len(unlisted)} not"
            )
    noticed = tried - survived
    click.echo(
        f"{which}: {noticed} of {tried} mutants noticed, {survived - wrong} justified, "
        f"{wrong} not; {100 * (noticed + survived - wrong) / max(tried, 1):.2f} % "
        f"in {time.monotonic() - start:.0f} s"
    )
    folder.cleanup()
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()

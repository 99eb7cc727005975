"""Folders appear complete or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from descriptors import open_files
from pairs import bf16_tensor, contents, save_sharded, tune

from rlsparse_store.delta import apply_delta, encode_delta
from rlsparse_store.errors import OutputError
from rlsparse_store.files import output, rename
from rlsparse_store.files.output import OutputFile, output_folder, write_new

if TYPE_CHECKING:
    from collections.abc import Callable

    from pairs import Tensors


def fill(target: Path) -> None:
    with output_folder(target) as folder, OutputFile(folder / "a") as file:
        file.write(b"text", 0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deeper" / "out"
    with output_folder(target) as folder:
        (folder / "a").write_bytes(b"1")
        assert not target.exists()
    assert contents(target) == {"a": b"1"}
    assert names(target.parent) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert contents(tmp_path / "out") == {"a": b"text"}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_taken_place_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "mine").touch()
    elif kind == "file":
        target.write_bytes(b"mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    with pytest.raises(OutputError, match="exists"):
        fill(target)
    assert names(tmp_path) == before


def test_a_folder_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def meanwhile() -> None:
        with output_folder(target) as folder:
            (folder / "a").touch()
            target.mkdir()
            (target / "mine").touch()

    with pytest.raises(OutputError):
        meanwhile()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["mine"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_stale_folders_of_dead_processes_are_removed(tmp_path: Path, name: str) -> None:
    stale = tmp_path / f".{name}.tmp-{output._HOST}-{dead_process()}"
    living = tmp_path / f".{name}.tmp-{output._HOST}-{os.getppid()}"
    elsewhere = tmp_path / f".{name}.tmp-{output._HOST}x-{dead_process()}"
    for folder in (stale, living, elsewhere):
        folder.mkdir()
        (folder / "part").touch()
    fill(tmp_path / name)
    assert names(tmp_path) == sorted([living.name, elsewhere.name, name])


def test_a_stale_folder_of_an_earlier_process_of_this_number_is_no_obstacle(
    tmp_path: Path,
) -> None:
    # In a container the same program often gets the same number again after a crash.
    (tmp_path / f".out.tmp-{output._HOST}-{os.getpid()}").mkdir()
    fill(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_file_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError):
        OutputFile(tmp_path / "a")


def test_a_small_file_is_there_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".page.tmp-{output._HOST}-{os.getpid()}").touch()  # left by one that was killed
    write_new(tmp_path / "new" / "page", b"text")
    write_new(tmp_path / "page", b"text")
    assert (tmp_path / "page").read_bytes() == b"text"
    with pytest.raises(OutputError, match="exists already"):
        write_new(tmp_path / "page", b"other")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="no space"):
        write_new(tmp_path / "second", b"text")
    assert names(tmp_path) == ["new", "page"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with output.new_file(tmp_path / "page") as first:
        first.write(b"whole", 0)
        with pytest.raises(OutputError, match="being written"):
            write_new(tmp_path / "page", b"other")
    assert (tmp_path / "page").read_bytes() == b"whole"
    with pytest.raises(OutputError, match="exists already"), output.new_file(tmp_path / "late"):
        (tmp_path / "late").write_bytes(b"theirs")
    assert (tmp_path / "late").read_bytes() == b"theirs"
    assert names(tmp_path) == ["late", "page"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: whole(fd, data[:3], place))
    with OutputFile(tmp_path / "a") as file:
        file.write(b"0123456789", 2)
    assert (tmp_path / "a").read_bytes() == b"\0\x000123456789"


# --- a full disk at every moment -------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its tuned checkpoint, and their delta."""
    folder = tmp_path_factory.mktemp("pair")
    base: list[Tensors] = [{f"w{n}": bf16_tensor(n, 40, 30)} for n in range(2)]
    tuned = [{name: tune(t, 9) for name, t in shard.items()} for shard in base]
    save_sharded(folder / "base", *base)
    (save_sharded(folder / "tuned", *tuned) / "config.json").write_text("{}")
    encode_delta(folder / "base", folder / "tuned", folder / "delta", shard_bytes=64)
    return folder


def encode(pair: Path, out: Path) -> None:
    encode_delta(pair / "base", pair / "tuned", out, threads=1, shard_bytes=64)


def apply(pair: Path, out: Path) -> None:
    apply_delta(pair / "delta", out, base=pair / "base", threads=1)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors")  # noqa: PTH112
@pytest.mark.parametrize("call", ["pwrite", "fsync", "mkdir", "rename", "open"])
@pytest.mark.parametrize("job", [encode, apply])
def test_no_space_at_any_call_leaves_nothing(
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    job: Callable[[Path, Path], None],
) -> None:
    real: Callable[..., Any] = getattr(os, call)
    calls = 0

    def full(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        writes = call != "open" or (len(args) > 1 and args[1] & os.O_CREAT)
        calls += bool(writes)
        if writes and calls == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(os, call, full)
    descriptors = sorted(open_files())
    for fails_at in range(1, 100):
        calls = 0
        out = tmp_path / f"out-{fails_at}"
        try:
            job(pair, out)
        except OutputError:
            # Flushing the parent is the one step after the folder has its final name.
            assert call == "fsync" or not out.exists()
            assert not list(tmp_path.glob(".*"))
            assert sorted(open_files()) == descriptors
        if calls < fails_at:
            break
    else:
        pytest.fail("it never passed")
    assert fails_at > 1


LIMITED = """
import resource, signal, sys
from rlsparse_store.delta import apply_delta, encode_delta
from rlsparse_store.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, out, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for job in (
    lambda: encode_delta(f"{folder}/base", f"{folder}/tuned", out),
    lambda: apply_delta(f"{folder}/delta", out, base=f"{folder}/base"),
):
    try:
        job()
    except OutputError as error:
        print("refused", error)
"""


def test_a_file_size_limit_of_the_system(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [sys.executable, "-P", "-c", LIMITED, str(pair), str(out), "300"]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ran.stdout.count("refused") == 2
    assert names(tmp_path) == []


def test_a_scratch_folder_is_removed_after_a_kill_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = tmp_path / f"rlsparse-abc.tmp-{output._HOST}-{dead_process()}"
    living = tmp_path / f"rlsparse-def.tmp-{output._HOST}-{os.getppid()}"
    others = tmp_path / f"other-abc.tmp-{output._HOST}-{dead_process()}"
    for folder in (killed, living, others):
        folder.mkdir()
        (folder / "part").touch()
    with output.scratch_folder() as first, output.scratch_folder() as second:
        assert first != second
        (first / "part").touch()
        assert names(tmp_path) == sorted(p.name for p in (first, second, living, others))
    assert names(tmp_path) == sorted([living.name, others.name])


def test_a_scratch_folder_of_another_process_may_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / f"rlsparse-abc.tmp-{output._HOST}-{dead_process()}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    with output.scratch_folder() as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_the_names_of_new_folders_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(rename, "flush_folder", flushed.append)
    rename.make_folder(tmp_path / "new" / "inner")
    rename.make_folder(tmp_path / "new" / "inner")
    assert (tmp_path / "new" / "inner").is_dir()
    assert flushed == [tmp_path, tmp_path / "new"]

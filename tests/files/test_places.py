"""Places for results: mount points, read-only folders, file systems that cannot do everything."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pairs import bf16_tensor, contents, save_sharded, tune

from rlsparse_store.delta import apply_delta, encode_delta, verify_delta
from rlsparse_store.errors import OutputError, RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.output import output_folder, write_new

if TYPE_CHECKING:
    from pairs import Tensors

SHARDED = 64
"""Bytes of chunks in each file of a delta, so that it has several."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its tuned checkpoint, and their delta."""
    folder = tmp_path_factory.mktemp("pair")
    base: list[Tensors] = [{f"w{n}": bf16_tensor(n, 40, 30)} for n in range(2)]
    save_sharded(folder / "base", *base)
    tuned = save_sharded(
        folder / "tuned", *({n: tune(t, 9) for n, t in shard.items()} for shard in base)
    )
    for name in ("config.json", "tokenizer.json"):
        (tuned / name).write_text("{}")
    encode_delta(folder / "base", folder / "tuned", folder / "delta", shard_bytes=SHARDED)
    return folder


def encode(pair: Path, out: Path) -> None:
    encode_delta(pair / "base", pair / "tuned", out, shard_bytes=SHARDED)


def apply(pair: Path, out: Path) -> None:
    apply_delta(pair / "delta", out, base=pair / "base")


JOBS = {"encode": (encode, "delta"), "apply": (apply, "tuned")}


def forbid(monkeypatch: pytest.MonkeyPatch, *, folders: int, files: int = 0) -> list[str]:
    """Have renames fail with these errors, and record the files that are renamed."""
    real = os.rename
    renamed: list[str] = []

    def rename(source: Any, target: Any) -> None:  # noqa: ANN401
        code = folders if Path(source).is_dir() else files
        if code:
            raise OSError(code, os.strerror(code), str(source))
        renamed.append(str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    return renamed


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EMFILE, errno.EXDEV])
@pytest.mark.parametrize("name", JOBS)
def test_where_folders_cannot_be_renamed_files_are(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    job, result = JOBS[name]
    renamed = forbid(monkeypatch, folders=code)
    job(pair, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(pair / result)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Last what a reader cannot do without.
    assert renamed[-1].endswith(".safetensors.index.json")


@pytest.mark.parametrize("name", JOBS)
def test_no_state_on_the_way_is_whole(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job, _ = JOBS[name]
    forbid(monkeypatch, folders=errno.ENOSYS)
    real, out, states = os.rename, tmp_path / "out", 0

    def rename(source: Any, target: Any) -> None:  # noqa: ANN401
        nonlocal states
        if Path(target).is_relative_to(out):
            states += 1
            with pytest.raises(RlsparseError):
                (verify_delta if name == "encode" else open_checkpoint)(out)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    job(pair, out)
    assert states == len(contents(out))


@pytest.mark.parametrize("name", JOBS)
def test_what_was_moved_is_removed_after_an_error(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job, result = JOBS[name]
    count = len(contents(pair / result))
    real = os.rename
    for fails_at in range(count):
        moved = 0

        def rename(source: Any, target: Any, last: int = fails_at) -> None:  # noqa: ANN401
            nonlocal moved
            if Path(source).is_dir():
                raise OSError(errno.ENOSYS, "no")
            if Path(target).is_relative_to(tmp_path / "out"):
                if moved == last:
                    raise OSError(errno.ENOSPC, "full")
                moved += 1
            real(source, target)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OutputError, match="no space"):
            job(pair, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", JOBS)
def test_a_file_system_without_renames_is_refused_before_the_work(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job, _ = JOBS[name]
    forbid(monkeypatch, folders=errno.ENOSYS, files=errno.ENOSYS)
    with pytest.raises(OutputError, match=r"cannot rename files.*local disk"):
        job(pair, tmp_path / "out")
    with pytest.raises(OutputError, match="this file system cannot"):
        write_new(tmp_path / "page", b"text")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_only_appends_is_refused_before_the_work(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append_only(descriptor: int, data: bytes, offset: int) -> int:
        if offset != os.fstat(descriptor).st_size:
            raise OSError(errno.EINVAL, "Invalid argument")
        return os.write(descriptor, data)

    monkeypatch.setattr(os, "pwrite", append_only)
    with pytest.raises(OutputError, match="write files in any order"):
        encode(pair, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_no_reason_to_fail(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    encode(pair, tmp_path / "out")
    assert verify_delta(tmp_path / "out", base=pair / "base").decoded


def test_room_is_checked_before_the_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(OutputError, match=r"no space left .* are needed"),
        output_folder(tmp_path / "out", 1000 * free),
    ):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []


MOUNTED = """
import os, subprocess, sys
from pathlib import Path
from rlsparse_store.delta import apply_delta, encode_delta, verify_delta
pair, place = Path(sys.argv[1]), Path(sys.argv[2])
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)])
if mounted.returncode:
    sys.exit(77)
(place / "lost+found").mkdir()
encode_delta(pair / "base", pair / "tuned", place, shard_bytes=64)
assert verify_delta(place, base=pair / "base").decoded
assert sorted(os.listdir(place)) == ["config.json", "lost+found", "rlsparse", "tokenizer.json"]
subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
for out in (place / "out", place):
    try:
        encode_delta(pair / "base", pair / "tuned", out)
    except Exception as error:
        print(error)
subprocess.run(["umount", str(place)], check=True)
"""


def test_an_empty_mount_point_is_a_place(pair: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("mounting needs a namespace of its own")
    (tmp_path / "mount").mkdir()
    command = [unshare, "-rm", sys.executable, "-P", "-c", MOUNTED, pair, tmp_path / "mount"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stderr
    assert "read-only file system" in done.stdout
    assert "not empty" in done.stdout

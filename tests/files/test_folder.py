"""A folder that cannot be listed is an error, and not an empty one."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from pairs import bf16_tensor, contents, save

from rlsparse_store.errors import OutputError
from rlsparse_store.files import output
from rlsparse_store.files.folder import files_below
from rlsparse_store.files.output import output_folder
from rlsparse_store.files.trainer_folders import find_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Make listing folders of a name fail."""

    def fail(name: str, error: int) -> None:
        def scandir(path: Any = ".") -> Any:  # noqa: ANN401
            if not isinstance(path, int) and os.path.basename(path) == name:  # noqa: PTH119
                raise OSError(error, os.strerror(error), path)
            return original(path)

        original = os.scandir
        monkeypatch.setattr(os, "scandir", scandir)

    return fail


def test_a_checkpoint_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, unlisted: Callable[[str, int], None]
) -> None:
    for step in (10, 20):
        save(tmp_path / f"checkpoint-{step}", {"a": bf16_tensor(step, 4)})
    assert len(find_checkpoints(tmp_path)) == 2
    unlisted("checkpoint-20", errno.EIO)
    with pytest.raises(OSError, match="checkpoint-20"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOENT])
def test_folders_that_are_not_ours_or_gone_are_left_out(
    tmp_path: Path, unlisted: Callable[[str, int], None], error: int
) -> None:
    for name in ("lost+found", "checkpoint-10"):
        save(tmp_path / name, {"a": bf16_tensor(1, 4)})
    unlisted("lost+found", error)
    assert files_below(tmp_path) == ["checkpoint-10/model.safetensors"]


@pytest.mark.parametrize("renames", [True, False])
def test_a_result_that_cannot_be_listed_is_not_published_in_part(
    tmp_path: Path,
    unlisted: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    renames: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    monkeypatch.setattr(output, "can_rename_folders", lambda *_: renames)
    unlisted("inner", errno.EIO)

    def write() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "a").touch()
            (folder / "b").touch()

    with pytest.raises(OutputError):
        write()
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}

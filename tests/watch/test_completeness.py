"""When files count as settled, and a trainer's marker as one of these weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pairs import SINGLE, bf16_tensor, save

from rlsparse_store.watch.completeness import (
    FoundCheckpoint,
    Settling,
    has_marker,
    list_checkpoint,
    tracked_step,
)

if TYPE_CHECKING:
    from pathlib import Path

NEVER = 3600.0


def found(path: Path, step: Path) -> FoundCheckpoint:
    listing = list_checkpoint(path)
    assert listing is not None
    return FoundCheckpoint(path, step, listing)


def test_files_settle_once_they_are_the_same_for_long_enough(tmp_path: Path) -> None:
    path = save(tmp_path / "step_1", {"a": bf16_tensor(1, 4, 4)})
    first = found(path, path).listing
    never, soon = Settling(NEVER), Settling(0)
    assert [never.is_settled(path, first) for _ in range(3)] == [False] * 3
    assert [soon.is_settled(path, first) for _ in range(3)] == [False, True, True]
    (path / "config.json").touch()
    second = found(path, path).listing
    assert [soon.is_settled(path, second) for _ in range(2)] == [False, True]
    soon.keep_only([])
    assert not soon.is_settled(path, second)


def test_a_listing_has_the_files_of_folders_within_and_no_dangling_links(tmp_path: Path) -> None:
    path = save(tmp_path / "step_1", {"a": bf16_tensor(1, 4, 4)})
    (path / "global_step1").mkdir()
    (path / "global_step1/part.pt").touch()
    (path / "gone").symlink_to(path / "nothing")
    (path / "after").touch()
    assert found(path, path).listing.files.keys() == {SINGLE, "after", "global_step1/part.pt"}
    assert list_checkpoint(tmp_path) is None
    assert list_checkpoint(tmp_path / "no") is None


def test_a_marker_is_as_new_as_the_weights(tmp_path: Path) -> None:
    step = tmp_path / "step_5"
    path = save(step / "actor/weight", {"a": bf16_tensor(1, 4, 4)})
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for marker, content in (
        (path / "STABLE", ""),
        (step / "actor/.complete", ""),
        (step / "STABLE", ""),
        (path / "trainer_state.json", '{"global_step": 5}'),
        (tracker, "5"),
    ):
        assert not has_marker(found(path, step))
        marker.write_text(content)
        assert has_marker(found(path, step))
        os.utime(marker, (1, 1))
        assert not has_marker(found(path, step)), marker
        marker.unlink()
    # One above the folder of the step says nothing.
    (tmp_path / "STABLE").touch()
    assert not has_marker(found(path, step))


def test_the_tracked_step(tmp_path: Path) -> None:
    assert tracked_step(tmp_path) is None
    for content, step in (("", None), ("release", None), ("-1", None), (" 12\n", 12), ("7", 7)):
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(content)
        assert tracked_step(tmp_path) == step

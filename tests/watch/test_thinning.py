"""Thinning: which weights are removed, and everything that keeps them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pairs import SINGLE, contents, file_bytes, save
from trainer_writes import TRAINERS, write_all
from watch_rig import Rig, float32, kinds, new_rig

from rlsparse_store.delta import apply_delta, encode_run, prune_run
from rlsparse_store.delta.run import place_of
from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.watch import WatchEvent, thinning, watch_checkpoints
from rlsparse_store.watch.completeness import FoundCheckpoint, list_checkpoint
from rlsparse_store.watch.thinning import NOTE_NAME
from rlsparse_store.watch.watcher import _require_thinnable

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return new_rig(tmp_path)


def thin(rig: Rig, keep: int = 1, **options: Any) -> list[WatchEvent]:  # noqa: ANN401
    events = rig.watch(thin=keep, yes=True, **options)
    return [event for event in events if event.kind != "stored"]


def full(rig: Rig) -> list[str]:
    """The steps that have weights."""
    return sorted(
        {path.relative_to(rig.folder).parts[0] for path in rig.folder.rglob("*.safetensors")}
    )


def best(place: Path, name: str) -> None:
    state = json.loads((place / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = f"/somewhere/else/{name}"
    (place / "trainer_state.json").write_text(json.dumps(state))


def test_the_weights_are_removed_and_nothing_else(rig: Rig, tmp_path: Path) -> None:
    places = [rig.write("Trainer", step) for step in (1, 2, 3)]
    before = [contents(place) for place in places]
    times = [place.stat().st_mtime_ns for place in places]
    first, second = thin(rig)
    assert (first.kind, second.kind) == ("thinned", "thinned")
    assert first.freed_bytes == len(before[0][SINGLE])
    for place, whole, modified in zip(places[:2], before, times, strict=False):
        note = json.loads((place / NOTE_NAME).read_text())
        left = contents(place)
        del left[NOTE_NAME]
        assert left == {name: data for name, data in whole.items() if name != SINGLE}
        # Trainer's rotation goes by the times of folders.
        assert place.stat().st_mtime_ns == modified
        apply_delta(note["delta"], tmp_path / place.name, base=rig.base)
        assert (tmp_path / place.name / SINGLE).read_bytes() == whole[SINGLE]
        assert note["rebuild"][:3] == ["rlsparse", "apply", str(rig.run / place.name)]
    assert contents(places[2]) == before[2]
    assert thin(rig) == []
    assert list(rig.entries()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_trainers_checkpoints(rig: Rig, kind: str) -> None:
    places = [rig.write(kind, step) for step in (1, 2)]
    before = contents(places[0])
    thin(rig)
    left = contents(places[0])
    assert not [name for name in left if ".safetensors" in name]
    assert left.keys() | {name for name in before if ".safetensors" in name} == {
        *before,
        NOTE_NAME,
    }
    assert list(places[1].glob("*.safetensors"))


def test_nothing_is_removed_without_yes(rig: Rig) -> None:
    for step in (1, 2):
        rig.write("Trainer", step)
    before = contents(rig.folder)
    events = rig.watch(thin=1)
    assert kinds(events) == ["stored", "stored", "thinnable"]
    assert events[-1].freed_bytes == len(before[f"checkpoint-1/{SINGLE}"])
    assert contents(rig.folder) == before


def test_the_newest_stay_by_step_and_by_time(rig: Rig) -> None:
    for step in (10, 20, 30, 40, 50):
        rig.write("Trainer", step)
    # A run that resumed at step 10 wrote 20 again.
    os.utime(rig.folder / "checkpoint-20" / SINGLE)
    (rig.folder / "checkpoint-20" / "trainer_state.json").touch()
    thin(rig, keep=2)
    assert full(rig) == ["checkpoint-20", "checkpoint-40", "checkpoint-50"]
    thin(rig, keep=0)
    assert full(rig) == ["checkpoint-20", "checkpoint-50"]


def test_the_best_stays(rig: Rig) -> None:
    for step in (1, 2, 3, 4):
        place = rig.write("Trainer", step)
        best(place, "checkpoint-1" if step < 3 else "checkpoint-2")
    thin(rig)
    assert full(rig) == ["checkpoint-2", "checkpoint-4"]
    for name in ("best_global_step5_hf", "global_step6_hf", "global_step7_hf"):
        save(rig.folder / name, rig.tuned(5))
    thin(rig)
    assert "best_global_step5_hf" in full(rig)
    assert "global_step6_hf" not in full(rig)


def test_all_stay_while_a_state_is_in_progress(rig: Rig) -> None:
    places = [rig.write("Trainer", step) for step in (1, 2)]
    rig.watch()
    (rig.folder / "checkpoint-3").mkdir()
    (rig.folder / "checkpoint-3" / SINGLE).write_bytes(b"half")
    state = rig.folder / "checkpoint-3/trainer_state.json"
    state.write_text('{"global_')
    thin(rig)
    assert full(rig) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    shutil.copy(places[0] / "trainer_state.json", state)
    thin(rig)
    assert full(rig) == ["checkpoint-2", "checkpoint-3"]


def test_what_the_trainer_resumes_from_stays(rig: Rig) -> None:
    for step in (1, 2, 3):
        rig.write("verl", step)
    tracker = rig.folder / "latest_checkpointed_iteration.txt"
    tracker.write_text("2")
    # Copied, perhaps: it is not newer than the weights, and still names the step.
    os.utime(tracker, (1, 1))
    thin(rig)
    assert not list((rig.folder / "global_step_1/actor").rglob("*.safetensors"))
    assert list((rig.folder / "global_step_2/actor").rglob("*.safetensors"))
    # Its last checkpoint is whole, and not finished: it is not the one to resume from.
    finished = rig.write("Trainer", 10)
    unfinished = save(rig.folder / "checkpoint-20", rig.tuned(20))
    thin(rig)
    assert (finished / SINGLE).exists()
    assert (unfinished / SINGLE).exists()


def test_all_stay_while_the_tracker_cannot_be_read(rig: Rig) -> None:
    for step in (1, 2, 3):
        rig.write("verl", step)
    tracker = rig.folder / "latest_checkpointed_iteration.txt"
    tracker.unlink()
    tracker.mkdir()
    thin(rig)
    assert len(full(rig)) == 3


def tampered(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, when: str = "verify_delta"
) -> None:
    """Act once the delta of a checkpoint was verified, or at another point."""
    real = getattr(thinning, when)

    def verify(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        found = real(*arguments, **options)
        act()
        return found

    monkeypatch.setattr(thinning, when, verify)


def test_a_checkpoint_that_is_written_again_keeps_its_weights(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its delta was verified, and before its weights are removed."""
    place = rig.write("Trainer", 1)
    rig.write("Trainer", 2)
    again = file_bytes(rig.tuned(9), {"format": "pt"})
    with monkeypatch.context() as patched:
        tampered(patched, lambda: (place / SINGLE).write_bytes(again))
        (event,) = thin(rig)
    assert (event.kind, "not those" in event.message) == ("kept", True)
    assert (place / SINGLE).read_bytes() == again
    with monkeypatch.context() as patched:
        tampered(patched, lambda: (place / SINGLE).write_bytes(again), when="replace_file")
        for path in (place, rig.folder / "checkpoint-2"):
            os.utime(path / SINGLE)
            os.utime(path / "trainer_state.json")
        (event,) = thin(rig)
        assert (event.kind, "was written while" in event.message) == ("kept", True)
    # The other file is the trainer's: it stays, and becomes an entry of its own.
    assert (place / SINGLE).read_bytes() == again
    assert "checkpoint-1.2" in rig.entries()


def test_a_delta_of_another_version_thins_nothing(rig: Rig) -> None:
    place = rig.write("Trainer", 1)
    rig.write("Trainer", 2)
    rig.watch()
    # Written again with the times of before: nobody notices but the digests.
    times = (place / SINGLE).stat()
    (place / SINGLE).write_bytes(file_bytes(rig.tuned(9), {"format": "pt"}))
    os.utime(place / SINGLE, ns=(times.st_atime_ns, times.st_mtime_ns))
    (event,) = thin(rig)
    assert (event.kind, "other values" in event.message) == ("kept", True)
    assert full(rig) == ["checkpoint-1", "checkpoint-2"]


def test_files_that_a_delta_gives_back_otherwise_stay(rig: Rig) -> None:
    """The same tensors under another header: the digests agree, the files do not."""
    place = rig.write("Trainer", 1)
    rig.write("Trainer", 2)
    rig.watch()
    times = (place / SINGLE).stat()
    (place / SINGLE).write_bytes(file_bytes(rig.tuned(1), {"format": "np"}))
    os.utime(place / SINGLE, ns=(times.st_atime_ns, times.st_mtime_ns))
    (event,) = thin(rig)
    assert (event.kind, "not those" in event.message) == ("kept", True)
    assert (place / SINGLE).exists()


def test_a_damaged_delta_thins_nothing(rig: Rig) -> None:
    for step in (1, 2):
        rig.write("Trainer", step)
    rig.watch()
    delta = rig.run / "checkpoint-1/rlsparse/delta.safetensors"
    data = bytearray(delta.read_bytes())
    data[len(data) // 2] ^= 1
    delta.write_bytes(data)
    (event,) = thin(rig)
    assert event.kind == "kept"
    assert full(rig) == ["checkpoint-1", "checkpoint-2"]


def test_a_pruned_entry_thins_nothing(rig: Rig) -> None:
    for step in (1, 2):
        rig.write("Trainer", step)
    rig.watch()
    prune_run(rig.run, keep_last=1, grace_seconds=0)
    (event,) = thin(rig)
    assert (event.kind, "no entry" in event.message) == ("kept", True)
    assert full(rig) == ["checkpoint-1", "checkpoint-2"]


def test_rounded_deltas_and_moving_bases_are_refused(rig: Rig) -> None:
    with pytest.raises(CheckpointError, match="rounded"):
        thin(rig, cast="bf16")
    for base in ("org/name", "org/name@main", "hf://org/name"):
        with pytest.raises(CheckpointError, match="COMMIT"):
            list(watch_checkpoints(rig.folder, base, rig.run, thin=1, yes=True))
    _require_thinnable("org/name@" + "a" * 40, None, None)
    _require_thinnable("org/name", "a" * 40, None)
    # And one that an earlier watcher rounded.
    for step in (1, 2):
        write_all(TRAINERS["Trainer"], rig.folder, step, float32(rig.tuned(step)))
    rig.watch(cast="bf16")
    (event,) = thin(rig)
    assert event.kind == "kept"
    assert full(rig) == ["checkpoint-1", "checkpoint-2"]


def test_files_of_the_base_and_links_stay(rig: Rig, tmp_path: Path) -> None:
    first = rig.write("Trainer", 1)
    second = rig.write("Trainer", 2)
    rig.write("Trainer", 3)
    (first / SINGLE).unlink()
    (first / SINGLE).hardlink_to(rig.base / SINGLE)
    (second / SINGLE).rename(tmp_path / "elsewhere.safetensors")
    (second / SINGLE).symlink_to(tmp_path / "elsewhere.safetensors")
    events = thin(rig)
    assert kinds(events) == ["kept", "kept"]
    assert "of the base" in events[0].message
    assert "a link" in events[1].message
    assert full(rig) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_run_that_encode_wrote(rig: Rig) -> None:
    places = [rig.write("Trainer", step) for step in (1, 2)]
    encode_run(rig.base, places, rig.run)
    assert kinds(thin(rig)) == ["thinned"]


def test_a_locked_run_is_waited_for(rig: Rig) -> None:
    for step in (1, 2):
        rig.write("Trainer", step)
    rig.watch()
    with place_of(rig.run).write():
        assert thin(rig) == []
    assert kinds(thin(rig)) == ["thinned"]


def test_what_cannot_be_removed_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        rig.write("Trainer", step)
    rig.watch()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "no permission")

    monkeypatch.setattr(Path, "unlink", refused)
    with monkeypatch.context() as patched:
        patched.setattr(thinning, "replace_file", refused)
        (event,) = thin_only(rig)
    assert (event.kind, "permission" in event.message) == ("kept", True)


def thin_only(rig: Rig) -> list[WatchEvent]:
    """Thin without a watcher, whose lock removes files, too."""
    found = []
    for path in sorted(rig.folder.iterdir()):
        listing = list_checkpoint(path)
        assert listing is not None
        found.append(FoundCheckpoint(path, path, listing))
    with open_checkpoint(rig.base) as base:
        thinner = thinning.Thinner(place_of(rig.run), base, 1, 1, is_confirmed=True)
        return list(thinner.thin(rig.folder, found, []))


@pytest.mark.parametrize("when", ["rename", "unlink"])
@pytest.mark.parametrize("kind", ["slime", "Trainer"])
@pytest.mark.parametrize("count", range(4))
def test_a_killed_thinning_is_finished(rig: Rig, count: int, kind: str, when: str) -> None:
    """Before a file gets another name, or before it is removed."""
    place = rig.write(kind, 1)
    rig.write(kind, 2)
    before = contents(place)
    rig.watch()
    child = os.fork()
    if not child:
        real = getattr(Path, when)
        acted = 0

        def killed(path: Path, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
            nonlocal acted
            if path.parent == place and ".safetensors" in path.name:
                if acted == count:
                    os._exit(9)
                acted += 1
            real(path, *arguments, **options)

        setattr(Path, when, killed)
        try:
            thin(rig)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    weights = {name for name in before if ".safetensors" in name}
    assert status == (9 if count < len(weights) else 0)
    thin(rig)
    assert contents(place).keys() == (before.keys() - weights) | {NOTE_NAME}
    assert thin(rig) == []


def test_a_file_that_a_trainer_opened_to_write_gets_its_name_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rig.write("Trainer", 1)
    rig.write("Trainer", 2)
    rig.watch()
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path == place / SINGLE:
            monkeypatch.undo()
            # Between the last look at the file and its new name.
            path.write_bytes(b"of a trainer")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    (event,) = thin(rig)
    assert event.kind == "kept"
    assert (place / SINGLE).read_bytes() == b"of a trainer"
    assert not list(place.glob(".*"))


def test_a_checkpoint_written_after_a_killed_thinning_stays(rig: Rig) -> None:
    place = rig.write("slime", 1)
    rig.write("slime", 2)
    thin(rig)
    for number in (1, 2):
        (place / f"model-{number:05}-of-00002.safetensors").write_bytes(b"of a trainer")
    thin(rig)
    assert len(list(place.glob("*.safetensors"))) == 2
    (place / NOTE_NAME).write_text('{"files": {"../../a": [1, 2]}, "order": ["../../a"]}')
    thin(rig)
    (place / NOTE_NAME).write_text("[]")
    thin(rig)
    assert len(list(place.glob("*.safetensors"))) == 2
    # Whole again, it is another entry, and thinned against that one.
    shutil.rmtree(place)
    write_all(TRAINERS["slime"], rig.folder, 1, rig.tuned(7))
    os.utime(rig.folder / "step_2/model-00001-of-00002.safetensors")
    thin(rig)
    assert "step_1.2" in rig.entries()
    assert json.loads((place / NOTE_NAME).read_text())["delta"] == str(rig.run / "step_1.2")

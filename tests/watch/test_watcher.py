"""Watching the folder of a trainer: what is stored, when, and what is not."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pairs import SINGLE, Tensor, bf16_tensor, contents, file_bytes, save
from trainer_writes import TRAINERS, write_all
from watch_rig import NEVER, Rig, float32, kinds, new_rig

from rlsparse_store.delta import apply_delta, encode_run, inspect_run, prune_run, run_encoder
from rlsparse_store.delta.encode import encode_spans
from rlsparse_store.delta.run import place_of
from rlsparse_store.errors import (
    BaseMismatchError,
    CheckpointError,
    DtypeMismatchError,
    ImplausibleError,
    NotFoundError,
    OutputError,
    RlsparseError,
    RunLockedError,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.output import _HOST
from rlsparse_store.watch.completeness import list_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlsparse_store.delta.encoder import Encoder


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return new_rig(tmp_path)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_checkpoint_is_stored_as_its_trainer_left_it(rig: Rig, kind: str, tmp_path: Path) -> None:
    trainer = TRAINERS[kind]
    places = {trainer.name(step): rig.write(kind, step) for step in (9, 10)}
    # A marker tells at once; without one, nothing counts as complete before it settled.
    events = rig.watch(NEVER) if trainer.has_marker else rig.watch()
    stored = [event for event in events if event.kind == "stored"]
    assert [event.entry and event.entry.name for event in stored] == [
        trainer.name(9),
        trainer.name(10),
    ]
    assert [entry.step for entry in inspect_run(rig.run).deltas] == [9, 10]
    for name, place in places.items():
        rebuilt = rig.rebuilt(name, tmp_path / "work")
        assert rebuilt.items() <= contents(place).items()
        assert {path.name for path in place.glob("*.safetensors*")} <= rebuilt.keys()
    assert "stored" not in kinds(rig.watch())


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_trainer_that_stops_anywhere_leaves_nothing_torn(
    rig: Rig, kind: str, tmp_path: Path
) -> None:
    """Between any two writes, and for longer than the settle time."""
    trainer = TRAINERS[kind]
    whole = save(tmp_path / "whole", rig.tuned(7)) / SINGLE
    seen = set()
    for number, _ in enumerate(trainer.write(rig.folder, 7, rig.tuned(7))):
        run = tmp_path / f"run-{number}"
        events = Rig(rig.base, rig.folder, run, rig.tensors).watch()
        seen |= set(kinds(events))
        if "stored" in kinds(events):
            apply_delta(run / trainer.name(7), tmp_path / "one", base=rig.base)
            made = list(watch_tensors(tmp_path / "one"))
            assert made == list(watch_tensors(whole.parent))
            shutil.rmtree(tmp_path / "one")
    assert "stored" in seen
    assert seen <= {"stored", "skipped"}


def watch_tensors(folder: Path) -> Iterator[tuple[str, bytes]]:
    with open_checkpoint(folder) as checkpoint:
        for tensor in checkpoint.tensors.values():
            yield tensor.name, checkpoint.read(tensor, 0, tensor.nbytes).tobytes()


@pytest.mark.parametrize("kind", ["OpenRLHF", "slime"])
def test_without_a_marker_a_checkpoint_has_to_settle(rig: Rig, kind: str) -> None:
    rig.write(kind, 1)
    events = rig.watching(NEVER, stop=stopped())
    assert list(events) == []


def stopped() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_a_marker_of_an_earlier_version_does_not_count(rig: Rig) -> None:
    place = rig.write("Trainer", 5)
    os.utime(place / "trainer_state.json", ns=(1, 1))
    assert list(rig.watching(NEVER, stop=stopped())) == []
    tracker = rig.folder / "latest_checkpointed_iteration.txt"
    rig.write("verl", 5)
    for text in ("", "4", "x" * 100):
        tracker.write_text(text)
        assert list(rig.watching(NEVER, stop=stopped()))[1:] == []
    tracker.write_text("6\n")
    assert "stored" in kinds(list(rig.watching(NEVER, stop=stopped())))


def test_step_and_metrics_are_the_trainers(rig: Rig) -> None:
    for step in (100, 200):
        rig.write("Trainer", step)
    rig.watch()
    first, second = inspect_run(rig.run).deltas
    assert (first.step, first.metrics) == (100, {"loss": 2.5, "reward": 0.1})
    assert second.parent == first.tuned_digest


def test_what_is_stored_equals_what_encode_stores(rig: Rig, tmp_path: Path) -> None:
    places = [rig.write("Trainer", step) for step in (1, 2)]
    rig.watch()
    encode_run(rig.base, places, tmp_path / "other")
    for place in places:
        assert contents(rig.run / place.name) == contents(tmp_path / "other" / place.name)
    # And encode goes on where the watcher stopped.
    report = encode_run(rig.base, [*places, rig.write("Trainer", 3)], rig.run)
    assert [entry.is_new for entry in report.deltas] == [False, False, True]
    assert rig.watch() == []


def test_a_resumed_run_writes_a_step_again(rig: Rig, tmp_path: Path) -> None:
    place = rig.write("Trainer", 1)
    rig.watch()
    shutil.rmtree(place)
    write_all(TRAINERS["Trainer"], rig.folder, 1, rig.tuned(99))
    (event,) = rig.watch()
    assert event.entry is not None
    assert (event.entry.folder, event.entry.name) == ("checkpoint-1.2", "checkpoint-1")
    assert rig.rebuilt("checkpoint-1.2", tmp_path / "w")[SINGLE] == (place / SINGLE).read_bytes()
    # The same again, as a run that resumes exactly writes it: no entry.
    shutil.rmtree(place)
    write_all(TRAINERS["Trainer"], rig.folder, 1, rig.tuned(99))
    assert rig.watch() == []
    assert list(rig.entries()) == ["checkpoint-1", "checkpoint-1.2"]


def test_a_version_whose_time_is_older_than_its_delta_is_stored(rig: Rig) -> None:
    """The clocks of two file systems differ, or a copy kept the time."""
    place = rig.write("Trainer", 1)
    rig.watch()
    shutil.rmtree(place)
    write_all(TRAINERS["Trainer"], rig.folder, 1, rig.tuned(99))
    for path in place.iterdir():
        os.utime(path, (1, 1))
    (event,) = rig.watch()
    assert event.entry is not None
    assert event.entry.folder == "checkpoint-1.2"
    assert rig.watch() == []


def test_small_files_are_chosen(rig: Rig) -> None:
    rig.write("Trainer", 1)
    rig.watch(include=["trainer_state.json"], exclude=["config.json"])
    names = contents(rig.run / "checkpoint-1").keys()
    assert "trainer_state.json" in names
    assert "config.json" not in names


def test_another_thread_stops_the_watching(rig: Rig) -> None:
    stop = threading.Event()
    rig.write("Trainer", 1)
    watching = rig.watching(NEVER, stop=stop)
    assert next(watching).kind == "stored"
    threading.Timer(0.1, stop.set).start()
    assert list(watching) == []


def test_a_pruned_entry_is_not_stored_again(rig: Rig) -> None:
    for step in (1, 2, 3):
        rig.write("Trainer", step)
    rig.watch()
    prune_run(rig.run, keep_last=1, grace_seconds=0)
    assert rig.watch() == []
    prune_run(rig.run, grace_seconds=0)
    assert rig.watch() == []
    assert list(rig.entries()) == ["checkpoint-3"]
    (rig.run / ".run/watch/seen.json").write_text("[not JSON")
    assert kinds(rig.watch()) == ["stored", "stored"]


def test_the_base_is_hashed_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    known = []

    def noted(encoder: Encoder, *arguments: Any) -> int:  # noqa: ANN401
        known.append(len(encoder._hashes.leaves))
        return encode_spans(encoder, *arguments)

    monkeypatch.setattr(run_encoder, "encode_spans", noted)
    for step in (1, 2):
        rig.write("Trainer", step)
    rig.watch()
    assert known == [0, len(rig.tensors)]


def during_encoding(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, between reading a checkpoint and publishing its delta."""
    pending = [act]

    def encode(*arguments: Any) -> int:  # noqa: ANN401
        nbytes = encode_spans(*arguments)
        while pending:
            pending.pop()()
        return nbytes

    monkeypatch.setattr(run_encoder, "encode_spans", encode)


def test_a_trainer_that_writes_while_a_checkpoint_is_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = rig.write("Trainer", 1)
    again = file_bytes(rig.tuned(2), {"format": "pt"})
    during_encoding(monkeypatch, lambda: (place / SINGLE).write_bytes(again))
    watching = rig.watching()
    first, second = next(watching), next(watching)
    watching.close()
    assert (first.kind, first.message) == ("skipped", "changed while it was read")
    assert second.kind == "stored"
    assert rig.rebuilt("checkpoint-1", tmp_path / "work")[SINGLE] == again
    assert rig.temporary() == []


def failing_once(monkeypatch: pytest.MonkeyPatch, place: Path, call: int) -> None:
    """Make one call fail of those that list a folder."""
    original, calls = os.scandir, itertools.count(1)

    def scandir(path: Any = ".") -> Any:  # noqa: ANN401
        if path == place and next(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_checkpoint_that_cannot_be_listed_is_looked_at_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rig.write("Trainer", 1)
    failing_once(monkeypatch, place, 1)
    watching = rig.watching()
    first, second = next(watching), next(watching)
    watching.close()
    assert (first.kind, first.message) == ("waiting", "cannot be listed (Input/output error)")
    assert second.kind == "stored"


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_checkpoint_that_cannot_be_listed_at_the_end_is_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    place = rig.write("Trainer", 1)
    failing_once(monkeypatch, place, call)
    with pytest.raises(OSError, match="Input/output error"):
        rig.watch()
    assert rig.temporary() == []
    assert kinds(rig.watch()) == ["stored"]


def test_a_checkpoint_that_cannot_be_read_is_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsparse_store.watch.watcher._RETRY_SECONDS", 0)
    rig.write("Trainer", 1)
    opened, failures = open_checkpoint, [True]

    def opening(path: Path) -> Any:  # noqa: ANN401
        if failures and path != rig.base:
            raise CheckpointError("cannot be opened", file=path) from OSError(errno.EIO, "broken")
        return opened(path)

    monkeypatch.setattr("rlsparse_store.watch.watcher.open_checkpoint", opening)
    watching = rig.watching()
    first = next(watching)
    failures.clear()
    assert (first.kind, next(watching).kind) == ("waiting", "stored")
    watching.close()
    failures.append(True)
    rig.write("Trainer", 2)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        rig.watch()


def test_a_change_that_is_undone_before_it_is_looked_at(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.write("Trainer", 1)
    calls = itertools.count(1)

    def listed(path: Path) -> Any:  # noqa: ANN401
        found = list_checkpoint(path)
        return None if next(calls) == 2 else found

    monkeypatch.setattr("rlsparse_store.watch.watcher.list_checkpoint", listed)
    first, second = rig.watch()
    assert (first.kind, first.message) == ("skipped", "changed while it was read")
    assert second.kind == "stored"


def test_a_file_that_is_added_while_a_checkpoint_is_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rig.write("OpenRLHF", 1)
    during_encoding(monkeypatch, lambda: (place / "tokenizer_config.json").write_text("{}"))
    watching = rig.watching()
    assert kinds([next(watching), next(watching)]) == ["skipped", "stored"]
    watching.close()
    assert "tokenizer_config.json" in contents(rig.run / "global_step1_hf")


def test_a_checkpoint_that_vanishes_before_it_is_open(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rig.write("Trainer", 1)
    rig.write("Trainer", 2)
    opened = open_checkpoint

    def vanishing(path: Path) -> Any:  # noqa: ANN401
        if path == place:
            shutil.rmtree(place)
        return opened(path)

    monkeypatch.setattr("rlsparse_store.watch.watcher.open_checkpoint", vanishing)
    first, second = rig.watch()
    assert (first.kind, first.message) == ("skipped", "was removed while it was read")
    assert second.kind == "stored"
    assert list(rig.entries()) == ["checkpoint-2"]
    assert rig.temporary() == []


def test_a_rotation_that_has_begun_when_a_checkpoint_is_open(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step and metrics would be missing."""
    place = rig.write("Trainer", 1)
    opened = open_checkpoint

    def opening(path: Path) -> Any:  # noqa: ANN401
        if path == place:
            (place / "trainer_state.json").unlink()
        return opened(path)

    monkeypatch.setattr("rlsparse_store.watch.watcher.open_checkpoint", opening)
    assert [event.message for event in rig.watch(NEVER, stop=stopped())] == [
        "changed while it was read"
    ]
    assert rig.entries() == {}


def test_a_checkpoint_that_is_rotated_away_while_it_is_read_was_read_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its files are open: no rotation takes them away."""
    place = rig.write("Trainer", 1)
    whole = contents(place)
    during_encoding(monkeypatch, lambda: shutil.rmtree(place))
    (event,) = rig.watch()
    assert event.entry is not None
    assert event.entry.metrics == {"loss": 2.5, "reward": 0.001}
    rebuilt = rig.rebuilt("checkpoint-1", tmp_path / "work")
    assert rebuilt == {name: whole[name] for name in (SINGLE, "config.json")}


def test_half_a_checkpoint_is_skipped_and_the_others_are_stored(rig: Rig) -> None:
    half = rig.write("slime", 1)
    (half / "model-00002-of-00002.safetensors").unlink()
    cut = rig.write("OpenRLHF", 2)
    os.truncate(cut / SINGLE, 1000)
    rig.write("Trainer", 3)
    events = rig.watch()
    assert [(event.kind, Path(event.checkpoint).name) for event in events] == [
        ("stored", "checkpoint-3"),
        ("skipped", half.name),
        ("skipped", cut.name),
    ]
    assert "missing" in events[1].message
    assert list(rig.entries()) == ["checkpoint-3"]


def test_what_trainer_has_not_finished_is_not_stored(rig: Rig) -> None:
    """It may gather the optimizer's state for minutes, with nothing to see."""
    place = rig.write("Trainer", 1)
    state = (place / "trainer_state.json").read_bytes()
    (place / "trainer_state.json").unlink()
    (event,) = rig.watch()
    assert (event.kind, event.message) == ("skipped", "its trainer has not finished it")
    (place / "trainer_state.json").write_bytes(state)
    assert kinds(rig.watch(NEVER)) == ["stored"]


def test_half_a_checkpoint_is_named_once(rig: Rig) -> None:
    half = rig.write("slime", 1)
    (half / "model-00002-of-00002.safetensors").unlink()
    watching = rig.watching()
    assert next(watching).kind == "skipped"
    rig.write("Trainer", 2)
    assert next(watching).kind == "stored"
    rig.write("slime", 1)
    assert next(watching).kind == "stored"
    watching.close()


def test_adapters_and_strange_folders_are_skipped_with_a_reason(rig: Rig) -> None:
    adapter = save(rig.folder / "checkpoint-1", rig.tensors)
    (adapter / SINGLE).rename(adapter / "adapter_model.safetensors")
    save(rig.folder / "final", rig.tensors)
    (rig.folder / SINGLE).write_bytes(file_bytes(rig.tensors))
    found = {Path(event.checkpoint).name: event for event in rig.watch()}
    assert {event.kind for event in found.values()} == {"skipped"}
    assert "adapter" in found["checkpoint-1"].message
    assert "named after its step" in found["final"].message
    assert found.keys() == {"checkpoint-1", "final"}


def test_two_runs_below_one_folder(rig: Rig) -> None:
    for name in ("a", "b"):
        write_all(TRAINERS["Trainer"], rig.folder / name, 1, rig.tuned(1))
    first, second = rig.watch()
    assert (first.kind, second.kind) == ("stored", "skipped")
    assert "watch the folder of one run" in second.message
    assert rig.watch() == [second]


def test_a_grown_vocabulary(rig: Rig, tmp_path: Path) -> None:
    tensors = rig.tuned(1)
    old = tensors["layers.0.weight"]
    tensors["layers.0.weight"] = Tensor("BF16", (33, 32), old.data + bytes(3 * 64))
    place = write_all(TRAINERS["Trainer"], rig.folder, 1, tensors)
    assert kinds(rig.watch()) == ["stored"]
    assert rig.rebuilt("checkpoint-1", tmp_path / "w")[SINGLE] == (place / SINGLE).read_bytes()


def test_float32_masters_over_a_bfloat16_base(rig: Rig) -> None:
    write_all(TRAINERS["Trainer"], rig.folder, 1, float32(rig.tuned(1)))
    with pytest.raises(DtypeMismatchError):
        rig.watch()
    assert rig.entries() == {}
    assert kinds(rig.watch(cast="bf16")) == ["stored"]


def test_another_models_checkpoint_ends_the_watching_only_at_first(
    rig: Rig, tmp_path: Path
) -> None:
    other = {f"blocks.{n}.kernel": bf16_tensor(50 + n, 7, 9) for n in range(9)}
    write_all(TRAINERS["Trainer"], rig.folder, 1, other)
    with pytest.raises(ImplausibleError):
        rig.watch()
    rig.write("Trainer", 0)
    assert kinds(rig.watch()) == ["stored", "refused"]
    run = Rig(save(tmp_path / "second", rig.tuned(77)), rig.folder, rig.run, rig.tensors)
    rig.write("Trainer", 2)
    with pytest.raises(BaseMismatchError):
        run.watch()
    assert list(rig.entries()) == ["checkpoint-0"]
    assert rig.temporary() == []


def test_a_base_that_changes_ends_the_watching(rig: Rig) -> None:
    rig.write("Trainer", 1)
    watching = rig.watching()
    assert next(watching).kind == "stored"
    os.utime(rig.base / SINGLE)
    rig.write("Trainer", 2)
    with pytest.raises(RlsparseError, match="changed while it was being read"):
        next(watching)


def test_places_that_are_refused(rig: Rig, tmp_path: Path) -> None:
    for run in (rig.folder, rig.folder / "run", rig.folder / "a" / ".." / "b"):
        with pytest.raises(OutputError, match="is inside"):
            Rig(rig.base, rig.folder, run, rig.tensors).watch()
    with pytest.raises(NotFoundError):
        Rig(rig.base, tmp_path / "no", rig.run, rig.tensors).watch()
    with pytest.raises(NotFoundError):
        Rig(tmp_path / "no", rig.folder, rig.run, rig.tensors).watch()
    with pytest.raises(ValueError, match="settle_seconds"):
        rig.watch(-1)
    watching = rig.watching()
    rig.write("Trainer", 1)
    next(watching)
    shutil.rmtree(rig.folder)
    with pytest.raises(NotFoundError, match="was removed"):
        next(watching)


def test_two_watchers_of_one_run(rig: Rig) -> None:
    rig.write("Trainer", 1)
    watching = rig.watching()
    next(watching)
    with pytest.raises(RunLockedError):
        rig.watch()
    # Other writers may come between, and are waited for.
    prune_run(rig.run, keep_last=1)
    with place_of(rig.run).write():
        rig.write("Trainer", 2)
        assert next(watching).kind == "waiting"
    assert next(watching).kind == "stored"
    watching.close()
    rig.write("Trainer", 3)
    with place_of(rig.run).write(), pytest.raises(RunLockedError):
        rig.watch()
    assert kinds(rig.watch()) == ["stored"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("rlsparse_store.watch.watcher._RETRY_SECONDS", 0.1)
    rig.write("Trainer", 1)
    rig.watch()
    rig.write("Trainer", 2)
    whole = contents(rig.run / "checkpoint-1")

    def full(*_: object) -> None:
        raise OSError(code, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="space"):
            rig.watch()
    watching = rig.watching()
    rig.write("Trainer", 3)
    assert next(watching).kind == "stored"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        event = next(watching)
        assert (event.kind, "space" in event.message) == ("waiting", True)
    assert rig.temporary() == []
    assert next(watching).kind == "stored"
    watching.close()
    assert contents(rig.run / "checkpoint-1") == whole
    assert list(rig.entries()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_what_a_killed_watcher_left_is_removed(rig: Rig) -> None:
    rig.write("Trainer", 1)
    rig.watch()
    left = rig.run / f".checkpoint-9.tmp-{_HOST}-999999999"
    (left / "rlsparse").mkdir(parents=True)
    rig.watch()
    assert rig.temporary() == []


def test_events_as_json(rig: Rig) -> None:
    rig.write("Trainer", 1)
    (event,) = rig.watch()
    value = json.loads(json.dumps(event.as_json()))
    assert value["schema_version"] == 1
    assert value["entry"]["name"] == "checkpoint-1"
    assert "stored" in repr(event)

"""Trainers whose checkpoints are deltas."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import small_llama
from safetensors.torch import load_file
from trainers import STEPS, make_trainer
from transformers import LlamaForCausalLM, TrainerCallback

from rlsparse_store import apply_delta, encode_delta, from_delta, open_delta, verify_delta
from rlsparse_store.errors import CheckpointError, DtypeMismatchError, OutputError, RunLockedError
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.checkpoint_folders import (
    DRAFTS,
    has_delta,
    is_finished,
    place_delta,
)
from rlsparse_store.integrations.trainer.encoding_thread import EncodingThread, SavingGate
from rlsparse_store.integrations.trainer.preemption import before_sigterm
from rlsparse_store.torch import DeltaEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    small_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without deltas."""
    out = tmp_path_factory.mktemp("plain") / "out"
    make_trainer(base, out).train()
    return out


def checkpoint(out: Path, step: int) -> Path:
    return out / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rebuilt(folder: Path, base: Path, tmp_path: Path) -> bytes:
    """The full weights of a checkpoint that is a delta."""
    out = tmp_path / f"rebuilt-{folder.parent.name}-{folder.name}"
    apply_delta(folder, out, base=base)
    return (out / "model.safetensors").read_bytes()


def require_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def trained(base: Path, out: Path, resume: Any = None, **settings: Any) -> Any:  # noqa: ANN401
    """Train with deltas."""
    names = {"background", "keep", "cast", "queue"}
    options = {name: settings.pop(name) for name in names & settings.keys()}
    callbacks = settings.pop("callbacks", ())
    trainer = make_trainer(base, out, **settings)
    for callback in callbacks:
        trainer.add_callback(callback)
    store_as_deltas(trainer, base, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("background", [True, False])
def test_checkpoints_are_the_full_saves_bit_for_bit(
    base: Path,
    plain: Path,
    tmp_path: Path,
    background: bool,  # noqa: FBT001
) -> None:
    trainer = trained(base, tmp_path / "out", background=background)
    assert type(trainer).__name__ == "Trainer"
    for step in (2, 4, 6):
        mine, full = checkpoint(tmp_path / "out", step), checkpoint(plain, step)
        assert names(mine) == names(full) - {"model.safetensors"} | {"rlsparse"}
        weights = (full / "model.safetensors").read_bytes()
        assert rebuilt(mine, base, tmp_path) == weights
        verify_delta(mine, base=base, tuned=full)
        for name in ("optimizer.pt", "scheduler.pt", "config.json"):
            assert (mine / name).read_bytes() == (full / name).read_bytes(), name
    assert names(tmp_path / "out") == names(plain) | {DRAFTS}
    loaded = from_delta(base, checkpoint(tmp_path / "out", 6)).state_dict()
    require_equal(loaded, trainer.model.state_dict())


@pytest.mark.parametrize("by_path", [True, False])
def test_resuming_is_exact(base: Path, plain: Path, tmp_path: Path, by_path: bool) -> None:  # noqa: FBT001
    out = tmp_path / "out"
    trained(base, out, max_steps=4)
    trainer = trained(base, out, str(checkpoint(out, 2)) if by_path else True)
    expected = load_file(checkpoint(plain, 6) / "model.safetensors")
    require_equal(trainer.model.state_dict(), expected)
    assert (
        rebuilt(checkpoint(out, 6), base, tmp_path)
        == (checkpoint(plain, 6) / "model.safetensors").read_bytes()
    )
    assert trainer.state.global_step == STEPS


def test_a_full_checkpoint_of_an_earlier_run_is_resumed_from(
    base: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(checkpoint(plain, 2), checkpoint(out, 2))
    trained(base, out, resume=True)
    assert (checkpoint(out, 2) / "model.safetensors").is_file()
    expected = (checkpoint(plain, 6) / "model.safetensors").read_bytes()
    assert rebuilt(checkpoint(out, 6), base, tmp_path) == expected


@pytest.mark.parametrize("background", [True, False])
def test_rotation_removes_the_oldest(base: Path, tmp_path: Path, background: bool) -> None:  # noqa: FBT001
    out = tmp_path / "out"
    settings = {"save_steps": 1, "save_total_limit": 2, "background": background}
    trained(base, out, **settings)
    assert names(out) == {"checkpoint-5", "checkpoint-6", DRAFTS}
    for step in (5, 6):
        verify_delta(checkpoint(out, step), base=base)


def test_the_best_model_is_loaded_from_its_delta(base: Path, tmp_path: Path) -> None:
    settings = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "metric_for_best_model": "loss",
        # Each evaluation is worse than the one before.
        "greater_is_better": True,
        "learning_rate": 3e-3,
        "save_total_limit": 3,
    }
    trainer = trained(base, tmp_path / "out", **settings)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"
    require_equal(trainer.model.state_dict(), from_delta(base, best).state_dict())
    assert names(tmp_path / "out") == {"checkpoint-1", "checkpoint-5", "checkpoint-6", DRAFTS}


def test_a_save_by_the_user_is_full(base: Path, tmp_path: Path) -> None:
    trainer = trained(base, tmp_path / "out")
    trainer.save_model(str(tmp_path / "mine"))
    saved = load_file(tmp_path / "mine" / "model.safetensors")
    require_equal(saved, trainer.model.state_dict())


# --- The thread ---------------------------------------------------------------------------------


class OnSave(TrainerCallback):
    """Calls a function with the step after each save."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        self._call(state.global_step)


def before_each_encode(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    encode = DeltaEncoder.encode

    def changed(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        call()
        return encode(*args, **options)

    monkeypatch.setattr(DeltaEncoder, "encode", changed)


def kinds(out: Path, steps: Iterable[int]) -> list[str]:
    """What each checkpoint holds."""
    found = []
    for step in steps:
        folder = checkpoint(out, step)
        full = "full" if (folder / "model.safetensors").exists() else "nothing"
        found.append("delta" if has_delta(folder) else full)
    return found


def test_while_the_thread_is_busy_checkpoints_wait_on_disk(
    base: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, may_go = tmp_path / "out", threading.Event()
    before_each_encode(monkeypatch, may_go.wait)
    seen = {}

    def look(step: int) -> None:
        seen[step] = kinds(out, range(1, step + 1))
        if step == 3:
            may_go.set()

    trained(base, out, save_steps=1, callbacks=[OnSave(look)])
    assert seen[3] == ["nothing", "full", "full"]
    assert kinds(out, range(1, STEPS + 1)) == ["delta"] * STEPS
    for step in (2, 4):
        expected = (checkpoint(plain, step) / "model.safetensors").read_bytes()
        assert rebuilt(checkpoint(out, step), base, tmp_path) == expected


@pytest.mark.parametrize("queue", [0, 1])
def test_training_waits_for_the_thread(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: int
) -> None:
    out, most = tmp_path / "out", []
    before_each_encode(monkeypatch, lambda: time.sleep(0.1))

    def look(step: int) -> None:
        found = kinds(out, range(1, step + 1))
        assert found.count("nothing") <= 1
        most.append(found.count("full"))

    trained(base, out, save_steps=1, queue=queue, callbacks=[OnSave(look)])
    # The checkpoint that is being encoded may be full, too.
    assert max(most) <= (queue + 1 if queue else 0)
    assert kinds(out, range(1, STEPS + 1)) == ["delta"] * STEPS


def test_an_error_is_raised_at_the_next_save(
    base: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    trained(base, out, max_steps=2)

    def fail() -> None:
        msg = "no space left on the device"
        raise OutputError(msg, file=out)

    with monkeypatch.context() as patch:
        before_each_encode(patch, fail)
        trainer = make_trainer(base, out)
        store_as_deltas(trainer, base)
        with pytest.raises(OutputError, match="no space left"):
            trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == STEPS
    assert kinds(out, (2, 4)) == ["delta", "nothing"]
    assert not is_finished(checkpoint(out, 4))
    with pytest.raises(CheckpointError, match=r"checkpoint-4: is not finished.*checkpoint-2"):
        trained(base, out, str(checkpoint(out, 4)))
    trained(base, out, resume=True)
    expected = (checkpoint(plain, 6) / "model.safetensors").read_bytes()
    assert rebuilt(checkpoint(out, 6), base, tmp_path) == expected


def test_an_error_at_the_last_save_is_raised_when_training_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        msg = "no space left on the device"
        raise OutputError(msg, file=tmp_path)

    before_each_encode(monkeypatch, fail)
    with pytest.raises(OutputError, match="no space left"):
        trained(base, tmp_path / "out", save_steps=STEPS)


def test_an_error_of_training_completes_the_delta_first(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before_each_encode(monkeypatch, lambda: time.sleep(0.2))

    def fail(step: int) -> None:
        if step == 4:
            msg = "diverged"
            raise ArithmeticError(msg)

    with pytest.raises(ArithmeticError, match="diverged"):
        trained(base, out, callbacks=[OnSave(fail)])
    assert kinds(out, (2, 4))[0] == "delta"
    assert is_finished(checkpoint(out, 2))


UNTIL_SIGTERM = """
import sys, time
from pathlib import Path
from test_trainer import OnSave, trained
from rlsparse_store.torch import DeltaEncoder
encode = DeltaEncoder.encode
def slow(*args, **options):
    time.sleep(0.5)
    return encode(*args, **options)
DeltaEncoder.encode = slow
def wait(step):
    print("saved", flush=True)
    time.sleep(60)
trained(Path(sys.argv[1]), Path(sys.argv[2]), callbacks=[OnSave(wait)])
"""


def script_of(text: str, base: Path, out: Path) -> tuple[dict[str, str], list[str]]:
    """The environment and the command of a script that imports this module."""
    here = Path(__file__).parent
    path = os.pathsep.join((str(here), str(here.parent / "support")))
    return os.environ | {"PYTHONPATH": path}, [sys.executable, "-c", text, str(base), str(out)]


def test_sigterm_completes_the_delta_first(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment, command = script_of(UNTIL_SIGTERM, base, out)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "saved\n":
            assert process.poll() is None
        assert kinds(out, [2]) == ["nothing"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    assert is_finished(checkpoint(out, 2))
    verify_delta(checkpoint(out, 2), base=base)
    assert names(out) == {"checkpoint-2", DRAFTS}
    # The process is gone, and its lock with it.
    trained(base, out, resume=True)


def test_an_earlier_handler_of_sigterm_is_called_after() -> None:
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append("handler"))
    try:
        with before_sigterm(lambda: calls.append("finish")):
            os.kill(os.getpid(), signal.SIGTERM)
            calls.append("on")
            # Only once: the next one does what it did before.
            os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ["finish", "handler", "on", "handler"]
        with before_sigterm(lambda: calls.append("finish")):
            pass
        calls.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ["handler"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_thread_leaves_checkpoints_alone_while_trainer_saves() -> None:
    gate, thread, done = SavingGate(), EncodingThread(), threading.Event()

    def change() -> None:
        with gate.changing():
            done.set()

    with gate.saving():
        thread.add(change)
        assert not done.wait(0.2)
    assert done.wait(30)
    done.clear()
    with gate.saving():
        thread.add(change)
        # A signal came, and its handler waits for the thread.
        with gate.released():
            thread.wait()
        assert done.is_set()
        done.clear()
        # Training goes on.
        thread.add(change)
        assert not done.wait(0.2)
    thread.wait()
    assert done.is_set()


def test_optional_jobs_are_dropped_and_errors_are_raised_once() -> None:
    thread, may_go, calls = EncodingThread(), threading.Event(), list[str]()

    def fail() -> None:
        may_go.wait()
        msg = "broken"
        raise ArithmeticError(msg)

    thread.add(fail)
    thread.add(lambda: calls.append("optional"), is_optional=True)
    thread.add(lambda: calls.append("needed"))
    thread.drop_optional()
    assert thread.pending == 2
    may_go.set()
    with pytest.raises(ArithmeticError, match="broken"):
        thread.wait()
    thread.wait()
    assert calls == ["needed"]


def test_training_outside_the_main_thread(base: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=trained, args=(base, tmp_path / "out"))
    thread.start()
    thread.join()
    assert kinds(tmp_path / "out", (2, 4, 6)) == ["delta"] * 3


def test_a_second_process_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment, command = script_of(UNTIL_SIGTERM, base, out)
    attached = make_trainer(base, out)
    store_as_deltas(attached, base)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "saved\n":
            assert process.poll() is None
        message = f"{out}: process {process.pid} on .* is writing to it; wait until it ends"
        with pytest.raises(RunLockedError, match=message):
            store_as_deltas(make_trainer(base, out), base)
        # One that was attached before.
        with pytest.raises(RunLockedError, match=message):
            attached.train()
        assert names(out) == {"checkpoint-2", DRAFTS}
        process.kill()
    attached.train()
    assert kinds(out, (2, 4, 6)) == ["delta"] * 3


def test_kills_lose_nothing(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "trainer_kills.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "5", "3"], check=True)


# --- Full checkpoints, and float32 masters ------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
def test_the_newest_checkpoints_stay_full(
    base: Path,
    plain: Path,
    tmp_path: Path,
    background: bool,  # noqa: FBT001
) -> None:
    out = tmp_path / "out"
    found = []

    def look(step: int) -> None:
        newest = [s for s in (2, 4, 6) if s <= step][-2:]
        found.append(kinds(out, newest) == ["full"] * len(newest))

    trained(base, out, keep=2, background=background, callbacks=[OnSave(look)])
    assert found == [True] * 3
    assert kinds(out, (2, 4, 6)) == ["delta", "full", "full"]
    expected = (checkpoint(plain, 2) / "model.safetensors").read_bytes()
    assert rebuilt(checkpoint(out, 2), base, tmp_path) == expected
    assert names(checkpoint(out, 4)) == names(checkpoint(plain, 4))


def masters(base: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)


def test_a_run_that_is_written_again_keeps_its_newest_full(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trainer = trained(base, out, keep=1)
    # In the same process: checkpoint-6 is written again, and stays full.
    trainer.train(resume_from_checkpoint=str(checkpoint(out, 4)))
    assert kinds(out, (2, 4, 6)) == ["delta", "delta", "full"]


def test_a_place_without_a_checkpoint(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        trained(base, tmp_path / "out", str(tmp_path / "checkpoint-9"))
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trained(base, tmp_path / "out", resume=True)


def test_float32_masters_are_rounded_only_when_asked(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    make_trainer(base, tmp_path / "plain", masters(base), learning_rate=1e-3).train()
    trainer = make_trainer(base, out, masters(base))
    with pytest.raises(DtypeMismatchError, match=r"trained in F32, and BF16 in the base.*cast="):
        store_as_deltas(trainer, base)
    with pytest.raises(ValueError, match="keep is at least 1"):
        store_as_deltas(trainer, base, cast="bf16", keep=0)
    settings = {"cast": "bf16", "learning_rate": 1e-3}
    trained(base, out, model=masters(base), max_steps=4, **settings)
    assert "exact from the newest 1, which stay full" in caplog.text
    assert kinds(out, (2, 4)) == ["delta", "full"]
    # The newest one is full: this is exact.
    trained(base, out, model=masters(base), resume=True, **settings)
    assert kinds(out, (4, 6)) == ["full", "full"]
    last = load_file(checkpoint(out, 6) / "model.safetensors")
    require_equal(last, load_file(checkpoint(tmp_path / "plain", 6) / "model.safetensors"))
    full = load_file(checkpoint(tmp_path / "plain", 2) / "model.safetensors")
    with open_delta(checkpoint(out, 2), base=base) as delta:
        require_equal(dict(delta), {name: t.bfloat16() for name, t in full.items()})
    # The others are not, and this is said.
    caplog.clear()
    path = str(checkpoint(out, 2))
    trained(base, out, model=masters(base), resume=path, max_steps=3, **settings)
    assert "holds weights in torch.bfloat16: this is not exact" in caplog.text


def test_a_float32_base_needs_no_cast(base: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    masters(base).save_pretrained(wide)
    settings = {"model": masters(base), "max_steps": 2, "learning_rate": 1e-5}
    trained(wide, tmp_path / "out", **settings)
    make_trainer(wide, tmp_path / "plain", **settings | {"model": masters(base)}).train()
    expected = (checkpoint(tmp_path / "plain", 2) / "model.safetensors").read_bytes()
    assert rebuilt(checkpoint(tmp_path / "out", 2), wide, tmp_path) == expected


def test_a_checkpoint_keeps_its_place_in_rotation(base: Path, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint(plain, 2), folder)
    encode_delta(base, folder, tmp_path / "draft")
    os.utime(folder, ns=(10**18, 10**18 + 5))
    place_delta(tmp_path / "draft", folder)
    assert kinds(tmp_path, [2]) == ["delta"]
    assert not (folder / "model.safetensors").exists()
    assert folder.stat().st_mtime_ns == 10**18 + 5

"""Kill watchers at random moments while a trainer writes, and require that nothing is torn.

    python tests/support/watch_kills.py FOLDER KILLS SEED

One child writes checkpoints as a trainer does, piece by piece, writes some again and removes
others; another watches and is killed at any moment. After each kill, every entry decodes to a
checkpoint that the trainer wrote under its name, and no entry is lost. After ten kills a watcher
runs to its end: then every complete checkpoint has its entry. Half of the watchers thin: what the
trainer wrote is in its folder or in the run. Prints what happened, by count.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairs import Tensors, bf16_tensor, save, tune
from trainer_writes import TRAINERS

from rlsparse_store.delta import apply_delta, inspect_run
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.watch import watch_checkpoints
from rlsparse_store.watch.thinning import NOTE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE = 0.2
STEPS = 6
LONGEST = 0.6
"""Seconds until a watcher is killed."""


def tensors_of(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as checkpoint:
        return {
            t.name: checkpoint.read(t, 0, t.nbytes).tobytes() for t in checkpoint.tensors.values()
        }


class Rig:
    """A base, the folder of a trainer of one kind, and the run of its watcher."""

    def __init__(self, root: Path, kind: str, randoms: random.Random) -> None:
        self._random = randoms
        self._trainer = TRAINERS[kind]
        self._root = root
        self._tensors: Tensors = {f"layers.{n}.weight": bf16_tensor(n, 60, 64) for n in range(8)}
        self._base = save(root / "base", self._tensors)
        self._folder, self._run = root / "out", root / "run"
        self._thin: dict[str, Any] = {"thin": 1, "yes": True} if randoms.random() < 0.5 else {}
        self._folder.mkdir()
        self._written: dict[str, list[int]] = {}
        self._checked: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def _version(self, seed: int) -> Tensors:
        return {name: tune(t, seed, 0.05) for name, t in self._tensors.items()}

    def _train(self, plan: list[tuple[int, int]], seed: int) -> None:
        randoms = random.Random(seed)  # noqa: S311 - not a secret
        for step, version in plan:
            place = self._folder / self._trainer.above / self._trainer.name(step)
            if place.exists() and randoms.random() < 0.7:
                shutil.rmtree(place)
            for _ in self._trainer.write(self._folder, step, self._version(version)):
                time.sleep(randoms.random() * 0.01)
            if randoms.random() < 0.4:
                other = self._trainer.name(randoms.randint(1, STEPS))
                shutil.rmtree(self._folder / self._trainer.above / other, ignore_errors=True)

    def _watch(self, *, once: bool) -> None:
        for _ in watch_checkpoints(
            self._folder,
            self._base,
            self._run,
            settle_seconds=SETTLE,
            once=once,
            threads=1,
            **self._thin,
        ):
            pass

    def kill_one(self) -> None:
        """Write and watch, kill the watcher, and check the run."""
        plan = []
        for _ in range(self._random.randint(1, 2)):
            step, version = self._random.randint(1, STEPS), self._random.randrange(1 << 30)
            self._written.setdefault(self._trainer.name(step), []).append(version)
            plan.append((step, version))
        seed = self._random.randrange(1 << 30)
        trainer = _forked(lambda: self._train(plan, seed))
        watcher = _forked(lambda: self._watch(once=False))
        time.sleep(LONGEST * self._random.random())
        os.kill(watcher, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(watcher, 0)[1]), "the watcher failed"
        assert os.waitpid(trainer, 0)[1] == 0, "the trainer failed"
        self.counts["kills"] += 1
        self.counts["kills while encoding"] += bool(list(self._run.glob(".*.tmp-*")))
        self.check()

    def finish(self) -> None:
        """Let a watcher run to its end, and require an entry of every complete checkpoint."""
        self._watch(once=True)
        self.check()
        assert not list(self._run.glob(".*.tmp-*")), "a temporary folder was left"
        entries = inspect_run(self._run).deltas
        current = {entry.name: entry.folder for entry in entries}
        for name, versions in self._written.items():
            place = self._folder / self._trainer.above / name / self._trainer.inside
            if not place.exists():
                continue
            # What the trainer wrote last, whether its weights were removed or not.
            assert self._decoded(current[name]) == self._bytes(versions[-1]), (
                f"{name} is not stored"
            )
            self.counts["complete and stored"] += 1
            assert not list(place.glob(".*")), "a file that was being removed was left"
            if list(place.glob("*.safetensors*")):
                assert tensors_of(place) == self._bytes(versions[-1]), f"{name} is gone in part"
            else:
                assert (place / NOTE_NAME).exists(), f"the weights of {name} are gone"
                self.counts["thinned"] += 1

    def check(self) -> None:
        """Require that every entry is whole, and that none is lost."""
        if not (self._run / "run.json").is_file():
            assert not self._checked
            return
        found = {entry.folder: entry for entry in inspect_run(self._run).deltas}
        lost = self._checked.keys() - found.keys()
        assert not lost, f"lost: {lost}"
        for folder, entry in found.items():
            if folder in self._checked:
                assert self._checked[folder] == entry.tuned_digest, f"changed: {folder}"
                continue
            decoded = self._decoded(folder)
            versions = self._written[entry.name]
            assert any(decoded == self._bytes(seed) for seed in versions), f"torn: {folder}"
            self._checked[folder] = entry.tuned_digest
            self.counts["entries"] += 1

    def _bytes(self, version: int) -> dict[str, bytes]:
        return {name: t.data for name, t in self._version(version).items()}

    def _decoded(self, folder: str) -> dict[str, bytes]:
        out = self._root / "decoded"
        apply_delta(self._run / folder, out, base=self._base, threads=1)
        found = tensors_of(out)
        shutil.rmtree(out)
        return found


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing of the parent may run here
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    randoms = random.Random(seed)  # noqa: S311 - not a secret
    counts: Counter[str] = Counter()
    for number in range(0, kills, 10):
        kind = list(TRAINERS)[number // 10 % len(TRAINERS)]
        rig = Rig(root / str(number), kind, randoms)
        for _ in range(min(10, kills - number)):
            rig.kill_one()
        rig.finish()
        counts += rig.counts
        shutil.rmtree(root / str(number))
    print(json.dumps(dict(sorted(counts.items()))))  # noqa: T201 - a script


if __name__ == "__main__":
    main()

"""Kill writers of a run at random moments, and require that nothing is torn and nothing is lost.

    python tests/support/run_kills.py FOLDER KILLS SEED

A child encodes, prunes or repairs; a kill comes at any moment of that. After each, the run is read:
every entry decodes to its checkpoint, and every entry that a finished call reported is there unless
a later prune may have unlisted it. Prints the number of kills by what they hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairs import SINGLE, save_training

from rlsparse_store.delta import apply_delta, encode_run, inspect_run, prune_run, repair_run
from rlsparse_store.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = (10, 20, 30, 40)


class Rig:
    """A base, checkpoints, their run, and what the run must hold.

    Attributes:
        reported: Names of the entries that must be there.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._root = root
        self._run = root / "run"
        self._base = root / "base"
        logs = {number: [{"reward": number / 100}] for number in STEPS}
        self._tuned = save_training(self._base, root, logs)
        self.reported: set[str] = set()

    def kill_one(self) -> str:
        """Start a writer, kill it, and check the run. Returns what the kill hit."""
        name, work, kept = self._choose()
        longest = {"encode": 0.25, "prune": 0.1, "repair": 0.06}[name]
        read, write = os.pipe()
        child = os.fork()
        if not child:
            work()
            os.write(write, b"done")
            os._exit(0)
        os.close(write)
        # Mostly early: on a fast machine a writer is done in a tenth of that.
        time.sleep(longest * self._random.random() ** 3)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        is_done = os.read(read, 4) == b"done"
        os.close(read)
        assert is_done or os.WIFSIGNALED(status), f"{name} failed"
        self.reported &= kept
        if is_done and name == "encode":
            self.reported |= kept
        self.check()
        return f"{name}, finished" if is_done else name

    def _choose(self) -> tuple[str, Callable[[], Any], set[str]]:
        """What the child does, and the entries that it reports or leaves."""
        everything = set(self._tuned)
        present = self._entries()
        if not present or self._random.random() < 0.5:
            chosen = self._random.sample(sorted(everything), self._random.randint(1, len(STEPS)))
            places = [self._tuned[name] for name in chosen]
            kept = self.reported | set(chosen)
            return "encode", lambda: encode_run(self._base, places, self._run, threads=1), kept
        if self._random.random() < 0.6:
            rules: dict[str, Any] = self._random.choice(
                [{"keep_last": 1}, {"keep_every": 20}, {"keep_best": "reward", "best": "min"}]
            )
            planned = prune_run(self._run, **rules, dry_run=True)
            unlisted = {present[folder] for folder in planned.unlisted}
            # Another entry of a name stands in for one that goes.
            kept = {present[folder] for folder in planned.kept} | (everything - unlisted)
            return "prune", lambda: prune_run(self._run, **rules, grace_seconds=0), kept
        return "repair", lambda: repair_run(self._run), everything

    def _entries(self) -> dict[str, str]:
        """Name by folder of what the run lists."""
        if not self._run.is_dir():
            return {}
        with suppress(NotFoundError):
            return {entry.folder: entry.name for entry in inspect_run(self._run).deltas}
        return {}

    def check(self) -> None:
        """Require that every entry is whole, and that none is lost."""
        found = self._entries()
        lost = self.reported - set(found.values())
        assert not lost, f"lost: {lost}"
        for number, (folder, name) in enumerate(found.items()):
            out = self._root / f"out-{number}"
            apply_delta(self._run / folder, out, base=self._base, threads=1)
            same = (out / SINGLE).read_bytes() == (self._tuned[name] / SINGLE).read_bytes()
            assert same, f"torn: {folder}"
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink()
            out.rmdir()


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rig = Rig(root, seed)
    counts = Counter(rig.kill_one() for _ in range(kills))
    print(json.dumps(dict(sorted(counts.items()))))  # noqa: T201 - a script


if __name__ == "__main__":
    main()

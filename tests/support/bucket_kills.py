"""Kill writers of a run in a bucket, and require that no partial entry is ever listed.

    python tests/support/bucket_kills.py FOLDER KILLS SEED

A child encodes, prunes or repairs. It is killed before or after its n-th request, or at a random
moment. Then everything that the run lists is there, whole and right, and so is every delta that a
listing shows; every entry that a finished call reported is listed, unless a later prune may have
unlisted it. After ten kills a writer runs to its end. Prints the number of kills by what they hit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bucket_view import BucketView
from loopback_s3 import LoopbackS3
from pairs import SINGLE, save_training

from rlsparse_store.buckets.connection import ObstoreConnection
from rlsparse_store.buckets.upload import LAST_NAMES
from rlsparse_store.delta import (
    apply_delta,
    encode_run,
    prune_run,
    repair_run,
    verify_delta,
    verify_run,
)
from rlsparse_store.delta.run_files import parse_index

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = (10, 20, 30, 40)
VERBS = ("get", "head", "list", "put", "delete")


class Rig:
    """A base, checkpoints, their run in a bucket, and what the run must list.

    Attributes:
        reported: Names of the entries that must be there.
        counts: Kills by what they hit.
    """

    def __init__(self, root: Path, bucket: str, prefix: str, randoms: random.Random) -> None:
        self._random = randoms
        self._root = root
        self._view = BucketView(bucket)
        self._prefix = prefix
        self._url = f"s3://{bucket}/{prefix}"
        self._base = root / "base"
        logs = {number: [{"reward": number / 100}] for number in STEPS}
        self._tuned = save_training(self._base, root, logs)
        self._decoded: set[str] = set()
        self.reported: set[str] = set()
        self.counts: Counter[str] = Counter()

    def kill_one(self) -> None:
        """Start a writer, kill it, and check the run."""
        name, work, kept = self._choose()
        at_request = self._random.randint(1, 12) if self._random.random() < 0.7 else None
        is_after = self._random.random() < 0.5
        read, write = os.pipe()
        child = os.fork()
        if not child:
            if at_request is not None:
                die_at(at_request, is_after=is_after)
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - nothing of the parent may run here
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(1)
            os.write(write, b"done")
            os._exit(0)
        os.close(write)
        if at_request is None:
            time.sleep(0.6 * self._random.random())
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        is_done = os.read(read, 4) == b"done"
        os.close(read)
        assert is_done or os.WIFSIGNALED(status), f"{name} failed"
        self.reported &= kept
        if is_done and name == "encode":
            self.reported |= kept
        self.counts["finished first" if is_done else name] += 1
        self.check()

    def finish(self) -> None:
        """Let a writer run to its end: it goes on from what the killed ones left."""
        self._forked(lambda: encode_run(self._base, list(self._tuned.values()), self._url))
        self.reported = set(self._tuned)
        self.check()
        self._forked(lambda: repair_run(self._url))
        self.check()

    def _forked(self, work: Callable[[], Any]) -> None:
        """Work in a child: this process has to stay without the threads of a client."""
        child = os.fork()
        if not child:
            work()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def _choose(self) -> tuple[str, Callable[[], Any], set[str]]:
        """What the child does, and the entries that it reports or leaves."""
        everything = set(self._tuned)
        present = self._entries()
        if not present or self._random.random() < 0.6:
            chosen = self._random.sample(sorted(everything), self._random.randint(1, len(STEPS)))
            places = [self._tuned[name] for name in chosen]
            kept = self.reported | set(chosen)
            return "encode", lambda: encode_run(self._base, places, self._url, threads=1), kept
        if self._random.random() < 0.7:
            last = self._random.randint(1, len(present))
            left = {present[folder] for folder in list(present)[-last:]}
            rules: dict[str, Any] = {"keep_last": last, "grace_seconds": 0}
            return "prune", lambda: prune_run(self._url, **rules), left
        return "repair", lambda: repair_run(self._url), everything

    def _entries(self) -> dict[str, str]:
        """Name by folder of what the run lists."""
        text = self._view.get(f"{self._prefix}/run.json")
        return {row.folder: row.name for row in parse_index(text, "run.json").rows}

    def check(self) -> None:
        """Require that every entry is whole, and that none is lost."""
        found = self._entries()
        lost = self.reported - set(found.values())
        assert not lost, f"lost: {lost}"
        copy = self._root / "copy"
        copy.mkdir()
        self._view.copy(self._prefix, copy)
        # A listing shows a delta by this file, listed or not.
        shown = {p.name for p in copy.iterdir() if any((p / name).exists() for name in LAST_NAMES)}
        for folder in shown:
            verify_delta(copy / folder)
        assert found.keys() <= shown, "a listed entry is not there"
        marked = {path.name for path in copy.glob(".run/unlisted/*")}
        for path in copy.iterdir():
            if path.is_dir() and path.name != ".run" and path.name not in shown:
                shutil.rmtree(path)  # an upload that was killed
        if shown - marked:
            # A copy is a run, whose notes and index are those of its entries.
            assert found.keys() - marked <= verify_run(copy).entries.keys()
        for folder in found.keys() - self._decoded:
            apply_delta(copy / folder, self._root / "out", base=self._base, threads=1)
            out, tuned = (
                place / SINGLE for place in (self._root / "out", self._tuned[found[folder]])
            )
            assert out.read_bytes() == tuned.read_bytes(), f"torn: {folder}"
            shutil.rmtree(self._root / "out")
            self._decoded.add(folder)
        shutil.rmtree(copy)


def die_at(number: int, *, is_after: bool) -> None:
    """Kill this process before or after its n-th request."""
    left = [number]

    def dying(verb: str) -> None:
        real = getattr(ObstoreConnection, verb)

        def call(*args: Any) -> Any:  # noqa: ANN401 - passed on
            left[0] -= 1
            is_last = left[0] == 0
            if is_last and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(ObstoreConnection, verb, call)

    for verb in VERBS:
        dying(verb)


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) == 4:
        # The server has threads, and this process forks: it goes on in another one.
        with LoopbackS3() as s3:
            command = [sys.executable, *sys.argv, s3.make_bucket()]
            env = {**os.environ, **s3.environment(root)}
            sys.exit(subprocess.run(command, env=env, check=False).returncode)
    randoms = random.Random(seed)  # noqa: S311 - not a secret
    counts: Counter[str] = Counter()
    for number in range(0, kills, 10):
        rig = Rig(root / str(number), sys.argv[4], f"runs/{number}", randoms)
        for _ in range(min(10, kills - number)):
            rig.kill_one()
        rig.finish()
        counts += rig.counts
        shutil.rmtree(root / str(number))
    left = [path.name for path in root.glob("cache/staging/*")]
    assert len(left) <= 1, f"left behind: {left}"
    print(json.dumps(dict(sorted(counts.items()))))  # noqa: T201 - a script


if __name__ == "__main__":
    main()

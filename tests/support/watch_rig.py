"""A base, the folder of a trainer and the run of a watcher, for tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pairs import Tensor, Tensors, bf16_tensor, contents, save, tune
from trainer_writes import TRAINERS, write_all

from rlsparse_store.delta import apply_delta, inspect_run
from rlsparse_store.watch import WatchEvent, watch_checkpoints

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["NEVER", "Rig", "float32", "kinds", "new_rig"]

NEVER = 3600.0
"""Seconds to settle that no test waits for."""


@dataclass(frozen=True)
class Rig:
    """A base, the folder of a trainer, and a run."""

    base: Path
    folder: Path
    run: Path
    tensors: Tensors

    def tuned(self, step: int) -> Tensors:
        return {name: tune(t, step, 0.05) for name, t in self.tensors.items()}

    def write(self, trainer: str, step: int) -> Path:
        return write_all(TRAINERS[trainer], self.folder, step, self.tuned(step))

    def watch(self, settle: float = 0, **options: Any) -> list[WatchEvent]:  # noqa: ANN401
        return list(self.watching(settle, once=True, **options))

    def watching(self, settle: float = 0, **options: Any) -> Generator[WatchEvent, None, None]:  # noqa: ANN401
        return watch_checkpoints(
            self.folder, self.base, self.run, settle_seconds=settle, threads=1, **options
        )

    def entries(self) -> dict[str, str]:
        """Name by folder of what the run lists."""
        if not (self.run / "run.json").is_file():
            return {}
        return {entry.folder: entry.name for entry in inspect_run(self.run).deltas}

    def rebuilt(self, folder: str, work: Path) -> dict[str, bytes]:
        apply_delta(self.run / folder, work, base=self.base, threads=1)
        found = contents(work)
        shutil.rmtree(work)
        return found

    def temporary(self) -> list[Path]:
        return [path for path in self.run.glob(".*") if path.name != ".run"]


def new_rig(root: Path) -> Rig:
    """A base of eight small matrices, and an empty folder."""
    tensors = {f"layers.{n}.weight": bf16_tensor(n, 30, 32) for n in range(8)}
    (root / "out").mkdir()
    return Rig(save(root / "base", tensors), root / "out", root / "run", tensors)


def kinds(events: list[WatchEvent]) -> list[str]:
    return [event.kind for event in events]


def float32(tensors: Tensors) -> Tensors:
    """float32 masters that bfloat16 cannot hold."""
    return {
        name: Tensor(
            "F32",
            t.shape,
            b"".join(b"\x01\x00" + t.data[i : i + 2] for i in range(0, len(t.data), 2)),
        )
        for name, t in tensors.items()
    }

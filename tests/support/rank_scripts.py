"""Scripts that run on the ranks of a process group, in processes forked from one that is ready."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from forks import Forks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DONE", "forks_of", "run_on_ranks"]

PREAMBLE = """
import gc, os, sys, torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from datetime import timedelta
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from safetensors.torch import load_file, save_file
from interpreter import hasten
from models import moe, move_weights, small_llama
from ranks import forked
from rlsparse_store.errors import CheckpointError, OutputError, RlsparseError, UnsupportedDtypeError
from rlsparse_store.integrations.dcp import DeltaStorageReader, DeltaStorageWriter, by_rows
from rlsparse_store.torch import DeltaEncoder, DeviceCoder

ranks, gone, place, work = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
rank = forked(ranks, gone)
dist.init_process_group(
    "gloo", init_method=f"file://{place}", rank=rank, world_size=ranks,
    timeout=timedelta(seconds=60),
)
mesh = init_device_mesh("cpu", (ranks,))
base = f"{work}/base"

def keep(tensors, name="tuned"):
    # What one process would save.
    if rank == 0:
        os.makedirs(f"{work}/{name}")
        whole = {n: t.detach().clone() for n, t in tensors.items()}
        save_file(whole, f"{work}/{name}/model.safetensors", {"format": "pt"})
    dist.barrier()

def raises(kind, action, text):
    try:
        action()
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}")

def refused(action, kind, text):
    try:
        action()
    except CheckpointException as error:
        found = [failure for failure, _ in error.failures.values()]
        assert any(isinstance(f, kind) and text in str(f) for f in found), found
        return
    raise AssertionError("not refused")
"""

DONE = """
dist.barrier()
dist.destroy_process_group()
print("sound")
"""
"""How a script ends on every rank."""


@contextmanager
def forks_of(*modules: str) -> Iterator[Forks]:
    """A server whose children have these modules and those that all scripts need."""
    needed = ["models", "ranks", "rlsparse_store.torch", "torch.distributed.fsdp", *modules]
    with Forks(needed, {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}) as running:
        yield running


def run_on_ranks(
    forks: Forks, tmp_path: Path, body: str, ranks: int = 2, *, gone: int | None = None
) -> None:
    """Run a script on several ranks, all of which come to its end but the one that is gone."""
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + body)
    numbers = (str(ranks), str(-1 if gone is None else gone))
    done = forks.run_script(script, *numbers, tmp_path / "meeting", tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sound") == ranks - (gone is not None)

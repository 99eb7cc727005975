"""Deltas with torch.distributed.checkpoint: real processes that speak over gloo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forks import Forks
from models import small_llama

from rlsparse_store.delta import encode_delta, inspect_delta, verify_delta

if TYPE_CHECKING:
    from collections.abc import Iterator

PREAMBLE = """
import gc, os, sys, torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from datetime import timedelta
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from safetensors.torch import load_file, save_file
from models import move_weights, small_llama
from ranks import forked
from rlsparse_store.errors import RlsparseError
from rlsparse_store.integrations.dcp import DeltaStorageReader, DeltaStorageWriter, by_rows

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


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    modules = [
        "models",
        "ranks",
        "rlsparse_store.torch",
        "torch.distributed.fsdp",
        "rlsparse_store.integrations.dcp",
    ]
    with Forks(
        modules, {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    ) as running:
        yield running


def run(
    forks: Forks, tmp_path: Path, body: str, ranks: int = 2, *, gone: int | None = None
) -> None:
    """Run a script on several ranks, all of which come to its end but the one that is gone."""
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + body)
    numbers = (str(ranks), str(-1 if gone is None else gone))
    done = forks.run_script(script, *numbers, tmp_path / "meeting", tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sound") == ranks - (gone is not None)


def require_equal(delta: Path, work: Path) -> None:
    """Require that a delta says and gives the same as the one that a single process makes."""
    expected = work / "expected"
    if not expected.exists():
        encode_delta(work / "base", work / "tuned", expected)
    assert verify_delta(delta, base=work / "base", tuned=work / "tuned").decoded
    mine, theirs = inspect_delta(delta), inspect_delta(expected)
    for field in ("base_digest", "tuned_digest", "changed", "kinds", "removed", "steps"):
        assert getattr(mine, field) == getattr(theirs, field), field
    for one, other in zip(mine.tensors, theirs.tensors, strict=True):
        for field in ("name", "kind", "dtype", "shape", "changed", "source", "tail"):
            assert getattr(one, field) == getattr(other, field), one.name


MODEL = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
fully_shard(model.model.layers[0], mesh=mesh)
fully_shard(model, mesh=mesh)
writer = DeltaStorageWriter(base, f"{work}/delta", threads=2)
done = dcp.save(model.state_dict(), storage_writer=writer)
assert done.storage_data.changed > 0
assert (writer.report is None) == (rank > 0)
# Again, with hashes of the base that are kept, to a place that the call names.
dcp.save(
    {"model": model.state_dict()},
    checkpoint_id=f"{work}/again",
    storage_writer=DeltaStorageWriter(base, prefix="model."),
)
"""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_model_of_fsdp2(forks: Forks, tmp_path: Path, ranks: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run(forks, tmp_path, MODEL + DONE, ranks)
    for name in ("delta", "again"):
        require_equal(tmp_path / name, tmp_path)
        assert len(list((tmp_path / name / "rlsparse").glob("*.safetensors"))) == ranks + 1
    assert not list(tmp_path.glob(".*"))

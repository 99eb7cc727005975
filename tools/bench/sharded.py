"""Save a model that is split over ranks with ``torch.distributed.checkpoint``, and measure it.

A model of large bfloat16 tensors is split by rows, evenly or not. Per rank: the peak memory beyond
what it held before the save, with its rows in it; and the bytes that all ranks sent to each other,
counted on the loopback device. In a network of its own nothing else is counted:

    unshare -n sh -c 'ip link set lo up; exec python tools/bench/sharded.py WORK --ranks 4'
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from rlsparse_store.delta import verify_delta
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.integrations.dcp import DeltaStorageWriter, by_rows

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

COLUMNS: Final = 2816
"""Columns of the tensors: rows are 5.5 KiB, so that the parts of ranks begin within leaves."""

TENSOR_BYTES: Final = 1 << 26
"""Bytes of a large tensor, about."""


def make_base(folder: Path, gib: float) -> None:
    """Write a model of large matrices and as many small vectors."""
    folder.mkdir(parents=True)
    rows = TENSOR_BYTES // (2 * COLUMNS)
    count = max(1, round(gib * (1 << 30) / (rows * COLUMNS * 2)))
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        weight = torch.empty(rows + number, COLUMNS).normal_(0, 0.02, generator=generator)
        tensors = {
            f"layers.{number}.w": weight.bfloat16(),
            f"layers.{number}.n": weight[0].bfloat16(),
        }
        save_file(tensors, folder / f"model-{number + 1:05}-of-{count:05}.safetensors")
    names = {
        f"layers.{n}.{part}": f"model-{n + 1:05}-of-{count:05}.safetensors"
        for n in range(count)
        for part in "wn"
    }
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rows_of_rank(base: Checkpoint, mesh: DeviceMesh, rank: int, density: float) -> dict[str, Any]:
    """Return this rank's rows of the tuned model, with some words of the base changed."""
    state: dict[str, Any] = {}
    ranks = mesh.size()
    for name, ref in base.tensors.items():
        share = -(-ref.shape[0] // ranks)
        first, last = (min(share * r, ref.shape[0]) for r in (rank, rank + 1))
        row = ref.nbytes // ref.shape[0]
        words = np.empty((last - first) * row // 2, np.uint16)
        base.read_into(ref, first * row, words.view(np.uint8))
        rng = np.random.default_rng([rank, first])
        for start in range(0, words.size, 1 << 20):
            part = words[start : start + (1 << 20)]
            part ^= (rng.random(part.size, np.float32) < density).astype(np.uint16)
        local = torch.from_numpy(words).view(torch.bfloat16).view(last - first, *ref.shape[1:])
        shape = torch.Size(ref.shape)
        stride = torch.empty(shape, device="meta").stride()
        state[name] = DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=stride)
    return state


def memory(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10


def sent() -> int:
    """Return the bytes that the loopback device has sent."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measure(work: Path, rank: int, ranks: int, density: float, columns: bool) -> dict[str, Any]:  # noqa: FBT001
    """Save twice on one rank, and return what each save took."""
    mesh = init_device_mesh("cpu", (ranks,))
    with open_checkpoint(work / "base") as base:
        state = rows_of_rank(base, mesh, rank, density)
        nbytes = base.nbytes
    if columns:
        state = {n: t.redistribute(placements=[Shard(t.dim() - 1)]) for n, t in state.items()}
    found: dict[str, Any] = {"held": sum(t.to_local().nbytes for t in state.values())}
    for name in ("first", "second"):
        out = work / name
        if rank == 0:
            shutil.rmtree(out, ignore_errors=True)
        dist.barrier()
        # The peak counts from here on.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, at_start, began = memory("VmRSS"), sent(), time.perf_counter()
        given = by_rows(state) if columns else state
        exchanged = sent()
        dist.barrier()
        save(given, storage_writer=DeltaStorageWriter(work / "base", out, threads=1))
        seconds = time.perf_counter() - began
        dist.barrier()
        found[name] = {
            "peak_mib": round((memory("VmHWM") - before) / (1 << 20), 1),
            "exchange_share": (exchanged - at_start) / nbytes,
            "sent_share": (sent() - at_start) / nbytes,
            "seconds": round(seconds, 2),
        }
        del given
    return found


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--gib", default=2.0, help="Size of the model.")
@click.option("--ranks", default=2)
@click.option("--density", default=0.1)
@click.option("--columns", is_flag=True, help="Split by columns, which are redistributed.")
def main(work: Path, gib: float, ranks: int, density: float, columns: bool) -> None:  # noqa: FBT001
    """Measure the saves of a model in WORK, and print a line of JSON per rank."""
    # A process with threads must not fork.
    torch.set_num_threads(1)
    if not (work / "base").exists():
        make_base(work / "base", gib)
    meeting = work / "meeting"
    meeting.unlink(missing_ok=True)
    sys.stdout.flush()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{meeting.absolute()}",
                rank=rank,
                world_size=ranks,
                timeout=timedelta(minutes=10),
            )
            found = measure(work, rank, ranks, density, columns)
            click.echo(json.dumps({"rank": rank, **found}))
            dist.destroy_process_group()
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(1)
    verified = verify_delta(work / "second", base=work / "base", threads=2)
    click.echo(json.dumps({"decoded": verified.decoded}))


if __name__ == "__main__":
    main()

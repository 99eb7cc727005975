"""Models and state dicts that are split over ranks: real processes that speak over gloo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forks import Forks
from models import small_llama
from pairs import contents
from safetensors.torch import load_file

from rlsparse_store.delta import apply_delta, encode_delta, verify_delta

if TYPE_CHECKING:
    from collections.abc import Iterator

PREAMBLE = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from safetensors.torch import save_file
from interpreter import hasten
from models import move_weights, small_llama
from rlsparse_store.errors import CheckpointError, OutputError, RlsparseError, UnsupportedDtypeError
from ranks import forked
from rlsparse_store.torch import DeltaEncoder, DeviceCoder, dtensor

ranks, gone, place, work = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
rank = forked(ranks, gone)
dist.init_process_group(
    "gloo", init_method=f"file://{place}", rank=rank, world_size=ranks,
    timeout=timedelta(seconds=60),
)
mesh = init_device_mesh("cpu", (ranks,))

def raises(kind, action, text):
    try:
        action()
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}")
"""

DONE = """
dist.barrier()
dist.destroy_process_group()
print("sound")
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    modules = ["models", "ranks", "rlsparse_store.torch", "torch.distributed.fsdp"]
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


MODEL = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
if rank == 0:
    whole = {name: t.clone() for name, t in model.state_dict().items()}
    os.mkdir(f"{work}/tuned")
    save_file(whole, f"{work}/tuned/model.safetensors", {"format": "pt"})
fully_shard(model.model.layers[0], mesh=mesh)
fully_shard(model, mesh=mesh)
with DeltaEncoder(f"{work}/base", device="cpu", threads=3, memory=1 << 14) as encoder:
    report = encoder.encode(model.state_dict(), f"{work}/delta")
    assert report.changed > 0
    encoder.encode(model, f"{work}/module")
    hasten()
    encoder._coder = DeviceCoder("cpu")
    encoder.encode(model.state_dict(), f"{work}/device")
"""


def test_a_model_of_fsdp2(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run(forks, tmp_path, MODEL + DONE)
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    assert contents(tmp_path / "delta") == expected
    assert contents(tmp_path / "module") == expected
    assert contents(tmp_path / "device") == expected
    apply_delta(tmp_path / "delta", tmp_path / "again", base=tmp_path / "base")
    assert contents(tmp_path / "again") == contents(tmp_path / "tuned")


PLACEMENTS = """
torch.manual_seed(0)
grid = init_device_mesh("cpu", (2, 2))
base = {
    "uneven": torch.randn(7, 33),
    "columns": torch.randn(64, 30),
    "one_row": torch.randn(1, 50),
    "copied": torch.randn(40, 40),
    "two_ways": torch.randn(30, 30),
    "plain": torch.randn(100),
    "scalar": torch.randn(()),
    "packed": torch.randint(0, 256, (50, 64), dtype=torch.uint8),
    "float8": torch.randint(0, 256, (30, 40), dtype=torch.uint8).view(torch.float8_e4m3fn),
    "int32": torch.randint(-(2**31), 2**31, (33, 5)).int(),
    "int64": torch.randint(-(2**62), 2**62, (33, 5)),
    "odd_bits": torch.randint(-(2**15), 2**15, (90, 33)).short().view(torch.bfloat16),
}
base = {n: t.bfloat16() if t.dtype == torch.float32 else t for n, t in base.items()}
tuned = {n: t.clone() for n, t in base.items()}
for tensor in tuned.values():
    tensor.view(-1).view(torch.uint8)[::6] ^= 1
tuned["tied"] = tuned["columns"]
tuned["added"] = torch.randn(70, 20)
if rank == 0:
    for name, tensors in (("base", base), ("tuned", tuned)):
        os.mkdir(f"{work}/{name}")
        whole = {n: t.clone() for n, t in tensors.items()}
        save_file(whole, f"{work}/{name}/model.safetensors", {"format": "pt"})
dist.barrier()
ways = {
    "uneven": [Shard(0)], "columns": [Shard(1)], "one_row": [Shard(0)], "copied": [Replicate()],
    "packed": [Shard(0)], "added": [Shard(0)], "int32": [Shard(0)], "int64": [Shard(1)],
}
state = {n: distribute_tensor(tuned[n], mesh, way) for n, way in ways.items()}
state["tied"] = state["columns"]
state["two_ways"] = distribute_tensor(tuned["two_ways"], grid, [Shard(0), Shard(1)])
rows = slice(15 * (rank % 2), 15 * (rank % 2) + 15)
for name, mine in (("float8", rows), ("odd_bits", slice(45 * (rank % 2), 45 * (rank % 2) + 45))):
    state[name] = DTensor.from_local(tuned[name][mine], grid, [Replicate(), Shard(0)])
state |= {n: tuned[n] for n in ("plain", "scalar")}
with DeltaEncoder(f"{work}/base", device="cpu", threads=4, memory=1) as encoder:
    encoder.encode(state, f"{work}/delta")
"""


def test_every_way_to_split_a_tensor(forks: Forks, tmp_path: Path) -> None:
    run(forks, tmp_path, PLACEMENTS + DONE, ranks=4)
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "expected")
    assert contents(tmp_path / "delta") == contents(tmp_path / "expected")
    verify_delta(tmp_path / "delta", base=tmp_path / "base", tuned=tmp_path / "tuned")
    assert len(load_file(tmp_path / "tuned" / "model.safetensors")) == 14


FAILURES = """
model = small_llama()
fully_shard(model, mesh=mesh)
state = model.state_dict()
encoder = DeltaEncoder(f"{work}/base", device="cpu")

# A rank with a tensor that no checkpoint has, or with fewer tensors.
odd = {**state, "odd": torch.zeros(1, dtype=torch.complex128) if rank else torch.zeros(1)}
raises(UnsupportedDtypeError, lambda: encoder.encode(odd, f"{work}/delta"), "complex128")
fewer = dict(list(state.items())[rank:])
raises(CheckpointError, lambda: encoder.encode(fewer, f"{work}/delta"), "ranks 0 and 1")

# A rank without room for a tensor, while the others have begun.
asked = []
def shortage(tensor):
    asked.append(tensor)
    return "no memory left" if rank == 1 and len(asked) == 3 else None
dtensor._try_allocation = shortage
text = "rank 1 cannot allocate the full tensor: no memory left"
raises(RlsparseError, lambda: encoder.encode(state, f"{work}/delta"), text)
assert len(asked) >= 3
dtensor._try_allocation = lambda tensor: None

# The writing rank cannot write, or fails in a way that is not foreseen.
raises(OutputError, lambda: encoder.encode(state, f"{work}/taken"), "not empty")
def stop(done, total):
    raise KeyError("unforeseen")
kind = RlsparseError if rank else KeyError
raises(kind, lambda: encoder.encode(state, f"{work}/delta", progress=stop), "unforeseen")

# Afterwards all goes on.
encoder.encode(state, f"{work}/after")
"""


def test_a_failing_rank_makes_all_fail(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    run(forks, tmp_path, FAILURES + DONE)
    assert not (tmp_path / "delta").exists()
    assert verify_delta(tmp_path / "after", base=tmp_path / "base").decoded
    assert not list(tmp_path.glob(".*"))


SHORTAGES = """
from rlsparse_store.torch.process_group import Ranks

tensor, empty, made = torch.zeros(8, 8), torch.empty, []
grid = init_device_mesh("cpu", (1, ranks))
rows = [distribute_tensor(tensor, mesh, [Shard(0)]), distribute_tensor(tensor, mesh, [Replicate()])]
others = [
    distribute_tensor(tensor, mesh, [Shard(1)]),
    distribute_tensor(tensor, grid, [Shard(0), Shard(1)]),
]

# Memory for one whole tensor, and not for two.
def for_one(*given, **options):
    made.append(given)
    if len(made) > 1:
        raise torch.OutOfMemoryError("no second one")
    return empty(*given, **options)

for split in rows + others:
    made.clear()
    torch.empty = for_one
    found = dtensor._try_allocation(split)
    torch.empty = empty
    assert found == ("no second one" if any(split is other for other in others) else None), found

# Memory that runs out all the same is not taken for a rank that is gone.
def short_of_device_memory():
    with Ranks().collective():
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

def short_of_main_memory():
    with Ranks().collective():
        torch.empty(1 << 50)

raises(RlsparseError, short_of_device_memory, "this rank is out of memory")
raises(RlsparseError, short_of_device_memory, "Tried to allocate 20.00 GiB")
raises(RlsparseError, short_of_main_memory, "this rank is out of memory")
"""


def test_a_rank_that_runs_out_of_memory(forks: Forks, tmp_path: Path) -> None:
    run(forks, tmp_path, SHORTAGES + DONE)


GONE = """
model = small_llama()
fully_shard(model, mesh=mesh)
state = model.state_dict()
encoder = DeltaEncoder(f"{work}/base", device="cpu")
if rank == gone:
    asked = []
    def leave(tensor):
        asked.append(tensor)
        if len(asked) == 3:
            os._exit(1)
    dtensor._try_allocation = leave
raises(RlsparseError, lambda: encoder.encode(state, f"{work}/delta"), "between the ranks failed")
print("sound", flush=True)
os._exit(0)  # what gloo does with a peer that is gone is not ours
"""


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_gone(forks: Forks, tmp_path: Path, gone: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run(forks, tmp_path, GONE, gone=gone)
    assert not (tmp_path / "delta").exists()


MASKED = """
from models import adamw, half_of
from rlsparse_store.torch import freeze_outside

model = small_llama().float()
mask = half_of(model)
before = {name: p.detach().clone() for name, p in model.named_parameters()}
fully_shard(model, mesh=mesh)
optimizer = adamw(model.parameters())
frozen = freeze_outside(model, mask, optimizer)
for step in range(3):
    torch.manual_seed(10 * step + rank)
    tokens = torch.randint(0, 64, (2, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    # After a pass without gradients, FSDP2 leaves whole parameters in place of the sharded ones.
    with torch.no_grad():
        model(input_ids=tokens)
    frozen.check()
moved = 0
for name, p in model.named_parameters():
    differs = p.full_tensor().view(torch.int32) != before[name].view(torch.int32)
    allowed = mask[name] if name in mask else torch.zeros_like(differs)
    assert not (differs & ~allowed).any(), name
    moved += int(differs.sum())
assert moved > 0
"""


def test_training_by_a_mask(forks: Forks, tmp_path: Path) -> None:
    run(forks, tmp_path, MASKED + DONE)

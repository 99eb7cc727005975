"""Models and state dicts that are split over ranks: real processes that speak over gloo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from models import moe, small_llama
from pairs import contents
from rank_scripts import DONE, forks_of, run_on_ranks

from rlsparse_store.delta import apply_delta, encode_delta, inspect_delta, verify_delta

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forks import Forks


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forks_of("rlsparse_store.integrations.dcp") as running:
        yield running


MODEL = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
fully_shard(model.model.layers[0], mesh=mesh)
fully_shard(model, mesh=mesh)
for where in ("files", "host"):
    with DeltaEncoder(f"{work}/base", device="cpu", threads=2, keep=where) as encoder:
        calls = []
        progress = lambda done, total: calls.append((done, total))
        report = encoder.encode(model.state_dict(), f"{work}/{where}", progress=progress)
        assert report.changed > 0
        assert calls[-1][0] == calls[-1][1] > 0
        assert encoder.encode(model, f"{work}/{where}-module").changed == report.changed
        if where == "host":
            hasten()
            encoder._coder = DeviceCoder("cpu")
            encoder.encode(model.state_dict(), f"{work}/device")
"""


def test_a_model_of_fsdp2(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, MODEL + DONE)
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "expected")
    expected = inspect_delta(tmp_path / "expected")
    for name in ("files", "files-module", "host", "host-module", "device"):
        verify_delta(tmp_path / name, base=tmp_path / "base", tuned=tmp_path / "tuned")
        report = inspect_delta(tmp_path / name)
        assert report.tuned_digest == expected.tuned_digest
        assert report.kinds == expected.kinds
    # The device encodes the same bytes.
    assert contents(tmp_path / "device") == contents(tmp_path / "host")
    apply_delta(tmp_path / "files", tmp_path / "again", base=tmp_path / "base")
    assert contents(tmp_path / "again") == contents(tmp_path / "tuned")


PARALLEL = """
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
grid = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
columns, rows = ColwiseParallel(), RowwiseParallel()
plan = {f"self_attn.{n}_proj": columns for n in "qkv"} | {"self_attn.o_proj": rows}
plan |= {"mlp.gate_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": rows}
parallelize_module(model.model.layers[0], grid["tensor"], plan)
if ranks > 2:
    fully_shard(model.model.layers[0], mesh=grid["data"])
    fully_shard(model, mesh=grid["data"])
with DeltaEncoder(f"{work}/base", device="cpu", threads=2) as encoder:
    encoder.encode(model.state_dict(), f"{work}/delta")
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallelism(forks: Forks, tmp_path: Path, ranks: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, PARALLEL + DONE, ranks=ranks)
    assert verify_delta(
        tmp_path / "delta", base=tmp_path / "base", tuned=tmp_path / "tuned"
    ).decoded
    assert not inspect_delta(tmp_path / "delta").kinds["whole"]


EXPERTS = """
model = moe()
move_weights(model, seed=1, density=0.05)
if rank == 0:
    model.save_pretrained(f"{work}/tuned")
fully_shard(model, mesh=mesh)
encoder = DeltaEncoder(f"{work}/base", device="cpu")
state = model.state_dict()
raises(RlsparseError, lambda: encoder.encode(state, f"{work}/refused"), "pass the model itself")
encoder.encode(model, f"{work}/delta")
writer = DeltaStorageWriter(f"{work}/base", f"{work}/saved", model=model, prefix="policy.")
dcp.save({"policy": state}, storage_writer=writer)

# Loaded into a fresh model, whose experts are fused as well, split by experts and by rows.
for dim in (0, 1):
    fresh = {n: torch.zeros_like(t.full_tensor()) for n, t in state.items()}
    fresh = {n: distribute_tensor(t, mesh, [Shard(min(dim, t.dim() - 1))])
        for n, t in fresh.items()}
    reader = DeltaStorageReader(f"{work}/delta", f"{work}/base", model=model, prefix="policy.")
    dcp.load({"policy": fresh}, storage_reader=reader)
    for name, tensor in fresh.items():
        mine, theirs = tensor.full_tensor(), state[name].full_tensor()
        assert torch.equal(mine.view(torch.int16), theirs.view(torch.int16)), name
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_fused_experts_get_their_names(forks: Forks, tmp_path: Path, ranks: int) -> None:
    moe().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, EXPERTS + DONE, ranks)
    assert not (tmp_path / "refused").exists()
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "expected")
    expected = inspect_delta(tmp_path / "expected")
    for name in ("delta", "saved"):
        verify_delta(tmp_path / name, base=tmp_path / "base", tuned=tmp_path / "tuned")
        report = inspect_delta(tmp_path / name)
        assert [t.name for t in report.tensors] == [t.name for t in expected.tensors]
        assert report.kinds == expected.kinds


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

# The first rank cannot write, or one fails in a way that is not foreseen.
raises(OutputError, lambda: encoder.encode(state, f"{work}/taken"), "not empty")
def stop(done, total):
    raise KeyError("unforeseen")
progress = {"progress": stop} if rank else {}
text = "rank 1 failed: KeyError: 'unforeseen'"
raises(RlsparseError, lambda: encoder.encode(state, f"{work}/delta", **progress), text)

# Afterwards all goes on.
encoder.encode(state, f"{work}/after")
"""


def test_a_failing_rank_makes_all_fail(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    run_on_ranks(forks, tmp_path, FAILURES + DONE)
    assert not (tmp_path / "delta").exists()
    assert verify_delta(tmp_path / "after", base=tmp_path / "base").decoded
    assert not list(tmp_path.glob(".*"))


SHORTAGES = """
from rlsparse_store.torch.process_group import Ranks

# Memory that runs out is not taken for a rank that is gone.
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
    run_on_ranks(forks, tmp_path, SHORTAGES + DONE)


GONE = """
model = small_llama()
fully_shard(model, mesh=mesh)
state = model.state_dict()
encoder = DeltaEncoder(f"{work}/base", device="cpu")
leave = {"progress": lambda done, total: os._exit(1)} if rank == gone else {}
action = lambda: encoder.encode(state, f"{work}/delta", **leave)
raises(RlsparseError, action, "between the ranks failed")
print("sound", flush=True)
os._exit(0)  # what gloo does with a peer that is gone is not ours
"""


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_gone(forks: Forks, tmp_path: Path, gone: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, GONE, gone=gone)
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
    run_on_ranks(forks, tmp_path, MASKED + DONE)

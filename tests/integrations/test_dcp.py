"""Deltas with torch.distributed.checkpoint: real processes that speak over gloo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bucket_view import BucketView
from models import small_llama
from rank_scripts import DONE, forks_of, run_on_ranks
from safetensors.torch import save_file

from rlsparse_store.delta import encode_delta, inspect_delta, verify_delta

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forks import Forks
    from loopback_s3 import LoopbackS3


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forks_of("rlsparse_store.integrations.dcp") as running:
        yield running


def require_equal(delta: Path, work: Path) -> None:
    """Require that a delta says and gives the same as the one that a single process makes."""
    expected = work / "expected"
    if not expected.exists():
        encode_delta(work / "base", work / "tuned", expected)
    assert verify_delta(delta, base=work / "base", tuned=work / "tuned").decoded
    mine, theirs = inspect_delta(delta), inspect_delta(expected)
    for field in ("base_digest", "tuned_digest", "changed", "kinds", "removed"):
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
    run_on_ranks(forks, tmp_path, MODEL + DONE, ranks)
    for name in ("delta", "again"):
        require_equal(tmp_path / name, tmp_path)
        assert len(list((tmp_path / name / "rlsparse").glob("*.safetensors"))) == ranks + 1
    assert not list(tmp_path.glob(".*"))


HYBRID = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
model.lm_head.weight = model.model.embed_tokens.weight
keep(model.state_dict())
grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
fully_shard(model.model.layers[0], mesh=grid)
fully_shard(model, mesh=grid)
for place in ("base", "untied"):
    writer = DeltaStorageWriter(f"{work}/{place}", f"{work}/{place}-delta")
    dcp.save(model.state_dict(), storage_writer=writer)
"""


def test_a_tied_model_on_groups_of_ranks(forks: Forks, tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "untied")
    model.config.tie_word_embeddings = True
    tied = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    (tmp_path / "base").mkdir()
    save_file(tied, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    run_on_ranks(forks, tmp_path, HYBRID + DONE, ranks=4)
    for name in ("base", "untied"):
        delta = tmp_path / f"{name}-delta"
        assert verify_delta(delta, base=tmp_path / name, tuned=tmp_path / "tuned").decoded
        mine = inspect_delta(delta)
        encode_delta(tmp_path / name, tmp_path / "tuned", tmp_path / f"{name}-expected")
        theirs = inspect_delta(tmp_path / f"{name}-expected")
        assert mine.kinds == theirs.kinds
        assert mine.kinds["alias"] == 1
        if name == "base":
            # What has a source is stored, and the other one is its alias.
            assert mine.changed == theirs.changed


PLACEMENTS = """
torch.manual_seed(0)
grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
old = {
    "uneven": torch.randn(7, 33),
    "wide": torch.randn(64, 3000),
    "columns": torch.randn(64, 62),
    "one_row": torch.randn(1, 50),
    "few_rows": torch.randn(2, 50),
    "copied": torch.randn(40, 40),
    "hybrid": torch.randn(30, 700),
    "two_ways": torch.randn(30, 30),
    "experts": torch.randn(8, 20, 12),
    "plain": torch.randn(100),
    "scalar": torch.randn(()),
    "empty": torch.randn(0, 4),
    "packed": torch.randint(0, 256, (50, 64), dtype=torch.uint8),
    "float8": torch.randint(0, 256, (30, 40), dtype=torch.uint8).view(torch.float8_e4m3fn),
    "float4": torch.randint(0, 256, (30, 40), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "int32": torch.randint(-(2**31), 2**31, (33, 5)).int(),
    "int64": torch.randint(-(2**62), 2**62, (33, 5)),
    "complex": torch.randn(33, 5, dtype=torch.complex64),
}
old = {n: t.bfloat16() if t.dtype == torch.float32 else t for n, t in old.items()}
new = {n: t.clone() for n, t in old.items()}
for name, tensor in new.items():
    if name != "one_row":
        tensor.reshape(-1).view(torch.uint8)[::6] ^= 1
new["tied"] = new["hybrid"]
new["tied_columns"] = new["columns"]
new["added"] = torch.randn(70, 20)
keep(old, "base")
keep(new)

def local(name, way, on=mesh):
    t = new[name]
    return distribute_tensor(t.view(torch.uint8), on, way) if t.element_size() == 1 else (
        distribute_tensor(t, on, way))

rows = ["uneven", "wide", "one_row", "few_rows", "experts", "added", "int32", "complex", "scalar"]
state = {n: distribute_tensor(new[n], mesh, [Shard(0) if new[n].dim() else Replicate()])
    for n in rows}
state["copied"] = distribute_tensor(new["copied"], mesh, [Replicate()])
state["columns"] = distribute_tensor(new["columns"], mesh, [Shard(1)])
state["tied_columns"] = state["columns"]
state["int64"] = distribute_tensor(new["int64"], mesh, [Shard(1)])
state["hybrid"] = distribute_tensor(new["hybrid"], grid, [Replicate(), Shard(0)])
state["tied"] = state["hybrid"]
state["two_ways"] = distribute_tensor(new["two_ways"], grid, [Shard(0), Shard(1)])
part = slice(15 * (rank % 2), 15 * (rank % 2) + 15)
for name in ("float8", "float4"):
    state[name] = DTensor.from_local(new[name][part], grid, [Replicate(), Shard(0)])
state |= {n: new[n] for n in ("plain", "empty", "packed")}
writer = DeltaStorageWriter(base, f"{work}/delta")
refused(lambda: dcp.save(state, storage_writer=writer), RlsparseError, "split by columns")
del writer
dcp.save(by_rows(state), storage_writer=DeltaStorageWriter(base, f"{work}/delta"))
"""


def test_every_way_to_split_a_tensor(forks: Forks, tmp_path: Path) -> None:
    run_on_ranks(forks, tmp_path, PLACEMENTS + DONE, ranks=4)
    assert verify_delta(
        tmp_path / "delta", base=tmp_path / "base", tuned=tmp_path / "tuned"
    ).decoded
    kinds = {tensor.name: tensor.kind for tensor in inspect_delta(tmp_path / "delta").tensors}
    assert kinds["tied"] == kinds["tied_columns"] == "alias"
    assert kinds["one_row"] == "same"
    assert kinds["added"] == "whole"
    assert set(kinds.values()) == {"alias", "same", "whole", "delta"}
    # Stored once, whoever holds them.
    require_equal(tmp_path / "delta", tmp_path)


READ = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
whole = {n: t.clone() for n, t in model.state_dict().items()}
writer = DeltaStorageWriter(base, f"{work}/delta")
dcp.save({n: distribute_tensor(t, mesh, [Shard(0)]) for n, t in whole.items()},
         storage_writer=writer)

def loaded(state, delta, **options):
    dcp.load(state, storage_reader=DeltaStorageReader(f"{work}/{delta}", base, **options))
    for name, tensor in state.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(full.view(torch.int16), whole[name].view(torch.int16)), name

for delta in ("delta", "single"):
    fresh = small_llama()
    fully_shard(fresh, mesh=mesh)
    loaded(fresh.state_dict(), delta)
    columns = {n: torch.zeros_like(t) for n, t in whole.items()}
    loaded({n: distribute_tensor(t, mesh, [Shard(t.dim() - 1)]) for n, t in columns.items()}, delta)
    loaded({n: torch.zeros_like(t) for n, t in whole.items()}, delta)
    if ranks == 4:
        grid = init_device_mesh("cpu", (2, 2))
        halves = {n: distribute_tensor(torch.zeros_like(t), grid, [Replicate(), Shard(0)])
                  for n, t in whole.items()}
        loaded(halves, delta)
nested = {"model": {n: torch.zeros_like(t) for n, t in whole.items()}}
dcp.load(nested, storage_reader=DeltaStorageReader(f"{work}/delta", base, prefix="model."))
assert all(torch.equal(t, whole[n]) for n, t in nested["model"].items())

def wrong(state):
    reader = DeltaStorageReader(f"{work}/delta", base)
    return lambda: dcp.load(state, storage_reader=reader)

name = next(iter(whole))
refused(wrong({name: whole[name].float()}), RlsparseError, "in the state dict and")
refused(wrong({"step": 3}), RuntimeError, "Missing key")
"""


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_reading_on_any_number_of_ranks(forks: Forks, tmp_path: Path, ranks: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    # A delta of one process, for which the ranks wait at the first barrier.
    body = READ.replace(
        "whole = {n:",
        "if rank == 0:\n    from rlsparse_store.delta import encode_delta\n"
        "    encode_delta(base, f'{work}/tuned', f'{work}/single')\nwhole = {n:",
    )
    run_on_ranks(forks, tmp_path, body + DONE, ranks=ranks)
    require_equal(tmp_path / "delta", tmp_path)


FAILURES = """
import dataclasses

model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
fully_shard(model, mesh=mesh)
state = model.state_dict()

def save(given=state, name="delta", planner=None, **options):
    writer = DeltaStorageWriter(base, f"{work}/{name}", **options)
    return lambda: dcp.save(given, storage_writer=writer, planner=planner)

def folders():
    gc.collect()
    dist.barrier()
    return [name for name in os.listdir(work) if "delta" in name]

# What the coordinator refuses, all ranks raise.
refused(save({**state, "step": 3}), RlsparseError, "is no tensor")
refused(save({"model": state, "optim": state}, prefix="model."), RlsparseError, "'model.'")
refused(save(names={"lm_head.weight": "model.norm.weight"}), RlsparseError, "two keys")
refused(save({"a.lora_A.default.weight": torch.ones(4)}), RlsparseError, "adapter")
moved = {n: t.float() + 1e-6 for n, t in state.items()}
refused(save(moved), RlsparseError, "not all exactly BF16")
refused(save(name="taken"), RlsparseError, "not empty")
caching = dcp.DefaultSavePlanner(enable_plan_caching=True)
dcp.save(state, storage_writer=DeltaStorageWriter(base, f"{work}/cached"), planner=caching)
refused(save(planner=caching), RlsparseError, "enable_plan_caching")
assert not [name for name in folders() if name.startswith(".delta")]

raises(RlsparseError, lambda: DeltaStorageWriter(base).set_up_storage_writer(True), "no path")
alone = DeltaStorageWriter(base, f"{work}/delta")
raises(
    RlsparseError,
    lambda: alone.set_up_storage_writer(True, use_collectives=False),
    "use_collectives=True",
)
class Elsewhere(DeltaStorageWriter):
    def write_data(self, plan, planner):
        if rank == 1:
            task = plan.storage_data._replace(place="/nowhere/rlsparse")
            plan = dataclasses.replace(plan, storage_data=task)
        return super().write_data(plan, planner)

elsewhere = Elsewhere(base, f"{work}/delta")
refused(lambda: dcp.save(state, storage_writer=elsewhere), RlsparseError, "shared file system")
del elsewhere

# One rank fails while it encodes.
class Failing(DeltaStorageWriter):
    def write_data(self, plan, planner):
        if rank == 1:
            raise MemoryError("no memory left")
        return super().write_data(plan, planner)

failing = Failing(base, f"{work}/delta")
refused(lambda: dcp.save(state, storage_writer=failing), MemoryError, "no memory left")
assert "delta" not in folders()
# The same writer, or another one, saves afterwards.
del failing
assert folders() == []
other = DeltaStorageWriter(f"{work}/other" if rank else base, f"{work}/delta")
refused(lambda: dcp.save(state, storage_writer=other), RlsparseError, "not the base of the coord")
del other
dcp.save(state, storage_writer=DeltaStorageWriter(base), checkpoint_id=f"{work}/delta")
assert folders() == ["delta"]
"""


def test_a_failing_rank_leaves_no_delta(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    other = small_llama()
    other.resize_token_embeddings(72)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    run_on_ranks(forks, tmp_path, FAILURES + DONE)
    require_equal(tmp_path / "delta", tmp_path)


KILLED = """
model = small_llama()
fully_shard(model, mesh=mesh)

class Dying(DeltaStorageWriter):
    def write_data(self, plan, planner):
        if rank == gone:
            assert [name for name in os.listdir(work) if name.startswith(".delta")]
            os._exit(1)
        return super().write_data(plan, planner)

try:
    dcp.save(model.state_dict(), storage_writer=Dying(base, f"{work}/delta"))
except (CheckpointException, RuntimeError):
    assert not os.path.exists(f"{work}/delta")
    print("sound", flush=True)
os._exit(0)  # what gloo does with a peer that is gone is not ours
"""


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_killed_leaves_no_delta(forks: Forks, tmp_path: Path, gone: int) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, KILLED, gone=gone)
    assert not (tmp_path / "delta").exists()


ASYNC = """
model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
fully_shard(model, mesh=mesh)
state = model.state_dict()
state["tied"] = state["lm_head.weight"]
state["plain"] = torch.arange(5000).float()
if rank == 0:
    full = load_file(f"{work}/tuned/model.safetensors")
    full |= {"tied": full["lm_head.weight"].clone(), "plain": state["plain"]}
    save_file(full, f"{work}/tuned/model.safetensors", {"format": "pt"})
# The daemon of torch asks a host for its address, and would run this script again.
del sys.modules["__main__"].__file__
os.environ |= {"MASTER_ADDR": "localhost", "PYTHONPATH": os.pathsep.join(sys.path)}
before = {n: t.to_local().clone() for n, t in model.state_dict().items()}
for name in ("thread", "process"):
    kind = dcp.state_dict_saver.AsyncCheckpointerType(name)
    for step in range(2):
        writer = DeltaStorageWriter(base, f"{work}/{name}-{step}")
        future = dcp.async_save(
            state, storage_writer=writer, async_checkpointer_type=kind
        )
        # Training goes on meanwhile.
        with torch.no_grad():
            for p in model.parameters():
                p.to_local().fill_(7)
        done = future.result()
        assert done.storage_data.kinds["alias"] == 1, done.storage_data
        for n, t in model.state_dict().items():
            t.to_local().copy_(before[n])
"""


def test_saving_in_the_background(forks: Forks, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, ASYNC + DONE)
    for name in ("thread-0", "thread-1", "process-0", "process-1"):
        require_equal(tmp_path / name, tmp_path)


BUCKET = """
url = os.environ["DELTA_URL"]
model = small_llama()
move_weights(model, seed=1, density=0.05)
keep(model.state_dict())
if rank == 0:
    DeltaEncoder(base, device="cpu").encode(model, f"{url}/whole")
fully_shard(model.model.layers[0], mesh=mesh)
fully_shard(model, mesh=mesh)
state = model.state_dict()
DeltaEncoder(base, device="cpu").encode(state, f"{url}/sharded")
# A rank fails after another one has uploaded its shard.
fails = DeltaStorageWriter(base, f"{url}/delta")
write = fails.write_data
def write_data(plan, planner):
    result = write(plan, planner)
    if rank == 1:
        raise RlsparseError("this rank fails")
    return result
fails.write_data = write_data
refused(lambda: dcp.save(state, storage_writer=fails), RlsparseError, "this rank fails")
dist.barrier()
del fails
done = dcp.save(state, storage_writer=DeltaStorageWriter(base, f"{url}/delta", threads=2))
assert done.storage_data.changed > 0
dcp.save(state, storage_writer=DeltaStorageWriter(base), checkpoint_id=f"{url}/again")
# Any number of ranks reads it.
loaded = {name: torch.zeros_like(t) for name, t in state.items()}
dcp.load(loaded, storage_reader=DeltaStorageReader(f"{url}/again", base))
assert all(torch.equal(loaded[n].to_local(), state[n].to_local()) for n in state)
again = DeltaStorageWriter(base, f"{url}/again")
refused(lambda: dcp.save(state, storage_writer=again), OutputError, "exists already")
"""


def test_a_delta_in_a_bucket(
    forks: Forks, tmp_path: Path, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks share no file system: each uploads its shard, and rank 0 the list last."""
    monkeypatch.setenv("DELTA_URL", s3.url)
    small_llama().save_pretrained(tmp_path / "base")
    run_on_ranks(forks, tmp_path, BUCKET + DONE, ranks=3)
    view = BucketView(s3.bucket)
    for name, objects in {"delta": 5, "again": 5, "sharded": 5, "whole": 1}.items():
        view.copy(name, tmp_path / name)
        require_equal(tmp_path / name, tmp_path)
        assert len(view.keys(f"{name}/")) == objects
    puts = [request.key for request in s3.requests if request.method == "PUT"]
    assert puts[-1] == "again/rlsparse/delta.safetensors.index.json"
    assert not list((tmp_path / "cache" / "staging").iterdir())

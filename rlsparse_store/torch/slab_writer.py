"""A storage writer of torch.distributed.checkpoint that writes a delta, without gathering.

Each rank encodes the rows that it holds into a shard of its own. The coordinator plans by names,
dtypes and shapes, joins the digests, and writes the last shard, with the index. Then the delta gets
its name. Planning, deduplication and errors of ranks are torch's.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rlsparse_store.delta.joined_delta import Described, JoinedDelta, Tie
from rlsparse_store.delta.kept_hashes import KeptHashes, kept_hashes
from rlsparse_store.delta.plausibility import issue_warnings
from rlsparse_store.delta.slab_encoder import HeldSlab, SlabEncoder, SlabRecord, base_identity
from rlsparse_store.errors import CheckpointError, OutputError, RlsparseError
from rlsparse_store.files.delta_writer import LastShard, RankShard
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.files.output import output_errors, output_folder
from rlsparse_store.format.file_names import DELTA_FOLDER, shard_name
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.torch.live_names import require_unfused
from rlsparse_store.torch.row_slabs import first_of_run
from rlsparse_store.torch.state_dict import dtype_and_shape, live_tensor, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.delta.slab_encoder import TensorOrder
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.frameworks.torch import LiveTensor
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy
    from rlsparse_store.torch.saved_parts import Part

__all__ = ["SlabWriter", "threads_of_rank"]


class _Task(NamedTuple):
    """What the coordinator tells a rank.

    Attributes:
        folder: The ``rlsparse`` folder, in the temporary folder of the delta.
        number: Number of the rank's shard, from 1.
        shards: Number of shards with the last one.
        parts: The tensors that each key of the state dict is saved as.
        orders: How to store each tensor, by its name.
        known_sources: Names of base tensors whose digest the coordinator knows.
        base: Identity of the coordinator's base.
    """

    folder: str
    number: int
    shards: int
    parts: dict[str, list[Part]]
    orders: dict[str, TensorOrder]
    known_sources: frozenset[str]
    base: int


class _Save:
    """One save in progress: the open base, and on the coordinator the folder and the plan."""

    def __init__(self, open_base: Callable[[], AbstractContextManager[Checkpoint]]) -> None:
        self.stack = ExitStack()
        self.base = self.stack.enter_context(open_base())
        self.joined: JoinedDelta | None = None
        self.folder = Path()
        self.shards = 0


def _abandon(stack: ExitStack) -> None:
    """Close what a save has open, and remove what it has written."""
    error = RlsparseError("the save was abandoned")
    stack.__exit__(type(error), error, None)


def threads_of_rank(threads: int | None) -> int:
    """Return ``threads``, or for ``None`` this rank's share of the processors of its machine."""
    if threads is not None:
        return resolve_threads(threads)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, resolve_threads(None) // max(1, ranks))


class SlabWriter(StorageWriter):
    """Writes a state dict as a delta.

    Args:
        open_base: Opens the base, at every save, on every rank.
        path: Folder of the delta, unless ``checkpoint_id`` names one at the save.
        policy: What to do where dtypes do not match.
        parts_of: Returns the tensors that keys of a state dict are saved as, given their shapes.
        coder: Encodes the spans; the CPU by default.
        threads: Threads of a rank; by default its share of the machine's processors.
        hashes: Hashes of the base, if it is not on disk.
        progress: Called with the bytes done and in all, of this rank.

    Attributes:
        report: On the coordinator, the report of the last delta that is complete.
    """

    def __init__(
        self,
        open_base: Callable[[], AbstractContextManager[Checkpoint]],
        path: Path | None,
        policy: DtypePolicy,
        *,
        parts_of: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, list[Part]]],
        coder: SpanCoder | None = None,
        threads: int | None = None,
        hashes: KeptHashes | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.report: EncodeReport | None = None
        self._open_base = open_base
        self._path = path
        self._policy = policy
        self._parts_of = parts_of
        self._coder = coder
        self._threads = threads
        self._hashes = hashes
        self._progress = progress
        self._save: _Save | None = None
        self._finalizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the options: a save in another process begins anew."""
        return {**self.__dict__, "_save": None, "_finalizer": None}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003 - torch's
        """Return whether this writer is chosen for a path: only if it is passed."""
        return False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the path of the next save."""
        if checkpoint_id is not None:
            self._path = Path(checkpoint_id)

    def abandon(self) -> None:
        """Close the files of a save that failed, and remove what this rank manages of it."""
        if self._finalizer is not None:
            self._finalizer()
        self._save, self._finalizer = None, None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002, FBT001 - torch's
        """Open the base, and abandon an earlier save that failed."""
        self.abandon()
        if not kwargs.get("use_collectives", True):
            msg = "a delta has one index, which the ranks write together: use_collectives=True"
            raise RlsparseError(msg)
        if self._path is None:
            msg = "no path: pass path to the writer, or checkpoint_id to save"
            raise RlsparseError(msg)
        self._save = _Save(self._open_base)
        # Whatever ends this object without finish(): the folder goes, and so do open files.
        self._finalizer = weakref.finalize(self, _abandon, self._save.stack)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Add what this rank holds, which deduplication would make the coordinator forget."""
        return replace(plan, storage_data=frozenset(item.index for item in plan.items))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Plan the delta, and create its folder.

        Raises:
            CheckpointError: A value is no tensor, or a tensor's parts are not runs of elements.
            RlsparseError: The state dict, or the planner, does not suit a delta.
            OutputError: The delta cannot be written.
        """
        save, path = self._save, self._path
        assert save is not None and path is not None  # noqa: S101, PT018 - set_up_storage_writer
        if not all(getattr(plan, "usable", True) for plan in plans):
            msg = "plans are cached by the planner: pass one without enable_plan_caching"
            raise RlsparseError(msg)
        parts, tensors = self._describe(plans)
        require_unfused(tensors, save.base.tensors)
        hashes = self._kept(save.base).tensors
        save.joined = JoinedDelta(save.base, tensors.values(), self._policy, hashes, path)
        strange = save.joined.unmatched()
        is_strange = {key for key, of_key in parts.items() if strange & {p.name for p in of_key}}
        plans = _put_together(plans, is_strange)
        temporary = save.stack.enter_context(output_folder(path))
        save.folder = temporary / DELTA_FOLDER
        with output_errors(path):
            save.folder.mkdir()
        orders = save.joined.orders()
        writing = [number for number, plan in enumerate(plans) if plan.items]
        save.shards = len(writing) + 1
        tasks: dict[int, _Task] = {}
        for number, rank in enumerate(writing, 1):
            held = {item.index.fqn: parts[item.index.fqn] for item in plans[rank].items}
            tasks[rank] = _Task(
                str(save.folder),
                number,
                save.shards,
                held,
                {part.name: orders[part.name] for of_key in held.values() for part in of_key},
                save.joined.known_sources(),
                base_identity(save.base),
            )
        return [replace(p, storage_data=tasks.get(rank)) for rank, p in enumerate(plans)]

    def _kept(self, base: Checkpoint) -> KeptHashes:
        return kept_hashes(base) if self._hashes is None else self._hashes

    def _describe(
        self, plans: list[SavePlan]
    ) -> tuple[Mapping[str, list[Part]], dict[str, Described]]:
        """Return what each key is saved as, and the tensors by their names."""
        keys: dict[str, torch.Tensor] = {}
        for item in (item for plan in plans for item in plan.items):
            key, data = item.index.fqn, item.tensor_data
            if item.type is WriteItemType.BYTE_IO or data is None:
                msg = (
                    "is no tensor: a delta holds a model's weights; save the rest with another "
                    "writer"
                )
                raise CheckpointError(msg, tensor=printable(key))
            if data.chunk.sizes.numel() and _first(item) is None:
                msg = (
                    "is split by columns over the ranks: redistribute it to rows first "
                    "(rlsparse_store.integrations.dcp.by_rows)"
                )
                raise CheckpointError(msg, tensor=printable(key))
            like = torch.empty(data.size, dtype=data.properties.dtype, device="meta")
            known = keys.setdefault(key, like)
            if (known.dtype, known.shape) != (like.dtype, like.shape):
                msg = "has another dtype or shape on another rank"
                raise CheckpointError(msg, tensor=printable(key))
        parts = self._parts_of({key: tuple(like.shape) for key, like in keys.items()})
        tensors: dict[str, Described] = {}
        for key, like in keys.items():
            _require_covered(key, like, parts[key])
            for part in parts[key]:
                if part.name in tensors:
                    msg = f"is the name of two keys, one of them {printable(key)!r}"
                    raise CheckpointError(msg, tensor=printable(part.name))
                shaped = torch.empty(part.shape, dtype=like.dtype, device="meta")
                tensors[part.name] = Described(part.name, *dtype_and_shape(part.name, shaped))
        return parts, tensors

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Encode the rows of this rank into its shard.

        Raises:
            RlsparseError: The base is not that of the coordinator, or cannot be read.
            OutputError: The shard cannot be written.
        """
        task: _Task | None = plan.storage_data
        future: Future[list[WriteResult]] = Future()
        try:
            future.set_result([] if task is None else self._write(task, plan, planner))
        except BaseException:
            self.abandon()
            raise
        if self._save is not None and self._save.joined is None:
            # Only the coordinator has to finish.
            self.abandon()
        return future

    def _write(self, task: _Task, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        save = self._save
        assert save is not None  # noqa: S101 - set_up_storage_writer made it
        if base_identity(save.base) != task.base:
            msg = "is not the base of the coordinator: give every rank the same revision"
            raise CheckpointError(msg, file=save.base.path)
        if not Path(task.folder).is_dir():
            msg = "is not on this rank: all ranks need the delta's folder on a shared file system"
            raise OutputError(msg, file=Path(task.folder).parent)
        held = _Held(task)
        for item in plan.items:
            if item.tensor_data is not None and item.tensor_data.chunk.sizes.numel():
                data = planner.resolve_data(item)
                assert isinstance(data, torch.Tensor)  # noqa: S101 - the plan has tensors only
                held.add(item, data)
        held.sort_out()
        synchronize(live.data for live in held.live.values())
        tuned = checkpoint_in_memory(held.live)
        slabs = [
            HeldSlab(task.orders[name], start, tuned.tensors[key])
            for key, (name, start) in held.places.items()
        ]
        kept = self._kept(save.base)
        encoder = SlabEncoder(save.base, tuned, slabs, kept.slabs, task.known_sources)
        with RankShard(Path(task.folder), task.number, task.shards) as shard:
            coder = self._coder or CpuCoder()
            records = encoder.encode(shard, coder, threads_of_rank(self._threads), self._progress)
            nbytes = shard.finish()
        # torch wants a result per item, but the records are of slabs.
        index = plan.items[0].index
        return [WriteResult(index, nbytes, (records, held.ties))]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, and give the delta its name. Every rank gets the report.

        Args:
            metadata: What torch returns from the save; its ``storage_data`` becomes the report.
            results: Results of all ranks.
        """
        save = self._save
        assert save is not None and save.joined is not None  # noqa: S101, PT018 - as above
        found = [result for results_of_rank in results for result in results_of_rank]
        slabs: list[SlabRecord] = [slab for result in found for slab in result.storage_data[0]]
        ties: list[Tie] = [tie for result in found for tie in result.storage_data[1]]
        names = [shard_name(number, save.shards) for number in range(1, save.shards)]
        written = sum((save.folder / name).stat().st_size for name in names)
        try:
            report = save.joined.join(slabs, ties, LastShard(save.folder, save.shards, written))
            self._finalizer.detach()
            save.stack.close()
        except BaseException:
            self.abandon()
            raise
        self._save, self._finalizer = None, None
        self.report = report
        metadata.storage_data = report
        issue_warnings(report, stacklevel=2)


class _Slab(NamedTuple):
    """A slab of a tensor, in memory: its tensor, its first element in it, and its elements."""

    name: str
    first: int
    shape: tuple[int, ...]
    data: torch.Tensor


class _Held:
    """The slabs that a rank writes, and those that are in the memory of others.

    Args:
        task: What the rank writes.

    Attributes:
        live: The slabs by a key of their own.
        places: The name of each one's tensor, and its first byte in it.
        ties: Slabs that are not encoded.
    """

    def __init__(self, task: _Task) -> None:
        self.live: dict[str, LiveTensor] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.ties: list[Tie] = []
        self._task = task
        self._slabs: list[_Slab] = []

    def add(self, item: WriteItem, data: torch.Tensor) -> None:
        """Add the data of an item."""
        start = _first(item)
        assert start is not None  # noqa: S101 - the coordinator refuses others
        flat = data.detach().reshape(-1)
        for part in self._task.parts[item.index.fqn]:
            first, stop = max(start, part.first), min(start + flat.numel(), part.stop)
            if first >= stop:
                continue
            row = math.prod(part.shape[1:])
            are_rows = (first - part.first) % row == 0 and (stop - first) % row == 0
            shape = ((stop - first) // row, *part.shape[1:]) if are_rows else (stop - first,)
            found = flat[first - start : stop - start].view(shape)
            self._slabs.append(_Slab(part.name, first - part.first, part.shape, found))

    def sort_out(self) -> None:
        """Tell the slabs to encode from those that are in the memory of others."""
        owners: dict[tuple[object, ...], str] = {}

        def place(slab: _Slab) -> tuple[bool, bytes, int]:
            # One that has a source is encoded rather than one that would be stored whole.
            return not self._task.orders[slab.name].source, slab.name.encode(), slab.first

        for slab in sorted(self._slabs, key=place):
            data = slab.data
            memory = (data.device, data.data_ptr(), data.dtype, data.shape, slab.first, slab.shape)
            target = owners.setdefault(memory, slab.name)
            if target != slab.name:
                self.ties.append(Tie(slab.name, data.numel() * data.element_size(), target))
                continue
            key = slab.name
            if key in self.live:
                key = f"{slab.name} (from element {slab.first})"
            self.live[key] = live_tensor(key, data)
            self.places[key] = slab.name, slab.first * data.element_size()


def _first(item: WriteItem) -> int | None:
    """Return the first element of an item's run in its tensor; ``None`` if it is no run."""
    data = item.tensor_data
    assert data is not None  # noqa: S101 - of a tensor
    return first_of_run(data.chunk.offsets, data.chunk.sizes, data.size)


def _require_covered(key: str, tensor: torch.Tensor, parts: list[Part]) -> None:
    """Require that nothing of a tensor is left out.

    Raises:
        CheckpointError: Something is.
    """
    if sum(math.prod(part.shape) for part in parts) != tensor.numel():
        msg = f"has another shape, {list(tensor.shape)}, than the model that tells its parts"
        raise CheckpointError(msg, tensor=printable(key))


def _put_together(plans: list[SavePlan], strange: set[str]) -> list[SavePlan]:
    """Give tensors that may share their memory to one rank, which alone can tell.

    Torch gives replicas to any rank. Candidates are tensors that the base lacks, with those of
    their shape, and two tensors whose shape no other has, as embedding and head.

    Args:
        plans: The plans, with what each rank holds as their storage data.
        strange: Keys of the tensors that the base lacks.
    """
    owners: defaultdict[tuple[object, ...], list[tuple[str, int]]] = defaultdict(list)
    for rank, item in _items(plans):
        owners[_geometry(item)].append((item.index.fqn, rank))
    moved: dict[int, list[WriteItem]] = {rank: [] for rank in range(len(plans))}
    for rank, item in _items(plans):
        target = rank
        # As in _Held.sort_out, the first one is encoded.
        candidates = sorted(owners[_geometry(item)], key=lambda owner: (owner[0] in strange, owner))
        if item.index.fqn in strange or len(candidates) == 2:
            holding = (r for _, r in candidates if item.index in plans[r].storage_data)
            target = next(holding, rank)
        moved[target].append(item)
    return [replace(plan, items=moved[rank]) for rank, plan in enumerate(plans)]


def _items(plans: list[SavePlan]) -> Iterator[tuple[int, WriteItem]]:
    return ((rank, item) for rank, plan in enumerate(plans) for item in plan.items)


def _geometry(item: WriteItem) -> tuple[object, ...]:
    data = item.tensor_data
    assert data is not None  # noqa: S101 - of a tensor
    return data.chunk.offsets, data.chunk.sizes, data.size, data.properties.dtype

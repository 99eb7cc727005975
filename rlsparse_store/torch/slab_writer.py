"""A storage writer of torch.distributed.checkpoint that writes a delta, without gathering.

Each rank encodes the rows that it holds into a shard of its own. The coordinator plans by names,
dtypes and shapes, joins the digests, and writes the last shard, with the index. Then the delta gets
its name, or in a bucket its list of shards. Planning, deduplication and errors of ranks are those
of torch.
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.joined_delta import JoinedDelta, Tie
from rlsparse_store.delta.kept_hashes import KeptHashes, kept_hashes
from rlsparse_store.delta.plausibility import issue_warnings
from rlsparse_store.delta.slab_encoder import HeldSlab, SlabEncoder, SlabRecord, base_identity
from rlsparse_store.errors import CheckpointError, RlsparseError
from rlsparse_store.files.delta_writer import LastShard
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.file_names import shard_name
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.torch.held_slabs import HeldSlabs, RankTask
from rlsparse_store.torch.live_names import require_unfused
from rlsparse_store.torch.shard_places import new_shards, rank_shard
from rlsparse_store.torch.slab_plans import describe, put_together
from rlsparse_store.torch.state_dict import synchronize

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy
    from rlsparse_store.torch.shard_places import NewShards
    from rlsparse_store.torch.slab_plans import PartsOf

__all__ = ["SlabWriter"]


class _Save:
    """One save in progress: the open base, and on the coordinator the folder and the plan."""

    def __init__(self, open_base: Callable[[], AbstractContextManager[Checkpoint]]) -> None:
        self.stack = ExitStack()
        self.base = self.stack.enter_context(open_base())
        self.joined: JoinedDelta | None = None
        self.new: NewShards | None = None
        self.shards = 0


def _abandon(stack: ExitStack) -> None:
    """Close what a save has open, and remove what it has written."""
    error = RlsparseError("the save was abandoned")
    stack.__exit__(type(error), error, None)


def _threads_of_rank(threads: int | None) -> int:
    """Return ``threads``, or for ``None`` this rank's share of the processors of its machine."""
    if threads is not None:
        return resolve_threads(threads)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, resolve_threads(None) // max(1, ranks))


class SlabWriter(StorageWriter):
    """Writes a state dict as a delta.

    Args:
        open_base: Opens the base, at every save, on every rank.
        path: Folder of the delta, or its URL, unless ``checkpoint_id`` names one at the save.
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
        path: Path | BucketUrl | None,
        policy: DtypePolicy,
        *,
        parts_of: PartsOf,
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
            self._path = parse_bucket_url(checkpoint_id) or Path(checkpoint_id)

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
        parts, tensors = describe(plans, self._parts_of)
        require_unfused(tensors, save.base.tensors)
        hashes = self._kept(save.base).tensors
        shown = path if isinstance(path, Path) else Path(path.name)
        save.joined = JoinedDelta(save.base, tensors.values(), self._policy, hashes, shown)
        strange = save.joined.unmatched()
        is_strange = {key for key, of_key in parts.items() if strange & {p.name for p in of_key}}
        plans = put_together(plans, is_strange)
        save.new = save.stack.enter_context(new_shards(path))
        orders = save.joined.orders()
        writing = [number for number, plan in enumerate(plans) if plan.items]
        save.shards = len(writing) + 1
        tasks: dict[int, RankTask] = {}
        for number, rank in enumerate(writing, 1):
            held = {item.index.fqn: parts[item.index.fqn] for item in plans[rank].items}
            tasks[rank] = RankTask(
                save.new.place,
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

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Encode the rows of this rank into its shard.

        Raises:
            RlsparseError: The base is not that of the coordinator, or cannot be read.
            OutputError: The shard cannot be written.
        """
        task: RankTask | None = plan.storage_data
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

    def _write(self, task: RankTask, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        save = self._save
        assert save is not None  # noqa: S101 - set_up_storage_writer made it
        if base_identity(save.base) != task.base:
            msg = "is not the base of the coordinator: give every rank the same revision"
            raise CheckpointError(msg, file=save.base.path)
        held = HeldSlabs(task)
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
        with rank_shard(task.place, task.number, task.shards) as shard:
            coder = self._coder or CpuCoder()
            records = encoder.encode(shard, coder, _threads_of_rank(self._threads), self._progress)
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
        assert save is not None  # noqa: S101 - as above
        assert save.joined is not None and save.new is not None  # noqa: S101, PT018 - as above
        found = [result for results_of_rank in results for result in results_of_rank]
        slabs: list[SlabRecord] = [slab for result in found for slab in result.storage_data[0]]
        ties: list[Tie] = [tie for result in found for tie in result.storage_data[1]]
        names = [shard_name(number, save.shards) for number in range(1, save.shards)]
        try:
            written = save.new.count(names, sum(result.size_in_bytes for result in found))
            last = LastShard(save.new.folder, save.shards, written)
            report = save.joined.join(slabs, ties, last)
            self._finalizer.detach()
            save.stack.close()
        except BaseException:
            self.abandon()
            raise
        self._save, self._finalizer = None, None
        self.report = report
        metadata.storage_data = report
        issue_warnings(report, stacklevel=2)

"""Encoding several checkpoints against one base, which is read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.fingerprints import checkpoint_state
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map, resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlsparse_store.delta.encoder import Encoder
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.delta_writer import ChunkSink
    from rlsparse_store.kernels.interface import CpuBackend
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["encode_together"]

from rlsparse_store.pipeline.coder import CodedTask, CpuCoder, SpanCoder, SpanTask


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a group."""

    group: Batch[SpanTask]
    coded: list[CodedTask]


def encode_together(
    base: Checkpoint,
    encodings: list[tuple[Encoder, ChunkSink]],
    threads: int | None,
    progress: Progress,
    coder: SpanCoder | None = None,
) -> list[int]:
    """Encode several tuned checkpoints, each into its own sink.

    Args:
        base: The base of all.
        encodings: One or more encoders of that base, and where their chunks go.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.
        coder: Codes the spans; the CPU by default.

    Returns:
        The bytes of each delta's files.

    Raises:
        RlsparseError: A checkpoint changed or cannot be read, or a delta cannot be written.
    """
    workers = resolve_threads(threads)
    chosen = coder or CpuCoder()

    def work(group: Batch[SpanTask]) -> _Done:
        return _Done(group, chosen.code(group.items, base))

    total = sum(encoder.nbytes for encoder, _ in encodings)
    done = 0
    tasks = ((task, chosen.weigh(task, base)) for task in _tasks(encodings, get_backend()))
    for result in ordered_map(work, batched(tasks, chosen.group_bytes), workers):
        for task, coded in zip(result.group.items, result.coded, strict=True):
            for place, span in zip(task.places, coded.spans, strict=True):
                encoder, sink = encodings[place]
                encoder.add(span, coded.base_leaves, sink)
            done += task.nbytes
        progress(min(done, total), total)
    progress(total, total)
    base.check_unchanged()
    known: dict[str, bytes] = {}
    for encoder, _ in encodings:
        encoder.tuned.check_unchanged()
        known |= encoder.base_digests()
    # Tensors that nothing was coded against are read for it.
    base_state = checkpoint_state(base, known)
    return [encoder.finish(base_state, sink) for encoder, sink in encodings]


def _tasks(encodings: list[tuple[Encoder, ChunkSink]], backend: CpuBackend) -> Iterator[SpanTask]:
    """The spans of all encodings, those of the same bytes of the base together.

    Of each encoding, they come in the order of its tensors' names.
    """
    remaining = [encoder.spans(backend) for encoder, _ in encodings]
    ahead = [next(spans, None) for spans in remaining]
    while any(entry is not None for entry in ahead):
        name = min((entry[0] for entry in ahead if entry is not None), key=str.encode)
        groups: dict[tuple[object, ...], SpanTask] = {}
        for place, entry in enumerate(ahead):
            if entry is None or entry[0] != name:
                continue
            ahead[place] = next(remaining[place], None)
            for span in entry[1]:
                source = span.plan.source
                # What is stored whole shares nothing.
                key = (place,) if source is None else (source.name, span.coding, span.stop)
                task = groups.setdefault((*key, span.start), SpanTask())
                task.spans.append(span)
                task.tuned.append(encodings[place][0].tuned)
                task.places.append(place)
        # Of one encoding, spans are in order: no group holds an earlier one than the group before.
        yield from groups.values()

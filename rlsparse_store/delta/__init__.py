"""What users do with deltas: encode, open, apply, verify, inspect."""

from rlsparse_store.delta.apply import ApplyReport, apply_delta
from rlsparse_store.delta.encode import encode_delta, measure_pair
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.open import DeltaCheckpoint, DeltaSlice, open_delta
from rlsparse_store.delta.prune import PruneReport, prune_run
from rlsparse_store.delta.rebase_hint import RebaseHintReport, rebase_hint
from rlsparse_store.delta.report import (
    DeltaReport,
    EncodeReport,
    Group,
    TensorReport,
    WholeTensor,
)
from rlsparse_store.delta.run import RunEntry, RunReport, inspect_run, repair_run
from rlsparse_store.delta.run_encoder import encode_run
from rlsparse_store.delta.run_place import RepairReport
from rlsparse_store.delta.verify import VerifyReport, verify_delta
from rlsparse_store.delta.verify_run import VerifyRunReport, verify_run
from rlsparse_store.deprecated import moved

__all__ = [
    "ApplyReport",
    "DeltaCheckpoint",
    "DeltaReport",
    "DeltaSlice",
    "EncodeReport",
    "Group",
    "PruneReport",
    "RebaseHintReport",
    "RepairReport",
    "RunEntry",
    "RunReport",
    "TensorReport",
    "VerifyReport",
    "VerifyRunReport",
    "WholeTensor",
    "apply_delta",
    "encode_delta",
    "encode_run",
    "inspect_delta",
    "inspect_run",
    "measure_pair",
    "open_delta",
    "prune_run",
    "rebase_hint",
    "repair_run",
    "verify_delta",
    "verify_run",
]

__getattr__ = moved(
    __name__,
    {
        "BLOCK_WORDS": "pipeline.spans.BLOCK_WORDS",
        "SHARD_BYTES": "delta.encode.SHARD_BYTES",
        "SPAN_BYTES": "pipeline.spans.SPAN_BYTES",
        "STEP_LABELS": "delta.report.STEP_LABELS",
        "ChunkDecoder": "pipeline.chunk_decoder.ChunkDecoder",
        "CodedSpan": "pipeline.spans.CodedSpan",
        "CpuCoder": "pipeline.coder.CpuCoder",
        "Encoder": "delta.encoder.Encoder",
        "Progress": "pipeline.progress.Progress",
        "Span": "pipeline.spans.Span",
        "SpanCoder": "pipeline.coder.SpanCoder",
        "TensorPlan": "pipeline.tensor_matching.TensorPlan",
        "block_of": "delta.module_names.block_of",
        "delta_names": "delta.run_files.delta_names",
        "find_base": "delta.resolve.find_base",
        "find_checkpoint": "delta.resolve.find_checkpoint",
        "find_delta": "delta.resolve.find_delta",
        "is_run": "delta.run.is_run",
        "layer_of": "delta.module_names.layer_of",
        "module_of": "delta.module_names.module_of",
        "natural_order": "delta.run_files.natural_order",
        "open_found": "delta.open.open_local",
        "percent": "delta.units.format_percent",
        "plan_tensors": "pipeline.tensor_matching.plan_tensors",
        "report_delta": "delta.inspect.report_delta",
        "resolve_threads": "pipeline.threads.resolve_threads",
        "silent": "pipeline.progress.no_progress",
        "size": "delta.units.format_bytes",
    },
)

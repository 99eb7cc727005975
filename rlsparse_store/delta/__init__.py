"""What users do with deltas: encode, open, apply, verify, inspect."""

from rlsparse_store.delta.apply import ApplyReport, apply_delta
from rlsparse_store.delta.batches import check_stored, opened_batches
from rlsparse_store.delta.chunks import ChunkDecoder, OpenedChunk, check_sources, wrong_base
from rlsparse_store.delta.cursor import TensorCursor
from rlsparse_store.delta.encode import (
    SHARD_BYTES,
    dtype_policy,
    encode_delta,
    encode_opened,
    measure_pair,
)
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.figures import percent, size
from rlsparse_store.delta.groups import block_of, layer_of, module_of
from rlsparse_store.delta.identity import check_small_origins
from rlsparse_store.delta.inspect import inspect_delta, report_delta
from rlsparse_store.delta.lazy import DeltaCheckpoint, DeltaSlice, open_delta, open_found
from rlsparse_store.delta.locate import (
    delta_folders,
    find_base,
    find_checkpoint,
    find_delta,
    find_run,
    read_delta,
    repo_id,
    subfolder_parts,
)
from rlsparse_store.delta.pipeline import Several, ordered_map, several
from rlsparse_store.delta.progress import Progress, silent
from rlsparse_store.delta.report import (
    STEP_LABELS,
    DeltaReport,
    EncodeReport,
    Group,
    TensorReport,
    WholeTensor,
)
from rlsparse_store.delta.room import Rooms
from rlsparse_store.delta.run import (
    RunEntry,
    RunReport,
    delta_names,
    encode_run,
    inspect_run,
    is_run,
    natural_order,
    read_reports,
)
from rlsparse_store.delta.scan import (
    BLOCK_WORDS,
    SPAN_BYTES,
    Coded,
    CodedSpan,
    Span,
    Stretch,
    proof_failed,
    stretches,
)
from rlsparse_store.delta.sources import TensorPlan, plan_tensors
from rlsparse_store.delta.threads import resolve_threads
from rlsparse_store.delta.together import CodedTask, CpuCoder, SpanCoder, SpanTask
from rlsparse_store.delta.verify import VerifyReport, check_alone, verify_delta

__all__ = [
    "BLOCK_WORDS",
    "SHARD_BYTES",
    "SPAN_BYTES",
    "STEP_LABELS",
    "ApplyReport",
    "ChunkDecoder",
    "Coded",
    "CodedSpan",
    "CodedTask",
    "CpuCoder",
    "DeltaCheckpoint",
    "DeltaReport",
    "DeltaSlice",
    "EncodeReport",
    "Encoder",
    "Group",
    "OpenedChunk",
    "Progress",
    "Rooms",
    "RunEntry",
    "RunReport",
    "Several",
    "Span",
    "SpanCoder",
    "SpanTask",
    "Stretch",
    "TensorCursor",
    "TensorPlan",
    "TensorReport",
    "VerifyReport",
    "WholeTensor",
    "apply_delta",
    "block_of",
    "check_alone",
    "check_small_origins",
    "check_sources",
    "check_stored",
    "delta_folders",
    "delta_names",
    "dtype_policy",
    "encode_delta",
    "encode_opened",
    "encode_run",
    "find_base",
    "find_checkpoint",
    "find_delta",
    "find_run",
    "inspect_delta",
    "inspect_run",
    "is_run",
    "layer_of",
    "measure_pair",
    "module_of",
    "natural_order",
    "open_delta",
    "open_found",
    "opened_batches",
    "ordered_map",
    "percent",
    "plan_tensors",
    "proof_failed",
    "read_delta",
    "read_reports",
    "repo_id",
    "report_delta",
    "resolve_threads",
    "several",
    "silent",
    "size",
    "stretches",
    "subfolder_parts",
    "verify_delta",
    "wrong_base",
]

"""What users do with deltas: encode, open, apply, verify, inspect."""

from rlsparse_store.delta.apply import ApplyReport, apply_delta
from rlsparse_store.delta.chunks import ChunkDecoder, check_sources, wrong_base
from rlsparse_store.delta.encode import SHARD_BYTES, encode_delta, measure_pair
from rlsparse_store.delta.figures import percent, size
from rlsparse_store.delta.groups import layer_of, module_of
from rlsparse_store.delta.identity import check_small_origins
from rlsparse_store.delta.inspect import inspect_delta, report_delta
from rlsparse_store.delta.lazy import DeltaCheckpoint, DeltaSlice, open_delta, open_found
from rlsparse_store.delta.locate import find_delta, subfolder_parts
from rlsparse_store.delta.pipeline import ordered_map
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
from rlsparse_store.delta.threads import resolve_threads
from rlsparse_store.delta.verify import VerifyReport, verify_delta

__all__ = [
    "SHARD_BYTES",
    "STEP_LABELS",
    "ApplyReport",
    "ChunkDecoder",
    "DeltaCheckpoint",
    "DeltaReport",
    "DeltaSlice",
    "EncodeReport",
    "Group",
    "Progress",
    "Rooms",
    "RunEntry",
    "RunReport",
    "TensorReport",
    "VerifyReport",
    "WholeTensor",
    "apply_delta",
    "check_small_origins",
    "check_sources",
    "delta_names",
    "encode_delta",
    "encode_run",
    "find_delta",
    "inspect_delta",
    "inspect_run",
    "is_run",
    "layer_of",
    "measure_pair",
    "module_of",
    "natural_order",
    "open_delta",
    "open_found",
    "ordered_map",
    "percent",
    "read_reports",
    "report_delta",
    "resolve_threads",
    "silent",
    "size",
    "subfolder_parts",
    "verify_delta",
    "wrong_base",
]

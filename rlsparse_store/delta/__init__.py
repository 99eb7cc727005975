"""What users do with deltas: encode, open, apply, verify, inspect."""

from rlsparse_store.delta.apply import ApplyReport, apply_delta
from rlsparse_store.delta.chunks import ChunkDecoder, wrong_base
from rlsparse_store.delta.encode import SHARD_BYTES, encode_delta, measure_pair
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.lazy import DeltaCheckpoint, DeltaSlice, open_delta, open_found
from rlsparse_store.delta.locate import find_delta
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.report import (
    STEP_LABELS,
    DeltaReport,
    EncodeReport,
    Group,
    TensorReport,
    WholeTensor,
)
from rlsparse_store.delta.room import Rooms
from rlsparse_store.delta.run import RunEntry, RunReport, encode_run, inspect_run, is_run
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
    "Rooms",
    "RunEntry",
    "RunReport",
    "TensorReport",
    "VerifyReport",
    "WholeTensor",
    "apply_delta",
    "encode_delta",
    "encode_run",
    "find_delta",
    "inspect_delta",
    "inspect_run",
    "is_run",
    "measure_pair",
    "open_delta",
    "open_found",
    "ordered_map",
    "resolve_threads",
    "verify_delta",
    "wrong_base",
]

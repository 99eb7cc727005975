"""What users do with deltas: encode, open, apply, verify, inspect."""

from rlsparse_store.delta.apply import ApplyReport, apply_delta
from rlsparse_store.delta.encode import encode_delta, measure_pair
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.open import DeltaCheckpoint, DeltaSlice, open_delta
from rlsparse_store.delta.report import (
    DeltaReport,
    EncodeReport,
    Group,
    TensorReport,
    WholeTensor,
)
from rlsparse_store.delta.run import RunEntry, RunReport, inspect_run
from rlsparse_store.delta.run_encoder import encode_run
from rlsparse_store.delta.verify import VerifyReport, verify_delta

__all__ = [
    "ApplyReport",
    "DeltaCheckpoint",
    "DeltaReport",
    "DeltaSlice",
    "EncodeReport",
    "Group",
    "RunEntry",
    "RunReport",
    "TensorReport",
    "VerifyReport",
    "WholeTensor",
    "apply_delta",
    "encode_delta",
    "encode_run",
    "inspect_delta",
    "inspect_run",
    "measure_pair",
    "open_delta",
    "verify_delta",
]

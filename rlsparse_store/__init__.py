"""Store RL-tuned checkpoints as lossless sparse deltas against their base model."""

from rlsparse_store.container import FORMAT_VERSION
from rlsparse_store.delta import (
    ApplyReport,
    DeltaReport,
    EncodeReport,
    RunReport,
    VerifyReport,
    apply_delta,
    encode_delta,
    encode_run,
    inspect_delta,
    inspect_run,
    measure_pair,
    verify_delta,
)
from rlsparse_store.errors import RlsparseError

__version__ = "0.1.0"

__all__ = [
    "FORMAT_VERSION",
    "ApplyReport",
    "DeltaReport",
    "EncodeReport",
    "RlsparseError",
    "RunReport",
    "VerifyReport",
    "apply_delta",
    "encode_delta",
    "encode_run",
    "inspect_delta",
    "inspect_run",
    "measure_pair",
    "verify_delta",
]

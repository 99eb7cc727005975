"""Hugging Face checkpoints as raw bits: found, read and written back file by file."""

from rlsparse_store.checkpoint.folder import (
    Checkpoint,
    CheckpointFile,
    TensorRef,
    open_checkpoint,
    open_files,
)
from rlsparse_store.checkpoint.hints import BaseHints, hints_from_path
from rlsparse_store.checkpoint.layout import (
    INDEX_NAME,
    FileLayout,
    IndexLayout,
    LayoutError,
    TensorShape,
    describe_file,
    describe_index,
    rebuild_header,
    rebuild_index,
    stored_metadata,
)
from rlsparse_store.checkpoint.memory import TensorBytes, TensorsSource, checkpoint_in_memory
from rlsparse_store.checkpoint.sidefiles import (
    CARRIED_FILES,
    SideFiles,
    delta_side_files,
    sort_side_files,
)
from rlsparse_store.checkpoint.writer import CheckpointWriter

__all__ = [
    "CARRIED_FILES",
    "INDEX_NAME",
    "BaseHints",
    "Checkpoint",
    "CheckpointFile",
    "CheckpointWriter",
    "FileLayout",
    "IndexLayout",
    "LayoutError",
    "SideFiles",
    "TensorBytes",
    "TensorRef",
    "TensorShape",
    "TensorsSource",
    "checkpoint_in_memory",
    "delta_side_files",
    "describe_file",
    "describe_index",
    "hints_from_path",
    "open_checkpoint",
    "open_files",
    "rebuild_header",
    "rebuild_index",
    "sort_side_files",
    "stored_metadata",
]

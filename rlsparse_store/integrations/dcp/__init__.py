"""Deltas with torch.distributed.checkpoint. This module imports torch."""

from rlsparse_store.integrations.dcp.reader import DeltaStorageReader
from rlsparse_store.integrations.dcp.writer import DeltaStorageWriter
from rlsparse_store.torch.row_slabs import by_rows

__all__ = ["DeltaStorageReader", "DeltaStorageWriter", "by_rows"]

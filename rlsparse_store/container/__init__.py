"""The delta file on bytes: manifest, index, chunks. It knows no checkpoint and decodes nothing."""

from rlsparse_store.container.manifest import FORMAT_VERSION, Manifest, Totals
from rlsparse_store.container.naming import write_named
from rlsparse_store.container.paths import DELTA_FOLDER
from rlsparse_store.container.reader import DeltaReader
from rlsparse_store.container.records import (
    ChunkCoding,
    ChunkRecord,
    FileRecord,
    FilesRecord,
    Index,
    Kind,
    TensorRecord,
    row_words,
)
from rlsparse_store.container.writer import ChunkSink, CountingSink, DeltaWriter

__all__ = [
    "DELTA_FOLDER",
    "FORMAT_VERSION",
    "ChunkCoding",
    "ChunkRecord",
    "ChunkSink",
    "CountingSink",
    "DeltaReader",
    "DeltaWriter",
    "FileRecord",
    "FilesRecord",
    "Index",
    "Kind",
    "Manifest",
    "TensorRecord",
    "Totals",
    "row_words",
    "write_named",
]

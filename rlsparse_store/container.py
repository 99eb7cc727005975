"""Old home of the delta file's names: use ``format`` and ``files``. Removed in 0.3."""

from typing import Final

from rlsparse_store.deprecated import moved

_HOMES: Final = {
    "DELTA_FOLDER": "format.file_names.DELTA_FOLDER",
    "FORMAT_VERSION": "format.manifest.FORMAT_VERSION",
    "ChunkCoding": "format.index.records.ChunkCoding",
    "ChunkRecord": "format.index.records.ChunkRecord",
    "ChunkSink": "files.delta_writer.ChunkSink",
    "CountingSink": "files.delta_writer.CountingSink",
    "DeltaReader": "files.delta_reader.DeltaReader",
    "DeltaWriter": "files.delta_writer.DeltaWriter",
    "FileRecord": "format.index.records.FileRecord",
    "FilesRecord": "format.index.records.FilesRecord",
    "Index": "format.index.records.Index",
    "Kind": "format.index.records.Kind",
    "Manifest": "format.manifest.Manifest",
    "TensorRecord": "format.index.records.TensorRecord",
    "Totals": "format.manifest.Totals",
    "row_words": "format.index.records.row_words",
    "write_named": "files.base_hint.write_named",
}

__getattr__ = moved(__name__, _HOMES)

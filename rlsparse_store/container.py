"""Old home of the delta file's names: import them from ``format`` and ``files``. Gone in 0.3."""

import importlib
import warnings
from typing import Any, Final

_HOMES: Final = {
    "DELTA_FOLDER": "format.file_names",
    "FORMAT_VERSION": "format.manifest",
    "ChunkCoding": "format.index.records",
    "ChunkRecord": "format.index.records",
    "ChunkSink": "files.delta_writer",
    "CountingSink": "files.delta_writer",
    "DeltaReader": "files.delta_reader",
    "DeltaWriter": "files.delta_writer",
    "FileRecord": "format.index.records",
    "FilesRecord": "format.index.records",
    "Index": "format.index.records",
    "Kind": "format.index.records",
    "Manifest": "format.manifest",
    "TensorRecord": "format.index.records",
    "Totals": "format.manifest",
    "row_words": "format.index.records",
    "write_named": "files.base_hint",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has the name
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    home = f"rlsparse_store.{_HOMES[name]}"
    msg = f"import {name} from {home}: {__name__} is gone in the next release but one"
    warnings.warn(msg, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(home), name)

"""Atheris targets: the readers of headers, manifests, indexes, frames and whole deltas.

`fuzzing.py` runs it. The first byte of an input chooses the target, the rest is what it reads. A
reader returns or raises one of the errors it documents; an index that is read is written again as
the same bytes.

    python tools/trust/fuzz_readers.py --seeds FOLDER
    python tools/trust/fuzz_readers.py CORPUS FOLDER -max_total_time=60
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import atheris

with atheris.instrument_imports(include=["rlsparse_store"]):
    from rlsparse_store.errors import FormatError, RlsparseError
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.files.weight_files import weight_map_of
    from rlsparse_store.format.file_names import SINGLE_FILE
    from rlsparse_store.format.frames import decompress
    from rlsparse_store.format.header import HeaderError, parse_header
    from rlsparse_store.format.index.reader import decode_index
    from rlsparse_store.format.index.writer import encode_index
    from rlsparse_store.format.manifest import parse_manifest
    from rlsparse_store.format.strict_json import StrictJsonError, parse_document

from conformance.memory import NOWHERE, MemoryFolder
from format_vectors.draft import DELTA, Draft
from format_vectors.listing import VECTORS, load

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST: Final = 1 << 20


def header(data: bytes) -> None:
    """The header of a safetensors file; the bytes of its tensors come first."""
    parse_header(data[8:], int.from_bytes(data[:8], "little"))


def manifest(data: bytes) -> None:
    """The manifest."""
    parse_manifest(data, 1)


def index(data: bytes) -> None:
    """The index; the bytes of the chunks come first."""
    content = data[8:]
    read = decode_index(content, [int.from_bytes(data[:8], "little")])
    if encode_index(read) != content:
        raise AssertionError("the index is written as other bytes")


def frame(data: bytes) -> None:
    """The frame of a chunk."""
    decompress(data, LARGEST)


def listing(data: bytes) -> None:
    """The index file of a checkpoint."""
    weight_map_of(data, NOWHERE)


def document(data: bytes) -> None:
    """Any JSON of a delta."""
    parse_document(data, any_number=True)


def delta(data: bytes) -> None:
    """A whole delta, below no checksum."""
    with DeltaReader(NOWHERE, MemoryFolder({SINGLE_FILE: data})) as reader:
        reader.check_state()
        for chunk in reader.index.chunks:
            reader.stored(chunk)


TARGETS: Final[tuple[tuple[Callable[[bytes], None], tuple[type[Exception], ...]], ...]] = (
    (header, (HeaderError,)),
    (manifest, (FormatError,)),
    (index, (FormatError,)),
    (frame, (FormatError,)),
    (listing, (RlsparseError,)),
    (document, (StrictJsonError,)),
    (delta, (FormatError,)),
)
"""Each reader, and the errors that it documents."""


def try_one(data: bytes) -> None:
    """Run one input."""
    if not data:
        return
    target, errors = TARGETS[data[0] % len(TARGETS)]
    try:
        target(data[1:])
    except errors:
        return


def write_seeds(folder: Path) -> None:
    """Write inputs made of the vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    for vector in load()["vectors"]:
        path = VECTORS / vector["delta"] / "rlsparse" / DELTA
        if not path.exists():
            continue
        data = path.read_bytes()
        (folder / f"{vector['id']}-delta").write_bytes(b"\x06" + data)
        if vector["kind"] == "valid" and "reader" not in vector:
            for name, piece in _pieces(Draft.read(VECTORS / vector["delta"]), data):
                (folder / f"{vector['id']}-{name}").write_bytes(piece)


def _pieces(draft: Draft, data: bytes) -> list[tuple[str, bytes]]:
    length = int.from_bytes(data[:8], "little")
    sizes = [sum(map(len, draft.stored)), len(data) - 8 - length]
    stored, rest = (size.to_bytes(8, "little") for size in sizes)
    found = [
        ("header", b"\x00" + rest + data[8 : 8 + length]),
        ("manifest", b"\x01" + json.dumps(draft.fields, separators=(",", ":")).encode()),
        ("index", b"\x02" + stored + encode_index(draft.index)),
        ("json", b"\x05" + data[8 : 8 + length].rstrip()),
    ]
    found += [(f"frame-{i}", b"\x03" + piece) for i, piece in enumerate(draft.stored[:2])]
    if draft.index.files.index_text:
        found.append(("listing", b"\x04" + draft.index.files.index_text))
    return found


def main() -> None:
    """Write seeds, or fuzz."""
    if sys.argv[1] == "--seeds":
        write_seeds(Path(sys.argv[2]))
        return
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

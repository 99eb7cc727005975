"""Recording where the base of a delta is: the last file, with another hint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.files.delta_writer import container_header
from rlsparse_store.format.digests import checksum
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.manifest import parse_fields
from rlsparse_store.format.strict_json import canonical

if TYPE_CHECKING:
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.files.output import OutputFile

__all__ = ["write_named"]

PIECE: Final = 4 << 20
"""Bytes copied per read."""


def write_named(reader: DeltaReader, out: OutputFile, repo: str, revision: str) -> None:
    """Write the last file of a delta again, with another hint for finding its base.

    The manifest holds the hint, and the checksum of the index covers the manifest. Nothing else
    changes; keys that this version does not know are kept.

    Args:
        reader: The delta.
        out: The file to write, empty.
        repo: The base's repository on the Hub.
        revision: Its commit.

    Raises:
        OutputError: The file cannot be written.
        RlsparseError: The delta cannot be read.
    """
    last = reader.shards[-1]
    number = len(reader.shards)
    index_bytes = last.source.nbytes - last.data_start - last.data_bytes
    frame = last.source.read(last.data_start + last.data_bytes + 8, index_bytes - 8)
    fields = parse_fields(last.manifest_text, number)
    fields["base"] |= {"repo": repo, "revision": revision}
    # The base is found there by itself, and not as the result of another delta.
    fields["base"].pop("delta", None)
    text = canonical(fields)
    header = frame_header(container_header(text, number, last.data_bytes, index_bytes))
    out.write(header, 0)
    for start in range(0, last.data_bytes, PIECE):
        piece = min(PIECE, last.data_bytes - start)
        out.write(last.source.read(last.data_start + start, piece), len(header) + start)
    manifests = [shard.manifest_text for shard in reader.shards[:-1]]
    entry = checksum(*manifests, text, frame).to_bytes(8, "little") + frame
    out.write(entry, len(header) + last.data_bytes)

"""The worked example of the format is what the encoder writes and the reader reads."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import zstandard

from rlsparse_store import encode_delta
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.writer import encode_index

SPEC = (Path(__file__).parents[2] / "specs" / "format.md").read_text(encoding="utf-8")
EXAMPLE = SPEC[SPEC.index("## 13. A worked example") : SPEC.index("## 14.")]


def hex_blocks() -> list[str]:
    """The indented blocks of the example, with what stands beside the bytes left out."""
    blocks = re.findall(r"(?:^    .*\n)+", EXAMPLE, re.MULTILINE)
    return ["".join(line[4:].split("   ")[0] for line in block.splitlines()) for block in blocks]


def words(label: str) -> list[int]:
    found = re.search(rf"^    {label} +(.*)$", EXAMPLE, re.MULTILINE)
    assert found is not None
    return [int(word, 16) for word in found[1].split()]


def save(path: Path, values: list[int]) -> Path:
    data = np.array(values, "<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, len(data)]}
    header = json.dumps({"w": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_the_example_is_what_is_written(tmp_path: Path) -> None:
    base = save(tmp_path / "b.safetensors", words("base"))
    tuned = save(tmp_path / "t.safetensors", words("tuned"))
    encode_delta(base, tuned, tmp_path / "delta")
    _, frame, index = (block.replace(" ", "") for block in hex_blocks())
    with DeltaReader(tmp_path / "delta") as reader:
        (chunk,) = reader.index.chunks
        stored = reader.stored(chunk)
        assert encode_index(reader.index).hex() == index
    assert stored.hex() == frame
    rows = re.findall(r"^\| `([0-9a-f]+)` \|", EXAMPLE, re.MULTILINE)
    assert zstandard.ZstdDecompressor().decompress(stored).hex() == "".join(rows)

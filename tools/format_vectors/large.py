"""Vectors that would be megabytes long, made where they are needed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from format_vectors.checkpoints import noise
from format_vectors.draft import DELTA, Draft
from format_vectors.listing import VECTORS, load

if TYPE_CHECKING:
    from pathlib import Path

LIST = DELTA + ".index.json"


def large_vectors(out: Path) -> list[dict[str, Any]]:
    """Write the large vectors into a folder.

    Returns:
        Their entries, as the index of the vectors lists them; ``delta`` is an absolute path.
    """
    shards = _files("shards")
    many = {f"data.{k:05}": "" for k in range(1, 10_002)} | {"index": ""}
    made = [
        ("listing-longest", "shards", {**shards, LIST: shards[LIST].ljust(4 << 20)}, []),
        ("listing-long", "shards", {**shards, LIST: shards[LIST].ljust((4 << 20) + 1)}, ["limit"]),
        (
            "listing-many",
            "shards",
            {**shards, LIST: json.dumps({"weight_map": many}).encode()},
            ["limit"],
        ),
        ("header-longest", "bitmap", {DELTA: _padded(_files("bitmap")[DELTA], 1 << 20)}, []),
        ("names-long", "bitmap", {DELTA: _with_long_names()}, ["limit"]),
    ]
    valid = {v["id"]: v for v in load()["vectors"] if v["kind"] == "valid"}
    entries = []
    for name, parent, files, codes in made:
        folder = out / name / "rlsparse"
        folder.mkdir(parents=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        expected = {"codes": codes} if codes else valid[parent]["expected"]
        kind = "invalid" if codes else "valid"
        entry = {"id": name, "kind": kind, "delta": str(out / name), "expected": expected}
        entries.append(entry | {"base": valid[parent]["base"]})
    return entries


def _files(name: str) -> dict[str, bytes]:
    folder = VECTORS / "valid" / name / "rlsparse"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _padded(file: bytes, size: int) -> bytes:
    """The file with spaces behind its header up to a size."""
    end = 8 + int.from_bytes(file[:8], "little")
    return size.to_bytes(8, "little") + file[8:end].ljust(size) + file[end:]


def _with_long_names() -> bytes:
    """An index whose removed tensors have names of more than 2^27 bytes in all."""
    numbers = noise("names-long", 8 * 140_000).view("<u8") >> 40
    distinct = sorted(set(numbers.tolist()))[: (1 << 17) + 1]
    draft = Draft.read(VECTORS / "valid" / "bitmap")
    removed = ["w" * 1018 + f"{number:06x}" for number in distinct]
    return replace(draft, index=replace(draft.index, removed=removed)).sealed()

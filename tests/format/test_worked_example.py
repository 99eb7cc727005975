"""The worked examples of the format are what the encoder writes and the reader reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import zstandard

from format_vectors.checkpoints import Tensors, of_words, safetensors
from format_vectors.text import SPEC
from rlsparse_store import encode_delta
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.writer import encode_index

if TYPE_CHECKING:
    from pathlib import Path


def example(number: int) -> str:
    """The text of an example."""
    start = SPEC.index(f"### 16.{number} ")
    return SPEC[
        start : min(SPEC.index(end, start + 4) for end in ("### 16.2", "## 17.")[number - 1 :])
    ]


def hex_blocks(text: str) -> list[str]:
    """The indented blocks of an example, with what stands beside the bytes left out."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    lines = [[line[4:].split("   ")[0] for line in block.splitlines()] for block in blocks]
    return ["".join(block).replace(" ", "") for block in lines]


def words(text: str, label: str) -> list[int]:
    found = re.search(rf"^    {label} +(.*)$", text, re.MULTILINE)
    assert found is not None
    return [int(word, 16) for word in found[1].split()]


def bitmap() -> tuple[Tensors, Tensors]:
    base, tuned = (of_words("BF16", words(example(1), label), 2, 4) for label in ("base", "tuned"))
    return {"w": base}, {"w": tuned}


def gaps() -> tuple[Tensors, Tensors]:
    before = [0x3F800000 + i * 0x9E3779 % (1 << 23) for i in range(32)]
    after = list(before)
    after[9], after[30] = before[9] + 5, before[30] - 20
    assert words(example(2), "base") == [before[9], before[30]]
    assert words(example(2), "tuned") == [after[9], after[30]]
    same = of_words("I32", [1, 2, 3])
    return {"a": of_words("F32", before), "b": same}, {"a": of_words("F32", after), "b": same}


@pytest.mark.parametrize(("number", "pair"), [(1, bitmap), (2, gaps)])
def test_an_example_is_what_is_written(number: int, pair: object, tmp_path: Path) -> None:
    assert callable(pair)
    for name, tensors in zip(("b.safetensors", "t.safetensors"), pair(), strict=True):
        (tmp_path / name).write_bytes(safetensors(tensors))
    encode_delta(tmp_path / "b.safetensors", tmp_path / "t.safetensors", tmp_path / "delta")
    text = example(number)
    _, content, frame, index = hex_blocks(text)
    with DeltaReader(tmp_path / "delta") as reader:
        (chunk,) = reader.index.chunks
        stored = reader.stored(chunk)
        assert encode_index(reader.index).hex() == index
    assert stored.hex() == frame
    assert zstandard.ZstdDecompressor().decompress(stored).hex() == content

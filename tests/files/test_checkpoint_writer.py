"""Writing of checkpoint files: few bytes are written together, wherever they belong."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rlsparse_store.errors import OutputError
from rlsparse_store.files import checkpoint_writer
from rlsparse_store.files.checkpoint_writer import CheckpointWriter
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.header import HeaderEntry
from rlsparse_store.pipeline.threads import Batch, ordered_map

if TYPE_CHECKING:
    from pathlib import Path

HEADER = b"header.."


def entries_of(sizes: list[int]) -> list[HeaderEntry]:
    ends = np.cumsum(sizes).tolist()
    return [
        HeaderEntry(f"t{i}", DTYPES["U8"], (size,), end - size, end)
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("threads", [1, 4])
def test_tensors_may_be_written_in_any_order_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, threads: int
) -> None:
    monkeypatch.setattr(checkpoint_writer, "SMALL_WRITE", 500)
    monkeypatch.setattr(checkpoint_writer, "PIECE_BYTES", 2000)
    rng = np.random.default_rng(3)
    sizes = rng.choice([0, 1, 7, 300, 499, 500, 3000], 200).tolist()
    data = [rng.bytes(size) for size in sizes]
    places = {"ascending": range(200), "descending": range(199, -1, -1)}.get(
        order, rng.permutation(200).tolist()
    )
    with CheckpointWriter(tmp_path) as writer:
        writer.add_file("a", HEADER, entries_of(sizes))

        def write(batch: Batch[int]) -> None:
            for place in batch.items:
                for start in range(0, sizes[place], 200):
                    writer.write(f"t{place}", start, data[place][start : start + 200])

        # Large, so that they are written on other threads.
        batches = (Batch([place], 1 << 20) for place in places)
        assert all(done is None for done in ordered_map(write, batches, threads))
    assert (tmp_path / "a").read_bytes() == HEADER + b"".join(data)


def test_an_error_of_the_last_small_write_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_few() -> None:
        with CheckpointWriter(tmp_path) as writer:
            writer.add_file("a", HEADER, entries_of([5]))
            monkeypatch.setattr(os, "pwrite", full)
            writer.write("t0", 0, b"bytes")

    with pytest.raises(OutputError, match="no space left"):
        write_few()

"""Chunks that are opened on threads come in order, and as many together as a device takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rlsparse_store.errors import StreamError
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.pipeline import chunk_batches

if TYPE_CHECKING:
    from collections.abc import Iterator


class Decoder:
    """Opens whatever it is given, but for one chunk."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def open(self, t: Any, chunk: Any) -> Any:  # noqa: ANN401
        if chunk.first == self.broken:
            raise StreamError("broken")
        return SimpleNamespace(tensor=t, chunk=chunk)


TENSOR: Any = SimpleNamespace(coding=WordCoding(16, OrderMap.UNSIGNED))


def opened(decoder: Decoder, number: int) -> Iterator[list[int]]:
    """Places of the chunks of each batch: of 100 words each, a tenth of which changed."""
    chunks: Any = (
        (i, TENSOR, SimpleNamespace(first=i, length=100, stored=5, changed=(10,)))
        for i in range(number)
    )
    opener: Any = decoder
    for batch in chunk_batches.open_batches(opener, chunks, 2):
        yield [place for place, _ in batch.items]


@pytest.mark.parametrize(
    ("limit", "value", "most"),
    [("BATCH_MEMORY", 900, 3), ("BATCH_CHUNKS", 4, 4)],
)
def test_batches_are_bounded(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, most: int
) -> None:
    monkeypatch.setattr(chunk_batches, limit, value)
    monkeypatch.setattr(chunk_batches, "SOME_BYTES", 700)
    found = list(opened(Decoder(), 23))
    assert [place for batch in found for place in batch] == list(range(23))
    assert {len(batch) for batch in found[:-1]} == {most}


def test_what_is_broken_is_told_after_what_was_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_batches, "BATCH_CHUNKS", 2)
    monkeypatch.setattr(chunk_batches, "SOME_BYTES", 1)
    found = opened(Decoder(broken=5), 9)
    assert [next(found), next(found)] == [[0, 1], [2, 3]]
    with pytest.raises(StreamError, match="broken"):
        next(found)

"""Order and size of the batches of chunks that threads open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rlsparse_store.errors import StreamError
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.gpu import chunk_batches

if TYPE_CHECKING:
    from collections.abc import Iterator


class Decoder:
    """A stub that opens every chunk except ``broken``."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def open(self, t: Any, chunk: Any) -> Any:  # noqa: ANN401
        if chunk.first == self.broken:
            raise StreamError("broken")
        return SimpleNamespace(tensor=t, chunk=chunk)


TENSOR: Any = SimpleNamespace(coding=WordCoding(16, OrderMap.UNSIGNED))


def open_all(decoder: Decoder, number: int) -> Iterator[list[int]]:
    """Yield the targets of each batch. Chunks have 100 words, 10 of them changed."""
    chunks: Any = (
        (i, TENSOR, SimpleNamespace(first=i, length=100, stored=5, changed=(10,)))
        for i in range(number)
    )
    opener: Any = decoder
    memory: Any = None
    for batch in chunk_batches.DeviceDecoder(opener, memory).batches(chunks, 2):
        yield [target for target, _ in batch.items]


@pytest.mark.parametrize(
    ("limit", "value", "size"),
    [("BATCH_MEMORY", 900, 3), ("BATCH_CHUNKS", 4, 4)],
)
def test_batches_are_bounded(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, size: int
) -> None:
    monkeypatch.setattr(chunk_batches, limit, value)
    monkeypatch.setattr(chunk_batches, "TASK_BYTES", 700)
    batches = list(open_all(Decoder(), 23))
    assert [target for batch in batches for target in batch] == list(range(23))
    assert {len(batch) for batch in batches[:-1]} == {size}


def test_error_follows_the_chunks_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_batches, "BATCH_CHUNKS", 2)
    monkeypatch.setattr(chunk_batches, "TASK_BYTES", 1)
    batches = open_all(Decoder(broken=5), 9)
    assert [next(batches), next(batches)] == [[0, 1], [2, 3]]
    with pytest.raises(StreamError, match="broken"):
        next(batches)

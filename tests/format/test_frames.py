"""Too little memory is no damage, and an error that Python knows."""

from __future__ import annotations

from typing import NoReturn

import pytest
import zstandard

from rlsparse_store.errors import StreamError
from rlsparse_store.format import frames


class Failing:
    """A compressor or decompressor that fails with a message of zstd's."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __getattr__(self, name: str) -> object:
        if name == "compressobj":
            return lambda **_: self

        def fail(*_: object, **__: object) -> NoReturn:
            raise zstandard.ZstdError(self._message)

        return fail


NO_MEMORY = "zstd compress error: Allocation error : not enough memory"


def test_compression_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames._CONTEXTS, "streams", Failing(NO_MEMORY))
    monkeypatch.setattr(zstandard, "ZstdCompressor", lambda **_: Failing(NO_MEMORY))
    with pytest.raises(MemoryError):
        frames.compress(b"content", [7])
    with pytest.raises(MemoryError):
        frames.compress_bytes(b"content", 3)


def test_decompression_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frames.compress_bytes(b"content", 3)
    monkeypatch.setattr(frames._CONTEXTS, "decompressor", Failing(NO_MEMORY))
    with pytest.raises(MemoryError):
        frames.decompress(frame, 7)
    monkeypatch.setattr(frames._CONTEXTS, "decompressor", Failing("Data corruption detected"))
    with pytest.raises(StreamError):
        frames.decompress(frame, 7)

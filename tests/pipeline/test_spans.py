"""Encoding of spans: the proof of each chunk, and the ways through a span."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import pytest
from pairs import SINGLE, Tensors, bf16_tensor, contents, random_tensor, save, tune

from rlsparse_store.codec.chunk import encode_chunk, encode_whole
from rlsparse_store.delta import apply_delta, encode_delta
from rlsparse_store.errors import ResultMismatchError, StreamError
from rlsparse_store.kernels.dispatch import VARIABLE, get_backend
from rlsparse_store.kernels.interface import ChangedWords
from rlsparse_store.kernels.native import instruction_sets
from rlsparse_store.kernels.numpy import NumpyBackend
from rlsparse_store.pipeline import spans

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlsparse_store.codec.chunk import EncodedChunk
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import Changes, ChunkWords

LEAF_WORDS = 8192
BLOCK_WORDS = 2 * LEAF_WORDS
BASE: Tensors = {
    "blocks": bf16_tensor(1, 5 * BLOCK_WORDS + 70),
    "one block": bf16_tensor(2, 140, 60),
}
TUNED: Tensors = {name: tune(tensor, 3) for name, tensor in BASE.items()}
PACKED: Tensors = {"packed": random_tensor(3, "U8", 40, 60)}
every_size = pytest.mark.parametrize("name", BASE)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "BLOCK_WORDS", BLOCK_WORDS)


def encode(tmp_path: Path, name: str, tuned: Tensors = TUNED) -> Path:
    base, out = save(tmp_path / "base", {name: (BASE | PACKED)[name]}), tmp_path / "delta"
    encode_delta(base, save(tmp_path / "tuned", {name: tuned[name]}), out)
    return out


def flip(words: Words) -> None:
    words[words.size // 2] ^= words.dtype.type(1)


@every_size
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.usefixtures("small_blocks")
def test_words_that_change_after_hashing_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: str
) -> None:
    def encode_altered(backend: Any, chunk: ChunkWords, *arguments: Any) -> EncodedChunk:  # noqa: ANN401
        assert isinstance(chunk.changes, ChangedWords)
        flip(chunk.base if side == "base" else chunk.changes.after)
        return encode_chunk(backend, chunk, *arguments)

    monkeypatch.setattr(spans, "encode_chunk", encode_altered)
    with pytest.raises((ResultMismatchError, StreamError), match=r"\w"):
        encode(tmp_path, name)
    assert not (tmp_path / "delta").exists()


@every_size
@pytest.mark.parametrize("altered", ["another word", "the only changed word"])
@pytest.mark.usefixtures("small_blocks")
def test_a_base_that_changes_before_it_is_compared_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, altered: str
) -> None:
    backend = type(get_backend())
    compare = backend.compare

    def compare_altered(self: Any, base: Words, tuned: Words, *arguments: Any) -> Changes:  # noqa: ANN401
        if altered == "another word":
            flip(base)
        else:
            base[:] = tuned
        return compare(self, base, tuned, *arguments)

    monkeypatch.setattr(backend, "compare", compare_altered)
    with pytest.raises(ResultMismatchError, match="changed after they were hashed"):
        encode(tmp_path, name)
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("path", [NumpyBackend.name, *instruction_sets()])
@pytest.mark.parametrize("name", [*BASE, *PACKED])
@pytest.mark.usefixtures("small_blocks")
def test_a_mask_that_changes_after_the_comparison_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    monkeypatch.setenv(VARIABLE, path)
    backend = type(get_backend())
    compare, flips = backend.compare, chain([1], repeat(0))

    def compare_altered(self: Any, base: Words, tuned: Words, coding: Any, out: Any) -> Changes:  # noqa: ANN401
        changes = compare(self, base, tuned, coding, out)
        out.first(base.size).mask[0] ^= next(flips)
        return changes

    monkeypatch.setattr(backend, "compare", compare_altered)
    tuned = TUNED | {name: tune(tensor, 3) for name, tensor in PACKED.items()}
    with pytest.raises(ResultMismatchError, match="the memory may be faulty"):
        encode(tmp_path, name, tuned)
    assert not (tmp_path / "delta").exists()


@every_size
def test_a_chunk_that_changes_before_it_is_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with_checks = spans.with_checks

    def altered(*arguments: Any) -> EncodedChunk:  # noqa: ANN401 - as with_checks has them
        chunk = with_checks(*arguments)
        return chunk._replace(stored=chunk.stored[:-1] + bytes([chunk.stored[-1] ^ 1]))

    monkeypatch.setattr(spans, "with_checks", altered)
    with pytest.raises(ResultMismatchError, match="changed after it was encoded"):
        encode(tmp_path, name)
    assert not (tmp_path / "delta").exists()


def smaller_context(chunk: EncodedChunk, *_: object) -> EncodedChunk:
    bounds, changed = (chunk.record.bounds[-1] >> 1,), (chunk.changes,)
    return chunk._replace(record=chunk.record._replace(bounds=bounds, changed=changed))


def other_words(chunk: EncodedChunk, tuned: Words, coding: Any) -> EncodedChunk:  # noqa: ANN401
    other = tuned.copy()
    flip(other)
    return encode_whole(get_backend(), chunk.record.first, other, coding)


@every_size
@pytest.mark.parametrize("broken", [smaller_context, other_words])
@pytest.mark.usefixtures("small_blocks")
def test_chunks_that_do_not_decode_to_their_words_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    broken: Callable[..., EncodedChunk],
) -> None:
    def encode_wrong(backend: Any, chunk: Any, coding: Any, bits: int | None) -> EncodedChunk:  # noqa: ANN401
        return broken(encode_chunk(backend, chunk, coding, bits), chunk.tuned(backend), coding)

    monkeypatch.setattr(spans, "encode_chunk", encode_wrong)
    with pytest.raises((ResultMismatchError, StreamError), match=r"\w"):
        encode(tmp_path, name)
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_spans_of_one_block_and_of_several_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    monkeypatch.setattr(spans, "BLOCK_WORDS", BLOCK_WORDS)
    base = {"w": bf16_tensor(4, BLOCK_WORDS + extra), "x": random_tensor(5, "U8", 100)}
    tuned = {"w": tune(base["w"], 6), "x": base["x"]}
    old, new = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(old, new, tmp_path / "plain")
    monkeypatch.setattr(spans.Span, "is_plain_block", property(lambda _: False))
    encode_delta(old, new, tmp_path / "general")
    assert contents(tmp_path / "plain") == contents(tmp_path / "general")
    apply_delta(tmp_path / "plain", tmp_path / "out", base=old)
    assert (tmp_path / "out" / SINGLE).read_bytes() == (new / SINGLE).read_bytes()

"""Small tensors: encoding many in a few calls equals encoding them one by one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Tensors, bf16_tensor, contents, random_pair, save, save_shuffled, tune

from rlsparse_store.codec.chunk import compress_draft, encode_whole
from rlsparse_store.delta import apply_delta, encode_delta, encode_run
from rlsparse_store.delta.encode import dtype_policy, encode_open
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.errors import ResultMismatchError, RlsparseError, StreamError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.kernels.dispatch import VARIABLE, get_backend
from rlsparse_store.kernels.native import instruction_sets
from rlsparse_store.pipeline import coder, decode, encode_small
from rlsparse_store.pipeline.decode_small import decode_small
from rlsparse_store.pipeline.encode_small import encode_small_spans
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.pipeline.threads import SMALL_TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.codec.chunk import EncodedChunk
    from rlsparse_store.kernels.interface import SmallDrafts, SmallTensors
    from rlsparse_store.pipeline.spans import CodedSpan

LEAF_WORDS = LEAF_BYTES // 2


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coder, "small_coding", lambda _: None)


@pytest.mark.parametrize("backend", ["numpy", *instruction_sets()])
@given(seed=st.integers(0, 2**32), threads=st.sampled_from([1, 2]))
@settings(max_examples=6)
def test_many_at_once_equal_one_by_one(backend: str, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    base, tuned = random_pair(rng, 120)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, backend)
        check_equal(Path(folder), rng, base, tuned, threads)


def check_equal(
    folder: Path, rng: np.random.Generator, base: Tensors, tuned: Tensors, threads: int
) -> None:
    old = save_shuffled(folder / "base", rng, base)
    new = save_shuffled(folder / "tuned", rng, tuned)
    with pytest.MonkeyPatch.context() as patch:
        one_by_one(patch)
        encode_delta(old, new, folder / "single", keep_dtype=True, threads=1, force=True)
    encode_delta(old, new, folder / "many", keep_dtype=True, threads=threads, force=True)
    assert contents(folder / "many") == contents(folder / "single")
    apply_delta(folder / "many", folder / "out", base=old)
    for file in new.glob("*.safetensors"):
        assert (folder / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_run_takes_the_known_hashes_of_its_base(tmp_path: Path) -> None:
    base = {f"t{i}": bf16_tensor(i, 20, 20) for i in range(50)}
    old = save(tmp_path / "base", base)
    steps = [
        save(tmp_path / f"step{i}", {name: tune(t, i) for name, t in base.items()})
        for i in range(2)
    ]
    encode_run(old, steps, tmp_path / "run")
    for step in steps:
        encode_delta(old, step, tmp_path / "alone" / step.name)
        alone = tmp_path / "alone" / step.name / "rlsparse" / "delta.safetensors"
        (entry,) = (tmp_path / "run").glob(f"{step.name}*/rlsparse/delta.safetensors")
        assert entry.read_bytes() == alone.read_bytes()


def test_batches_are_bounded_whatever_the_number_of_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {f"t{i}": bf16_tensor(i, 4, 500) for i in range(200)}
    tuned = {name: tune(tensor, 1) for name, tensor in base.items()}
    sizes: list[int] = []

    def encode_seen(backend: Any, spans: Any, *arguments: Any) -> list[CodedSpan]:  # noqa: ANN401
        sizes.append(sum(span.nbytes for span in spans))
        return encode_small_spans(backend, spans, *arguments)

    def decode_seen(*arguments: Any) -> bool:  # noqa: ANN401 - as decode_small has them
        sizes.append(2 * arguments[2].nbytes)
        return decode_small(*arguments)

    monkeypatch.setattr(coder, "encode_small_spans", encode_seen)
    monkeypatch.setattr(decode, "decode_small", decode_seen)
    old, new = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(old, new, tmp_path / "delta", threads=2)
    apply_delta(tmp_path / "delta", tmp_path / "out", base=old, threads=2)
    assert len(sizes) > 20
    assert max(sizes) <= SMALL_TASK


# --- errors ----------------------------------------------------------------------------------


def message_of(tmp_path: Path, altered: Callable[[Path], None], side: str) -> str:
    """The error of encoding a pair whose file is altered once it is open."""
    base = {f"t{i}": bf16_tensor(i, 20, 20) for i in range(80)}
    tuned = {name: tune(tensor, 1) for name, tensor in base.items()}
    folders = {"base": save(tmp_path / "base", base), "tuned": save(tmp_path / "tuned", tuned)}
    with open_checkpoint(folders["base"]) as old, open_checkpoint(folders["tuned"]) as new:
        encoder = Encoder(old, new, dtype_policy(None, keep=False))
        altered(folders[side] / "model.safetensors")
        with pytest.raises(RlsparseError) as caught:
            encode_open(encoder, tmp_path / "delta", 1, 1 << 30, no_progress, None)
    assert not (tmp_path / "delta").exists()
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_file_cut_while_it_is_read_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, kept: float
) -> None:
    def cut(file: Path) -> None:
        os.truncate(file, int(file.stat().st_size * kept))

    many = message_of(tmp_path / "many", cut, side)
    assert "it was cut short while being read" in many
    one_by_one(monkeypatch)
    assert message_of(tmp_path / "single", cut, side) == many


BASE = {f"t{i}": bf16_tensor(i, 20, 20) for i in range(40)}
TUNED = {name: tune(tensor, 1) for name, tensor in BASE.items()}


def encode(tmp_path: Path, tuned: Tensors = TUNED) -> None:
    encode_delta(save(tmp_path / "base", BASE), save(tmp_path / "tuned", tuned), tmp_path / "delta")


@pytest.mark.parametrize(
    "altered", ["another word", "the only changed word", "an unchanged tensor"]
)
def test_a_base_that_changes_before_it_is_compared_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: str
) -> None:
    backend = type(get_backend())
    draft_each = backend.draft_each

    def draft_altered(self: Any, tensors: SmallTensors, *arguments: Any) -> SmallDrafts:  # noqa: ANN401
        if altered == "the only changed word":
            tensors.base[:] = tensors.tuned
        else:
            tensors.base[5000] ^= 1
        return draft_each(self, tensors, *arguments)

    monkeypatch.setattr(backend, "draft_each", draft_altered)
    tuned = TUNED
    if altered == "an unchanged tensor":
        tuned = BASE
    with pytest.raises(ResultMismatchError, match="changed after they were hashed"):
        encode(tmp_path, tuned)
    assert not (tmp_path / "delta").exists()


def smaller_context(chunk: EncodedChunk, *_: object) -> EncodedChunk:
    bounds, changed = (chunk.record.bounds[-1] >> 1,), (chunk.changes,)
    return chunk._replace(record=chunk.record._replace(bounds=bounds, changed=changed))


def other_words(chunk: EncodedChunk, backend: Any, coding: Any, words: Any) -> EncodedChunk:  # noqa: ANN401
    other = words.copy()
    other[words.size // 2] ^= 1
    return encode_whole(backend, chunk.record.first, other, coding)


def lost_change(chunk: EncodedChunk, *_: object) -> EncodedChunk:
    changed = (chunk.record.changed[0] - 1, *chunk.record.changed[1:])
    return chunk._replace(record=chunk.record._replace(changed=changed))


@pytest.mark.parametrize("broken", [smaller_context, other_words, lost_change])
def test_chunks_that_do_not_decode_to_their_words_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., EncodedChunk]
) -> None:
    seen: list[str] = []

    def compress_wrong(backend: Any, draft: Any, coding: Any, *rest: Any) -> EncodedChunk:  # noqa: ANN401
        chunk = compress_draft(backend, draft, coding, *rest)
        seen.append("chunk")
        return broken(chunk, backend, coding, rest[-1]()) if len(seen) == 17 else chunk

    monkeypatch.setattr(encode_small, "compress_draft", compress_wrong)
    with pytest.raises((ResultMismatchError, StreamError), match=r"\w"):
        encode(tmp_path)
    assert not (tmp_path / "delta").exists()

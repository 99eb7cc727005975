"""Any part of an overlay equals that part of the tuned tensor, also over another overlay."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Tensor, bf16_tensor, random_tensor, save, tune

from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import BaseMismatchError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.words import Widening, widen
from rlsparse_store.pipeline import spans
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder
from rlsparse_store.pipeline.overlay import Overlay, TensorReader, find_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK = 1 << 13
WORDS = 20 * BLOCK + 77

Overlays = dict[str, Overlay]
Opened = tuple[dict[str, Tensor], Overlays, dict[str, Tensor], Overlays]
"""Tensors and overlays of a keyframe, and of a step over it."""


def sparse(tensor: Tensor, seed: int) -> Tensor:
    """Return the tensor with some changed stretches, so that chunks have gaps between them."""
    words = tensor.words(np.uint16)
    rng = np.random.default_rng(seed)
    for start in rng.choice(WORDS // BLOCK, 8, replace=False) * BLOCK:
        words[start + rng.integers(0, BLOCK, 30)] ^= np.uint16(1)
    return tensor.with_words(words)


def tensors() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return a base, a keyframe and a step."""
    names = ("changed", "sparse", "same", "wide", "grown", "replaced")
    base = {name: bf16_tensor(i, WORDS) for i, name in enumerate(names)}
    first = dict(base)
    first["changed"] = tune(base["changed"], 1, 0.05)
    first["sparse"] = sparse(base["sparse"], 2)
    narrow = tune(base["wide"], 3, 0.05).words(np.uint16)
    wide = widen(narrow.astype(np.uint16), Widening.BF16_TO_F32)
    first["wide"] = Tensor("F32", (WORDS,), wide.tobytes())
    grown = tune(base["grown"], 4).data + bf16_tensor(9, 3 * BLOCK).data
    first["grown"] = Tensor("BF16", (WORDS + 3 * BLOCK,), grown)
    first["replaced"] = random_tensor(5, "BF16", WORDS)
    second = dict(first)
    second["changed"] = tune(first["changed"], 6, 0.01)
    second["sparse"] = sparse(first["sparse"], 7)
    second["same"] = sparse(first["same"], 8)
    return base, first, second


@contextmanager
def small_chunks(changes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK_WORDS", BLOCK)
        for name in ("CHUNK_CHANGES", "SHORT_CHUNK_CHANGES"):
            patch.setattr(spans, name, changes)
        yield


def open_overlays(
    stack: ExitStack, folder: Path, sources: Callable[[str], TensorReader] | None, base: Path
) -> Overlays:
    reader = stack.enter_context(DeltaReader(folder))
    checkpoint = stack.enter_context(open_checkpoint(base))
    decoder = ChunkDecoder(reader, base)
    chunks = reader.index.chunks_of_tensors()
    opened: Overlays = {}
    for t in reader.index.tensors:
        found: TensorReader | None = find_source(t, checkpoint)
        if sources is not None and found is not None:
            found = sources(t.origin)
        opened[t.name] = Overlay(t, chunks.get(t.name, []), found, decoder)
    return opened


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Opened]:
    """A keyframe over the base, and a step over the keyframe."""
    work = tmp_path_factory.mktemp("overlay")
    base, first, second = tensors()
    folders = [
        save(work / name, pair)
        for name, pair in zip(("base", "first", "second"), tensors(), strict=True)
    ]
    with small_chunks(1100):
        encode_delta(folders[0], folders[1], work / "keyframe", threads=1)
    with small_chunks(150):
        encode_delta(folders[1], folders[2], work / "step", threads=1)
    assert base.keys() == first.keys() == second.keys()
    with ExitStack() as stack:
        keyframe = open_overlays(stack, work / "keyframe", None, folders[0])
        step = open_overlays(stack, work / "step", keyframe.__getitem__, folders[1])
        yield first, keyframe, second, step


def test_chunks_of_both_deltas_differ(
    opened: Opened,
) -> None:
    _, keyframe, _, step = opened
    ends = {c.first + c.length for c in keyframe["changed"].chunks}
    assert len(ends) > 2
    straddling = [
        c for c in step["changed"].chunks if any(c.first < end < c.first + c.length for end in ends)
    ]
    assert straddling


@pytest.mark.parametrize("of_step", [False, True])
@given(data=st.data())
@settings(max_examples=60)
def test_any_part(
    opened: Opened,
    of_step: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    tuned, overlays = opened[2:] if of_step else opened[:2]
    name = data.draw(st.sampled_from(sorted(tuned)))
    expected = np.frombuffer(tuned[name].data, np.uint8)
    itemsize = 4 if name == "wide" else 2
    overlay = overlays[name]
    for _ in range(data.draw(st.integers(1, 3))):
        words = expected.size // itemsize
        start = data.draw(st.integers(0, words))
        stop = data.draw(st.integers(start, words))
        part = expected[start * itemsize : stop * itemsize]
        out = np.empty(part.size, np.uint8)
        overlay.read_into(start * itemsize, out)
        assert np.array_equal(out, part)
        scale = expected.size // overlay.coded_nbytes
        first, end = start * itemsize // scale, stop * itemsize // scale
        assert np.array_equal(overlay.widen(overlay.view(first, end)), part)
        if overlay.source is not None and end <= overlay.shared_nbytes:
            base = np.empty(end - first, np.uint8)
            overlay.read_source(first, base)
            assert np.array_equal(overlay.widen(overlay.view(first, end, base)), part)


def test_a_view_without_chunks_is_the_base_itself(
    opened: Opened,
) -> None:
    same = opened[1]["same"]
    base = np.empty(100, np.uint8)
    same.read_source(50, base)
    assert same.view(50, 150, base) is base


def test_segments_cover_the_tensor(
    opened: Opened,
) -> None:
    for overlay in (*opened[1].values(), *opened[3].values()):
        position = 0
        for segment in overlay.segments():
            assert segment.start == position
            assert segment.nbytes > 0
            position = segment.stop
        assert position == overlay.coded_nbytes
        assert [s.chunk for s in overlay.segments() if s.chunk is not None] == overlay.chunks


def test_a_keyframe_is_checked_against_the_base_of_a_step(
    opened: Opened,
) -> None:
    _, keyframe, _, step = opened
    right = step["changed"]
    wrong = Overlay(right.tensor, right.chunks, keyframe["sparse"], right._decoder)
    with pytest.raises(BaseMismatchError, match="has different values"):
        wrong.read_into(0, np.empty(100, np.uint8))


def read_all(overlay: Overlay) -> NDArray[np.uint8]:
    out = np.empty(overlay.nbytes, np.uint8)
    overlay.read_into(0, out)
    return out


def test_whole_tensors(
    opened: Opened,
) -> None:
    for tuned, overlays in (opened[:2], opened[2:]):
        for name, tensor in tuned.items():
            assert read_all(overlays[name]).tobytes() == tensor.data

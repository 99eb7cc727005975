"""The kernels of a GPU against the NumPy backend, bit for bit, under Triton's interpreter.

Or on the device that ``RLSPARSE_TEST_DEVICE`` names, for fewer word codings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from device_chunks import (
    CPU,
    DEVICE,
    changes_on_device,
    chunk,
    compared,
    contexts,
    on_device,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import numbers

from rlsparse_store.codec.chunk import candidate_rows, split_chunk
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.errors import StreamError
from rlsparse_store.format.digests import leaf_hashes
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.gpu import kernels, launch
from rlsparse_store.gpu.chunk_streams import make_streams
from rlsparse_store.gpu.chunk_words import CodedWords
from rlsparse_store.gpu.diff import diff, flag_rows, histograms
from rlsparse_store.gpu.hashing import hash_on_device
from rlsparse_store.gpu.join import join_chunks, verify_chunks
from rlsparse_store.gpu.split import partitions
from rlsparse_store.kernels import interface
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import ChangeList

if TYPE_CHECKING:
    from collections.abc import Callable


CODINGS = [WordCoding(width, order) for width in (8, 16, 32) for order in OrderMap]
some_codings = pytest.mark.parametrize(
    "coding", CODINGS[::4], ids=lambda c: f"{c.width}-{c.order.name}"
)
every_coding = pytest.mark.parametrize("coding", CODINGS, ids=lambda c: f"{c.width}-{c.order.name}")
if DEVICE != "cpu":
    # For each coding the kernels are compiled anew, for half a minute or more.
    every_coding = some_codings


@every_coding
@given(
    seed=st.integers(0, 1 << 20),
    words=st.integers(1, 9000),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0]),
    number=st.sampled_from([1, 3, 7, 12, 16]),
    length=st.sampled_from([None, 1, 7, 4096, 5001]),
)
@settings(max_examples=3)
def test_equals_the_definition(
    coding: WordCoding, seed: int, words: int, density: float, number: int, length: int | None
) -> None:
    base, tuned = chunk(seed, words, coding, density)
    row = None if length is None else (length, seed % length)
    (whole,) = compared(coding, (base, tuned, row))
    old, new, changes = whole.base, whole.tuned, whole.changes
    assert changes_on_device(old, new, coding) == changes
    rows = None
    if row is not None:
        rows = CPU.active_rows(CPU.changed_words(base, tuned, coding), base.size, *row)
        assert np.array_equal(flag_rows([whole])[0].active, rows.active)
    bins = key_bins(coding, {8: 3, 16: 7, 32: 23}[coding.width])
    for every in (1, 2):
        expected = CPU.histogram(
            base, CPU.changed_words(base, tuned, coding), coding, bins, rows, every
        )
        (counted,) = histograms([whole], coding, bins, [rows], [every])
        assert np.array_equal(counted.words, expected.words)
        assert np.array_equal(counted.magnitudes, expected.magnitudes)
    if changes.count == 0:
        return
    bounds = contexts(changes.top_key, number)
    streams = CPU.partition(base, CPU.changed_words(base, tuned, coding), coding, bounds, rows)
    (found,) = partitions([whole], coding, [bounds], [rows])
    assert numbers(found) == numbers(streams)

    coded = CodedWords(old, bounds, rows, streams.changed, streams.content)
    assert verify_chunks([coded], [new], coding) == [None]
    assert join_chunks([coded], coding) == [None]
    assert torch.equal(old, new)


def several(coding: WordCoding) -> list[tuple[Any, Any, tuple[int, int] | None]]:
    """Chunks of one word to several tiles, of every density, with and without rows."""
    plan = [(1, 1.0), (20_001, 0.03), (16_384, 0.2), (5, 0.5), (20_000, 0.0005)]
    found = []
    for seed, (words, density) in enumerate(plan):
        base, tuned = chunk(seed, words, coding, density)
        tuned[0] = base[0] + 1
        tuned[words // 4 : words // 2] = base[words // 4 : words // 2]
        found.append((base, tuned, None if seed % 2 == 0 else (300, 11)))
    return found


@some_codings
def test_chunks_together_as_one_by_one(coding: WordCoding) -> None:
    chunks = several(coding)
    placed = compared(coding, *chunks)
    mantissa = {8: 3, 16: 7, 32: 23}[coding.width]
    drafts = make_streams(placed, coding, mantissa)
    for (base, tuned, row), draft in zip(chunks, drafts, strict=True):
        row_words, first = row or (None, 0)
        changes = CPU.changed_words(base, tuned, coding)
        one = interface.ChunkWords(first, base, row_words, changes)
        expected = split_chunk(CPU, one, coding, mantissa, candidate_rows(CPU, one))
        assert np.array_equal(draft.bounds, expected.bounds)
        assert numbers(draft) == numbers(expected)
        assert (draft.rows is None) == (expected.rows is None)
        if draft.rows is not None and expected.rows is not None:
            assert np.array_equal(draft.rows.active, expected.rows.active)
    coded = [
        CodedWords(words.base, d.bounds, d.rows, d.changed, d.content)
        for words, d in zip(placed, drafts, strict=True)
    ]
    tuned_words = [words.tuned for words in placed]
    assert verify_chunks(coded, tuned_words, coding) == [None] * len(coded)
    # One word that is not what was coded is noticed, and whose it is; so is a broken stream.
    placed[1].tuned[0] += 1
    problems = verify_chunks(coded, tuned_words, coding)
    assert [problem is None for problem in problems] == [i != 1 for i in range(len(coded))]
    coded[2] = replace(coded[2], content=bytes(coded[2].content[:-1]))
    problems = join_chunks(coded, coding)
    assert [problem is None for problem in problems] == [i != 2 for i in range(len(coded))]
    # Then nothing was written.
    for (base, _, _), words in zip(chunks, placed, strict=True):
        assert torch.equal(words.base, on_device(base))


def test_gaps_that_escape_and_far_steps() -> None:
    """Changes far apart within a dense context, by one step and by the most there are."""
    coding = WordCoding(32, OrderMap.TWOS_COMPLEMENT)
    base = np.zeros(60_000, np.uint32)
    tuned = base.copy()
    tuned[[3, 5, 20_000, 59_999]] = [1, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF]
    tuned[30_000:31_000] = np.arange(1, 1001, dtype=np.uint32) << 20
    (whole,) = compared(coding, (base, tuned, None))
    bounds = np.array([0], np.uint64)
    streams = CPU.partition(base, CPU.changed_words(base, tuned, coding), coding, bounds, None)
    (found,) = partitions([whole], coding, [bounds], [None])
    assert numbers(found) == numbers(streams)
    coded = CodedWords(whole.base, bounds, None, streams.changed, streams.content)
    assert join_chunks([coded], coding) == [None]
    assert torch.equal(whole.base, whole.tuned)


@every_coding
@given(seed=st.integers(0, 1 << 20), cut=st.integers(-3, 40), place=st.floats(0, 1))
@settings(max_examples=6)
def test_damaged_streams_are_refused_as_the_definition_does(
    coding: WordCoding, seed: int, cut: int, place: float
) -> None:
    base, tuned = chunk(seed, 3000, coding, 0.05 if seed % 2 else 0.4)
    changes = CPU.compare(base, tuned, coding, ChangeList())
    bounds = contexts(changes.top_key, 3)
    streams = CPU.partition(base, CPU.changed_words(base, tuned, coding), coding, bounds, None)
    content = bytearray(streams.content)
    content[int(place * (len(content) - 1))] ^= 1 << seed % 8
    damaged = bytes(content[: len(content) - cut] if cut > 0 else content + bytes(-cut))
    expected = np.empty_like(base)
    out = on_device(base)
    (problem,) = join_chunks([CodedWords(out, bounds, None, streams.changed, damaged)], coding)
    try:
        CPU.apply(base, coding, bounds, None, streams.changed, damaged, expected)
    except StreamError:
        assert isinstance(problem, StreamError)
        assert torch.equal(out, on_device(base))
    else:
        assert problem is None
        assert torch.equal(out, on_device(expected))


@pytest.mark.parametrize("nbytes", [0, 1, 16383, 16384, 16385, 5 * 16384, 40 * 16384 + 100])
def test_leaf_hashes(nbytes: int) -> None:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    assert np.array_equal(hash_on_device(torch.from_numpy(data).to(DEVICE)), leaf_hashes(data))


def test_wherever_torch_makes_tensors_by_default() -> None:
    coding = WordCoding(16, OrderMap.TWOS_COMPLEMENT)
    base, tuned = chunk(3, 5000, coding, 0.1)
    (whole,) = compared(coding, (base, tuned, None))
    old, new = whole.base, whole.tuned
    with torch.device("meta"):
        leaves = hash_on_device(new.view(torch.uint8))
        (draft,) = make_streams([whole], coding, None)
        coded = CodedWords(old, draft.bounds, None, draft.changed, draft.content)
        assert join_chunks([coded], coding) == [None]
    assert np.array_equal(leaves, leaf_hashes(tuned.view(np.uint8)))
    assert torch.equal(old, new)


class _Failing:
    """A kernel that fails as one does that the driver cannot load."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __getitem__(self, _: object) -> Callable[..., None]:
        def launch(*_: object) -> None:
            raise RuntimeError(self.problem)

        return launch


def test_what_the_driver_says_of_memory() -> None:
    words = torch.zeros(1)
    with pytest.raises(torch.OutOfMemoryError):
        launch.launch(_Failing("Triton Error [CUDA]: out of memory"), 1)(words)
    with pytest.raises(RuntimeError, match="illegal") as told:
        launch.launch(_Failing("Triton Error [CUDA]: an illegal address"), 1)(words)
    assert not isinstance(told.value, torch.OutOfMemoryError)


def test_diff_by_block() -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    base, tuned = chunk(1, 70_000, coding, 0.01)
    tuned[16384:32768] = base[16384:32768]
    other = chunk(2, 20_001, coding, 0.1)
    runs = [(base, tuned), other]
    found = diff([(on_device(a), on_device(b)) for a, b in runs], coding)
    for run, (before, after) in enumerate(runs):
        blocks = found.blocks(run, 16384)
        assert len(blocks) == -(-before.size // 16384)
        for number, changes in enumerate(blocks):
            block = slice(16384 * number, 16384 * (number + 1))
            assert changes == get_backend().compare(
                before[block], after[block], coding, ChangeList()
            )


def test_words_at_odd_addresses() -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    base, tuned = chunk(1, 5001, coding, 0.1)
    old, new = on_device(base)[1:], on_device(tuned)[1:]
    assert old.data_ptr() % 16
    assert changes_on_device(old, new, coding) == CPU.compare(
        base[1:], tuned[1:], coding, ChangeList()
    )


def test_several_chunks_take_no_more_launches_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    launched: Counter[str] = Counter()
    for name in kernels.__all__:
        monkeypatch.setattr(kernels, name, Counted(name, launched))

    def launches(number: int) -> Counter[str]:
        launched.clear()
        pairs = [chunk(seed, 2000, coding, 0.1) for seed in range(number)]
        placed = compared(coding, *((a, b, (100, 0)) for a, b in pairs))
        drafts = make_streams(placed, coding, 7)
        coded = [
            CodedWords(words.base, d.bounds, d.rows, d.changed, d.content)
            for words, d in zip(placed, drafts, strict=True)
        ]
        assert join_chunks(coded, coding) == [None] * number
        return launched.copy()

    assert launches(4) == launches(1)


class Counted:
    """A kernel whose launches are counted."""

    def __init__(self, name: str, launched: Counter[str]) -> None:
        self._name, self._launched = name, launched
        self._kernel = getattr(kernels, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:  # noqa: ANN401 - Triton's
        self._launched[self._name] += 1
        return self._kernel[grid]

"""The GPU backend against the NumPy backend, bit for bit, under Triton's interpreter."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_store.backends import get_backend
from rlsparse_store.backends.gpu import GpuBackend, hash_on_device
from rlsparse_store.backends.numpy import NumpyBackend
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.digest import leaf_hashes
from rlsparse_store.dtypes import OrderMap, WordCoding
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GPU, CPU = GpuBackend(), NumpyBackend()
CODINGS = [WordCoding(width, order) for width in (8, 16, 32) for order in OrderMap]
every_coding = pytest.mark.parametrize("coding", CODINGS, ids=lambda c: f"{c.width}-{c.order.name}")
TYPES: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}
SPECIAL = (0, 1, 0x7F, 0x80, 0xFF, 0x7F80, 0x8000, 0xFF80, 0xFFFF, 0x80000000, 0xFFFFFFFF)


def on_device(words: NDArray[Any]) -> torch.Tensor:
    signed = words.view(f"i{words.itemsize}")
    return torch.from_numpy(signed.copy())


def chunk(seed: int, words: int, coding: WordCoding, density: float) -> tuple[Any, Any]:
    """Words around zero, special ones among them, some of which moved near or far."""
    rng = np.random.default_rng(seed)
    kind = TYPES[coding.width]
    spread = rng.normal(0, 1, words).astype(np.float32).view(np.uint32)
    base = (spread >> np.uint32(32 - coding.width)).astype(kind)
    special = np.array([value & ((1 << coding.width) - 1) for value in SPECIAL], kind)
    lucky = rng.random(words) < 0.02
    base[lucky] = rng.choice(special, int(lucky.sum()))
    hit = rng.random(words) < density
    near = rng.integers(0, 8, words).astype(kind)
    far = rng.integers(0, 1 << coding.width, words, dtype=np.uint64).astype(kind)
    moved = np.where(rng.random(words) < 0.9, base + near, far).astype(kind)
    return base, np.where(hit, moved, base).astype(kind)


def contexts(top: int, number: int) -> NDArray[np.uint64]:
    """So many bounds, of which the last is at least ``top``."""
    inner = np.linspace(0, top, number + 1)[1:-1].astype(np.uint64)
    return np.unique(np.append(inner, np.uint64(top)))


@every_coding
@given(
    seed=st.integers(0, 1 << 20),
    words=st.integers(1, 9000),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0]),
    number=st.integers(1, 16),
    length=st.sampled_from([None, 1, 7, 4096]),
)
@settings(max_examples=12)
def test_equals_the_definition(
    coding: WordCoding, seed: int, words: int, density: float, number: int, length: int | None
) -> None:
    base, tuned = chunk(seed, words, coding, density)
    old, new = on_device(base), on_device(tuned)
    changes = CPU.changes(base, tuned, coding)
    assert GPU.changes(old, new, coding) == changes
    rows = None
    if length is not None:
        rows = CPU.active_rows(base, tuned, length, seed % length)
        found = GPU.active_rows(old, new, length, seed % length)
        assert np.array_equal(found.active, rows.active)
    bins = key_bins(coding, {8: 3, 16: 7, 32: 23}[coding.width])
    for every in (1, 2):
        expected = CPU.histogram(base, tuned, coding, bins, rows, every)
        counted = GPU.histogram(old, new, coding, bins, rows, every)
        assert np.array_equal(counted.words, expected.words)
        assert np.array_equal(counted.magnitudes, expected.magnitudes)
    if changes.number == 0:
        return
    bounds = contexts(changes.top_key, number)
    streams = CPU.partition(base, tuned, coding, bounds, rows)
    assert astuple(GPU.partition(old, new, coding, bounds, rows)) == astuple(streams)

    content = b"".join(
        [*streams.masks, streams.signs, streams.classes, streams.exponents, streams.low_bits]
    )
    out = torch.empty_like(old)
    GPU.apply(old, coding, bounds, rows, streams.changed, content, out)
    assert torch.equal(out, new)
    GPU.apply(old, coding, bounds, rows, streams.changed, content, old)
    assert torch.equal(old, new)


@pytest.mark.parametrize("length", [None, 300])
@pytest.mark.parametrize("coding", CODINGS[::4], ids=lambda c: f"{c.width}-{c.order.name}")
def test_chunks_of_several_tiles(coding: WordCoding, length: int | None) -> None:
    base, tuned = chunk(7, 70_001, coding, 0.03)
    tuned[20_000:50_000] = base[20_000:50_000]
    old, new = on_device(base), on_device(tuned)
    rows = None if length is None else CPU.active_rows(base, tuned, length, 11)
    bounds = contexts(CPU.changes(base, tuned, coding).top_key, 8)
    streams = CPU.partition(base, tuned, coding, bounds, rows)
    assert astuple(GPU.partition(old, new, coding, bounds, rows)) == astuple(streams)


@every_coding
@given(seed=st.integers(0, 1 << 20), cut=st.integers(-3, 40), place=st.floats(0, 1))
@settings(max_examples=20)
def test_damaged_streams_are_refused_as_the_definition_does(
    coding: WordCoding, seed: int, cut: int, place: float
) -> None:
    base, tuned = chunk(seed, 3000, coding, 0.05 if seed % 2 else 0.4)
    changes = CPU.changes(base, tuned, coding)
    bounds = contexts(changes.top_key, 3)
    streams = CPU.partition(base, tuned, coding, bounds, None)
    content = bytearray(
        b"".join(
            [*streams.masks, streams.signs, streams.classes, streams.exponents, streams.low_bits]
        )
    )
    content[int(place * (len(content) - 1))] ^= 1 << seed % 8
    damaged = bytes(content[: len(content) - cut] if cut > 0 else content + bytes(-cut))
    expected = np.empty_like(base)
    out = torch.empty_like(on_device(base))
    try:
        CPU.apply(base, coding, bounds, None, streams.changed, damaged, expected)
    except StreamError:
        with pytest.raises(StreamError):
            GPU.apply(on_device(base), coding, bounds, None, streams.changed, damaged, out)
    else:
        GPU.apply(on_device(base), coding, bounds, None, streams.changed, damaged, out)
        assert torch.equal(out, on_device(expected))


@pytest.mark.parametrize("nbytes", [0, 1, 16383, 16384, 16385, 5 * 16384, 40 * 16384 + 100])
def test_leaf_hashes(nbytes: int) -> None:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    assert np.array_equal(hash_on_device(torch.from_numpy(data)), leaf_hashes(data))


def test_survey_by_block() -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    base, tuned = chunk(1, 70_000, coding, 0.01)
    tuned[16384:32768] = base[16384:32768]
    survey = GPU.survey(on_device(base), on_device(tuned), coding, 16384)
    for number, start in enumerate(range(0, 70_000, 16384)):
        block = slice(start, start + 16384)
        expected = get_backend().changes(base[block], tuned[block], coding)
        assert (survey.numbers[number], survey.top_keys[number]) == astuple(expected)

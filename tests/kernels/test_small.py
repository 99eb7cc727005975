"""Kernels for many small tensors: each call equals those for one tensor, on every backend."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_store.codec.chunk import DRAFT_RULES
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.errors import StreamError
from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.kernels.interface import CpuBackend, SmallTensors
from rlsparse_store.kernels.native import instruction_sets, load_native
from rlsparse_store.kernels.numpy import NumpyBackend

if TYPE_CHECKING:
    from collections.abc import Callable

LEAF_WORDS = LEAF_BYTES // 2


@pytest.mark.parametrize("name", instruction_sets())
@given(seed=st.integers(0, 2**32), code=st.sampled_from(["BF16", "F32", "I8", "I64"]))
@settings(max_examples=20)
def test_calls_for_many_equal_those_for_one(name: str, seed: int, code: str) -> None:
    rng, coding = np.random.default_rng(seed), DTYPES[code].coding
    native, single = load_native(name), NumpyBackend()
    most = LEAF_BYTES * 8 // coding.width
    ends = np.cumsum(rng.choice([1, 63, 64, 65, 400, most], 9)).astype(np.uint64)
    dtype = np.dtype(f"u{coding.width // 8}")
    base = np.frombuffer(rng.bytes(int(ends[-1]) * dtype.itemsize), dtype).copy()
    tuned = base ^ (rng.random(base.size) < rng.choice([0.002, 0.1, 1])).astype(dtype)
    rows = rng.choice([0, 1, 16], ends.size).astype(np.uint64)
    tensors = SmallTensors(base, tuned, ends, rows)
    bins = key_bins(coding, DTYPES[code].mantissa_bits)
    found = native.draft_each(tensors, coding, bins, DRAFT_RULES)
    assert found.changes == single.draft_each(tensors, coding, bins, DRAFT_RULES).changes
    chunks = [
        None
        if draft is None or draft.has_row_flags
        else (tuple(draft.bounds), tuple(draft.changed), draft.content)
        for draft in found.drafts
    ]
    results = []
    for backend in (native, single):
        out, leaves = base.copy(), np.zeros(ends.size, np.uint64)
        backend.apply_each(base, ends, coding, chunks, out, leaves)
        hashed = backend.hash_each(out.view(np.uint8), ends * np.uint64(dtype.itemsize))
        only_hashes = np.zeros_like(leaves)
        backend.apply_each(base, ends, coding, chunks, None, only_hashes)
        assert np.array_equal(leaves, only_hashes)
        assert np.array_equal(leaves[leaves > 0], hashed[leaves > 0])
        results.append((out.tobytes(), leaves.tobytes()))
    assert results[0] == results[1]
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if chunks[i] is not None:
            assert results[0][0][start * dtype.itemsize : end * dtype.itemsize] == (
                tuned[int(start) : int(end)].tobytes()
            )


@pytest.mark.parametrize("name", instruction_sets())
def test_mismatched_arguments_are_refused(name: str) -> None:
    backend, coding = load_native(name), DTYPES["BF16"].coding
    words, bins = np.zeros(100, np.uint16), key_bins(coding, 7)
    leaves = np.zeros(2, np.uint64)

    def ends(*places: int) -> Any:  # noqa: ANN401 - an array
        return np.array(places, np.uint64)

    for wrong in (ends(50, 50), ends(60, 101), ends(60, 99), ends(70, 60)):
        rows = np.zeros(wrong.size, np.uint64)
        with pytest.raises(ValueError, match="tensor"):
            backend.draft_each(SmallTensors(words, words, wrong, rows), coding, bins, DRAFT_RULES)
        with pytest.raises(ValueError, match="tensor"):
            backend.apply_each(words, wrong, coding, [None, None], None, leaves)
    long = np.zeros(LEAF_WORDS + 1, np.uint16)
    with pytest.raises(ValueError, match="leaf"):
        backend.apply_each(long, ends(long.size), coding, [None], None, leaves[:1])
    with pytest.raises(ValueError, match="leaf"):
        backend.hash_each(long.view(np.uint8), ends(2 * long.size))
    good = ends(50, 100)
    chunk = ((32767,), (1,), b"")
    with pytest.raises(ValueError, match="one chunk"):
        backend.apply_each(words, good, coding, [None], None, leaves)
    with pytest.raises(StreamError):
        backend.apply_each(words, good, coding, [None, chunk], None, leaves)
    for bounds in ((), (7, 7), (65535,), tuple(range(17))):
        streams = (bounds, (1,) * len(bounds), b"")
        with pytest.raises(ValueError, match=r"bounds|contexts"):
            backend.apply_each(words, good, coding, [streams, None], None, leaves)


@pytest.mark.parametrize("name", instruction_sets())
@given(
    content=st.binary(max_size=80),
    bounds=st.lists(st.integers(0, 32767), min_size=1, max_size=16, unique=True).map(sorted),
    data=st.data(),
)
@settings(max_examples=60)
def test_any_streams_give_what_one_call_gives(
    name: str, content: bytes, bounds: list[int], data: st.DataObject
) -> None:
    backend, coding = load_native(name), DTYPES["BF16"].coding
    count = data.draw(st.integers(1, 200))
    changed = data.draw(st.lists(st.integers(0, 2 * count), min_size=16, max_size=16))
    words = np.frombuffer(np.random.default_rng(count).bytes(4 * count), np.uint16)
    ends = np.array([count, 2 * count], np.uint64)
    streams = (tuple(bounds), tuple(changed[: len(bounds)]), content)

    def outcome(apply_each: Callable[..., None]) -> tuple[bytes, bytes] | str:
        out, leaves = words.copy(), np.zeros(2, np.uint64)
        try:
            apply_each(words, ends, coding, [None, streams], out, leaves)
        except StreamError as error:
            return str(error)
        return out.tobytes(), leaves.tobytes()

    assert outcome(backend.apply_each) == outcome(partial(CpuBackend.apply_each, backend))

"""Backends against a slow model of the format on Python integers.

On inputs too large for the model, the native backends against the NumPy backend, bit for bit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import numbers
from xxhash import xxh3_64_intdigest

from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.errors import BackendError, StreamError
from rlsparse_store.format.digests import LEAF_BYTES, leaf_hashes
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.order import add_steps, keys, steps
from rlsparse_store.format.words import as_words, to_bytes
from rlsparse_store.kernels import dispatch
from rlsparse_store.kernels.dispatch import VARIABLE, get_backend
from rlsparse_store.kernels.interface import ChangedWords, ChangeList, CpuBackend, Rows
from rlsparse_store.kernels.native import instruction_sets, load_native
from rlsparse_store.kernels.numpy import NumpyBackend, kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words

BACKEND = NumpyBackend()
BACKEND_NAMES = ["numpy", *instruction_sets()]
NATIVE = [load_native(name) for name in instruction_sets()]
every_backend = pytest.mark.parametrize("backend", [BACKEND, *NATIVE], ids=BACKEND_NAMES)
CODINGS = [WordCoding(width, order) for width in (4, 8, 16, 32, 64) for order in OrderMap]
TYPES: dict[int, Any] = {4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
every_coding = pytest.mark.parametrize("coding", CODINGS, ids=lambda c: f"{c.width}-{c.order.name}")


# --- section 2, on integers ------------------------------------------------------------------


def order_of(word: int, coding: WordCoding) -> int:
    top = 1 << (coding.width - 1)
    if coding.order is OrderMap.SIGN_MAGNITUDE and word & top:
        return word ^ (top - 1)
    return word


def key_of(word: int, coding: WordCoding) -> int:
    top = 1 << (coding.width - 1)
    low = word % top
    if coding.order is OrderMap.UNSIGNED:
        return word
    if coding.order is OrderMap.SIGN_MAGNITUDE or word < top:
        return low
    return top - 1 - low


def step_of(base: int, tuned: int, coding: WordCoding) -> int:
    distance = (order_of(tuned, coding) - order_of(base, coding)) % (1 << coding.width)
    return distance - (1 << coding.width) if distance >> (coding.width - 1) else distance


# --- section 4.2, on lists of bits -----------------------------------------------------------


def field(value: int, width: int) -> list[int]:
    return [value >> i & 1 for i in range(width)]


def packed(bits: list[int]) -> bytes:
    return bytes(
        sum(bit << i for i, bit in enumerate(bits[start : start + 8]))
        for start in range(0, len(bits), 8)
    )


def mask_of(ranks: list[int], n: int) -> bytes:
    k = len(ranks)
    if k in (0, n):
        return b""
    if 6 * k >= n:
        return packed([int(rank in ranks) for rank in range(n)])
    r = 0
    while 2 ** (r + 1) <= n // (6 * k):
        r += 1
    gaps = [b - a - 1 for a, b in zip([-1, *ranks], ranks, strict=False)]
    low = packed([bit for gap in gaps for bit in field(gap, r)])
    high = bytes(min(gap // 2**r, 255) for gap in gaps)
    escapes = [gap // 2**r - 255 for gap in gaps if gap // 2**r >= 255]
    return low + high + b"".join(escape.to_bytes(4, "little") for escape in escapes)


@dataclass
class Expected:
    counts: list[int]
    changed: list[int]
    masks: list[bytes]
    values: tuple[bytes, bytes, bytes, bytes]
    steps: list[int]


def values_of(moves: list[int], width: int) -> tuple[bytes, bytes, bytes, bytes]:
    far = [abs(step) - 3 for step in moves if abs(step) > 3]
    exponents = [y.bit_length() - 1 for y in far]
    return (
        packed([int(step < 0) for step in moves]),
        packed([bit for step in moves for bit in field(min(abs(step) - 1, 3), 2)]),
        packed([bit for q in exponents for bit in field(q, 4 if width <= 16 else 8)]),
        packed([bit for y, q in zip(far, exponents, strict=True) for bit in field(y, q)]),
    )


def expected_streams(
    base: list[int], tuned: list[int], coding: WordCoding, bounds: list[int], live: list[bool]
) -> Expected:
    counts, changed, masks, moves = [], [], [], []
    below = -1
    for bound in bounds:
        members = [i for i, b in enumerate(base) if live[i] and below < key_of(b, coding) <= bound]
        ranks = [rank for rank, i in enumerate(members) if base[i] != tuned[i]]
        moves += [step_of(base[members[r]], tuned[members[r]], coding) for r in ranks]
        counts.append(len(members))
        changed.append(len(ranks))
        masks.append(mask_of(ranks, len(members)))
        below = bound
    sides = [[-1, -2, -3], [1, 2, 3]]
    near = [[moves.count(step) for step in side] for side in sides]
    far = [sum(step <= -4 for step in moves), sum(step >= 4 for step in moves)]
    steps = [*near[0], far[0], *near[1], far[1]]
    return Expected(counts, changed, masks, values_of(moves, coding.width), steps)


# --- cases -----------------------------------------------------------------------------------


def specials(width: int) -> list[int]:
    """Zeros, ones, the ends of each range, and the special values of the floats of this width."""
    top = 1 << (width - 1)
    floats: dict[int, tuple[int, ...]] = {}
    floats[16] = (0x7C00, 0x7C01, 0x7E00, 0x7F80, 0x7F81, 0x7FC0, 0x03FF, 0x0080)
    floats[32] = (0x7F800000, 0x7F800001, 0x7FC00000, 0x007FFFFF)
    floats[64] = (0x7FF0 << 48, (0x7FF0 << 48) + 1, 0x7FF8 << 48, (1 << 52) - 1)
    positive = [0, 1, 2, top - 1, *floats.get(width, ())]
    return [*positive, *(word | top for word in positive), 2 * top - 1]


@dataclass
class Case:
    base: list[int]
    tuned: list[int]
    bounds: list[int]
    row: tuple[int, int] | None


@st.composite
def cases(draw: st.DrawFn, coding: WordCoding) -> Case:
    word = st.one_of(st.sampled_from(specials(coding.width)), st.integers(0, 2**coding.width - 1))
    base = draw(st.lists(word, min_size=1, max_size=80))
    last = len(base) - 1
    chosen: Callable[[int], bool] = draw(
        st.sampled_from([lambda _: True, lambda i: i == 0, lambda i: i == last])
        | st.sets(st.integers(0, last), min_size=1).map(lambda indices: indices.__contains__)
    )
    tuned = [draw(word.filter(b.__ne__)) if chosen(i) else b for i, b in enumerate(base)]
    top = 2**coding.key_bits - 1
    moved = [key_of(b, coding) for b, t in zip(base, tuned, strict=True) if b != t]
    inner = draw(st.sets(st.integers(0, top) | st.sampled_from(moved), max_size=15))
    last_bound = draw(st.sampled_from([max(moved), top]))
    bounds = sorted({bound for bound in inner if bound < last_bound} | {last_bound})
    length = draw(st.integers(1, 12))
    row = draw(st.none() | st.tuples(st.just(length), st.integers(0, length - 1)))
    return Case(base, tuned, bounds, row)


def array(words: list[int], coding: WordCoding) -> Words:
    result: Words = np.array(words, dtype=TYPES[coding.width])
    return result


def check_leaf_hashes(
    backend: CpuBackend,
    base: Words,
    coding: WordCoding,
    bounds: NDArray[np.uint64],
    rows: Rows | None,
    changed: list[int],
    content: bytes | memoryview,
) -> None:
    """Assert that decoding with and without an output gives the leaf hashes of the words."""
    if coding.width == 4 and base.size % 2:
        return  # such words fill no whole number of bytes
    arguments = (coding, bounds, rows, changed, content)
    decoded = np.empty_like(base)
    BACKEND.apply(base, *arguments, decoded)
    expected = leaf_hashes(to_bytes(decoded, coding.width)).tolist()
    apart, in_place = np.empty_like(base), base.copy()
    assert backend.apply_hashed(base, *arguments, None).tolist() == expected, backend.name
    assert backend.apply_hashed(base, *arguments, apart).tolist() == expected, backend.name
    assert backend.apply_hashed(in_place, *arguments, in_place).tolist() == expected, backend.name
    assert apart.tolist() == in_place.tolist() == decoded.tolist(), backend.name


def check(case: Case, coding: WordCoding, *backends: CpuBackend) -> None:
    """Assert that each backend gives the model's streams and decodes them to the tuned words."""
    live, active = [True] * len(case.base), None
    if case.row is not None:
        length, offset = case.row
        row_of = [(offset + i) // length for i in range(len(case.base))]
        pairs = zip(row_of, case.base, case.tuned, strict=True)
        active = {row for row, b, t in pairs if b != t}
        live = [row in active for row in row_of]
    expected = expected_streams(case.base, case.tuned, coding, case.bounds, live)
    for backend in backends:
        base, tuned = array(case.base, coding), array(case.tuned, coding)
        bounds = np.array(case.bounds, np.uint64)
        rows: Rows | None = None
        if case.row is not None and active is not None:
            rows = backend.active_rows(
                backend.changed_words(base, tuned, coding), base.size, *case.row
            )
            assert np.flatnonzero(rows.active).tolist() == sorted(active), backend.name
        streams = backend.partition(
            base, backend.changed_words(base, tuned, coding), coding, bounds, rows
        )
        assert streams.counts == expected.counts, backend.name
        assert streams.changed == expected.changed, backend.name
        assert streams.parts == [*expected.masks, *expected.values], backend.name
        assert streams.steps == expected.steps, backend.name
        content = streams.content
        decoded = np.empty_like(base)
        backend.apply(base, coding, bounds, rows, streams.changed, content, decoded)
        assert decoded.tolist() == case.tuned, backend.name
        assert base.tolist() == case.base, backend.name
        check_leaf_hashes(backend, base, coding, bounds, rows, streams.changed, content)
        backend.apply(base, coding, bounds, rows, streams.changed, content, base)
        assert base.tolist() == case.tuned, backend.name


# Drawing a case and computing its expected streams dominates the time, so all backends share it.
@every_coding
@given(data=st.data())
def test_streams_equal_the_model_and_decode(coding: WordCoding, data: st.DataObject) -> None:
    check(data.draw(cases(coding)), coding, BACKEND, *NATIVE)


@every_coding
@settings(max_examples=20)
@given(data=st.data())
def test_block_size_does_not_change_streams(
    coding: WordCoding, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK", data.draw(st.integers(1, 9)))
    check(data.draw(cases(coding)), coding, BACKEND)


@every_coding
def test_steps_between_all_specials(coding: WordCoding) -> None:
    words = specials(coding.width)
    base = [b for b in words for _ in words]
    tuned = words * len(words)
    found = steps(array(base, coding), array(tuned, coding), coding)
    assert found.tolist() == [step_of(b, t, coding) for b, t in zip(base, tuned, strict=True)]
    assert add_steps(array(base, coding), found, coding).tolist() == tuned
    assert keys(array(words, coding), coding).tolist() == [key_of(w, coding) for w in words]
    check(Case(base, tuned, [2**coding.key_bits - 1], None), coding, BACKEND, *NATIVE)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("order", OrderMap)
def test_every_pair_of_narrow_words(width: int, order: OrderMap) -> None:
    coding = WordCoding(width, order)
    base, tuned = (a.ravel().astype(np.uint8) for a in np.mgrid[: 1 << width, : 1 << width])
    moved = steps(base, tuned, coding)
    assert moved.tolist() == [
        step_of(b, t, coding) for b, t in zip(base.tolist(), tuned.tolist(), strict=True)
    ]
    assert np.array_equal(add_steps(base, moved, coding), tuned)


def test_float_steps_are_ordered_by_value() -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    base = array([0x3F80, 0xBF80, 0x0000], coding)
    tuned = array([0x3F81, 0xBF81, 0x8000], coding)
    assert steps(base, tuned, coding).tolist() == [1, -1, -1]


@every_backend
@pytest.mark.parametrize("width", [16, 32, 64])
def test_gaps_with_escapes(width: int, backend: CpuBackend) -> None:
    coding = WordCoding(width, OrderMap.SIGN_MAGNITUDE)
    base = [i % 7 for i in range(9000)]
    changed = {*range(60), 6000, 8999}
    tuned = [b + 1 if i in changed else b for i, b in enumerate(base)]
    check(Case(base, tuned, [2**coding.key_bits - 1], None), coding, backend)
    mask = mask_of(sorted(changed), len(base))
    assert len(mask) > len(changed) * 5 // 8 + 4


@every_backend
def test_contexts_with_no_and_with_only_changed_words(backend: CpuBackend) -> None:
    coding = WordCoding(16, OrderMap.UNSIGNED)
    base = [1, 2, 3] * 20
    tuned = [b + 7 if b == 2 else b for b in base]
    check(Case(base, tuned, [1, 2, 3], None), coding, backend)
    streams = backend.partition(
        array(base, coding),
        backend.changed_words(array(base, coding), array(tuned, coding), coding),
        coding,
        np.array([1, 2, 3], np.uint64),
        None,
    )
    assert streams.changed == [0, 20, 0]
    assert streams.parts[:3] == [b"", b"", b""]


@given(st.binary(max_size=60))
def test_four_bit_words_round_trip(data: bytes) -> None:
    raw = np.frombuffer(data, np.uint8)
    words = as_words(raw, 4)
    assert words.tolist() == [half for byte in data for half in (byte & 15, byte >> 4)]
    assert to_bytes(words, 4).tobytes() == data


@every_coding
@settings(max_examples=30)  # the fuzzer does many more
@given(data=st.data(), content=st.binary(max_size=64))
def test_backends_agree_on_random_content(
    coding: WordCoding, data: st.DataObject, content: bytes
) -> None:
    case = data.draw(cases(coding))
    base, bounds = array(case.base, coding), np.array(case.bounds, np.uint64)
    changed = [data.draw(st.integers(0, len(base))) for _ in bounds]
    rows = None
    if case.row is not None:
        rows = BACKEND.active_rows(
            BACKEND.changed_words(base, array(case.tuned, coding), coding), base.size, *case.row
        )
    arguments = (base, coding, bounds, rows, changed, content)
    assert_same_outcome(lambda backend: decode_or_none(backend, *arguments))


def assert_same_outcome(decode: Callable[[CpuBackend], list[int] | None]) -> None:
    """Assert that each native backend gives the result of the NumPy backend."""
    expected = decode(BACKEND)
    for backend in NATIVE:
        assert decode(backend) == expected, backend.name


def decode_or_none(
    backend: CpuBackend,
    base: Words,
    coding: WordCoding,
    bounds: NDArray[np.uint64],
    rows: Rows | None,
    changed: list[int],
    content: bytes,
) -> list[int] | None:
    """Return the decoded words, or ``None`` if the backend rejects the content."""
    out = np.empty_like(base)
    try:
        backend.apply(base, coding, bounds, rows, changed, content, out)
    except StreamError:
        return None
    decoded: list[int] = out.tolist()
    return decoded


@every_coding
@settings(max_examples=30)  # as above
@given(data=st.data())
def test_backends_agree_on_corrupted_content(coding: WordCoding, data: st.DataObject) -> None:
    case = data.draw(cases(coding))
    base, tuned = array(case.base, coding), array(case.tuned, coding)
    bounds = np.array(case.bounds, np.uint64)
    rows = (
        None
        if case.row is None
        else BACKEND.active_rows(BACKEND.changed_words(base, tuned, coding), base.size, *case.row)
    )
    parts = BACKEND.partition(
        base, BACKEND.changed_words(base, tuned, coding), coding, bounds, rows
    )
    content = bytearray(parts.content)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    changed = list(parts.changed)
    if data.draw(st.booleans()):
        changed[data.draw(st.integers(0, len(changed) - 1))] += data.draw(st.sampled_from([-1, 1]))
    changed = [max(0, k) for k in changed]
    arguments = (base, coding, bounds, rows, changed, bytes(content))
    assert_same_outcome(lambda backend: decode_or_none(backend, *arguments))


@every_backend
@pytest.mark.parametrize("width", [4, 16, 64])
def test_malformed_streams_are_rejected(width: int, backend: CpuBackend) -> None:
    coding = WordCoding(width, OrderMap.UNSIGNED)
    base, tuned = array([0] * 100, coding), array([0] * 99 + [9], coding)
    bounds = np.array([2**width - 1], np.uint64)
    parts = backend.partition(
        base, backend.changed_words(base, tuned, coding), coding, bounds, None
    )
    content, mask = bytes(parts.content), parts.parts[0]
    malformed = [content[:-1], content + b"\0", content[:-1] + bytes([content[-1] | 0x80])]
    gap_too_far = bytes([*mask[:-1], 255]) + b"\xff\xff\xff\xff" + content[len(mask) :]
    for broken in (*malformed, gap_too_far):
        assert decode_or_none(backend, base, coding, bounds, None, [1], broken) is None
    assert decode_or_none(backend, base, coding, bounds, None, [101], content) is None
    assert decode_or_none(backend, base, coding, bounds, None, [1], content) == tuned.tolist()


@every_backend
def test_flagged_row_without_changes_is_rejected(backend: CpuBackend) -> None:
    coding = WordCoding(16, OrderMap.SIGN_MAGNITUDE)
    base = array(list(range(300)), coding)
    tuned = base.copy()
    tuned[[5, 250]] += 1
    rows = Rows(np.array([True, True, True, False]), 100, 50)
    bounds = np.array([0x7FFF], np.uint64)
    parts = backend.partition(
        base, backend.changed_words(base, tuned, coding), coding, bounds, rows
    )
    with pytest.raises(StreamError, match="flagged"):
        backend.apply(base, coding, bounds, rows, parts.changed, parts.content, tuned)


# --- large inputs, against the NumPy backend -------------------------------------------------


def many_words(coding: WordCoding, count: int, density: float, seed: int) -> tuple[Words, Words]:
    """Base and tuned words distributed as weights are, with special values among them."""
    rng = np.random.default_rng(seed)
    kind = TYPES[coding.width]
    top = 1 << coding.width
    weights = (rng.standard_normal(count) * (top >> 5)).astype(np.int64).view(np.uint64)
    base = (weights & np.uint64(top - 1)).astype(kind)
    indices = rng.integers(0, count, count // 20)
    base[indices] = rng.choice(array(specials(coding.width), coding), indices.size)
    moved = rng.random(count) < density
    step = np.rint(rng.standard_cauchy(count) * 2).clip(-1e6, 1e6).astype(np.int64).view(np.uint64)
    tuned = ((base.astype(np.uint64) + step) & np.uint64(top - 1)).astype(kind)
    return base, np.where(moved, tuned, base).astype(kind)


@every_backend
@every_coding
@pytest.mark.parametrize("density", [0.001, 0.05, 0.6])
@pytest.mark.parametrize("count", [1, 64, 4096 * 3, 20_011])
def test_large_inputs_equal_the_numpy_backend(
    coding: WordCoding, density: float, count: int, backend: CpuBackend
) -> None:
    base, tuned = many_words(coding, count, density, count)
    tuned[count // 2] ^= 1
    changes = BACKEND.compare(base, tuned, coding, ChangeList())
    assert backend.compare(base, tuned, coding, ChangeList()) == changes
    top = (1 << coding.key_bits) - 1
    bins = key_bins(coding, {16: 7, 32: 23, 64: 52}.get(coding.width))
    assert bins[-1] == top
    ordered = np.sort(keys(base, coding)).astype(np.uint64)
    low = ordered[[count // 10, count // 3, count // 2]]
    bounds = np.append(np.unique(low[low < changes.top_key]), np.uint64(changes.top_key))
    for rows in (
        None,
        BACKEND.active_rows(BACKEND.changed_words(base, tuned, coding), base.size, 37, 5),
    ):
        if rows is not None:
            assert np.array_equal(
                backend.active_rows(
                    backend.changed_words(base, tuned, coding), base.size, 37, 5
                ).active,
                rows.active,
            )
        for stride in (1, 3):
            expected = BACKEND.histogram(
                base, BACKEND.changed_words(base, tuned, coding), coding, bins, rows, stride
            )
            found = backend.histogram(
                base, backend.changed_words(base, tuned, coding), coding, bins, rows, stride
            )
            assert np.array_equal(found.words, expected.words)
            assert np.array_equal(found.magnitudes, expected.magnitudes)
        for cut in (bounds, _on_exponents(bounds, coding)):
            streams = backend.partition(
                base, backend.changed_words(base, tuned, coding), coding, cut, rows
            )
            expected_streams = BACKEND.partition(
                base, BACKEND.changed_words(base, tuned, coding), coding, cut, rows
            )
            assert numbers(streams) == numbers(expected_streams)
            arguments = (coding, cut, rows, streams.changed, bytes(streams.content))
            assert decode_or_none(backend, base, *arguments) == tuned.tolist()
            check_leaf_hashes(backend, base, *arguments)


@every_backend
@every_coding
@pytest.mark.parametrize("tail", [0, 2, 4096])
def test_results_of_several_leaves_are_hashed(
    coding: WordCoding, tail: int, backend: CpuBackend
) -> None:
    count = 2 * LEAF_BYTES * 8 // coding.width + tail
    base, tuned = many_words(coding, count, 0.02, tail)
    top = np.array([2**coding.key_bits - 1], np.uint64)
    changes = BACKEND.changed_words(base, tuned, coding)
    streams = BACKEND.partition(base, changes, coding, top, None)
    check_leaf_hashes(backend, base, coding, top, None, streams.changed, streams.content)


def _on_exponents(bounds: NDArray[np.uint64], coding: WordCoding) -> NDArray[np.uint64]:
    """Bounds as the encoder chooses them for floats: the last key of an exponent."""
    low = np.uint64((1 << max(coding.key_bits - 8, 0)) - 1)
    return np.unique(np.append(bounds[:-1] & ~low, bounds[-1] | low))


# --- recording and exchanging words ------------------------------------------------------------


def word_pair(width: int, count: int, density: float) -> tuple[Words, Words]:
    """Random words, and the same words with a share of ``density`` changed."""
    rng = np.random.default_rng([width, count])
    before = np.frombuffer(rng.bytes(count * width // 8), TYPES[width])
    flips = rng.integers(1, 256, count, np.uint8).astype(before.dtype)
    byte_index = rng.integers(0, width // 8, count).astype(before.dtype)
    flips <<= byte_index * before.dtype.type(8)
    return before, np.where(rng.random(count) < density, before ^ flips, before)


every_width = pytest.mark.parametrize("width", [8, 16, 32, 64])


@every_width
@pytest.mark.parametrize("density", [0, 0.4, 1])
@pytest.mark.parametrize("count", [0, 1, 8, 77])
def test_record_and_exchange_equal_the_model(width: int, density: float, count: int) -> None:
    before, after = word_pair(width, count, density)
    old, new = before.tolist(), after.tolist()
    mask, values = BACKEND.record(before, after)
    assert mask.tobytes() == packed([int(b != a) for b, a in zip(old, new, strict=True)])
    assert values.tolist() == [b for b, a in zip(old, new, strict=True) if b != a]
    BACKEND.exchange(after, mask, values)
    assert after.tolist() == old
    assert values.tolist() == [a for b, a in zip(old, new, strict=True) if b != a]


@every_backend
@every_width
@pytest.mark.parametrize("density", [0, 0.001, 0.02, 0.2, 0.5, 0.98, 1])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 63, 64, 65, 4096, 4097, 3 * 4096 + 71])
def test_exchange_twice_restores_the_words(
    width: int, density: float, count: int, backend: CpuBackend
) -> None:
    before, after = word_pair(width, count, density)
    expected_mask, expected = BACKEND.record(before, after)
    mask, values = backend.record(before, after)
    assert mask.dtype == np.uint8
    assert values.dtype == before.dtype
    assert np.array_equal(mask, expected_mask)
    assert np.array_equal(values, expected)
    words = after.copy()
    for expected_words, expected_values in ((before, after[before != after]), (after, expected)):
        backend.exchange(words, mask, values)
        assert np.array_equal(words, expected_words)
        assert np.array_equal(values, expected_values)
        assert np.array_equal(mask, expected_mask)


@every_backend
@every_width
@given(data=st.data(), count=st.integers(0, 300), seed=st.integers(0, 2**32))
def test_exchange_stays_within_its_arrays(
    width: int, data: st.DataObject, count: int, seed: int, backend: CpuBackend
) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.random(count) < data.draw(st.sampled_from([0.01, 0.3, 1]))
    mask, number = np.packbits(chosen, bitorder="little"), int(chosen.sum())
    start = data.draw(st.integers(0, 9))
    kind = TYPES[width]
    words, values = (
        np.frombuffer(bytearray(rng.bytes((size + 80) * width // 8)), kind)
        for size in (count, number)
    )
    expected, expected_values = words.copy(), values.copy()
    expected[start : start + count][chosen] = values[start : start + number]
    expected_values[start : start + number] = words[start : start + count][chosen]
    backend.exchange(words[start : start + count], mask, values[start : start + number])
    assert np.array_equal(words, expected)
    assert np.array_equal(values, expected_values)


@every_backend
@every_width
@pytest.mark.parametrize("count", [4096 + 64, 4096 + 9])
def test_mismatched_arguments_of_exchange_are_rejected_before_any_write(
    width: int, count: int, backend: CpuBackend
) -> None:
    before, after = word_pair(width, count, 0.3)
    mask, values = backend.record(before, after)
    kept = values.copy()
    other = np.dtype(np.uint16 if width != 16 else np.int16)
    padded, more = mask.copy(), mask.copy()
    padded[-1] |= 0x80  # after the last word, if the last byte has spare bits
    more[-1] ^= 1
    if count % 8 == 0:
        padded = np.append(mask, np.uint8(0))
    read_only, read_only_values = after.copy(), values.copy()
    read_only.flags.writeable = read_only_values.flags.writeable = False
    words = after.copy()
    for bad in (
        (words, padded, values),
        (words, padded, np.append(values, values[:1])),
        (words, more, values),
        (words, mask[:-1], values),
        (words[:-8], mask, values),
        (words, mask.view(np.int8), values),
        (words, mask, values[:-1]),
        (words, mask, np.append(values, values[:1])),
        (words, mask, values.astype(other)),
        (words, mask, values[:0]),
        (read_only, mask, values),
        (words, mask, read_only_values),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            backend.exchange(*bad)
        assert np.array_equal(words, after)
        assert np.array_equal(read_only, after)
        assert np.array_equal(values, kept)
        assert np.array_equal(read_only_values, kept)


# --- the encoder's choices ---------------------------------------------------------------------


@every_backend
@given(data=st.data(), bins=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_contexts_equal_the_numpy_backend(
    data: st.DataObject, bins: int, seed: int, backend: CpuBackend
) -> None:
    rng = np.random.default_rng(seed)
    scale = data.draw(st.sampled_from([1, 3, 100, 1 << 20]))
    magnitudes = rng.integers(0, scale, (bins, 12)) * (rng.random((bins, 12)) < 0.3)
    words = magnitudes.sum(1) + rng.integers(0, scale, bins)
    assert backend.cheapest_cut(words, magnitudes) == BACKEND.cheapest_cut(words, magnitudes)


def test_backends_break_ties_alike() -> None:
    magnitudes = np.zeros((6, 12), np.int64)
    magnitudes[::2, 0] = 500
    words = np.full(6, 500, np.int64)
    for name in instruction_sets():
        cut = load_native(name).cheapest_cut(words, magnitudes)
        assert cut == BACKEND.cheapest_cut(words, magnitudes)


@every_backend
@given(
    kinds=st.lists(
        st.tuples(st.integers(1, 20_000), st.sampled_from([1, 2, 16, 200, 256])), max_size=12
    ),
    seed=st.integers(0, 2**32),
)
def test_blocks_equal_the_numpy_backend(
    kinds: list[tuple[int, int]], seed: int, backend: CpuBackend
) -> None:
    rng = np.random.default_rng(seed)
    streams = [rng.integers(0, top, size).astype(np.uint8).tobytes() for size, top in kinds]
    content, ends = b"".join(streams), list(accumulate(map(len, streams)))
    assert backend.block_ends(content, ends) == BACKEND.block_ends(content, ends)


# --- selection of the backend ------------------------------------------------------------------


@every_backend
@given(data=st.data())
def test_leaf_hashes_are_xxh3_of_each_leaf(backend: CpuBackend, data: st.DataObject) -> None:
    edges = [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024, 1025, 16383, 16384, 16385]
    size = data.draw(st.sampled_from(edges) | st.integers(0, 3 * 16384))
    start = data.draw(st.integers(0, 70))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    content = random.integers(0, 256, start + size, np.uint8)[start:]
    leaves = [content[i : i + 16384].tobytes() for i in range(0, size, 16384)]
    hashes = backend.leaf_hashes(content)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [xxh3_64_intdigest(leaf) for leaf in leaves]


@every_backend
def test_leaf_hashes_of_every_short_size(backend: CpuBackend) -> None:
    content = np.random.default_rng(7).integers(0, 256, 1200, np.uint8)
    for size in range(1201):
        expected = [xxh3_64_intdigest(content[:size].tobytes())] if size else []
        assert backend.leaf_hashes(content[:size]).tolist() == expected


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_environment_variable_selects_the_backend(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    assert get_backend().name == name


def test_unknown_backend_is_rejected_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(BackendError, match="abacus"):
        get_backend()


def test_missing_extension_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "instruction_sets", list)
    dispatch._load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="compiler"):
            assert get_backend().name == "numpy"
        get_backend()
    finally:
        dispatch._load.cache_clear()


@pytest.mark.skipif(
    os.environ.get("RLSPARSE_BACKEND") == "numpy", reason="tests what has no native kernels"
)
def test_native_kernels_are_built() -> None:
    # Otherwise the parametrized tests of native backends would be empty and pass.
    assert "portable" in instruction_sets()


# --- invalid arguments, which no code of this package passes -------------------------------------


@pytest.mark.parametrize("name", instruction_sets())
def test_out_of_range_four_bit_words_are_safe(name: str) -> None:
    # Bytes above 15 are not 4-bit words: they differ, but their step is 0.
    coding = WordCoding(4, OrderMap.UNSIGNED)
    base, tuned = np.full(100_000, 0x10, np.uint8), np.zeros(100_000, np.uint8)
    backend = load_native(name)
    top = np.array([15], np.uint64)
    streams = backend.partition(base, backend.changed_words(base, tuned, coding), coding, top, None)
    assert streams.changed == [base.size]
    counts = backend.histogram(
        base,
        backend.changed_words(base, tuned, coding),
        coding,
        np.arange(16, dtype=np.uint64),
        None,
        1,
    )
    assert counts.words.sum() == counts.magnitudes.sum() == base.size


@pytest.mark.parametrize("name", instruction_sets())
def test_a_bin_up_to_the_largest_key_is_no_undefined_shift(name: str) -> None:
    coding = WordCoding(64, OrderMap.UNSIGNED)
    words = np.array([0, 1, 1 << 63, (1 << 64) - 1], np.uint64)
    bins = np.array([0, (1 << 64) - 3, (1 << 64) - 2, (1 << 64) - 1], np.uint64)
    none = ChangedWords.none(words)
    found = load_native(name).histogram(words, none, coding, bins, None, 1)
    assert found.words.tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("name", instruction_sets())
@every_coding
def test_empty_arrays(coding: WordCoding, name: str) -> None:
    empty = array([], coding)
    backend = load_native(name)
    top = np.array([2**coding.key_bits - 1], np.uint64)
    assert backend.compare(empty, empty, coding, ChangeList()).count == 0
    for rows in (None, Rows(np.zeros(0, np.bool_), 7, 3)):
        assert backend.histogram(
            empty, backend.changed_words(empty, empty, coding), coding, top, rows, 1
        ).words.tolist() == [0]
        streams = backend.partition(
            empty, backend.changed_words(empty, empty, coding), coding, top, rows
        )
        assert (streams.counts, streams.changed, streams.content) == ([0], [0], b"")
        backend.apply(empty, coding, top, rows, [0], b"", empty)
        assert backend.apply_hashed(empty, coding, top, rows, [0], b"", None).size == 0


@pytest.mark.parametrize("name", instruction_sets())
def test_mismatched_arrays_are_rejected(name: str) -> None:
    coding = WordCoding(16, OrderMap.UNSIGNED)
    words, bounds = np.zeros(64, np.uint16), np.array([0xFFFF], np.uint64)
    backend = load_native(name)
    fewer = words[:-1]
    nibbles, low = np.zeros(3, np.uint8), np.array([15], np.uint64)
    flags = Rows(np.zeros(3, np.bool_), 64, 0)
    descending = np.array([9, 5], np.uint64)
    many = np.arange(17, dtype=np.uint64)
    for bad in (
        lambda: backend.partition(
            words, backend.changed_words(words, fewer, coding), coding, bounds, None
        ),
        lambda: backend.partition(
            words, backend.changed_words(words, words, coding), coding, bounds, flags
        ),
        lambda: backend.partition(
            words, backend.changed_words(words, words, coding), coding, descending, None
        ),
        lambda: backend.partition(
            words, backend.changed_words(words, words, coding), coding, many, None
        ),
        lambda: backend.partition(
            words, backend.changed_words(words, words, coding), coding, bounds[:0], None
        ),
        lambda: backend.histogram(
            words,
            backend.changed_words(words, words, coding),
            coding,
            np.array([5], np.uint64),
            None,
            1,
        ),
        lambda: backend.apply(words, coding, bounds, None, [1, 2], b"", words),
        lambda: backend.apply(words, coding, bounds, None, [1], b"", fewer),
        lambda: backend.apply_hashed(
            nibbles, WordCoding(4, coding.order), low, None, [0], b"", None
        ),
        lambda: backend.compare(words, fewer, coding, ChangeList()),
        lambda: backend.block_ends(b"abc", [1, 4]),
        lambda: backend.block_ends(b"abc", [2, 2]),
        lambda: backend.block_ends(b"abc", [0, 3]),
        lambda: backend.block_ends(bytes(300), list(range(1, 300))),
        lambda: backend.record(words, fewer),
        lambda: backend.exchange(words, fewer.view(np.uint8), words),
        lambda: load_native("abacus").compare(words, words, coding, ChangeList()),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            bad()

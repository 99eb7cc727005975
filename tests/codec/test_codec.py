"""Cost model, contexts, chunks, widening and frames."""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_store.codec.chunk import (
    EncodedChunk,
    decode_chunk,
    decode_whole,
    encode_chunk,
    encode_whole,
    open_chunk,
)
from rlsparse_store.codec.contexts import SINGLE_CONTEXT_CHANGES, choose_bounds, key_bins
from rlsparse_store.errors import StreamError
from rlsparse_store.files.delta_writer import INDEX_LEVEL
from rlsparse_store.format.bits import pack_flags
from rlsparse_store.format.content_bounds import largest_content
from rlsparse_store.format.dtypes import DTYPES, OrderMap, WordCoding
from rlsparse_store.format.frames import compress, compress_bytes, content_size, decompress
from rlsparse_store.format.index.records import ChunkCoding, ChunkRecord
from rlsparse_store.format.masks import DENSE, ESCAPE, low_width
from rlsparse_store.format.order import add_steps
from rlsparse_store.format.words import (
    Widening,
    Words,
    as_words,
    cast_to_bf16,
    narrow,
    to_bytes,
    widen,
)
from rlsparse_store.kernels.cost import CONTEXT_COST, EMPTY_COST, LOG2, ONE_BIT, mask_cost, n_log_n
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import ChunkWords, Histogram, row_count
from rlsparse_store.kernels.native import instruction_sets, load_native
from rlsparse_store.kernels.numpy import NumpyBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKEND = get_backend()
CODINGS = {code: (t.coding, t.mantissa_bits) for code, t in DTYPES.items()}
CODINGS["packed"] = (WordCoding(4, OrderMap.UNSIGNED), None)
every_dtype = pytest.mark.parametrize("code", CODINGS)


# --- costs -----------------------------------------------------------------------------------


def test_no_logarithm_is_near_a_rounding_boundary() -> None:
    steps = LOG2.size - 1
    for i, entry in enumerate(LOG2.tolist()):
        exact = math.log2(1 + i / steps) * ONE_BIT
        assert abs(exact % 1 - 0.5) > 1e-6
        assert entry == math.floor(exact + 0.5)


def test_n_log_n_is_accurate_and_ascending() -> None:
    rng = np.random.default_rng(1)
    wide = (2 ** rng.uniform(12, 40, 20000)).astype(np.int64)
    n = np.unique(np.concatenate([np.arange(1, 70000), wide, 2 ** np.arange(40)]))
    found = n_log_n(n)
    for number, cost in zip(n.tolist(), found.tolist(), strict=True):
        # Two units in the last of 16 fractional bits: rounded table entries and interpolation.
        assert abs(cost / ONE_BIT - number * math.log2(number)) <= number * 2 / ONE_BIT
    assert (np.diff(found) > 0).all()
    assert n_log_n(np.array([0, 1, 2, 1 << 20])).tolist() == [0, 0, 2 * ONE_BIT, 20 * ONE_BIT << 20]


def test_mask_cost_of_half_and_of_constant_masks() -> None:
    changed = np.array([0, 8, 16])
    assert mask_cost(np.array([16, 16, 16]), changed).tolist() == [0, 16 * ONE_BIT, 0]


# --- contexts --------------------------------------------------------------------------------


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    bins = draw(st.integers(1, 12))
    magnitudes = np.zeros((bins, 12), np.int64)
    spare = st.sampled_from([0, 1, 50, 5000])
    for row in range(bins):
        for column in range(draw(st.integers(0, 3))):
            magnitudes[row, column] = draw(st.sampled_from([0, 1, 9, 400]))
    if not magnitudes.any():
        magnitudes[draw(st.integers(0, bins - 1)), 0] = 1
    words = magnitudes.sum(1) + [draw(spare) for _ in range(bins)]
    return Histogram(words, magnitudes)


def cost_of(histogram: Histogram, ends: list[int]) -> int:
    total = 0
    for start, end in pairwise([0, *ends]):
        n = histogram.words[start:end].sum()
        m = histogram.magnitudes[start:end].sum(0)
        fixed = CONTEXT_COST if m.any() else EMPTY_COST
        k = m.sum()
        total += int(mask_cost(n, k) + n_log_n(k) - n_log_n(m).sum()) + fixed
    return total


@given(histograms())
def test_chosen_contexts_cover_changes_and_are_the_cheapest(histogram: Histogram) -> None:
    bins = np.arange(histogram.words.size, dtype=np.uint64) * np.uint64(3)
    last = int(np.flatnonzero(histogram.magnitudes.any(1))[-1])
    top = int(bins[last])
    bounds, cost = choose_bounds(BACKEND, histogram, bins, top)
    again, _ = choose_bounds(BACKEND, histogram, bins, top)
    assert np.array_equal(bounds, again)
    assert set(bounds.tolist()) <= set(bins.tolist())
    assert all(a < b for a, b in pairwise(bounds.tolist()))
    assert bounds[-1] == bins[last]
    ends = [int(np.flatnonzero(bins == bound)[0]) + 1 for bound in bounds]
    assert cost_of(histogram, ends) == cost
    assert cost <= cost_of(histogram, [last + 1])
    if histogram.magnitudes.sum() > SINGLE_CONTEXT_CHANGES:
        for cut in range(1, last + 1):
            if histogram.words[:cut].any() and histogram.words[cut : last + 1].any():
                assert cost <= cost_of(histogram, [cut, last + 1])


def test_tie_goes_to_fewer_contexts() -> None:
    magnitudes = np.zeros((4, 12), np.int64)
    magnitudes[:, 0] = 100
    histogram = Histogram(magnitudes.sum(1) * 10, magnitudes)
    bounds, _ = choose_bounds(BACKEND, histogram, np.arange(4, dtype=np.uint64), 3)
    assert bounds.tolist() == [3]


def test_contexts_cover_a_change_outside_the_sample() -> None:
    histogram = Histogram(np.array([100, 0, 50]), np.zeros((3, 12), np.int64))
    bounds, _ = choose_bounds(BACKEND, histogram, np.array([9, 19, 29], np.uint64), 15)
    assert bounds[-1] == 19


def test_many_bins_are_merged_and_covered() -> None:
    rng = np.random.default_rng(3)
    magnitudes = np.zeros((512, 12), np.int64)
    magnitudes[:500, 0] = rng.integers(0, 50, 500)
    magnitudes[499, 0] = 1
    words = magnitudes.sum(1) + rng.integers(0, 1000, 512)
    bins = np.arange(512, dtype=np.uint64)
    bounds, _ = choose_bounds(BACKEND, Histogram(words, magnitudes), bins, 499)
    assert bounds[-1] == 499
    assert 1 <= bounds.size <= 12


@every_dtype
def test_bins_end_at_the_largest_key(code: str) -> None:
    coding, mantissa = CODINGS[code]
    bins = key_bins(coding, mantissa).tolist()
    assert all(a < b for a, b in pairwise(bins))
    assert bins[-1] == 2**coding.key_bits - 1


# --- chunks ----------------------------------------------------------------------------------


def random_words(coding: WordCoding, count: int, seed: int) -> Words:
    raw = np.random.default_rng(seed).bytes(count * max(coding.width, 8) // 8)
    return as_words(np.frombuffer(raw, np.uint8)[: coding.nbytes(count)], coding.width)


def changed_words(base: Words, coding: WordCoding, density: float, seed: int) -> Words:
    rng = np.random.default_rng(seed)
    hit = rng.random(base.size) < density
    hit[rng.integers(base.size)] = True
    other = random_words(coding, base.size, seed + 1)
    near = base ^ base.dtype.type(1)
    changed: Words = np.where(hit, np.where(rng.random(base.size) < 0.2, other, near), base)
    if np.array_equal(changed, base):
        changed[0] ^= base.dtype.type(1)
    return changed


def encode(
    base: Words,
    tuned: Words,
    coding: WordCoding,
    mantissa: int | None,
    row: tuple[int, int] | None,
) -> EncodedChunk:
    changes = BACKEND.changed_words(base, tuned, coding)
    row_words, first = row or (None, 0)
    chunk = ChunkWords(first, base, row_words, changes)
    return encode_chunk(BACKEND, chunk, coding, mantissa)


def decode(base: Words, coding: WordCoding, chunk: EncodedChunk, row_words: int | None) -> Words:
    out = np.empty_like(base)
    return decode_chunk(BACKEND, chunk.record, chunk.stored, coding, row_words, base, out)


@every_dtype
@given(
    count=st.integers(1, 400),
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
    row=st.none() | st.tuples(st.integers(1, 40), st.integers(0, 39)),
)
def test_chunks_round_trip(
    code: str, count: int, density: float, seed: int, row: tuple[int, int] | None
) -> None:
    coding, mantissa = CODINGS[code]
    base = random_words(coding, 2 * count, seed)
    tuned = changed_words(base, coding, density, seed)
    row_offset = None if row is None else (row[0], row[1] % row[0])
    chunk = encode(base, tuned, coding, mantissa, row_offset)
    assert chunk == encode(base, tuned, coding, mantissa, row_offset)
    assert chunk.changes == np.count_nonzero(base != tuned)
    if chunk.record.coding is not ChunkCoding.WHOLE:
        assert sum(chunk.steps) == sum(chunk.record.changed) == chunk.changes
    decoded = decode(base, coding, chunk, None if row is None else row[0])
    assert decoded.dtype == tuned.dtype
    assert np.array_equal(decoded, tuned)


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("code", ["BF16", "F32", "I8", "U8", "F64"])
@given(
    count=st.integers(1, 30_000),
    density=st.sampled_from([0.0, 0.003, 0.05, 0.4, 1.0]),
    normal=st.booleans(),
    row=st.none() | st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_drafts_in_one_call_equal_those_in_steps(
    name: str, code: str, count: int, density: float, *, normal: bool, row: int | None, seed: int
) -> None:
    coding, mantissa = CODINGS[code]
    base = random_words(coding, 2 * count, seed)
    if normal and code == "BF16":
        values = np.random.default_rng(seed).normal(0, 0.02, base.size).astype(np.float32)
        base = (values.view(np.uint32) >> 16).astype(np.uint16)
    tuned = changed_words(base, coding, density, seed)
    if row is not None:  # Every other row has no change.
        tuned = np.where(np.arange(base.size) // row % 2, tuned, base)
        tuned[-1] ^= tuned.dtype.type(1)
    backend = load_native(name)
    first = 0 if row is None else seed % row
    chunk = ChunkWords(first, base, row, backend.changed_words(base, tuned, coding))
    in_one_call = encode_chunk(backend, chunk, coding, mantissa)
    in_steps = encode_chunk(NumpyBackend(), chunk, coding, mantissa)
    assert in_one_call == in_steps


@every_dtype
@pytest.mark.parametrize("count", [2, 1000])
def test_whole_chunks_round_trip(code: str, count: int) -> None:
    coding, _ = CODINGS[code]
    words = random_words(coding, count, 5)
    stored = encode_whole(BACKEND, 0, words, coding).stored
    assert np.array_equal(decode_whole(stored, count, coding), words)
    for wrong in (count - 2, count + 2):
        with pytest.raises(StreamError):
            decode_whole(stored, wrong, coding)


def test_row_flags_save_space_if_few_rows_change() -> None:
    coding, mantissa = CODINGS["BF16"]
    base = random_words(coding, 100_000, 1)
    hit = np.random.default_rng(2).random(base.size) < 0.4
    hit[5000:] = False
    tuned: Words = np.where(np.roll(hit, 40_000), base ^ np.uint16(1), base)
    chunk = encode(base, tuned, coding, mantissa, (500, 0))
    plain = encode(base, tuned, coding, mantissa, None)
    assert chunk.record.coding is ChunkCoding.DELTA_WITH_ROWS
    assert plain.record.coding is ChunkCoding.DELTA
    assert len(chunk.stored) < len(plain.stored)
    assert np.array_equal(decode(base, coding, chunk, 500), tuned)
    with pytest.raises(StreamError, match="rows"):
        decode(base, coding, chunk, None)


# --- widening and casting --------------------------------------------------------------------


def widen_half(word: int) -> int:
    """Convert a float16 word to a float32 word by IEEE 754, on integers."""
    sign, exponent, mantissa = word >> 15 << 31, word >> 10 & 31, word & 1023
    if exponent == 31:
        return sign | 0x7F800000 | mantissa << 13
    if exponent:
        return sign | (exponent + 112) << 23 | mantissa << 13
    if not mantissa:
        return sign
    shift = 11 - mantissa.bit_length()
    return sign | (113 - shift) << 23 | (mantissa << shift & 1023) << 13


ALL_HALVES: NDArray[np.uint16] = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


@pytest.mark.parametrize("widening", [Widening.BF16_TO_F32, Widening.F16_TO_F32])
def test_widening_round_trips_for_all_words(widening: Widening) -> None:
    wide = widen(ALL_HALVES, widening)
    half = widening is Widening.F16_TO_F32
    assert wide.tolist() == [widen_half(w) if half else w << 16 for w in range(1 << 16)]
    back = narrow(wide, widening)
    assert back is not None
    assert back.dtype == np.uint16
    assert np.array_equal(back, ALL_HALVES)


@pytest.mark.parametrize(
    ("widening", "word"),
    [
        (Widening.BF16_TO_F32, 0x3F800001),
        (Widening.BF16_TO_F32, 0x7F800001),
        (Widening.F16_TO_F32, 0x3F800001),
        (Widening.F16_TO_F32, 0x7F800001),
        (Widening.F16_TO_F32, 0x47800000),
        (Widening.F16_TO_F32, 0x33000000),
        (Widening.F16_TO_F32, 0x00000001),
    ],
)
def test_inexact_words_are_not_narrowed(widening: Widening, word: int) -> None:
    assert narrow(np.array([0, word], np.uint32), widening) is None


def round_to_bf16(word: int) -> int:
    if word & 0x7FFFFFFF > 0x7F800000:
        return word >> 16 | 0x40
    low, high = word & 0xFFFF, word >> 16
    return high + (low > 0x8000 or (low == 0x8000 and high & 1))


def wide_words() -> NDArray[np.uint32]:
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    edges = (ALL_HALVES.astype(np.uint32) << 16)[::7, None] | low
    drawn = np.random.default_rng(1).integers(0, 1 << 32, 50000, np.uint32)
    return np.concatenate([edges.ravel(), drawn])


def test_cast_rounds_to_even() -> None:
    words = wide_words()
    found = cast_to_bf16(words)
    assert found.dtype == np.uint16
    assert found.tolist() == [round_to_bf16(word) for word in words.tolist()]


def test_cast_equals_torch() -> None:
    torch: Any = pytest.importorskip("torch")
    words = wide_words()
    expected = (
        torch.from_numpy(words.view(np.float32)).to(torch.bfloat16).view(torch.uint16).numpy()
    )
    number = (words & 0x7FFFFFFF) <= 0x7F800000
    assert np.array_equal(cast_to_bf16(words)[number], expected[number])
    assert ((cast_to_bf16(words)[~number] & 0x7FFF) > 0x7F80).all()


@given(st.binary(max_size=64).filter(lambda data: len(data) % 8 == 0))
def test_bytes_and_words_round_trip(data: bytes) -> None:
    raw = np.frombuffer(data, np.uint8)
    for width in (4, 8, 16, 32, 64):
        words = as_words(raw, width)
        assert words.size == len(data) * 8 // width
        assert to_bytes(words, width).tobytes() == data


# --- frames ----------------------------------------------------------------------------------

CONTENT = b"some content, " * 40


def frame(**options: Any) -> bytes:  # noqa: ANN401
    return zstandard.ZstdCompressor(level=3, **options).compress(CONTENT)


def packed(*streams: bytes) -> bytes:
    ends = {end for end in accumulate(map(len, streams)) if end}
    return compress(b"".join(streams), sorted(ends))


@given(st.lists(st.binary(max_size=300)))
def test_frames_hold_their_streams(streams: list[bytes]) -> None:
    stored = packed(*streams)
    content = b"".join(streams)
    assert stored == packed(*streams)
    assert decompress(stored, len(content)) == content
    if content:
        with pytest.raises(StreamError, match="declares"):
            decompress(stored, len(content) - 1)


def test_stored_bytes_do_not_depend_on_earlier_calls() -> None:
    streams = [bytes(range(256)) * 20, b"\0" * 5000, np.random.default_rng(1).bytes(3000)]
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(packed, *streams).result()
    for others in ([b"something else" * 100], [streams[0][7:], bytes(1 << 20)], streams[1:]):
        packed(*others)
        assert packed(*streams) == stored
    with pytest.raises(StreamError):
        decompress(stored[:-9], 1 << 20)
    assert decompress(stored, 1 << 20) == b"".join(streams)


def test_frame_size_is_limited_by_the_content_bound() -> None:
    stored = packed(bytes(10_000))
    record = ChunkRecord(
        *(0, 0, 1, ChunkCoding.DELTA, 0, 0, len(stored), 0, 0),
        bounds=tuple(range(16)),
        changed=(1 << 26,) * 16,
    )
    with pytest.raises(StreamError, match="at most"):
        open_chunk(record, stored, WordCoding(16, OrderMap.UNSIGNED), None)


@dataclass(frozen=True)
class Context:
    """A context: the number of its words, the ranks of its changed words, and their step."""

    words: int
    ranks: NDArray[np.int64]
    step: int


def ranks_with_escapes(n: int, k: int) -> NDArray[np.int64]:
    """Return ``k`` of ``n`` ranks with the maximum number of escapes."""
    escape = ESCAPE << low_width(n, k)
    number = min((n - k) // escape, k)
    gaps = np.repeat([escape, 0], [number, k - number])
    ranks: NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    return ranks


@st.composite
def large_contexts(draw: st.DrawFn, width: int) -> Context:
    """Draw a context whose streams are large for its words or for its changes."""
    n = 2 * draw(st.integers(1, 400) | st.integers(1, 20_000))
    k = max(1, int(n * draw(st.sampled_from([0, 1e-3, 0.01, 0.08, 0.166, 0.17, 0.5, 1]))))
    far = -(1 << width - 1)
    step = draw(st.sampled_from([far, far, 1]))
    if DENSE * k < n and draw(st.booleans()):
        return Context(n, ranks_with_escapes(n, k), step)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Context(n, np.sort(rng.choice(n, k, replace=False)), step)


def content_of(contexts: list[Context], width: int, row: int | None) -> bytes:
    """Return the content of a chunk with these contexts, in order."""
    coding = WordCoding(width, OrderMap.UNSIGNED)
    starts = [0, *accumulate(c.words for c in contexts)]
    keys = np.repeat(np.arange(len(contexts)), [c.words for c in contexts])
    base: Words = keys.astype(as_words(np.zeros(8, np.uint8), width).dtype)
    tuned = base.copy()
    for start, c in zip(starts, contexts, strict=False):
        indices = start + c.ranks
        tuned[indices] = add_steps(base[indices], np.full(indices.size, c.step), coding)
    changed = BACKEND.changed_words(base, tuned, coding)
    rows = BACKEND.active_rows(changed, base.size, row, 0) if row else None
    bounds = np.arange(len(contexts), dtype=np.uint64)
    flags = pack_flags(rows.active) if rows else b""
    return flags + bytes(BACKEND.partition(base, changed, coding, bounds, rows).content)


@pytest.mark.parametrize("width", [4, 8, 16, 32, 64])
@given(data=st.data())
def test_content_is_within_its_bound(width: int, data: st.DataObject) -> None:
    contexts = data.draw(st.lists(large_contexts(width), min_size=1, max_size=16))
    words = sum(c.words for c in contexts)
    row = data.draw(st.sampled_from([None, 1, 50]))
    content = content_of(contexts, width, row)
    rows = row_count(words, row, 0) if row else 0
    assert len(content) <= largest_content([c.ranks.size for c in contexts], words, width, rows)


@pytest.mark.parametrize("width", [4, 8, 16, 32, 64])
def test_content_bound_is_tight(width: int) -> None:
    n = 60_000
    # k near n / 12: an escape takes the fewest ranks there.
    for k in (1, 30, 700, n // 12 + 1, n // 6 - 1, n // 6 + 1, n - 1, n):
        ranks = ranks_with_escapes(n, k) if DENSE * k < n else np.arange(k)
        content = content_of([Context(n, ranks, -(1 << width - 1))], width, None)
        # Masks may take none of a fifth of the words, and a q half of its byte.
        assert 0 <= largest_content([k], n, width, 0) - len(content) <= n / 5 + k / 2 + 4


def test_content_bound_limits_the_sum_of_contexts() -> None:
    n = 1 << 26
    assert largest_content([n // 6] * 6, n, 16, 0) < 3.4 * n


def frame_announcing(size: int) -> bytes:
    """Return a frame of CONTENT whose header announces another size."""
    stored = packed(CONTENT)
    position = stored.index(struct.pack("<H", len(CONTENT) - 256))
    return stored[:position] + struct.pack("<H", size - 256) + stored[position + 2 :]


def skippable() -> bytes:
    return struct.pack("<II", 0x184D2A50, 3) + b"abc"


DICTIONARY = zstandard.ZstdCompressionDict(CONTENT, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
MALFORMED = {
    "empty": b"",
    "no frame": b"not a frame at all",
    "second frame": frame() + frame(),
    "trailing byte": frame() + b"\0",
    "skippable frame": skippable(),
    "frame after a skippable one": skippable() + frame(),
    "skippable frame after it": frame() + skippable(),
    "no content size": frame(write_content_size=False),
    "checksum": frame(write_checksum=True),
    "announces less": frame_announcing(len(CONTENT) - 1),
    "announces more": frame_announcing(len(CONTENT) + 1),
    "cut short": frame()[:-1],
    "header only": frame()[:6],
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_frames_are_rejected(case: str) -> None:
    with pytest.raises(StreamError):
        decompress(MALFORMED[case], 1 << 20)


def test_frame_with_a_dictionary_is_rejected() -> None:
    stored = bytearray(frame(dict_data=DICTIONARY))
    with pytest.raises(StreamError):
        decompress(bytes(stored), 1 << 20)
    numbered = bytearray(packed(CONTENT))
    numbered[4] |= 1  # a one-byte dictionary id follows the window
    position = 5 if numbered[4] & 0x20 else 6
    numbered[position:position] = b"\x07"
    with pytest.raises(StreamError, match="dictionary"):
        decompress(bytes(numbered), 1 << 20)


def test_dictionary_id_zero_is_rejected() -> None:
    stored = bytearray(packed(CONTENT))
    stored[4] |= 1
    position = 5 if stored[4] & 0x20 else 6
    stored[position:position] = b"\0"
    with pytest.raises(StreamError, match="dictionary"):
        decompress(bytes(stored), 1 << 20)


def repeated_blocks(*sizes: int) -> bytes:
    """A single segment whose blocks are one byte repeated."""
    blocks = [size << 3 | 2 | (i == len(sizes)) for i, size in enumerate(sizes, 1)]
    header = bytes.fromhex("28b52ffd a0") + struct.pack("<I", sum(sizes))
    return header + b"".join(struct.pack("<I", block)[:3] + b"x" for block in blocks)


def test_a_single_segment_may_be_large() -> None:
    size = 1100 << 17
    assert decompress(repeated_blocks(*[1 << 17] * 1100), size) == b"x" * size


def test_a_large_block_is_refused() -> None:
    # The library itself refuses this only when it reads a stream.
    with pytest.raises(StreamError, match="block"):
        decompress(repeated_blocks((1 << 17) + 1), 1 << 20)


def test_stored_frames_are_single_segments() -> None:
    content = bytes(range(256)) * (9 << 12)
    for stored in (packed(content), compress_bytes(content, INDEX_LEVEL)):
        assert stored[4] == 0xA0
        assert content_size(stored) == len(content)
        assert decompress(stored, len(content)) == content


def test_frame_with_a_window_is_rejected() -> None:
    # Magic number, no single segment, 4 bytes of content size, a window of 1 MiB.
    header = bytes.fromhex("28b52ffd") + bytes([0x80, 10 << 3]) + struct.pack("<I", 5)
    with pytest.raises(StreamError, match="segment"):
        decompress(header + b"\x29\0\0hello", 1 << 20)

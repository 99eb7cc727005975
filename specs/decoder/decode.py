"""A second reader of the rlsparse delta format, written from ``../format.md`` alone.

It shares no code with the library: where both agree, the text is what they agree on. It is laid
out in the order of that document's sections and is meant to be read; XXH3 comes last.
"""

# ruff: noqa: ANN401, N818, T201 - JSON is of any type; Refused is this reader's
# documented name; the numbers are the text's own and read best where it has them; and
# printing is what the command line is for.

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import zstandard
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Words = NDArray[Any]  # one word per item: uint8 for W = 4 and 8, else the type of W bits
Place = tuple[str, tuple[int, ...], int, int]  # dtype, shape, from, to in a safetensors header
MIB = 1 << 20
SAME, DELTA, WHOLE, ALIAS = range(4)  # kinds of tensors
DELTA_CHUNK, WHOLE_CHUNK, ROWS_CHUNK = range(3)  # codings
VERBATIM = 2  # a layout


# ---- Conventions, and the errors of §14 ----------------------------------------------------------


class Refused(Exception):
    """A file that breaks a rule (§14): ``code`` is one of the codes of that section."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the code beside the message."""
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    """One tensor of a checkpoint: its dtype code, shape and little-endian, row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def refuse(code: str, message: str) -> NoReturn:
    """Raise ``Refused`` (§14)."""
    raise Refused(code, message)


def need(truth: object, code: str, message: str) -> None:
    """Refuse unless ``truth`` holds (§14)."""
    if not truth:
        refuse(code, message)


def at_most(values: U64, limit: int, code: str, what: str) -> None:
    """No value of a column is above ``limit``."""
    need(not len(values) or int(values.max()) <= limit, code, f"{what} above {limit}")


class Cursor:
    """Reads a byte string from its start to its end (Conventions)."""

    def __init__(self, data: bytes, code: str) -> None:
        """Start at byte 0; what is wrong is refused with ``code``."""
        self.data = np.frombuffer(data, np.uint8)
        self.code = code
        self.at = 0

    def take(self, count: int) -> U8:
        """The next ``count`` bytes, which must be there: nothing is allocated before that."""
        need(count <= len(self.data) - self.at, self.code, "the content ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def bits(self, count: int) -> U8:
        """The next ``count`` bits, least significant first, whose padding must be zero (S2)."""
        bits = np.unpackbits(self.take((count + 7) // 8), bitorder="little")
        need(not bits[count:].any(), self.code, "padding bits are not zero")
        return bits[:count]

    def end(self) -> None:
        """Nothing may be left."""
        need(self.at == len(self.data), self.code, "bytes after the end of the content")


# ---- §2 Words ------------------------------------------------------------------------------------


CODES = [
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8"),
    *("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
]
BITS = [8, 4, 6, 6, *[8] * 7, *[16] * 4, *[32] * 3, *[64] * 4]  # per element
WIDTHS = [8, 4, 8, 8, *[8] * 7, *[16] * 4, *[32] * 3, 32, *[64] * 3]  # W by default


def to_words(data: bytes, width: int) -> Words:
    """The words of a tensor's bytes (§2)."""
    if width == 4:
        raw = np.frombuffer(data, np.uint8)
        return np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)
    return np.frombuffer(data, f"<u{width // 8}")


def to_bytes(words: Words, width: int) -> bytes:
    """The bytes of words (§2)."""
    return (words[::2] | words[1::2] << 4 if width == 4 else words).tobytes()


def order_of(words: Words, width: int, order: int) -> U64:
    """The order map, which is its own inverse (§2)."""
    wide = words.astype(np.uint64)
    if order < 2:
        return wide
    low = np.uint64((1 << width - 1) - 1)
    return np.where(wide > low, wide ^ low, wide)


def keys_of(words: Words, width: int, order: int) -> U64:
    """What base words are classed by (§2)."""
    wide = words.astype(np.uint64)
    if order == 0:
        return wide
    low = np.uint64((1 << width - 1) - 1)
    # Under map 1, 2^(W-1) - 1 - m is m with its bits inverted.
    return (np.where(wide > low, ~wide, wide) if order == 1 else wide) & low


def widen(data: bytes, widening: int) -> bytes:
    """F32 bytes of BF16 (1) or F16 (2) bytes, exactly (§2)."""
    words = np.frombuffer(data, "<u2").astype(np.uint32)
    if widening == 1:
        return (words << 16).astype("<u4").tobytes()
    sign, exponent, fraction = (words & 0x8000) << 16, words >> 10 & 31, words & 0x3FF
    # A float would not keep every NaN's bits: only subnormals, all exact, go through one.
    small = (fraction.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    normal = (np.where(exponent == 31, 255, exponent + 112) << 23) | fraction << 13
    return (sign | np.where(exponent == 0, small, normal)).astype("<u4").tobytes()


# ---- §3 Tensors ----------------------------------------------------------------------------------


def decode_tensor(shards: list[Shard], index: Index, entry: Entry, source: bytes) -> bytes:
    """The data of a ``delta`` or ``whole`` tensor (§3; B5); ``source`` is empty for the latter."""
    # Pieces, not one buffer: a tensor's declared size is only as real as its chunks are.
    pieces, at = list[bytes](), 0
    for chunk in map(index.chunk, entry.chunks):
        end = chunk.first + chunk.length
        bounds = (at, chunk.first, end)
        here, start, stop = (words * entry.width // 8 for words in bounds)
        content = read_content(shards[chunk.shard], entry, chunk)
        if chunk.coding == WHOLE_CHUNK:
            result = decode_whole(entry, chunk, content)
        else:
            result = decode_delta(entry, chunk, content, source[start:stop])
        data = to_bytes(result, entry.width)
        need(words_check(data) == chunk.result, "result", "a chunk's result is wrong")
        pieces += [source[here:start], data]
        at = end
    pieces.append(source[at * entry.width // 8 : entry.words * entry.width // 8])
    data = b"".join(pieces)
    return widen(data, entry.widening) if entry.widening else data


def check_sources(index: Index, base: dict[str, Tensor]) -> None:
    """The base has every source, in its dtype and long enough (§3; B2)."""
    for entry in index.entries:
        if entry.kind not in (SAME, DELTA):
            continue
        what = f"the base's {entry.source!r}"
        need(entry.source in base, "base", f"{what} is not there")
        source, same = base[entry.source], entry.kind == SAME
        need(source.dtype == entry.source_dtype, "base", f"{what} has another dtype")
        if same:
            need(len(source.data) == entry.size, "base", f"{what} has another length")
        else:
            words = len(source.data) * 8 // entry.width
            need(words >= entry.words - entry.tail, "base", f"{what} has too few words")


# ---- §4 Chunks -----------------------------------------------------------------------------------


def read_content(shard: Shard, entry: Entry, chunk: Chunk) -> bytes:
    """A chunk's content, once its stored bytes are known to be right (§4, §11; B1, S1)."""
    stored = read_bytes(shard.path, shard.start + chunk.at, chunk.stored)
    need(xxh3(stored) & M32 == chunk.check, "checksum", "a chunk's stored bytes are wrong")
    size = frame_size(stored, "stream")
    if chunk.coding == WHOLE_CHUNK:
        good = size == chunk.length * entry.width // 8
        need(good, "stream", "a whole chunk of the wrong size")
        return unframe(stored, "stream")
    need(size <= largest_content(entry, chunk), "stream", "a chunk larger than it can be")
    return unframe(stored, "stream")


def decode_whole(entry: Entry, chunk: Chunk, content: bytes) -> Words:
    """The words of a whole chunk (§4.1)."""
    width = entry.width
    if width == 4:
        return to_words(content, 4)
    planes = np.frombuffer(content, np.uint8).reshape(width // 8, chunk.length)
    words = planes[::-1].T.copy().view(f"<u{width // 8}").reshape(-1)
    return words >> 1 | words << width - 1 if entry.order == 2 else words


def row_count(entry: Entry, chunk: Chunk) -> int:
    """Rows that a chunk with row flags touches (§4.2)."""
    size = entry.row_words
    return (chunk.first + chunk.length - 1) // size - chunk.first // size + 1


def largest_content(entry: Entry, chunk: Chunk) -> int:
    """No content of this chunk has more bytes (§4.2): only memory depends on it."""
    rows = row_count(entry, chunk) if chunk.coding == ROWS_CHUNK else 0
    values = min(sum(chunk.changed), chunk.length) * (entry.width + 9) // 8
    return (rows + 7) // 8 + chunk.length // 5 + len(chunk.changed) + values + 3


def decode_delta(entry: Entry, chunk: Chunk, content: bytes, source: bytes) -> Words:
    """The words of a delta chunk (§4.2; S1, S3, B3), from the bytes of its base words."""
    cursor = Cursor(content, "stream")
    considered = np.ones(chunk.length, bool)
    rows, flags = np.zeros(chunk.length, np.int64), np.ones(1, np.uint8)
    if chunk.coding == ROWS_CHUNK:
        size = entry.row_words
        rows = (np.arange(chunk.length) + chunk.first) // size - chunk.first // size
        flags = cursor.bits(row_count(entry, chunk))
        considered = flags[rows] == 1
    need(words_check(source) == chunk.base, "base", "a chunk's base words are wrong")
    base = to_words(source, entry.width)
    keys, places = keys_of(base, entry.width, entry.order), []
    for bound, k in zip(chunk.bounds, chunk.changed, strict=True):
        inside = considered & (keys <= bound)
        considered &= ~inside  # what is left lies above this bound
        positions = np.flatnonzero(inside)
        places.append(positions[read_mask(cursor, len(positions), k)])
    changed = np.concatenate(places)
    touched = np.zeros_like(flags)
    touched[rows[changed]] = 1
    need((touched == flags).all(), "stream", "a row is flagged that holds no changed word")
    negative, size_of_step = read_values(cursor, len(changed), entry.width)
    cursor.end()
    orders = order_of(base[changed], entry.width, entry.order)
    orders = np.where(negative, orders - size_of_step, orders + size_of_step)
    orders &= np.uint64((1 << entry.width) - 1)
    result = base.copy()
    result[changed] = order_of(orders, entry.width, entry.order)
    return result


def read_mask(cursor: Cursor, n: int, k: int) -> NDArray[np.int64]:
    """The ranks of the ``k`` changed words among the ``n`` of a context (§4.2, masks; S4 to S6)."""
    if k in (0, n):  # k above n has 6k above n, and not as many ones as k among n bits
        return np.arange(k)
    if 6 * k >= n:
        ranks = np.flatnonzero(cursor.bits(n))
        need(len(ranks) == k, "stream", "a mask has not as many bits as words changed")
        return ranks
    r = (n // (6 * k)).bit_length() - 1
    low = cursor.bits(k * r).reshape(k, r).astype(np.int64) @ (1 << np.arange(r))
    high = cursor.take(k).astype(np.int64)
    escapes = high == 255
    high[escapes] += cursor.take(4 * int(escapes.sum())).copy().view("<u4")
    # No overflow: k·2^r <= n / 6 < 2^24, and no quotient reaches 2^33.
    ranks = np.cumsum((high << r) + low + 1) - 1
    need(ranks[-1] < n, "stream", "a gap leads behind the context")
    return ranks


def read_values(cursor: Cursor, count: int, width: int) -> tuple[NDArray[np.bool_], U64]:
    """Which of the steps are negative, and the steps' absolute values (§4.2, values; S7, S8)."""
    negative = cursor.bits(count) == 1
    pairs = cursor.bits(2 * count).reshape(count, 2)
    steps = (pairs[:, 0] + 2 * pairs[:, 1] + 1).astype(np.uint64)
    large = np.flatnonzero(steps == 4)
    if width <= 16:
        nibbles = cursor.bits(4 * len(large)).reshape(-1, 4)
        sizes = (nibbles @ np.array([1, 2, 4, 8], np.uint8)).astype(np.int64)
    else:
        sizes = cursor.take(len(large)).astype(np.int64)
    need((sizes <= width - 2).all(), "stream", "a step too large for its word")
    bits = cursor.bits(int(sizes.sum()))
    starts, ys = np.cumsum(sizes) - sizes, np.uint64(1) << sizes.astype(np.uint64)
    for j in range(int(sizes.max(initial=0))):
        longer = sizes > j
        ys[longer] |= bits[starts[longer] + j].astype(np.uint64) << np.uint64(j)
    steps[large] = ys + np.uint64(3)
    limit = np.uint64((1 << width - 1) - 1) + negative.astype(np.uint64)
    need((steps <= limit).all(), "stream", "a step too large for its word")
    return negative, steps


# ---- §5 JSON -------------------------------------------------------------------------------------


SURROGATE = re.compile("[\ud800-\udfff]")


def load_json(text: bytes | str, code: str) -> Any:
    """Parse JSON text (§5; J1, J2, J4)."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(items)) == len(items), code, "a duplicate key")
        return dict(items)

    def integer(digits: str) -> int:
        need(len(digits) <= 19, code, "an integer of more than 19 characters")
        return int(digits)

    def constant(name: str) -> NoReturn:
        refuse(code, f"{name} is no JSON")

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_int=integer,
            parse_constant=constant,
        )
    except ValueError:
        refuse(code, "not JSON")
    except RecursionError:
        refuse("limit", "JSON nested more than 32 deep")
    check_json(value, code)
    return value


def check_json(value: Any, code: str) -> None:
    """All of a JSON text is bound by the rules, whether it is used or not (§5; J3, J5)."""
    queue = [(value, 1)]
    while queue:
        item, depth = queue.pop()
        if isinstance(item, dict):
            queue.extend((key, depth) for key in item)
        if isinstance(item, (dict, list)):
            need(depth <= 32, "limit", "JSON nested more than 32 deep")
            parts = item.values() if isinstance(item, dict) else item
            queue.extend((part, depth + 1) for part in parts)
        elif isinstance(item, str):
            need(not SURROGATE.search(item), code, "half a surrogate pair")


def print_json(value: Any) -> bytes:
    """Printed JSON (§5)."""
    return json.dumps(value, indent=2, sort_keys=True).encode()


def has_one_text(value: Any) -> bool:
    """Whether §5 says how this JSON value is printed: it holds neither floats nor ``null``."""
    if isinstance(value, (dict, list)):
        return all(map(has_one_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (str, bool, int))


# ---- §6 The zstd frame ---------------------------------------------------------------------------


SIZE_BYTES = {b"\x20": 1, b"\x60": 2, b"\xa0": 4, b"\xe0": 8}  # of the content size, by descriptor


def frame_size(frame: bytes, code: str) -> int:
    """The content size that "one zstd frame" declares, its header checked (§6; Z1, Z2)."""
    need(frame[:4] == b"\x28\xb5\x2f\xfd", code, "not a zstd frame")
    need(frame[4:5] in SIZE_BYTES, code, "no single segment, or a checksum or a dictionary id")
    count = SIZE_BYTES[frame[4:5]]
    check_blocks(frame, 5 + count, code)
    size = int.from_bytes(frame[5 : 5 + count], "little")
    return size + 256 if count == 2 else size


def check_blocks(frame: bytes, at: int, code: str) -> None:
    """Walk the blocks of a frame, whose sizes decompressors check differently (§6; Z3, Z4)."""
    last = 0
    while not last:
        start = frame[at : at + 3]
        need(len(start) == 3, code, "the frame is cut off")
        header = int.from_bytes(start, "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        need(kind != 3 and size <= 128 * 1024, code, "a block there cannot be")
        at += 3 + (1 if kind == 1 else size)
    need(at == len(frame), code, "the frame does not end where its bytes do")


def unframe(frame: bytes, code: str) -> bytes:
    """The content of a frame whose size the caller has bounded (§6; Z5)."""
    try:
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        refuse(code, f"zstd: {error}")


# ---- §7 The directory ----------------------------------------------------------------------------


def read_bytes(path: Path, at: int = 0, size: int = -1) -> bytes:
    """Part of a file, or all of it."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(size)
    except OSError:
        refuse("missing", f"cannot read {path.name}")


def shard_paths(delta: Path) -> list[Path]:
    """The files of a delta in order of their numbers (§7; D1 to D6)."""
    folder = delta / "rlsparse"
    single, listing = folder / "delta.safetensors", folder / "delta.safetensors.index.json"
    if not listing.exists():
        return [single]
    need(not single.exists(), "missing", "both a single file and an index of shards")
    need(listing.stat().st_size <= 4 * MIB, "limit", "the index file is above 4 MiB")
    listed = load_json(read_bytes(listing), "missing")
    weights = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(weights, dict):
        refuse("missing", "the index file has no weight_map")
    count = len(weights) - 1
    need(count >= 2, "missing", "the index file lists fewer than two shards")
    need(count <= 10_000, "limit", "more than 10,000 shards")
    names = [f"delta-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    wanted = {f"data.{k:05d}": name for k, name in enumerate(names, 1)}
    need(weights == wanted | {"index": names[-1]}, "missing", "the index file lists others")
    need(all((folder / name).is_file() for name in names), "missing", "a shard is not there")
    return [folder / name for name in names]


# ---- §8 The container ----------------------------------------------------------------------------


@dataclass
class Shard:
    """One file of the delta: its manifest, and where its entries lie (§8)."""

    path: Path
    text: bytes  # the manifest's bytes
    manifest: dict[str, Any]
    start: int  # of the data entry
    data: int  # its bytes
    index: int  # bytes of the index entry, 0 if there is none


def entry_text(name: str, begin: int, size: int) -> str:
    """One entry of a header as a canonical writer prints it (§8)."""
    offsets = f'"data_offsets":[{begin},{begin + size}]'
    return f'"{name}":{{"dtype":"U8","shape":[{size}],{offsets}}}'


def read_shard(path: Path, number: int, *, last: bool) -> Shard:
    """Read and check one file's header, length and manifest (§8; C1 to C6)."""
    start = read_bytes(path, 0, 8)
    length = int.from_bytes(start, "little")
    need(length <= MIB, "limit", "the header is above 1 MiB")
    raw = read_bytes(path, 8, length)
    need(length % 8 == 0, "header", "the header's length is wrong")
    text, data = raw.rstrip(b" "), f"data.{number:05d}"
    header = load_json(text, "header")
    try:
        manifest, sizes = header["__metadata__"]["rlsparse"], [header[data]["shape"][0]]
        sizes += [header["index"]["shape"][0]] if last else []
    except (KeyError, TypeError, IndexError):
        refuse("header", "the header lacks an entry")
    need(isinstance(manifest, str), "header", "the manifest is not a string")
    need(all(type(size) is int and size >= 0 for size in sizes), "header", "a shape is no size")
    entries = [f'"__metadata__":{{"rlsparse":{json.dumps(manifest)}}}']
    entries += [entry_text(data, 0, sizes[0])]
    entries += [entry_text("index", *sizes)] if last else []
    need(text == f"{{{','.join(entries)}}}".encode(), "header", "the header is not canonical")
    need(path.stat().st_size == 8 + length + sum(sizes), "header", "the file's length is wrong")
    parsed = read_manifest(manifest, number, last=last)
    return Shard(path, manifest.encode(), parsed, 8 + length, sizes[0], sum(sizes[1:]))


# ---- §9 The manifest -----------------------------------------------------------------------------


KNOWN_FEATURES = frozenset[str]()  # this version of the format defines none
BLOCK_NAME = "[a-z0-9][a-z0-9._/-]{0,127}"
PART = "[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
REPO, REVISION, COMMIT = f"{PART}(/{PART})?", f"{PART}(/{PART}){{0,3}}", "[0-9a-f]{40,64}"
PATH = f"{PART}(/{PART}){{0,7}}"


def matches(pattern: str, item: Any) -> bool:
    """Whether this is a string that matches a pattern from its start to its end (§9)."""
    return isinstance(item, str) and re.fullmatch(pattern, item) is not None


def check_canonical(text: str, value: Any) -> None:
    """The manifest is canonical JSON with small integers only (§9; M1)."""
    again = json.dumps(value, sort_keys=True, separators=(",", ":"))
    need(again == text, "header", "the manifest is not canonical JSON")
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, (dict, list)):
            queue.extend(item.values() if isinstance(item, dict) else item)
        elif not isinstance(item, str):
            good = type(item) is int and 0 <= item < 1 << 53
            need(good, "header", "the manifest holds a value that is no small integer")


def is_digest(item: Any) -> bool:
    """An object with a ``digest`` of 64 hex digits (§9)."""
    digest = item.get("digest") if isinstance(item, dict) else None
    return isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None


def check_hints(base: dict[str, Any]) -> None:
    """Hints name places that no reader is led astray by (§9; M9, M10)."""
    good = matches(REPO, base.get("repo", "x")) and matches(REVISION, base.get("revision", "x"))
    need(good, "header", "`repo` or `revision` is none")
    if "delta" not in base:
        return
    hint = base["delta"]
    need(isinstance(hint, dict), "header", "`delta` is no object")
    if "repo" in hint or "revision" in hint:
        good = matches(REPO, hint.get("repo")) and matches(COMMIT, hint.get("revision"))
        good = good and matches(PATH, hint.get("path", "x"))
    else:
        good = matches(rf"(\.\./){{0,8}}{PATH}", hint.get("path"))
    need(good, "header", "`delta` leads nowhere")


def read_manifest(text: str, number: int, *, last: bool) -> dict[str, Any]:
    """Check a manifest: first what a reader of any version knows, then the rest (§9; M2 to M11)."""
    value = load_json(text, "header")
    need(isinstance(value, dict), "header", "the manifest is not an object")
    check_canonical(text, value)
    version, features = value.get("format"), value.get("features")
    pattern = r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(-rc\.[1-9][0-9]{0,5})?"
    need(matches(pattern, version), "header", "the manifest has no format version")
    need(version.startswith("1.") and "-" not in version, "version", f"format {version}")
    need(isinstance(features, list), "header", "`features` is no list")
    names = all(matches(BLOCK_NAME, item) for item in features)
    need(names and features == sorted(set(features)), "header", "`features` does not ascend")
    need(KNOWN_FEATURES.issuperset(features), "feature", f"unknown features: {features}")
    need(value.get("shard") == number, "header", "`shard` is not the file's number")
    if not last:
        return dict(value)
    base, totals = value.get("base"), value.get("totals")
    good = is_digest(base) and is_digest(value.get("tuned"))
    need(good, "header", "the manifest lacks a digest")
    check_hints(base)
    need(value.get("cast", "F32") in CODES, "header", "`cast` is not a dtype")
    keys = {"tensors", "elements", "changed", "chunks", "tuned_bytes"}
    need(isinstance(totals, dict) and keys <= totals.keys(), "header", "`totals` lacks a key")
    good = all(isinstance(totals[key], int) for key in keys)
    need(good, "header", "`totals` holds more than integers")
    return dict(value)


# ---- §10 The index -------------------------------------------------------------------------------


@dataclass
class Entry:
    """What the index says of one tuned tensor (§10); its words are those its chunks count."""

    name: str
    kind: int
    number: int  # of the dtype
    width: int
    order: int
    widening: int
    origin: int
    tail: int
    steps: list[int]
    moved: int
    shape: tuple[int, ...] = field(init=False)
    size: int = field(init=False)  # bytes
    words: int = field(init=False)
    source: str = field(init=False)  # the base tensor it comes from (kinds same, delta)
    tuned: bytes = field(init=False)  # tensor digests
    base: bytes = field(init=False)
    chunks: range = field(init=False)
    file: int = field(init=False)

    @property
    def dtype(self) -> str:
        """Its dtype code."""
        return CODES[self.number]

    @property
    def source_dtype(self) -> str:
        """The dtype its source must have."""
        return (self.dtype, "BF16", "F16")[self.widening]

    @property
    def row_words(self) -> int:
        """Words in a row, 0 where the tensor has no rows that §4.2 could flag."""
        rows = math.prod(self.shape[:-1])
        return self.words // rows if len(self.shape) > 1 and self.words % rows == 0 else 0


@dataclass
class Chunk:
    """What the index says of one chunk (§10)."""

    first: int
    length: int
    coding: int
    shard: int
    at: int  # in its shard's data entry
    stored: int
    check: int
    result: int
    base: int
    bounds: U64
    changed: list[int]


@dataclass
class Index:
    """The parsed index (§10). What it says of chunks stays in columns: there may be millions."""

    entries: list[Entry]
    sources: list[str]
    removed: list[str]
    columns: dict[str, U64]
    files: list[str]
    layouts: list[int]
    texts: list[bytes]
    index_layout: int
    index_text: bytes

    def chunk(self, i: int) -> Chunk:
        """Chunk number ``i`` of the table."""
        keys = ("first", "length", "coding", "shard", "at", "stored", "check", "result")
        row = {key: int(self.columns[key][i]) for key in keys}
        base, part = 0, slice(0)
        if row["coding"] != WHOLE_CHUNK:
            d = int(self.columns["coded"][i])
            start, count = int(self.columns["start"][d]), int(self.columns["contexts"][d])
            base, part = int(self.columns["base"][d]), slice(start, start + count)
        changed = [int(k) for k in self.columns["changed"][part]]
        return Chunk(**row, base=base, bounds=self.columns["bound"][part], changed=changed)


def column(cursor: Cursor, count: int) -> U64:
    """An integer column (§10; I4)."""
    width = int(cursor.take(1)[0])
    need(width in (0, 1, 2, 4, 8), "index", "a column of a width there is not")
    if width == 0:  # nothing stored vouches for the count, so allocate nothing for it either
        return np.broadcast_to(np.uint64(0), (count,))
    planes = cursor.take(width * count).reshape(width, count)
    values: U64 = planes.T.copy().view(f"<u{width}").reshape(count).astype(np.uint64)
    smallest = count > 0 and int(values.max()) >> 8 * (width // 2) > 0
    need(smallest, "index", "a column is wider than its values need")
    return values


def name_list(cursor: Cursor, count: int) -> list[bytes]:
    """A name list, all of which are strictly ascending (§10; I6, I9, L4)."""
    prefixes, suffixes = column(cursor, count), column(cursor, count)
    size = sum(suffixes.tolist())
    need(sum(prefixes.tolist()) + size <= 1 << 27, "limit", "the names are too long")
    data, at, last, names = cursor.take(size).tobytes(), 0, b"", list[bytes]()
    for prefix, suffix in zip(prefixes.tolist(), suffixes.tolist(), strict=True):
        rest, at = data[at : at + suffix], at + suffix
        need(prefix <= len(last), "index", "a prefix longer than the name before it")
        longest = last[prefix : prefix + 1] != rest[:1]
        need(longest, "index", "a prefix is not the longest")
        name = last[:prefix] + rest
        need(name > last, "index", "names are not strictly ascending")
        names.append(last := name)
    return names


FORBIDDEN = re.compile("[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]")


def tensor_names(cursor: Cursor, count: int) -> list[str]:
    """A name list of tensors, each name checked (§10)."""
    names = []
    for raw in name_list(cursor, count):
        try:
            names.append(name := raw.decode("utf-8"))  # refuses surrogates
        except UnicodeDecodeError:
            refuse("index", "a name is not UTF-8")
        need(good_name(name), "index", "a name that no tensor may have")
    return names


def good_name(name: str) -> bool:
    """Whether a tensor may have this name (§10; I7, I8)."""
    return 1 <= len(name.encode()) <= 1024 and name != "__metadata__" and not FORBIDDEN.search(name)


def read_text(cursor: Cursor) -> bytes:
    """A text (§10)."""
    return cursor.take(int(column(cursor, 1)[0])).tobytes()


def read_index(shards: list[Shard]) -> Index:
    """Read, check and parse the entry ``index`` (§10; I1 to I3, I5, L1 to L3)."""
    last = shards[-1]
    need(last.index >= 8, "index", "the index entry is too short")
    stored = read_bytes(last.path, last.start + last.data, last.index)
    checksum, frame = int.from_bytes(stored[:8], "little"), stored[8:]
    manifests = b"".join(shard.text for shard in shards)
    need(xxh3(manifests + frame) == checksum, "checksum", "the index's checksum is wrong")
    size = frame_size(frame, "index")
    bound = min(1 << 30, 65536 + 32 * len(frame))
    need(size <= bound, "limit", f"an index of {size} bytes")
    cursor = Cursor(unframe(frame, "index"), "index")
    counts = column(cursor, 5)
    most = [1_000_000, 1_000_000, 1_000_000, 1 << 24, 10_000]
    need(all(counts <= most), "limit", "tensors, sources, removed tensors, chunks or files")
    t, s, r, c, f = counts.tolist()
    names, sources, removed = (tensor_names(cursor, n) for n in (t, s, r))
    entries = read_entries(cursor, names)
    columns = read_chunks(cursor, c)
    files, layouts, texts = read_files(cursor, entries, f)
    index_layout, index_text = read_index_text(cursor)
    for _ in last.manifest["features"]:
        read_text(cursor)  # a reader that knows the feature parses its block
    read_blocks(cursor)
    cursor.end()
    index = Index(
        entries, sources, removed, columns, files, layouts, texts, index_layout, index_text
    )
    check_origins(index)
    place_chunks(index, [shard.data for shard in shards])
    check_covering(index)
    check_headers(index)
    check_listing(index)
    check_manifest(index, last.manifest)
    return index


def read_entries(cursor: Cursor, names: list[str]) -> list[Entry]:
    """The columns of tensors, from ``kind`` to the digests (§10; L5, L6, L8)."""
    count = len(names)
    kinds, numbers, ranks = (column(cursor, count) for _ in range(3))
    at_most(kinds, 3, "index", "a kind")
    at_most(numbers, len(CODES) - 1, "index", "a dtype")
    at_most(ranks, 32, "limit", "a rank")
    dims = column(cursor, int(ranks.sum()))
    at_most(dims, 1 << 48, "limit", "a dimension")
    middle = [column(cursor, count).tolist() for _ in range(5)]
    steps, moved = column(cursor, 8 * count).reshape(count, 8), column(cursor, count)
    first = [kinds.tolist(), numbers.tolist(), *middle]
    rows = zip(names, *first, steps.tolist(), moved.tolist(), strict=True)
    entries, at = [Entry(*row) for row in rows], 0
    for entry, rank in zip(entries, ranks.tolist(), strict=True):
        entry.shape = tuple(dims[at : at + rank].tolist())
        at += rank
        check_words(entry)
    size = sum(entry.size for entry in entries)
    need(size <= 1 << 50, "limit", "tensors of more than 2^50 bytes")
    for entry in entries:
        entry.tuned = cursor.take(16).tobytes() if entry.kind != ALIAS else b""
    for entry in entries:
        entry.base = cursor.take(16).tobytes() if entry.kind == DELTA else b""
    return entries


def check_words(entry: Entry) -> None:
    """What a tensor's columns hold, and how many words it has (§10, §2; I12 to I18, L7)."""
    coded = entry.kind in (DELTA, WHOLE)
    elements = math.prod(entry.shape)
    need(elements * BITS[entry.number] % 8 == 0, "index", "a tensor is not whole bytes")
    entry.size = elements * BITS[entry.number] // 8
    width = entry.width if coded else WIDTHS[entry.number]
    need(width in (4, 8, 16, 32, 64), "index", "a word of a width there is not")
    need(entry.order <= 2, "index", "an unknown order map")
    need(coded or entry.width == entry.order == 0, "index", "words of a tensor without chunks")
    if entry.kind != DELTA:
        need(entry.widening == entry.tail == entry.moved == 0, "index", "not a delta tensor")
        need(not any(entry.steps), "index", "steps of a tensor without delta chunks")
    need(entry.widening <= 2, "index", "an unknown widening")
    if entry.widening:
        good = entry.dtype == "F32" and (entry.width, entry.order) == (16, 2)
        need(good, "index", "a widening of other words")
    bits = elements * 16 if entry.widening else entry.size * 8
    need(bits % width == 0, "index", "a tensor is not a whole number of words")
    entry.words = bits // width
    need(entry.words <= 1 << 48, "limit", "a tensor of more than 2^48 words")
    need(entry.tail <= entry.words, "index", "a tail longer than its tensor")


def read_chunks(cursor: Cursor, count: int) -> dict[str, U64]:
    """The columns of chunks (§10; I26, I30, I32, L9 to L13)."""
    keys = ("tensor", "skip", "length", "coding", "shard", "stored", "check", "result")
    columns = {key: column(cursor, count) for key in keys}
    at_most(columns["length"], 1 << 26, "limit", "words of a chunk")
    at_most(columns["stored"], 1 << 40, "limit", "bytes of a chunk")
    at_most(columns["coding"], 2, "index", "a coding")
    need(columns["length"].all(), "index", "a chunk of no words")
    need((columns["stored"] >= 10).all(), "index", "a chunk shorter than any frame")
    coded = columns["coding"] != WHOLE_CHUNK
    for key in ("base", "contexts"):
        columns[key] = column(cursor, int(coded.sum()))
    for key in ("check", "result", "base"):
        at_most(columns[key], M32, "limit", "a check")
    contexts = columns["contexts"]
    at_most(contexts, 16, "limit", "contexts of a chunk")
    need(contexts.all(), "index", "a chunk without context")
    for key in ("bound", "changed"):
        columns[key] = column(cursor, int(contexts.sum()))
    at_most(columns["changed"], 1 << 26, "limit", "changed words of a context")
    columns["coded"] = np.cumsum(coded, dtype=np.uint64) - coded  # place among the coded chunks
    columns["start"] = np.cumsum(contexts) - contexts
    columns["top"] = columns["bound"][(np.cumsum(contexts) - 1).astype(np.int64)]
    before = np.append(np.uint64(0), np.cumsum(columns["changed"]))
    columns["total"] = before[np.cumsum(contexts)] - before[columns["start"]]
    if len(contexts):
        starts = columns["start"].astype(np.int64)
        rises = np.append(True, columns["bound"][1:] > columns["bound"][:-1])
        rises[starts] = True
        need(rises.all(), "index", "bounds are not strictly ascending")
        need(columns["total"].all(), "index", "a delta chunk without a changed word")
    return columns


def check_origins(index: Index) -> None:
    """Sources, removed tensors and aliases (§10, §3; I10, I11, I19, I20)."""
    entries, used = index.entries, set()
    for entry in entries:
        origin = entry.origin
        if entry.kind in (SAME, DELTA):
            need(origin <= len(index.sources), "index", "an unknown source")
            entry.source = index.sources[origin - 1] if origin else entry.name
            need(not origin or entry.source != entry.name, "index", "a source of its own name")
            used.add(origin)
        elif entry.kind == WHOLE:
            need(origin == 0, "index", "an origin of a whole tensor")
        else:
            need(1 <= origin <= len(entries), "index", "an alias of nothing")
            target = entries[origin - 1]
            same = (entry.number, entry.shape) == (target.number, target.shape)
            need(same and target.kind != ALIAS, "index", "an alias of an unlike tensor")
    need(len(used - {0}) == len(index.sources), "index", "a source that is not used")
    known = {entry.name for entry in entries}.union(index.sources)
    need(known.isdisjoint(index.removed), "index", "a removed tensor that is used")


def place_chunks(index: Index, sizes: list[int]) -> None:
    """Give chunks their tensor, first word and offset (§10: differences; I23, I24, I27)."""
    columns, entries = index.columns, index.entries
    count, filled = len(columns["tensor"]), [0] * len(sizes)
    at_most(columns["tensor"], len(entries), "index", "a chunk's tensor")
    at_most(columns["shard"], len(sizes) - 1, "index", "a chunk's shard")
    tensors = np.cumsum(columns["tensor"])
    at_most(tensors, len(entries) - 1, "index", "a chunk's tensor")
    columns["first"], columns["at"] = np.zeros((2, count), np.uint64)
    edges = np.searchsorted(tensors, np.arange(len(entries) + 1)).tolist()
    for entry, begin, end in zip(entries, edges, edges[1:], strict=False):
        entry.chunks, at = range(begin, end), 0
        need(begin == end or entry.kind in (DELTA, WHOLE), "index", "a chunk of no coded tensor")
        for i in entry.chunks:
            at += int(columns["skip"][i])
            need(at <= entry.words, "index", "a chunk starts behind its tensor")
            columns["first"][i] = at
            at += int(columns["length"][i])
            shard = int(columns["shard"][i])
            columns["at"][i] = filled[shard]
            filled[shard] += int(columns["stored"][i])
    need(filled == sizes, "index", "the chunks do not fill their shards")


def check_covering(index: Index) -> None:
    """Chunks lie where they may, and cover the rest (§3, §4; I21, I22, I24, I25, I28, I29, I31)."""
    for entry in index.entries:
        if entry.kind not in (DELTA, WHOLE):
            continue
        # The words before `shared` have a source, which chunks may use or leave as it is.
        shared, at = entry.words - entry.tail if entry.kind == DELTA else 0, 0
        changed, room = 0, 0  # by delta chunks, and in the shared part of whole chunks
        for i in entry.chunks:
            first, length, coding = (
                int(index.columns[key][i]) for key in ("first", "length", "coding")
            )
            need(first == at or first <= shared, "index", "words without a source in no chunk")
            at = first + length
            even = entry.width != 4 or first % 2 == length % 2 == 0
            need(even, "index", "a chunk of 4-bit words that is not whole bytes")
            limit = entry.words if coding == WHOLE_CHUNK else shared
            need(at <= limit, "index", "a chunk ends behind the words it may code")
            room += max(0, min(at, shared) - first) if coding == WHOLE_CHUNK else 0
            need(coding != ROWS_CHUNK or entry.row_words, "index", "row flags without rows")
            if coding != WHOLE_CHUNK:
                d = int(index.columns["coded"][i])
                top = int(index.columns["top"][d])
                changed += int(index.columns["total"][d])
                keys = 1 << (entry.width if entry.order == 0 else entry.width - 1)
                need(top < keys, "index", "a bound above every key")
        end = at == entry.words or entry.words <= shared
        need(end, "index", "words without a source in no chunk")
        need(entry.moved <= room, "index", "more words moved than its whole chunks share")
        agree = changed == sum(entry.steps)
        need(agree, "index", f"{entry.name!r}: steps and changes disagree")


def check_manifest(index: Index, manifest: dict[str, Any]) -> None:
    """The manifest's ``totals`` and ``tuned`` agree with the index (§9, §11; I33, I34)."""
    entries = index.entries
    found = {
        "tensors": len(entries),
        "elements": sum(entry.words for entry in entries),
        "changed": sum(sum(entry.steps) + entry.moved for entry in entries),
        "chunks": len(index.columns["length"]),
        "tuned_bytes": sum(entry.size for entry in entries),
    }
    for key, value in found.items():
        need(manifest["totals"][key] == value, "index", f"totals.{key} is not {value}")
    parts = []
    for entry in entries:
        owner = entries[entry.origin - 1] if entry.kind == ALIAS else entry
        parts.append((entry.name, entry.dtype, entry.shape, owner.tuned))
    need(
        state_digest(parts) == manifest["tuned"]["digest"],
        "index",
        "the manifest's `tuned` is not the state that the index gives",
    )


def read_blocks(cursor: Cursor) -> None:
    """Optional blocks, none of which this reader knows (§10; I36, L14)."""
    count, before = int(column(cursor, 1)[0]), ""
    need(count <= 1000, "limit", "more than 1,000 optional blocks")
    for _ in range(count):
        name = read_text(cursor).decode("latin-1")
        need(matches(BLOCK_NAME, name), "index", "an optional block without a name")
        need(name > before, "index", "optional blocks are not strictly ascending")
        before = name
        read_text(cursor)


# ---- §11 Checksums and digests -------------------------------------------------------------------


LEAF = 16384


def leaf_hashes(data: bytes) -> bytes:
    """The XXH3 of each leaf, as 8 bytes each (§11)."""
    count = len(data) // LEAF
    leaves = np.frombuffer(data, np.uint8, count * LEAF).reshape(count, LEAF)
    parts = [xxh3_rows(leaves[at : at + 256]).tobytes() for at in range(0, count, 256)]
    rest = data[count * LEAF :]
    return b"".join(parts) + (xxh3(rest).to_bytes(8, "little") if rest else b"")


def tensor_digest(data: bytes) -> bytes:
    """A tensor digest (§11)."""
    prefix = b"rlsparse-tensor-1" + len(data).to_bytes(8, "little")
    return hashlib.sha256(prefix + leaf_hashes(data)).digest()[:16]


def state_digest(tensors: list[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """The state digest of (name, dtype, shape, tensor digest) of each tensor, in hex (§11)."""
    state = hashlib.sha256(b"rlsparse-state-1")
    # A base given by a caller may hold names that are no UTF-8: they match no digest.
    encoded = [(t[0].encode("utf-8", "surrogatepass"), *t[1:]) for t in tensors]
    for name, dtype, shape, digest in sorted(encoded):
        dims = b"".join(dim.to_bytes(8, "little") for dim in shape)
        state.update(len(name).to_bytes(4, "little") + name)
        state.update(bytes([len(dtype)]) + dtype.encode() + bytes([len(shape)]) + dims + digest)
    return state.hexdigest()


def words_check(data: bytes) -> int:
    """The check of base or result words (§11)."""
    return xxh3(leaf_hashes(data)) & M32


def check_base(
    index: Index, manifest: dict[str, Any], base: dict[str, Tensor], digests: dict[str, bytes]
) -> None:
    """The base as a whole is the one that the delta was made from (§9, §10, §11; B7 to B9)."""
    state = state_digest([(n, t.dtype, t.shape, digests[n]) for n, t in base.items()])
    need(state == manifest["base"]["digest"], "base", "not the base of this delta")
    need(base.keys() >= set(index.removed), "base", "a removed tensor is not there")
    known = {entry.name for entry in index.entries}.union(index.sources, index.removed)
    need(base.keys() <= known, "index", "a base tensor that is neither used nor removed")


# ---- §12 The tuned checkpoint's files ------------------------------------------------------------


def read_files(
    cursor: Cursor, entries: list[Entry], count: int
) -> tuple[list[str], list[int], list[bytes]]:
    """Names, layouts and texts of the tuned checkpoint's files (§12; F1 to F5)."""
    names = [name.decode("latin-1") for name in name_list(cursor, count)]
    for name in names:
        good = re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,180}", name)
        need(good and name.endswith(".safetensors"), "index", "a file name there cannot be")
        device = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
        need(device is None, "index", "a file name that is a device")
    folded = {name.lower() for name in names}
    need(len(folded) == len(names), "index", "file names that differ by case only")
    files = column(cursor, len(entries)).tolist()
    for entry, file in zip(entries, files, strict=True):
        need(file < count, "index", "a tensor in an unknown file")
        entry.file = file
    layouts = column(cursor, count)
    at_most(layouts, 2, "index", "a layout")
    return names, layouts.tolist(), [read_text(cursor) for _ in range(count)]


def read_index_text(cursor: Cursor) -> tuple[int, bytes]:
    """Layout and text of the index file (§12; F5, F9)."""
    layout, text = int(column(cursor, 1)[0]), read_text(cursor)
    need(layout <= 2, "index", "an unknown layout of the index file")
    need(layout or not text, "index", "a text of no index file")
    return layout, text


def header_places(header: bytes, size: int, code: str) -> dict[str, Place]:
    """A safetensors header's tensors, which must cover ``size`` bytes exactly (§12; F7, F8)."""
    need(header[:1] == b"{", code, "not a safetensors header")
    value, places, at = load_json(header, code), dict[str, Place](), 0
    check_metadata(value.pop("__metadata__", {}), code)
    for name, item in value.items():
        need(good_name(name), code, "a name that no tensor may have")
        keys = ("dtype", "shape", "data_offsets")
        exact = isinstance(item, dict) and item.keys() == set(keys)
        found: list[Any] = [item[key] for key in keys] if exact else []
        types = [type(part) for part in found]
        good = types == [str, list, list] and found[0] in CODES and len(found[2]) == 2
        need(good, code, "a tensor is not described as one")
        dtype, shape, place = found
        numbers = all(type(number) is int and number >= 0 for number in shape + place)
        need(numbers, code, "a tensor is not described by numbers")
        # §13, and no product of thousands of huge numbers.
        small = len(shape) <= 32 and all(dim <= 1 << 48 for dim in shape)
        need(small, code, "a shape beyond the limits")
        bits = math.prod(shape) * BITS[CODES.index(dtype)]
        need(bits == 8 * (place[1] - place[0]), code, "a tensor of the wrong length")
        places[name] = (dtype, tuple(shape), *place)
    for begin, end in sorted(place[2:] for place in places.values()):
        need(begin == at, code, "data with a gap or an overlap")
        at = end
    need(at == size, code, "data of another length than the header says")
    return places


def check_metadata(value: Any, code: str) -> None:
    """``__metadata__`` maps strings to strings (§12: a valid header; F6)."""
    good = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    need(good, code, "`__metadata__` does not map strings to strings")


def check_headers(index: Index) -> None:
    """The text of each file's header can be what it is said to be (§12; F6, F7)."""
    held: list[list[Entry]] = [[] for _ in index.files]
    for entry in index.entries:
        held[entry.file].append(entry)
    for entries, layout, text in zip(held, index.layouts, index.texts, strict=True):
        if layout == VERBATIM:
            places = header_places(text, sum(entry.size for entry in entries), "index")
            wanted = {entry.name: (entry.dtype, entry.shape) for entry in entries}
            found = {name: place[:2] for name, place in places.items()}
            need(found == wanted, "index", "a header of other tensors")
        elif text:
            good = text.startswith(b"{") and text.endswith(b"}")
            need(good, "index", "white space around the metadata")
            check_metadata(load_json(text, "index"), "index")


def check_listing(index: Index) -> None:
    """The text of the index file is one that it can have (§12; F10, F11)."""
    if index.index_layout == 1:
        stored = load_json(index.index_text, "index")
        good = has_one_text(stored) and print_json(stored) == index.index_text
        need(good, "index", "metadata of the index file that prints otherwise")
    if index.index_layout == VERBATIM:
        stored = load_json(index.index_text, "index")
        mapped = stored.get("weight_map") if isinstance(stored, dict) else None
        own = {entry.name: index.files[entry.file] for entry in index.entries}
        need(mapped == own, "index", "the stored index file does not map tensors to their files")


def file_order(layout: int, entry: Entry) -> tuple[int, str]:
    """What a rebuilt header sorts its tensors by (§12); names sort as their UTF-8 bytes do."""
    return (-entry.number if layout else 0, entry.name)


def rebuild_header(entries: list[Entry], text: bytes) -> bytes:
    """A header from the tensors of a file, in order, and the text of its metadata (§12)."""
    items, at = [b'"__metadata__":' + text] if text else [], 0
    for entry in entries:
        name = entry.name.replace("\\", "\\\\").replace('"', '\\"')
        shape, end = ",".join(map(str, entry.shape)), at + entry.size
        offsets = f'"data_offsets":[{at},{end}]'
        items.append(f'"{name}":{{"dtype":"{entry.dtype}","shape":[{shape}],{offsets}}}'.encode())
        at = end
    header = b"{" + b",".join(items) + b"}"
    return header + b" " * (-len(header) % 8)


def rebuild_files(delta: Path, tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The tuned checkpoint's files, byte for byte, from its decoded tensors (§12).

    Args:
        delta: The delta directory.
        tensors: What ``decode`` gave for it.

    Returns:
        The bytes of each file by name.

    Raises:
        Refused: If the delta breaks a rule, or the tensors are not those of this delta.
    """
    _, index = open_delta(delta)
    held: list[list[Entry]] = [[] for _ in index.files]
    for entry in index.entries:
        tensor = tensors.get(entry.name, Tensor("", (), b""))
        same = (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)
        need(same and len(tensor.data) == entry.size, "result", "tensors of another delta")
        held[entry.file].append(entry)
    files = dict[str, bytes]()
    for file, entries, layout, text in zip(
        index.files, held, index.layouts, index.texts, strict=True
    ):
        if layout == VERBATIM:
            header = text
            places = header_places(text, sum(entry.size for entry in entries), "index")
            names = sorted(places, key=lambda name: places[name][2:])
        else:
            entries.sort(key=lambda entry: file_order(layout, entry))
            header, names = rebuild_header(entries, text), [entry.name for entry in entries]
        data = [tensors[name].data for name in names]
        files[file] = b"".join([len(header).to_bytes(8, "little"), header, *data])
    if index.index_layout == 1:
        weights = {entry.name: index.files[entry.file] for entry in index.entries}
        metadata = load_json(index.index_text, "index")
        text = print_json({"metadata": metadata, "weight_map": weights}) + b"\n"
        files["model.safetensors.index.json"] = text
    elif index.index_layout == VERBATIM:
        files["model.safetensors.index.json"] = index.index_text
    return files


# ---- §14 The order of it all ---------------------------------------------------------------------


def open_delta(delta: Path) -> tuple[list[Shard], Index]:
    """Check everything that needs no base, in the order of §14 (M12)."""
    paths = shard_paths(delta)
    shards = [read_shard(path, k, last=k == len(paths)) for k, path in enumerate(paths, 1)]
    features = [shard.manifest["features"] for shard in shards]
    need(features.count(features[0]) == len(features), "header", "unlike features")
    return shards, read_index(shards)


def decode(delta: Path, base: dict[str, Tensor], most: int | None = None) -> dict[str, Tensor]:
    """Rebuild the tuned tensors from a delta directory and the base (§3, §14; B4, B6, L15).

    Args:
        delta: The delta directory, which holds ``rlsparse/``.
        base: The base's tensors by name.
        most: Bytes of tuned tensors that the caller accepts; more are refused as `large`.

    Returns:
        The tuned tensors by name.

    Raises:
        Refused: If anything breaks a rule of the format.
    """
    shards, index = open_delta(delta)
    size = sum(entry.size for entry in index.entries)
    need(most is None or size <= most, "large", f"tensors of {size} bytes")
    check_sources(index, base)
    digests = {name: tensor_digest(tensor.data) for name, tensor in base.items()}
    data = dict[str, bytes]()
    for entry in index.entries:
        source = base[entry.source].data if entry.kind in (SAME, DELTA) else b""
        if entry.kind == SAME:
            data[entry.name] = source
        elif entry.kind != ALIAS:
            data[entry.name] = decode_tensor(shards, index, entry, source)
        if entry.kind in (SAME, DELTA):
            expected = entry.tuned if entry.kind == SAME else entry.base
            good = digests[entry.source] == expected
            need(good, "base", f"the base's {entry.source!r} has another digest")
        if entry.kind in (DELTA, WHOLE):
            good = tensor_digest(data[entry.name]) == entry.tuned
            need(good, "result", f"{entry.name!r} has not its digest")
    check_base(index, shards[-1].manifest, base, digests)
    result = dict[str, Tensor]()
    for entry in index.entries:
        owner = index.entries[entry.origin - 1] if entry.kind == ALIAS else entry
        result[entry.name] = Tensor(entry.dtype, entry.shape, data[owner.name])
    return result


# ---- The base, and the command line --------------------------------------------------------------


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one file, or a folder of them."""
    listing = path / "model.safetensors.index.json"
    if not path.is_dir():
        return [path]
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if not listing.exists():
        return sorted(path.glob("*.safetensors"))
    listed = load_json(read_bytes(listing), "base")
    weights = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, str) for v in weights.values()):
        refuse("base", "the base's index file has no weight_map")
    return [path / name for name in sorted(set(weights.values()))]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a base from a safetensors file or a folder of them.

    Args:
        path: The file, or the folder.

    Returns:
        The tensors by name.

    Raises:
        Refused: With the code ``base`` if this is no checkpoint.
    """
    tensors = dict[str, Tensor]()
    for file in checkpoint_files(path):
        try:
            raw = file.read_bytes()
        except (OSError, ValueError) as error:
            refuse("base", f"cannot read {file.name!r}: {error}")
        start = 8 + int.from_bytes(raw[:8], "little")
        need(start <= len(raw), "base", f"{file.name!r} is cut off")
        for name, place in header_places(raw[8:start], len(raw) - start, "base").items():
            dtype, shape, begin, end = place
            need(name not in tensors, "base", f"{name!r} is in two files")
            tensors[name] = Tensor(dtype, shape, raw[start + begin : start + end])
    return tensors


def main(arguments: list[str]) -> int:
    """``decode.py DELTA BASE OUT_FOLDER``: write the tuned checkpoint's files."""
    if len(arguments) != 3:
        print(f"usage: {Path(__file__).name} DELTA BASE OUT_FOLDER", file=sys.stderr)
        return 2
    delta, base, out = map(Path, arguments)
    if out.exists():
        print(f"{out} exists", file=sys.stderr)
        return 1
    try:
        files = rebuild_files(delta, decode(delta, read_checkpoint(base)))
    except Refused as error:
        # Names come from files: escape whatever a terminal might act on.
        print(f"refused: {error.code}: {ascii(str(error))[1:-1]}", file=sys.stderr)
        return 1
    out.mkdir(parents=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    return 0


# ---- XXH3-64 with seed 0, after its specification ------------------------------------------------

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def number(data: bytes, at: int, size: int = 8) -> int:
    """A little-endian number at an offset; below 0 it counts from the end."""
    at += len(data) if at < 0 else 0
    return int.from_bytes(data[at : at + size], "little")


def fold(a: int, b: int) -> int:
    """The halves of a 128-bit product, one XOR the other."""
    product = a * b
    return (product ^ product >> 64) & M64


def avalanche(h: int) -> int:
    """The finishing step of XXH3."""
    h &= M64
    h = (h ^ h >> 37) * 0x165667919E3779F9 & M64
    return h ^ h >> 32


def avalanche_64(h: int) -> int:
    """The finishing step of XXH64, which the shortest inputs use."""
    h = (h ^ h >> 33) * P64[1] & M64
    h = (h ^ h >> 29) * P64[2] & M64
    return h ^ h >> 32


def mix(data: bytes, at: int, key: int) -> int:
    """Fold 16 bytes with 16 of the secret."""
    low, high = number(data, at), number(data, at + 8)
    return fold(low ^ number(SECRET, key), high ^ number(SECRET, key + 8))


def xxh3_short(data: bytes) -> int:
    """Inputs of up to 16 bytes."""
    size = len(data)
    if size == 0:
        return avalanche_64(number(SECRET, 56) ^ number(SECRET, 64))
    if size <= 3:
        combined = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        return avalanche_64(combined ^ number(SECRET, 0, 4) ^ number(SECRET, 4, 4))
    if size <= 8:
        h = number(data, -4, 4) + (number(data, 0, 4) << 32)
        h ^= number(SECRET, 8) ^ number(SECRET, 16)
        h ^= (h << 49 | h >> 15) & M64 ^ (h << 24 | h >> 40) & M64
        h = h * 0x9FB21C651E98DF25 & M64
        h = (h ^ (h >> 35) + size) * 0x9FB21C651E98DF25 & M64
        return h ^ h >> 28
    low = number(data, 0) ^ number(SECRET, 24) ^ number(SECRET, 32)
    high = number(data, -8) ^ number(SECRET, 40) ^ number(SECRET, 48)
    swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
    return avalanche(size + swapped + high + fold(low, high))


def xxh3_middle(data: bytes) -> int:
    """Inputs of 17 to 240 bytes."""
    size, h = len(data), len(data) * P64[0]
    if size <= 128:  # pairs of pieces, from both ends inwards
        for i in range((size - 1) // 32 + 1):
            h += mix(data, 16 * i, 32 * i) + mix(data, size - 16 * (i + 1), 32 * i + 16)
        return avalanche(h)
    h = avalanche(h + sum(mix(data, 16 * i, 16 * i) for i in range(8)))
    h += sum(mix(data, 16 * i, 16 * (i - 8) + 3) for i in range(8, size // 16))
    return avalanche(h + mix(data, size - 16, 136 - 17))


def xxh3(data: bytes) -> int:
    """XXH3-64 of one byte string."""
    if len(data) <= 240:
        return xxh3_short(data) if len(data) <= 16 else xxh3_middle(data)
    return int(xxh3_rows(np.frombuffer(data, np.uint8).reshape(1, -1))[0])


def lanes(at: int, stripes: int) -> U64:
    """The secret of each of some consecutive stripes: 64 bytes, 8 further on every time."""
    return np.stack([np.frombuffer(SECRET, "<u8", 8, at + 8 * i) for i in range(stripes)])


def accumulate(data: U8, keys: U64) -> U64:
    """What stripes (last axis: their bytes on end) add to the eight accumulators."""
    stripes: U64 = data.view("<u8").reshape(*data.shape[:-1], len(keys), 8)
    mixed = stripes ^ keys
    # Each lane also takes its neighbour's data as it is. Sums commute: stripes in any order.
    added = stripes.reshape(*stripes.shape[:-1], 4, 2)[..., ::-1].reshape(stripes.shape)
    product = (mixed & np.uint64(M32)) * (mixed >> np.uint64(32))
    total_of_stripes: U64 = (product + added).sum(axis=-2, dtype=np.uint64)
    return total_of_stripes


def xxh3_rows(rows: U8) -> U64:
    """XXH3-64 of each row of bytes, more than 240 of them each."""
    count, size = rows.shape
    start = [P32[2], *P64[:4], P32[1], P64[4], P32[0]]
    state = np.tile(np.array(start, np.uint64), (count, 1))
    blocks, keys, scramble = (size - 1) // 1024, lanes(0, 16), lanes(128, 1)[0]
    group = 4096 // count + 1  # bounds the memory that the sums take
    for at in range(0, blocks, group):
        few = min(group, blocks - at)
        part = rows[:, 1024 * at : 1024 * (at + few)].reshape(count, few, 1024)
        sums = accumulate(part, keys)
        for i in range(few):
            state += sums[:, i]
            state ^= state >> np.uint64(47)
            state ^= scramble
            state *= np.uint64(P32[0])
    stripes = (size - 1 - 1024 * blocks) // 64
    if stripes:
        state += accumulate(rows[:, 1024 * blocks :][:, : 64 * stripes], keys[:stripes])
    state += accumulate(rows[:, size - 64 :], lanes(121, 1))
    state ^= lanes(11, 1)[0]
    begin = size * P64[0]
    pairs = [zip(row[::2], row[1::2], strict=True) for row in state.tolist()]
    hashes = [avalanche(begin + sum(fold(a, b) for a, b in row)) for row in pairs]
    return np.array(hashes, np.uint64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

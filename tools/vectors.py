#!/usr/bin/env python3
"""Write and check ``specs/vectors``: deltas that every reader must accept, or refuse by code.

    python tools/vectors.py generate
    python tools/vectors.py check

The valid vectors are encoded from small pairs of checkpoints. Each invalid one is a valid one with
one deliberate edit, sealed again: checks, totals and digests are recomputed, so that exactly one
rule is broken and a reader that knows only the checksums does not notice. Everything is a function
of names, by way of SHAKE-128, so that no library's random stream can change a byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
import numpy as np
import zstandard

from rlsparse_store.codec.chunk import encode_whole
from rlsparse_store.delta import encode_delta
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.delta_writer import container_header
from rlsparse_store.format.bits import pack_flags
from rlsparse_store.format.digests import bytes_check, checksum, leaf_hashes, leaves_check
from rlsparse_store.format.dtypes import DTYPES, Dtype, OrderMap, WordCoding
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.index.columns import ColumnWriter
from rlsparse_store.format.index.records import ChunkCoding, ChunkRecord, Index, Kind, TensorRecord
from rlsparse_store.format.index.writer import encode_index
from rlsparse_store.format.manifest import FORMAT_VERSION
from rlsparse_store.format.order import add_steps
from rlsparse_store.format.strict_json import canonical
from rlsparse_store.format.words import Widening, Words, as_words, cast_to_bf16, widen
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import Rows, Streams
from rlsparse_store.pipeline.fingerprints import checkpoint_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Json: TypeAlias = dict[str, Any]
Files: TypeAlias = dict[str, bytes]

VECTORS: Final = Path(__file__).resolve().parent.parent / "specs" / "vectors"
DELTA: Final = "delta.safetensors"
MODEL: Final = "model.safetensors"
LISTING: Final = "model.safetensors.index.json"
MAGIC: Final = b"\x28\xb5\x2f\xfd"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


# --- checkpoints -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype code, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> Words:
        """Its words in its dtype's own coding."""
        return as_words(np.frombuffer(self.data, np.uint8), DTYPES[self.dtype].coding.width)


Tensors: TypeAlias = dict[str, Tensor]


def safetensors(
    tensors: Tensors,
    *,
    metadata: dict[str, str] | None = None,
    names: Sequence[str] | None = None,
    padding: int = 0,
) -> bytes:
    """A safetensors file.

    Args:
        tensors: Its tensors.
        metadata: Its ``__metadata__``.
        names: Their order; ascending if not given.
        padding: Spaces beyond those that alignment needs.
    """
    fields: Json = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name in names or sorted(tensors):
        t = tensors[name]
        place = [len(data), len(data) + len(t.data)]
        fields[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": place}
        data += t.data
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8 + padding)
    return len(text).to_bytes(8, "little") + text + data


def noise(name: str, nbytes: int) -> NDArray[np.uint8]:
    """Bytes that look random and are a function of ``name``."""
    return np.frombuffer(hashlib.shake_128(name.encode()).digest(nbytes), np.uint8)


def raw(name: str, dtype: str, *shape: int) -> Tensor:
    """A tensor of any bits."""
    nbytes = DTYPES[dtype].nbytes(shape)
    assert nbytes is not None  # noqa: S101 - the shapes here are whole bytes
    return Tensor(dtype, shape, noise(name, nbytes).tobytes())


def floats(name: str, dtype: str, *shape: int) -> Tensor:
    """A tensor of ordinary BF16, F16 or F32 numbers, in twelve binades."""
    t = raw(name, dtype, *shape)
    spec = DTYPES[dtype]
    mantissa = spec.mantissa_bits or 0
    exponent_bits = spec.bits - 1 - mantissa
    middle = (1 << (exponent_bits - 1)) - 1
    exponent = middle - noise(name + "/exponent", t.words.size) % 12
    keep = t.words.dtype.type(~(((1 << exponent_bits) - 1) << mantissa) & ((1 << spec.bits) - 1))
    words = (t.words & keep) | (exponent.astype(t.words.dtype) << t.words.dtype.type(mantissa))
    return Tensor(dtype, shape, words.tobytes())


def of_words(dtype: str, words: Sequence[int] | Words, *shape: int) -> Tensor:
    """A tensor of given words of 8 bits or more."""
    width = DTYPES[dtype].coding.width
    array = np.array(words, np.uint64).astype(f"<u{width // 8}")
    return Tensor(dtype, shape or (array.size,), array.tobytes())


def places(name: str, words: int, count: int) -> NDArray[np.int64]:
    """``count`` places among ``words``, ascending."""
    rank = noise(name, 8 * words).view("<u8")
    return np.sort(np.argsort(rank, kind="stable")[:count])


STEPS: Final = (1, -1, 2, -2, 1, -3, 3, 4, -5, 9, -1, 40, 1, -70)


def moved(
    name: str,
    t: Tensor,
    where: Sequence[int] | NDArray[np.int64] | int,
    *,
    steps: Sequence[int] = STEPS,
    coding: WordCoding | None = None,
) -> Tensor:
    """A tensor with some words moved, cut into words as ``coding`` says.

    Args:
        name: What the places are a function of.
        t: The tensor before.
        where: Places of words, or how many.
        steps: By how much, in turns.
        coding: The dtype's own if not given.
    """
    coding = coding or DTYPES[t.dtype].coding
    words = as_words(np.frombuffer(t.data, np.uint8), coding.width).copy()
    at = places(name, words.size, where) if isinstance(where, int) else np.asarray(where)
    step = np.resize(np.array(steps, np.int64), at.size)
    words[at] = add_steps(words[at], step, coding)
    data = words[::2] | words[1::2] << 4 if coding.width == 4 else words
    return replace(t, data=data.tobytes())


# --- pairs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What a valid vector is encoded from.

    Attributes:
        about: What it shows.
        base: The base's tensors.
        tuned: The tuned checkpoint's files, or its tensors if it is one plain file.
        options: For ``encode_delta``.
        rebuilt: The files that applying gives, if they are not the tuned ones.
        hints: Whether the base is encoded from a folder of the Hub's cache.
        edit: What is done to the sealed delta.
        base_name: Folder of the base.
    """

    about: str
    base: Tensors
    tuned: Tensors | Files
    options: Json = field(default_factory=dict)
    rebuilt: Files | None = None
    hints: bool = False
    edit: Callable[[Draft], bytes] | None = None

    def tuned_files(self) -> Files:
        """The tuned checkpoint's files."""
        tensors: Tensors = {n: t for n, t in self.tuned.items() if isinstance(t, Tensor)}
        files: Files = {n: f for n, f in self.tuned.items() if isinstance(f, bytes)}
        return files or {MODEL: safetensors(tensors)}

    def tensor(self, name: str) -> Tensor:
        """A tuned tensor of a pair that is given by tensors."""
        found = self.tuned[name]
        assert isinstance(found, Tensor)  # noqa: S101 - the caller knows the pair
        return found


def _special_words(dtype: str) -> list[int]:
    """Zeros, subnormals, infinities and NaNs of either sign, and neighbours of each."""
    spec = DTYPES[dtype]
    sign, mantissa = 1 << (spec.bits - 1), spec.mantissa_bits or 0
    infinity = sign - (1 << mantissa)
    positive = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, infinity]
    positive += [infinity + 1, infinity + (1 << (mantissa - 1)), infinity + 3, sign - 1]
    return positive + [sign | word for word in positive]


def _specials() -> Pair:
    base: Tensors = {}
    tuned: Tensors = {}
    for dtype in ("BF16", "F16", "F32", "F64"):
        words = _special_words(dtype)
        base[dtype.lower()] = of_words(dtype, words * 3)
        tuned[dtype.lower()] = of_words(dtype, [*words, *reversed(words), *words[5:], *words[:5]])
    return Pair("NaN payloads, both zeros, subnormals and infinities, in either place", base, tuned)


def _every_dtype() -> Pair:
    base = {code.lower(): raw(f"every/{code}", code, 2, 16) for code in DTYPES}
    tuned = {n: moved(f"every/{n}/moved", t, 9) for n, t in base.items()}
    return Pair(
        "every dtype of the format in one file, headers in the library's order", base, tuned
    )


def _layout_by_dtype() -> Pair:
    pair = _every_dtype()
    tensors = {name: pair.tensor(name) for name in pair.tuned}
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].number, name))
    file = safetensors(tensors, metadata={"format": "pt", "µ": '"\\'}, names=order)
    return replace(pair, tuned={MODEL: file})


def _bitmap() -> Pair:
    base = {"w": floats("bitmap", "BF16", 61)}
    return Pair("a bitmap mask of one context", base, {"w": moved("b", base["w"], 21)})


def _gaps() -> Pair:
    base = {"w": floats("gaps", "BF16", 48, 32)}
    return Pair("a mask of gaps with low bits, one context", base, {"w": moved("g", base["w"], 30)})


def _contexts() -> Pair:
    base = {"w": floats("contexts", "BF16", 2500)}
    words = base["w"].words
    small, large = (words & 0x7FFF) < 0x3B00, (words & 0x7FFF) >= 0x3E00
    where = np.concatenate([np.flatnonzero(small)[::2], np.flatnonzero(large)[::20]])
    return Pair(
        "bitmap and gap masks in several contexts",
        base,
        {"w": moved("c", base["w"], np.sort(where[: where.size // 2 * 2]))},
    )


def _escape() -> Pair:
    base = {"w": of_words("BF16", [0x3F01] * 3001)}
    where = [*range(0, 120, 4), *range(2880, 3000, 4)]
    about = "gaps of which one has a high part of 255 or more: an escape"
    return Pair(about, base, {"w": moved("e", base["w"], where)})


def _rows() -> Pair:
    base = {"w": floats("rows", "BF16", 123, 50)}
    where = [row * 50 + column for row in (3, 40, 41, 90, 119) for column in range(50)]
    return Pair("row flags", base, {"w": moved("r", base["w"], where)})


def _whole() -> Pair:
    base = {"w": raw("whole/a", "BF16", 20, 20), "x": raw("whole/b", "I64", 30)}
    tuned = {"w": raw("whole/c", "BF16", 20, 20), "x": raw("whole/d", "I64", 30)}
    return Pair("whole chunks: nothing is left of the base", base, tuned)


def _four_bits() -> Pair:
    nibble = WordCoding(4, OrderMap.UNSIGNED)
    base = {"f4": raw("f4", "F4", 40, 16), "packed": raw("packed", "I32", 30, 8)}
    packed = moved("p", base["packed"], 400, steps=(1, -1), coding=nibble)
    tuned = {"f4": moved("f4/m", base["f4"], 40, steps=(1, -1, 2)), "packed": packed}
    return Pair("4-bit words: F4, and two to eight numbers packed in I32", base, tuned)


def _empty() -> Pair:
    shapes: list[tuple[int, ...]] = [(), (0,), (3, 0), (1,), (1, 1, 1, 2)]
    base = {f"t{i}": raw(f"empty/{i}", "F32", *shape) for i, shape in enumerate(shapes)}
    tuned = {n: moved(n, t, [0]) if t.data else t for n, t in base.items()}
    return Pair("a scalar, empty tensors, and tensors of one word", base, tuned)


def _alias() -> Pair:
    base = {"embed": floats("alias", "BF16", 64, 32), "head": floats("alias/h", "BF16", 64, 32)}
    tied = moved("a", base["embed"], 60)
    about = "an alias: what were two tensors are now the same bytes"
    return Pair(about, base, {"embed": tied, "head": tied})


def _renamed() -> Pair:
    base = {"model.layers.0.w": floats("renamed", "BF16", 30, 20)}
    tuned = {"policy.layers.0.w": moved("rn", base["model.layers.0.w"], 31)}
    return Pair("a tensor of another name in the base: a foreign source", base, tuned)


def _new_tie() -> Pair:
    base = {"embed": floats("tie", "BF16", 64, 32)}
    tuned = {"embed": moved("t", base["embed"], 40), "lm_head.weight": base["embed"]}
    return Pair("a tie that is newly stored: two tensors of one source", base, tuned)


def _vocabulary() -> Pair:
    base = {"grown": floats("grown", "BF16", 20, 8), "shrunk": floats("shrunk", "BF16", 24, 8)}
    more = floats("more", "BF16", 5, 8)
    grown = moved("v", base["grown"], 10).data + more.data
    shrunk = moved("s", base["shrunk"], 12).data[: 17 * 8 * 2]
    tuned = {"grown": Tensor("BF16", (25, 8), grown), "shrunk": Tensor("BF16", (17, 8), shrunk)}
    return Pair("a vocabulary that has grown and one that has shrunk", base, tuned)


def _widened(t: Tensor, widening: Widening) -> Tensor:
    words = np.frombuffer(t.data, "<u2")
    return Tensor("F32", t.shape, widen(words, widening).astype("<u4").tobytes())


def _widening_bf16() -> Pair:
    words = [*_special_words("BF16"), *floats("wb", "BF16", 200).words.tolist()]
    base = {"same": of_words("BF16", words), "w": of_words("BF16", words)}
    tuned = {n: _widened(t, Widening.BF16_TO_F32) for n, t in base.items()}
    tuned["w"] = _widened(moved("wbm", base["w"], 25), Widening.BF16_TO_F32)
    return Pair("F32 tensors that are exactly widened BF16", base, tuned)


def _widening_f16() -> Pair:
    words = [*_special_words("F16"), *raw("wf", "F16", 578).words.tolist()]
    base = {"w": of_words("F16", words)}
    tuned = {"w": _widened(moved("wfm", base["w"], 40), Widening.F16_TO_F32)}
    return Pair("600 patterns of F16 widened to F32, NaNs and subnormals among them", base, tuned)


def _added_removed() -> Pair:
    base = {"gone.a": raw("gone", "U8", 20), "gone.b": raw("gone/b", "F32", 4)}
    base["kept"] = raw("kept", "F32", 16)
    tuned = {"kept": base["kept"], "new": raw("new", "U16", 5, 5), "new.i8": raw("n8", "I8", 9)}
    return Pair("tensors added and removed", base, tuned)


def _reshape() -> Pair:
    base = {"same": floats("rs", "BF16", 6, 8), "w": floats("rsw", "BF16", 12, 10)}
    tuned = {
        "same": replace(base["same"], shape=(48,)),
        "w": replace(moved("rm", base["w"], 9), shape=(2, 5, 12, 1)),
    }
    return Pair("other shapes of the same words, changed and not", base, tuned)


def _identical() -> Pair:
    base = {"a": floats("ia", "BF16", 10, 10), "b": raw("ib", "U8", 3)}
    return Pair("identical checkpoints: no chunks, an empty data entry", base, base)


def _shards() -> Pair:
    base = {f"layer.{i}.w": floats(f"sh{i}", "BF16", 20, 20) for i in range(2)}
    tuned = {n: moved(n, t, 60) for n, t in base.items()}
    return Pair("several shards and their index", base, tuned, {"shard_bytes": 120})


def _cast() -> Pair:
    base = {"n": raw("cast/n", "F32", 8), "w": floats("cast", "BF16", 16, 16)}
    fine = floats("cast/f", "F32", 256).words
    wide = base["w"].words.astype(np.uint32) << np.uint32(16)
    wide = wide + (fine & np.uint32(0xBFFF))
    rounded = Tensor("BF16", (16, 16), cast_to_bf16(wide).tobytes())
    tuned = {"n": base["n"], "w": Tensor("F32", (16, 16), wide.tobytes())}
    files = {MODEL: safetensors({"n": base["n"], "w": rounded})}
    about = "a checkpoint that was rounded to BF16 before it was encoded: manifest key `cast`"
    return Pair(about, base, tuned, {"cast": "bf16"}, files)


def _verbatim() -> Pair:
    base = {n: floats(f"vb{n}", "BF16", 9, 5) for n in ("a", "b", "c")}
    tuned = {n: moved(n, t, 6) for n, t in base.items()}
    file = safetensors(tuned, metadata={"z": "1", "a": "2"}, names=["b", "c", "a"], padding=16)
    return Pair("a header in no usual order, kept verbatim", base, {MODEL: file})


def _split(*, rebuilt: bool) -> Pair:
    base = {n: floats(f"split{n}", "BF16", 10, 6) for n in ("a", "b", "c")}
    tuned = {n: moved(n, t, 6) for n, t in base.items()}
    names = {"a": 1, "b": 2, "c": 1}
    files: Files = {}
    weights = {n: f"model-0000{k}-of-00002.safetensors" for n, k in names.items()}
    for file in sorted(set(weights.values())):
        files[file] = safetensors({n: tuned[n] for n in tuned if weights[n] == file})
    listing = {"metadata": {"total_size": 360}, "weight_map": weights}
    if rebuilt:
        text = json.dumps(listing, indent=2, sort_keys=True) + "\n"
    else:
        text = json.dumps(dict(reversed(listing.items())))
    about = "two files and an index file that is " + ("rebuilt" if rebuilt else "kept verbatim")
    return Pair(about, base, {**files, LISTING: text.encode()})


def _hints() -> Pair:
    return replace(_bitmap(), about="a manifest that names repository and commit", hints=True)


def _nested(depth: int) -> list[Any]:
    """So many lists within each other."""
    return [_nested(depth - 1)] if depth > 1 else []


def _higher_minor() -> Pair:
    more: Json = {
        "format": "1.7",
        "zeta": {"a": [1]},
        "objects": [{"k": i} for i in range(70)],
        "braces": "{" * 70,
        "deep": _nested(31),
        "text": '\b\t\n\f\r\x01\x7f"/\\µ\ufffd\U0001f40d',
        "\ufffd": 1,
        "\U0001f40d": 2,
    }

    def edit(draft: Draft) -> bytes:
        return draft.sealed(manifest=lambda fields: fields | more)

    about = "a higher MINOR and manifest keys that nobody knows"
    return replace(_bitmap(), about=about, edit=edit)


def _several_chunks() -> Pair:
    base = {"w": floats("several", "BF16", 30, 20)}
    where = [2, 50, 51, 299, 350, 420, 421, 599]
    pair = Pair("three chunks of one tensor, with words between them", base, {"w": base["w"]})
    tuned = {"w": moved("sc", base["w"], where)}

    def edit(draft: Draft) -> bytes:
        parts = [recoded(pair, draft, 0, 0, 60), whole_chunk(pair, draft, 0, 299, 60)]
        parts.append(recoded(pair, draft, 0, 400, 200))
        draft = draft.with_chunks([part[0] for part in parts], [part[1] for part in parts])
        steps = tuple(step_counts(pair, "w", [(0, 60), (400, 200)]))
        return draft.with_tensor("w", steps=steps, moved=2).sealed()

    pair = replace(pair, tuned=tuned, edit=edit)
    return pair


def _mixed() -> Pair:
    base = {
        "a_same": floats("ma", "BF16", 16),
        "b_delta": floats("mb", "BF16", 16, 16),
        "c_grown": floats("mc", "BF16", 8, 16),
        "f_wide": floats("mf", "BF16", 24),
        "g_gone": raw("mg", "U8", 7),
        "old.layer.norm": floats("mo", "F32", 32),
    }
    grown = moved("mgr", base["c_grown"], 9).data + floats("mtail", "BF16", 4, 16).data
    tuned = {
        "a_same": base["a_same"],
        "b_delta": moved("mbd", base["b_delta"], 24),
        "c_grown": Tensor("BF16", (12, 16), grown),
        "f_wide": _widened(moved("mfw", base["f_wide"], 6), Widening.BF16_TO_F32),
        "i_new": raw("mi", "U8", 40),
        "j_twin": raw("mi", "U8", 40),
        "new.layer.norm": moved("mno", base["old.layer.norm"], 5),
    }

    def edit(draft: Draft) -> bytes:
        twin = next(i for i, t in enumerate(draft.index.tensors) if t.name == "j_twin")
        keep = [i for i, c in enumerate(draft.index.chunks) if c.tensor != twin]
        chunks = [draft.index.chunks[i] for i in keep]
        draft = draft.with_chunks(chunks, [draft.stored[i] for i in keep])
        changes: Json = {"kind": Kind.ALIAS, "coding": None, "origin": "i_new"}
        return draft.with_tensor("j_twin", **changes, tuned_digest=b"").sealed()

    return Pair("a little of everything", base, tuned, edit=edit)


PAIRS: Final[dict[str, Callable[[], Pair]]] = {
    "bitmap": _bitmap,
    "gaps": _gaps,
    "contexts": _contexts,
    "escape": _escape,
    "rows": _rows,
    "whole": _whole,
    "four-bits": _four_bits,
    "every-dtype": _every_dtype,
    "layout-by-dtype": _layout_by_dtype,
    "specials": _specials,
    "empty": _empty,
    "alias": _alias,
    "renamed": _renamed,
    "new-tie": _new_tie,
    "vocabulary": _vocabulary,
    "widening-bf16": _widening_bf16,
    "widening-f16": _widening_f16,
    "added-removed": _added_removed,
    "reshape": _reshape,
    "identical": _identical,
    "shards": _shards,
    "cast": _cast,
    "verbatim": _verbatim,
    "files-rebuilt": lambda: _split(rebuilt=True),
    "files-verbatim": lambda: _split(rebuilt=False),
    "hints": _hints,
    "higher-minor": _higher_minor,
    "several-chunks": _several_chunks,
    "mixed": _mixed,
}

SHARED_BASES: Final = {
    "hints": "bitmap",
    "higher-minor": "bitmap",
    "layout-by-dtype": "every-dtype",
    "files-verbatim": "files-rebuilt",
}
"""Vectors whose base is another one's."""


# --- a delta taken apart ---------------------------------------------------------------------


def _same(data: bytes) -> bytes:
    return data


def compressed(content: bytes) -> bytes:
    """One frame as the format wants it."""
    return zstandard.ZstdCompressor(
        level=12, write_content_size=True, write_checksum=False, write_dict_id=False
    ).compress(content)


@dataclass(frozen=True)
class Draft:
    """A delta of one file, taken apart so that any piece of it can be exchanged.

    Attributes:
        fields: The manifest.
        index: The index.
        stored: The bytes of each chunk.
    """

    fields: Json
    index: Index
    stored: list[bytes]

    @classmethod
    def read(cls, delta: Path) -> Draft:
        """Take apart the delta in a folder."""
        with DeltaReader(delta) as reader:
            stored = [reader.stored(chunk) for chunk in reader.index.chunks]
            fields = json.loads(reader.manifest.text(1))
            return cls(fields, reader.index, stored)

    def with_tensor(self, name: str, /, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of one tensor."""
        tensors = [replace(t, **changes) if t.name == name else t for t in self.index.tensors]
        return replace(self, index=replace(self.index, tensors=tensors))

    def with_chunk(self, number: int, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of one chunk."""
        chunks = list(self.index.chunks)
        chunks[number] = chunks[number]._replace(**changes)
        return replace(self, index=replace(self.index, chunks=chunks))

    def with_chunks(self, chunks: list[ChunkRecord], stored: list[bytes]) -> Draft:
        """With other chunks."""
        return replace(self, index=replace(self.index, chunks=chunks), stored=stored)

    def with_stored(self, number: int, stored: bytes) -> Draft:
        """With other bytes of one chunk, and its check."""
        pieces = list(self.stored)
        pieces[number] = stored
        changes: Json = {"stored": len(stored), "check": bytes_check(stored)}
        return replace(self, stored=pieces).with_chunk(number, **changes)

    def with_content(self, number: int, content: bytes) -> Draft:
        """With another content of one chunk."""
        return self.with_stored(number, compressed(content))

    def with_files(self, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of the record of files."""
        return replace(self, index=replace(self.index, files=self.index.files._replace(**changes)))

    def tensor(self, name: str) -> TensorRecord:
        """One tensor."""
        return next(t for t in self.index.tensors if t.name == name)

    def chunk_of(self, name: str, nth: int = 0) -> int:
        """The place of the ``nth`` chunk of a tensor."""
        found = [
            i for i, c in enumerate(self.index.chunks) if self.index.tensors[c.tensor].name == name
        ]
        return found[nth]

    def manifest(self, *, totals: bool = True) -> Json:
        """The manifest, with the totals and the digest that the index gives.

        Args:
            totals: Compute the totals; else keep those of before.
        """
        fields = {**self.fields, "tuned": {"digest": self.index.tuned_state()}}
        if totals:
            found = self.index.totals()
            fields["totals"] = {name: getattr(found, name) for name in type(found).__slots__}
        return fields

    def sealed(
        self,
        *,
        manifest: Callable[[Json], Json] = lambda fields: fields,
        text: Callable[[bytes], bytes] = _same,
        content: Callable[[bytes], bytes] = _same,
        frame: Callable[[bytes], bytes] = _same,
        entry: Callable[[bytes], bytes] = _same,
        data: Callable[[bytes], bytes] = _same,
        header: Callable[[bytes], bytes] = _same,
        totals: bool = True,
    ) -> bytes:
        """The file, put together again; each argument exchanges one piece on the way.

        Args:
            manifest: The manifest's fields.
            text: Its text.
            content: The content of the index.
            frame: Its frame.
            entry: The entry ``index``, checksum included.
            data: The chunks.
            header: The JSON text of the header.
            totals: Compute the totals anew.
        """
        manifest_text = text(canonical(manifest(self.manifest(totals=totals))))
        packed = frame(compressed(content(encode_index(self.index))))
        packed = entry(checksum(manifest_text, packed).to_bytes(8, "little") + packed)
        chunks = data(b"".join(self.stored))
        head = header(container_header(manifest_text, 1, len(chunks), len(packed)))
        return frame_header(head) + chunks + packed


# --- chunks made by hand ---------------------------------------------------------------------

SIGNS, CLASSES, EXPONENTS, LOW_BITS = range(-4, 0)
"""The streams behind the masks, as :attr:`Streams.parts` lists them."""


def _words_of(pair: Pair, t: TensorRecord, first: int, length: int) -> tuple[Words, Words]:
    coding = t.coding or t.dtype.coding
    before = as_words(np.frombuffer(pair.base[t.origin or t.name].data, np.uint8), coding.width)
    after = as_words(np.frombuffer(pair.tensor(t.name).data, np.uint8), coding.width)
    return before[first : first + length], after[first : first + length]


def _check(words: Words) -> int:
    return leaves_check(leaf_hashes(np.ascontiguousarray(words).view(np.uint8)))


def streams_of(pair: Pair, draft: Draft, number: int) -> tuple[bytes, Streams]:
    """The row flags and the streams of a chunk, apart."""
    c = draft.index.chunks[number]
    t = draft.index.tensors[c.tensor]
    before, after = _words_of(pair, t, c.first, c.length)
    backend, rows = get_backend(), None
    if c.coding is ChunkCoding.DELTA_WITH_ROWS:
        row = t.row_words or 1
        rows = backend.active_rows(before, after, row, c.first % row)
    coding = t.coding or t.dtype.coding
    bounds = np.array(c.bounds, np.uint64)
    streams = backend.partition(before, after, coding, bounds, rows)
    return b"" if rows is None else pack_flags(rows.active), streams


def joined(streams: Streams, flags: bytes = b"") -> bytes:
    """The content of a chunk with these streams."""
    return flags + bytes(streams.content)


def with_part(streams: Streams, number: int, part: bytes) -> Streams:
    """Streams one of which is another."""
    parts = streams.parts
    parts[number] = part
    return replace(streams, content=b"".join(parts), sizes=[len(part) for part in parts])


def recoded(
    pair: Pair, draft: Draft, tensor: int, first: int, length: int
) -> tuple[ChunkRecord, bytes]:
    """Part of a tensor as a delta chunk of one context."""
    t = draft.index.tensors[tensor]
    before, after = _words_of(pair, t, first, length)
    coding = t.coding or t.dtype.coding
    top = (1 << coding.key_bits) - 1
    bounds = np.array([top], np.uint64)
    streams = get_backend().partition(before, after, coding, bounds, None)
    stored = compressed(joined(streams))
    record = ChunkRecord(
        tensor,
        first,
        length,
        ChunkCoding.DELTA,
        0,
        0,
        len(stored),
        bytes_check(stored),
        _check(after),
        _check(before),
        (top,),
        tuple(streams.changed),
    )
    return record, stored


def whole_chunk(
    pair: Pair, draft: Draft, tensor: int, first: int, length: int
) -> tuple[ChunkRecord, bytes]:
    """Part of a tensor as a whole chunk."""
    t = draft.index.tensors[tensor]
    _, after = _words_of(pair, t, first, length)
    stored = encode_whole(get_backend(), after, t.coding or t.dtype.coding).stored
    check = bytes_check(stored)
    coding = ChunkCoding.WHOLE
    return (
        ChunkRecord(tensor, first, length, coding, 0, 0, len(stored), check, _check(after)),
        stored,
    )


def step_counts(pair: Pair, name: str, runs: Sequence[tuple[int, int]]) -> list[int]:
    """The column ``steps`` of a BF16 tensor whose delta chunks are these runs."""
    counts = [0] * 8
    for first, length in runs:
        before = pair.base[name].words[first : first + length].astype(np.int64)
        after = pair.tensor(name).words[first : first + length].astype(np.int64)
        for old, new in zip(before.tolist(), after.tolist(), strict=True):
            step = _order(new) - _order(old)
            if step:
                counts[min(abs(step), 4) - 1 + (0 if step < 0 else 4)] += 1
    return counts


def _order(word: int) -> int:
    return word ^ 0x7FFF if word & 0x8000 else word + 0x10000


# --- invalid ones ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Parent:
    """A valid vector that invalid ones are made from."""

    pair: Pair
    draft: Draft
    files: Files


@dataclass(frozen=True)
class Invalid:
    """One invalid vector.

    Attributes:
        id: Its name.
        code: The error code.
        about: The rule that it breaks.
        make: Makes the file of the delta, or all files of it.
        parent: The valid vector that it is made from.
        base: Its base, if it is not the parent's.
    """

    id: str
    code: str
    about: str
    make: Callable[[Parent], bytes | Files]
    parent: str = "mixed"
    base: str = ""


def _file(edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the file as it is."""
    return lambda parent: edit(parent.files[DELTA])


def _seal(**edits: Any) -> Callable[[Parent], bytes]:  # noqa: ANN401 - arguments of sealed()
    return lambda parent: parent.draft.sealed(**edits)


def _manifest(**changes: object) -> Callable[[Parent], bytes]:
    """Exchange keys of the manifest; ``None`` takes one away."""

    def edit(fields: Json) -> Json:
        return {k: v for k, v in (fields | changes).items() if v is not None}

    return _seal(manifest=edit)


def _on(name: str, /, *, totals: bool = True, **changes: object) -> Callable[[Parent], bytes]:
    """Exchange fields of one tensor."""
    return lambda parent: parent.draft.with_tensor(name, **changes).sealed(totals=totals)


def _chunk(name: str, nth: int = 0, **changes: object) -> Callable[[Parent], bytes]:
    """Exchange fields of one chunk."""
    return lambda p: p.draft.with_chunk(p.draft.chunk_of(name, nth), **changes).sealed()


def _header_of(nbytes: int) -> bytes:
    """The header of a file of one tensor."""
    return safetensors({"a": raw("other", "U8", nbytes)})[8:-nbytes]


def _with_files(**changes: object) -> Callable[[Parent], bytes]:
    return lambda parent: parent.draft.with_files(**changes).sealed()


def _one_file(**changes: Any) -> Callable[[Parent], bytes]:  # noqa: ANN401 - of any field
    """Exchange fields of the record of the only file."""
    return lambda p: p.draft.with_files(
        files=[p.draft.index.files.files[0]._replace(**changes)]
    ).sealed()


def _index(**changes: object) -> Callable[[Parent], bytes]:
    def make(parent: Parent) -> bytes:
        index = parent.draft.index
        named = {f: c for f, c in changes.items() if f in ("tensors", "removed")}
        return replace(parent.draft, index=replace(index, **named)).sealed()  # type: ignore[arg-type]

    return make


def _stored(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the frame of a tensor's first chunk."""

    def make(parent: Parent) -> bytes:
        number = parent.draft.chunk_of(name)
        return parent.draft.with_stored(number, edit(parent.draft.stored[number])).sealed()

    return make


def plain(stored: bytes) -> bytes:
    """The content of a frame."""
    content: bytes = zstandard.ZstdDecompressor().decompress(stored)
    return content


def _streams(edit: Callable[[Streams], Streams]) -> Callable[[Parent], bytes]:
    """Edit the streams of the only chunk."""

    def make(parent: Parent) -> bytes:
        flags, streams = streams_of(parent.pair, parent.draft, 0)
        return parent.draft.with_content(0, joined(edit(streams), flags)).sealed()

    return make


def set_bit(stream: bytes, bit: int) -> bytes:
    """A stream with one bit set that was not; below 0 it counts from the end."""
    bit += len(stream) * 8 if bit < 0 else 0
    changed = bytearray(stream)
    if changed[bit // 8] >> bit % 8 & 1:
        msg = f"bit {bit} is set already"
        raise ValueError(msg)
    changed[bit // 8] |= 1 << bit % 8
    return bytes(changed)


def _masks(edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    return _streams(lambda s: with_part(s, 0, edit(s.parts[0])))


def _flip_first(mask: bytes) -> bytes:
    """A bitmap with one bit more or less."""
    return bytes([mask[0] ^ 1]) + mask[1:]


def _overrun(mask: bytes) -> bytes:
    """Gaps of which the last is far too large."""
    return mask[:-1] + b"\xfe"


def raw_frame(
    content: bytes, *, window: int | None = None, flags: int = 0, size: int | None = None
) -> bytes:
    """A frame written by hand, of one raw block.

    Args:
        content: Its content, less than 128 KiB.
        window: Logarithm of the window; without one it is a single segment.
        flags: Bits of the frame header descriptor to set.
        size: The content size to announce.
    """
    announced = (len(content) if size is None else size).to_bytes(4, "little")
    descriptor = bytes([0x80 | (0x20 if window is None else 0) | flags])
    descriptor += b"" if window is None else bytes([(window - 10) << 3])
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return MAGIC + descriptor + announced + block + content


def _unsized(stored: bytes) -> bytes:
    content = plain(stored)
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return MAGIC + b"\x00\x48" + block + content


def _with_dictionary(number: int) -> Callable[[bytes], bytes]:
    """A frame with a field of one byte for a dictionary's number."""

    def edit(stored: bytes) -> bytes:
        frame = raw_frame(plain(stored), flags=1)
        return frame[:5] + bytes([number]) + frame[5:]

    return edit


def _single_segment(blocks: int) -> bytes:
    """A frame of one segment with so many blocks of 128 KiB, each one byte repeated."""
    size = blocks << 17
    block = (1 << 17 << 3 | 2).to_bytes(3, "little") + b"\0"
    last = (1 << 17 << 3 | 3).to_bytes(3, "little") + b"\0"
    return MAGIC + b"\xa0" + size.to_bytes(4, "little") + block * (blocks - 1) + last


def _with_checksum(stored: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)
    return compressor.compress(plain(stored))


def _column(values: Sequence[int]) -> bytes:
    writer = ColumnWriter()
    writer.integers(values)
    return writer.content()


def _names(names: Sequence[str]) -> bytes:
    writer = ColumnWriter()
    writer.names(names)
    return writer.content()


def _counts(place: int, value: int) -> Callable[[Parent], bytes]:
    """Claim another number of something, and nothing else."""

    def make(parent: Parent) -> bytes:
        def edit(content: bytes) -> bytes:
            counts = list(content[1:6])
            counts[place] = value
            return _column(counts) + content[6:]

        return parent.draft.sealed(content=edit)

    return make


def _sources(names: list[str], *, origin: str = "") -> Callable[[Parent], bytes]:
    """Exchange the list of sources, after pointing ``b_delta`` to a source if asked to."""

    def make(parent: Parent) -> bytes:
        draft = parent.draft
        draft = draft.with_tensor("b_delta", origin=origin) if origin else draft
        old = sorted({"old.layer.norm", origin} - {""})

        def edit(content: bytes) -> bytes:
            head = content[:6] + _names([t.name for t in draft.index.tensors])
            counts = list(content[1:6])
            counts[1] = len(names)
            rest = content[len(head) + len(_names(old)) :]
            return _column(counts) + head[6:] + _names(names) + rest

        return draft.sealed(content=edit)

    return make


def _swapped(parent: Parent) -> bytes:
    """Give the first tensor, whose source is then foreign, the last name."""
    return parent.draft.with_tensor("a_same", name="z", origin="a_same").sealed()


def _renamed_to(name: str) -> Callable[[Parent], bytes]:
    """Rename the last tensor, whose source is foreign in any case."""
    return _on("new.layer.norm", name=name)


def _patched(old: bytes, new: bytes) -> Callable[[Parent], bytes]:
    """Exchange bytes of the index content that stand there exactly once."""

    def edit(content: bytes) -> bytes:
        if content.count(old) != 1:
            msg = f"{old!r} stands {content.count(old)} times in the index"
            raise ValueError(msg)
        return content.replace(old, new)

    return _seal(content=edit)


def _moved_chunk(parent: Parent) -> bytes:
    """Give a tensor of kind ``same`` a chunk."""
    number = parent.draft.chunk_of("b_delta")
    return parent.draft.with_chunk(number, tensor=0).sealed()


def _uncovered(name: str) -> Callable[[Parent], bytes]:
    """Leave out the last chunk of a tensor."""

    def make(parent: Parent) -> bytes:
        draft = parent.draft
        gone = draft.chunk_of(name, -1)
        chunks = [c for i, c in enumerate(draft.index.chunks) if i != gone]
        return draft.with_chunks(
            chunks, [s for i, s in enumerate(draft.stored) if i != gone]
        ).sealed()

    return make


def _as_alias(name: str, origin: str) -> Callable[[Parent], bytes]:
    """Make a tensor without chunks an alias."""
    changes: Json = {"kind": Kind.ALIAS, "origin": origin, "tuned_digest": b"", "coding": None}
    return _on(name, **changes)


class _NoWidth(WordCoding):
    """A width of 0 for 16-bit words: a coding that a tensor without chunks must not have."""

    def num_words(self, nbytes: int) -> int:
        return nbytes // 2


def _fake(dtype: str, **changes: int) -> Dtype:
    return replace(DTYPES[dtype], **changes)  # type: ignore[arg-type]


def _add_contexts(parent: Parent) -> bytes:
    number = parent.draft.chunk_of("b_delta")
    c = parent.draft.index.chunks[number]
    bounds = (*range(1, 17), *c.bounds[-1:])
    changed = (*[0] * 16, sum(c.changed))
    return parent.draft.with_chunk(number, bounds=bounds, changed=changed).sealed()


def _too_many(parent: Parent) -> bytes:
    """Claim one changed word more than the context has words."""
    flags, streams = streams_of(parent.pair, parent.draft, 0)
    n = streams.counts[0]
    content = joined(streams, flags)
    draft = parent.draft.with_content(0, content).with_chunk(0, changed=(n + 1,))
    return draft.with_tensor("w", steps=(n + 1, *[0] * 7)).sealed()


def _flag_a_row(parent: Parent) -> bytes:
    """Flag a row in which nothing changed, and leave the masks as those words make them."""
    draft = parent.draft
    c = draft.index.chunks[0]
    t = draft.index.tensors[0]
    before, after = _words_of(parent.pair, t, c.first, c.length)
    row = t.row_words or 1
    backend = get_backend()
    active = backend.active_rows(before, after, row, 0).active.copy()
    active[int(np.flatnonzero(~active)[0])] = True
    bounds = np.array(c.bounds, np.uint64)
    coding = t.coding or t.dtype.coding
    streams = backend.partition(before, after, coding, bounds, Rows(active, row, 0))
    return draft.with_content(0, joined(streams, pack_flags(active))).sealed()


def _far_step(exponent: bytes, low: bytes) -> Callable[[Streams], Streams]:
    """Make the chunk's large steps one with this exponent and these low bits."""

    def edit(streams: Streams) -> Streams:
        exponents = exponent + streams.parts[EXPONENTS][1:]
        return with_part(with_part(streams, EXPONENTS, exponents), LOW_BITS, low)

    return edit


def _wrong_steps(parent: Parent) -> bytes:
    """Count a word less than the chunks change."""
    steps = list(parent.draft.tensor("b_delta").steps)
    full = next(i for i, count in enumerate(steps) if count)
    steps[full] -= 1
    return parent.draft.with_tensor("b_delta", steps=tuple(steps)).sealed()


def _bad_digest(parent: Parent) -> bytes:
    digest = parent.draft.tensor("b_delta").tuned_digest
    return parent.draft.with_tensor("b_delta", tuned_digest=digest[::-1]).sealed()


def _bad_base_digest(parent: Parent) -> bytes:
    digest = parent.draft.tensor("b_delta").base_digest
    return parent.draft.with_tensor("b_delta", base_digest=digest[::-1]).sealed()


def _off(name: str, field_name: str, nth: int = 0) -> Callable[[Parent], bytes]:
    """A check that is off by one bit."""

    def make(parent: Parent) -> bytes:
        number = parent.draft.chunk_of(name, nth)
        value = getattr(parent.draft.index.chunks[number], field_name) ^ 1
        return parent.draft.with_chunk(number, **{field_name: value}).sealed()

    return make


def _flipped(place: Callable[[Parent], int]) -> Callable[[Parent], bytes]:
    """Flip a bit of the file without sealing it."""

    def make(parent: Parent) -> bytes:
        file = bytearray(parent.files[DELTA])
        file[place(parent)] ^= 0x10
        return bytes(file)

    return make


def _data_start(parent: Parent) -> int:
    return 8 + int.from_bytes(parent.files[DELTA][:8], "little")


def _relength(file: bytes, add: int) -> bytes:
    return (int.from_bytes(file[:8], "little") + add).to_bytes(8, "little") + file[8:]


def _odd_padding(file: bytes) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    return _relength(file[:end] + b" " + file[end:], 1)


def _zero_padding(file: bytes) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    return _relength(file[:end] + bytes(8) + file[end:], 8)


def _leading_space(file: bytes) -> bytes:
    return _relength(file[:8] + b" " * 8 + file[8:], 8)


HEADER: Final = (
    Invalid(
        "header-none", "header", "a file shorter than its length field", _file(lambda f: f[:5])
    ),
    Invalid(
        "header-length-beyond",
        "header",
        "a header longer than the file",
        _file(lambda f: (len(f) // 8 * 8 + 80).to_bytes(8, "little") + f[8:]),
    ),
    Invalid(
        "header-length-short",
        "header",
        "a header length that cuts the JSON text",
        _file(lambda f: (200).to_bytes(8, "little") + f[8:]),
    ),
    Invalid("header-unaligned", "header", "a length that is no multiple of 8", _file(_odd_padding)),
    Invalid("header-padding", "header", "padding that is no spaces", _file(_zero_padding)),
    Invalid("header-leading-space", "header", "white space at the start", _file(_leading_space)),
    Invalid(
        "header-file-longer", "header", "bytes after the last entry", _file(lambda f: f + b"\0")
    ),
    Invalid("header-file-shorter", "header", "a file that is cut", _file(lambda f: f[:-1])),
    Invalid(
        "header-white-space",
        "header",
        "white space in the JSON text",
        _seal(header=lambda h: h.replace(b'"index":{', b'"index": {')),
    ),
    Invalid(
        "header-duplicate-key",
        "header",
        "a key twice",
        _seal(header=lambda h: h.replace(b'"index":{', b'"index":{"dtype":"U8",')),
    ),
    Invalid(
        "header-duplicate-entry",
        "header",
        "an entry twice",
        _seal(header=lambda h: h[:-1] + h[h.index(b',"index"') :]),
    ),
    Invalid(
        "header-more-metadata",
        "header",
        "another key in __metadata__",
        _seal(header=lambda h: h.replace(b'"},"data', b'","x":"y"},"data')),
    ),
    Invalid(
        "header-dtype",
        "header",
        "an entry of another dtype",
        _seal(header=lambda h: h.replace(b'"U8"', b'"I8"')),
    ),
    Invalid(
        "header-entry-name",
        "header",
        "an entry with the number of another shard",
        _seal(header=lambda h: h.replace(b"data.00001", b"data.00002")),
    ),
    Invalid(
        "header-no-index",
        "header",
        "a single file without an index entry",
        _seal(header=lambda h: h[: h.index(b',"index"')] + b"}"),
    ),
    Invalid(
        "header-escape",
        "header",
        "a character escaped that need not be",
        _seal(header=lambda h: h.replace(b"digest", b"\\u0064igest", 1)),
    ),
    Invalid(
        "header-gap",
        "header",
        "entries that are not adjacent",
        _seal(header=lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[1,')),
    ),
)

MANIFEST: Final = (
    Invalid(
        "manifest-white-space",
        "header",
        "white space in the manifest",
        _seal(text=lambda t: t.replace(b":", b": ", 1)),
    ),
    Invalid(
        "manifest-order",
        "header",
        "keys of the manifest out of order",
        _seal(text=lambda t: b'{"z":1,' + t[1:]),
    ),
    Invalid(
        "manifest-duplicate",
        "header",
        "a key of the manifest twice",
        _seal(text=lambda t: t[:-1] + b"," + t[t.index(b'"tuned"') : -1] + b"}"),
    ),
    Invalid(
        "manifest-array", "header", "a manifest that is no object", _seal(text=lambda _: b"[]")
    ),
    Invalid("manifest-empty", "header", "an empty manifest", _seal(text=lambda _: b"")),
    Invalid("manifest-float", "header", "a fraction", _manifest(zz=1.5)),
    Invalid("manifest-boolean", "header", "a boolean", _manifest(zz=True)),
    Invalid("manifest-negative", "header", "a number below 0", _manifest(zz=-1)),
    Invalid("manifest-large", "header", "a number of 2^53", _manifest(zz=1 << 53)),
    Invalid("manifest-null", "header", "a null", _manifest(zz=[None])),
    Invalid("manifest-deep", "header", "33 levels", _manifest(zz=_nested(32))),
    Invalid(
        "manifest-upper-hex",
        "header",
        "a character escaped with upper-case digits",
        _seal(
            manifest=lambda fields: fields | {"zz": "\u00ff"},
            text=lambda t: t.replace(b"u00ff", b"u00FF"),
        ),
    ),
    Invalid(
        "manifest-code-units",
        "header",
        "keys sorted by UTF-16",
        _seal(
            manifest=lambda fields: fields | {"\ufffd": 1, "\U0001f40d": 2},
            text=lambda t: t.replace(
                b'"\\ufffd":1,"\\ud83d\\udc0d":2', b'"\\ud83d\\udc0d":2,"\\ufffd":1'
            ),
        ),
    ),
    Invalid("manifest-no-format", "header", "no `format`", _manifest(format=None)),
    Invalid("manifest-odd-format", "header", "a `format` that is none", _manifest(format="1.00")),
    Invalid("manifest-no-features", "header", "no `features`", _manifest(features=None)),
    Invalid("manifest-no-shard", "header", "no `shard`", _manifest(shard=None)),
    Invalid("manifest-other-shard", "header", "the number of another shard", _manifest(shard=2)),
    Invalid("manifest-no-base", "header", "no `base`", _manifest(base=None)),
    Invalid("manifest-no-tuned", "header", "no `tuned`", _manifest(tuned=None)),
    Invalid("manifest-no-totals", "header", "no `totals`", _manifest(totals=None)),
    Invalid(
        "manifest-less-totals",
        "header",
        "`totals` that lacks a key",
        _manifest(totals={"chunks": 1}),
    ),
    Invalid(
        "manifest-digest", "header", "a digest of 63 digits", _manifest(tuned={"digest": "0" * 63})
    ),
    Invalid("manifest-cast", "header", "a `cast` to what is no dtype", _manifest(cast="BF17")),
    Invalid(
        "manifest-features-order", "header", "features descending", _manifest(features=["b", "a"])
    ),
    Invalid("version-major", "version", "another MAJOR", _manifest(format="2.0")),
    Invalid(
        "feature-unknown", "feature", "a feature that nobody knows", _manifest(features=["lz9"])
    ),
)


def _without(name: str) -> Callable[[Parent], Files]:
    return lambda parent: {n: f for n, f in parent.files.items() if n != name}


def _relisted(edit: Callable[[Json], object]) -> Callable[[Parent], Files]:
    """Edit the index of shards in place."""

    def make(parent: Parent) -> Files:
        name = DELTA + ".index.json"
        listing = json.loads(parent.files[name])
        edit(listing["weight_map"])
        text = json.dumps(listing, indent=2, sort_keys=True) + "\n"
        return {**parent.files, name: text.encode()}

    return make


def _shard(number: int) -> str:
    return f"delta-{number:05d}-of-00002.safetensors"


MISSING: Final = (
    Invalid("missing-file", "missing", "no file of the delta", lambda _: {"notes.txt": b"-\n"}),
    Invalid("missing-shard", "missing", "a shard is not there", _without(_shard(2)), "shards"),
    Invalid(
        "missing-listing",
        "missing",
        "the index of shards is not there",
        _without(DELTA + ".index.json"),
        "shards",
    ),
    Invalid(
        "missing-both",
        "missing",
        "a single file and an index of shards",
        lambda parent: {**parent.files, DELTA: parent.files[_shard(2)]},
        "shards",
    ),
    Invalid(
        "listing-other",
        "missing",
        "an index of shards that names another file",
        _relisted(lambda m: m.update({"data.00002": "other.safetensors"})),
        "shards",
    ),
    Invalid(
        "listing-more",
        "missing",
        "an index of shards that names one entry more",
        _relisted(lambda m: m.update({"extra": _shard(2)})),
        "shards",
    ),
    Invalid(
        "listing-less",
        "missing",
        "an index of shards that names one entry less",
        _relisted(lambda m: m.pop("data.00001")),
        "shards",
    ),
    Invalid(
        "listing-key-twice",
        "missing",
        "an index of shards with a key twice",
        lambda parent: {
            **parent.files,
            DELTA + ".index.json": b'{"a":1,"a":2,' + parent.files[DELTA + ".index.json"][1:],
        },
        "shards",
    ),
    Invalid(
        "listing-no-json",
        "missing",
        "an index of shards that is no JSON",
        lambda parent: {**parent.files, DELTA + ".index.json": b"{"},
        "shards",
    ),
    Invalid(
        "shards-swapped",
        "header",
        "two shards under each other's names",
        lambda p: {**p.files, _shard(1): p.files[_shard(2)], _shard(2): p.files[_shard(1)]},
        "shards",
    ),
)

CHECKSUM: Final = (
    Invalid("checksum-index", "checksum", "a bit of the index's frame", _flipped(lambda _: -1)),
    Invalid(
        "checksum-manifest",
        "checksum",
        "a digit of the manifest",
        _file(lambda f: f.replace(b'chunks\\":', b'chunks\\":9', 1).replace(b"}  ", b"} ", 1)),
    ),
    Invalid("checksum-chunk", "checksum", "a bit of a chunk", _flipped(_data_start)),
    Invalid(
        "checksum-chunk-check", "checksum", "a wrong check of a chunk", _off("b_delta", "check")
    ),
)

_FLOAT32 = DTYPES["F32"].coding

TENSORS: Final = (
    Invalid("index-cut", "index", "an index that ends early", _seal(content=lambda c: c[:-1])),
    Invalid("index-longer", "index", "bytes after the index", _seal(content=lambda c: c + b"\0")),
    Invalid("index-entry-short", "index", "an entry of 7 bytes", _seal(entry=lambda e: e[:7])),
    Invalid(
        "index-second-frame", "index", "a second frame", _seal(frame=lambda f: f + compressed(b"x"))
    ),
    Invalid("index-no-size", "index", "a frame without content size", _seal(frame=_unsized)),
    Invalid(
        "index-frame-checksum", "index", "a frame with a checksum", _seal(frame=_with_checksum)
    ),
    Invalid(
        "index-column-wide",
        "index",
        "a column wider than its values",
        _seal(content=lambda c: b"\x02" + c[1:6] + bytes(5) + c[6:]),
    ),
    Invalid(
        "index-column-width",
        "index",
        "a column of three bytes",
        _seal(content=lambda c: b"\x03" + c[1:6] + bytes(10) + c[6:]),
    ),
    Invalid("names-descending", "index", "names out of order", _swapped),
    Invalid("name-twice", "index", "a name twice", _on("j_twin", name="i_new", origin="b_delta")),
    Invalid("name-control", "index", "a control character in a name", _renamed_to("new\n")),
    Invalid("name-reversed", "index", "a mark that reverses text", _renamed_to("new\u202e")),
    Invalid("name-long", "index", "a name of 1025 bytes", _renamed_to("n" * 1025)),
    Invalid("name-not-utf8", "index", "a name that is no UTF-8", _patched(b"g_gone", b"g_g\xffne")),
    Invalid(
        "name-prefix",
        "index",
        "a prefix that is not the longest",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x01\x00\x04\x01\x06\x02gone.a.b"),
        "added-removed",
    ),
    Invalid("kind-unknown", "index", "an unknown kind", _on("a_same", kind=7)),
    Invalid(
        "dtype-unknown", "index", "an unknown dtype", _on("a_same", dtype=_fake("BF16", number=22))
    ),
    Invalid(
        "width-unknown", "index", "words of 5 bits", _on("i_new", coding=WordCoding(5, OrderMap(0)))
    ),
    Invalid("width-none", "index", "a tensor with chunks and no width", _on("i_new", coding=None)),
    Invalid(
        "map-unknown",
        "index",
        "an unknown order map",
        _on("i_new", coding=WordCoding(8, 3)),  # type: ignore[arg-type]
    ),
    Invalid(
        "map-of-same",
        "index",
        "an order map of a tensor without chunks",
        _on("a_same", coding=_NoWidth(0, OrderMap(1))),
    ),
    Invalid(
        "width-of-same",
        "index",
        "a width of a tensor without chunks",
        _on("a_same", coding=_FLOAT32),
    ),
    Invalid(
        "widening-unknown", "index", "an unknown widening", _on("f_wide", totals=False, widening=3)
    ),
    Invalid(
        "widening-dtype",
        "index",
        "a widening to BF16",
        _on("b_delta", totals=False, widening=Widening.BF16_TO_F32),
    ),
    Invalid(
        "widening-width",
        "index",
        "a widening that codes 32-bit words",
        _on("f_wide", totals=False, coding=_FLOAT32),
    ),
    Invalid(
        "words-not-whole",
        "index",
        "no whole number of words",
        _on("i_new", shape=(41,), coding=_FLOAT32),
    ),
    Invalid(
        "bytes-not-whole",
        "index",
        "no whole number of bytes",
        _on("i_new", shape=(41,), dtype=DTYPES["F4"]),
    ),
    Invalid("tail-long", "index", "a tail longer than its tensor", _on("c_grown", tail=193)),
    Invalid("tail-of-whole", "index", "a tail of a whole tensor", _on("i_new", tail=1)),
    Invalid("steps-of-same", "index", "steps of a tensor without chunks", _on("a_same", moved=1)),
    Invalid("steps-wrong", "index", "steps that the chunks do not have", _wrong_steps),
    Invalid(
        "steps-large",
        "index",
        "more steps than a tensor can have words",
        _on("w", steps=(1 << 50, *[0] * 7)),
        "bitmap",
    ),
    Invalid(
        "moved-more",
        "index",
        "more changed words than a whole chunk has",
        _on("w", moved=61),
        "several-chunks",
    ),
    Invalid("alias-of-alias", "index", "an alias of an alias", _as_alias("a_same", "j_twin")),
    Invalid("alias-of-itself", "index", "an alias of itself", _on("j_twin", origin="j_twin")),
    Invalid("alias-shape", "index", "an alias of another shape", _on("j_twin", shape=(4, 10))),
    Invalid("alias-dtype", "index", "an alias of another dtype", _on("j_twin", dtype=DTYPES["I8"])),
    Invalid(
        "source-unused", "index", "a source that is not used", _sources(["old.layer.norm", "z"])
    ),
    Invalid("source-not-listed", "index", "a source that is not listed", _sources([])),
    Invalid(
        "source-own-name",
        "index",
        "a listed source of the tensor's own name",
        _sources(["b_delta", "old.layer.norm"], origin="b_other"),
    ),
    Invalid(
        "removed-tensor",
        "index",
        "a removed tensor that is a tuned one",
        _index(removed=["a_same", "g_gone"]),
    ),
    Invalid(
        "removed-source",
        "index",
        "a removed tensor that is a source",
        _index(removed=["g_gone", "old.layer.norm"]),
    ),
    Invalid(
        "removed-descending",
        "index",
        "removed tensors out of order",
        _index(removed=["h", "g_gone"]),
    ),
    Invalid(
        "removed-less",
        "index",
        "a base tensor that is neither used nor removed",
        _index(removed=[]),
    ),
    Invalid(
        "removed-more",
        "base",
        "a removed tensor that the base lacks",
        _index(removed=["g_gone", "h_gone"]),
    ),
    Invalid(
        "totals-changed",
        "index",
        "a total that is not that of the index",
        _seal(
            manifest=lambda m: m | {"totals": m["totals"] | {"changed": m["totals"]["changed"] + 1}}
        ),
    ),
    Invalid(
        "totals-bytes",
        "index",
        "a total of bytes that is not that of the index",
        _seal(manifest=lambda m: m | {"totals": m["totals"] | {"tuned_bytes": 0}}),
    ),
    Invalid(
        "tuned-digest",
        "index",
        "the state digest of another checkpoint",
        _manifest(tuned={"digest": "0" * 64}),
    ),
)

CHUNKS: Final = (
    Invalid(
        "chunk-beyond", "index", "a chunk that leaves its tensor", _chunk("b_delta", length=257)
    ),
    Invalid("chunk-of-same", "index", "a chunk of a tensor of kind `same`", _moved_chunk),
    Invalid("chunk-empty", "index", "a chunk of no words", _chunk("f_wide", length=0)),
    Invalid(
        "chunk-stored",
        "index",
        "a chunk of 9 bytes",
        _stored("w", lambda _: MAGIC + bytes.fromhex("2000010000")),
        "bitmap",
    ),
    Invalid("chunk-coding", "index", "an unknown coding", _chunk("i_new", coding=3)),
    Invalid(
        "chunk-shard", "index", "a chunk in a shard that is not there", _chunk("b_delta", shard=1)
    ),
    Invalid(
        "chunk-delta-in-whole",
        "index",
        "a delta chunk of a whole tensor",
        _chunk("i_new", coding=ChunkCoding.DELTA, bounds=(127,), changed=(1,)),
    ),
    Invalid(
        "chunk-in-tail",
        "index",
        "a delta chunk that reaches into the tail",
        _on("c_grown", tail=80),
    ),
    Invalid(
        "chunk-rows",
        "index",
        "row flags without rows",
        _chunk("f_wide", coding=ChunkCoding.DELTA_WITH_ROWS),
    ),
    Invalid(
        "chunk-bounds",
        "index",
        "bounds that do not ascend",
        _chunk("b_delta", bounds=(9, 9), changed=(1, 1)),
    ),
    Invalid(
        "chunk-bound-large",
        "index",
        "a bound above every key",
        _chunk("w", bounds=(1 << 15,)),
        "bitmap",
    ),
    Invalid(
        "chunk-no-contexts",
        "index",
        "a delta chunk without context",
        _chunk("b_delta", bounds=(), changed=()),
    ),
    Invalid(
        "chunk-no-changes",
        "index",
        "a delta chunk that changes nothing",
        _chunk("b_delta", changed=(0,)),
    ),
    Invalid(
        "chunk-odd-start",
        "index",
        "4-bit words from an odd one on",
        _chunk("f4", first=1, length=638),
        "four-bits",
    ),
    Invalid(
        "chunk-odd-length",
        "index",
        "an odd number of 4-bit words",
        _chunk("f4", length=639),
        "four-bits",
    ),
    Invalid("whole-uncovered", "index", "a whole tensor without chunk", _uncovered("i_new")),
    Invalid("tail-uncovered", "index", "a tail without chunk", _uncovered("c_grown")),
    Invalid(
        "whole-gap",
        "index",
        "a whole tensor with a word in no chunk",
        _chunk("i_new", first=1, length=39),
    ),
    Invalid("data-longer", "index", "data after the last chunk", _seal(data=lambda d: d + b"\0")),
    Invalid("data-shorter", "index", "data that ends within a chunk", _seal(data=lambda d: d[:-1])),
)

FILES: Final = (
    Invalid(
        "file-path", "index", "a file name with a path", _one_file(name="../model.safetensors")
    ),
    Invalid("file-suffix", "index", "a file name that ends otherwise", _one_file(name="model.bin")),
    Invalid(
        "file-dot", "index", "a file name that starts with a dot", _one_file(name=".safetensors")
    ),
    Invalid(
        "file-of-tensor", "index", "a tensor in no file", _with_files(file_of=[0, 0, 0, 0, 0, 0, 1])
    ),
    Invalid("file-layout", "index", "an unknown layout", _one_file(layout=3)),
    Invalid("file-text-no-json", "index", "metadata that is no JSON", _one_file(text=b'{"a":')),
    Invalid(
        "file-text-not-utf8", "index", "metadata that is no UTF-8", _one_file(text=b'{"a":"\xff"}')
    ),
    Invalid("file-text-number", "index", "metadata that is no string", _one_file(text=b'{"a":1}')),
    Invalid("file-text-more", "index", "metadata that adds an entry", _one_file(text=b'{},"x":{}')),
    Invalid(
        "file-verbatim-other",
        "index",
        "a verbatim header of other tensors",
        _one_file(layout=2, text=_header_of(1232)),
    ),
    Invalid(
        "file-verbatim-empty", "index", "an empty verbatim header", _one_file(layout=2, text=b"")
    ),
    Invalid(
        "listing-layout",
        "index",
        "an unknown layout of the index file",
        _with_files(index_layout=3),
    ),
    Invalid(
        "listing-text",
        "index",
        "a text of an index file there is not",
        _with_files(index_text=b"{}"),
    ),
    Invalid(
        "listing-text-no-json",
        "index",
        "metadata of the index file that is no JSON",
        _with_files(index_layout=1, index_text=b"{"),
    ),
    Invalid(
        "listing-text-print",
        "index",
        "metadata of the index file that Python prints otherwise",
        _with_files(index_layout=1, index_text=b'{"a":1}'),
    ),
)

LIMITS: Final = (
    Invalid(
        "limit-header",
        "limit",
        "a header of more than 1 MiB",
        _file(lambda f: ((1 << 20) + 8).to_bytes(8, "little") + f[8:]),
        "bitmap",
    ),
    Invalid("limit-rank", "limit", "33 dimensions", _on("a_same", shape=(16, *[1] * 32))),
    Invalid("limit-contexts", "limit", "17 contexts", _add_contexts),
    Invalid(
        "limit-dimension",
        "limit",
        "a dimension above 2^48",
        _on("a_same", shape=(0, (1 << 48) + 1)),
    ),
    Invalid(
        "limit-chunk-words",
        "limit",
        "a chunk of more than 2^26 words",
        _chunk("b_delta", length=(1 << 26) + 1),
    ),
    Invalid("limit-tensors", "limit", "more than 1,000,000 tensors", _counts(0, 1_000_001)),
    Invalid("limit-sources", "limit", "more than 1,000,000 sources", _counts(1, 1_000_001)),
    Invalid("limit-removed", "limit", "more than 1,000,000 removed tensors", _counts(2, 1_000_001)),
    Invalid("limit-chunks", "limit", "more than 2^24 chunks", _counts(3, (1 << 24) + 1)),
    Invalid("limit-files", "limit", "more than 10,000 files", _counts(4, 10_001)),
    Invalid(
        "limit-index",
        "limit",
        "an index that is a bomb",
        _seal(content=lambda c: c + bytes(1 << 20)),
    ),
    Invalid(
        "limit-window",
        "limit",
        "a window of 16 MiB",
        _stored("b_delta", lambda s: raw_frame(plain(s), window=24)),
    ),
    Invalid(
        "limit-window-segment",
        "limit",
        "a single segment of more than 8 MiB",
        _stored("b_delta", lambda _: _single_segment(65)),
    ),
)

STREAMS: Final = (
    Invalid(
        "stream-second-frame",
        "stream",
        "a second frame",
        _stored("w", lambda s: s + compressed(b"x")),
        "gaps",
    ),
    Invalid(
        "stream-skippable",
        "stream",
        "a skippable frame",
        _stored("w", lambda s: s + b"\x50\x2a\x4d\x18" + bytes(4)),
        "gaps",
    ),
    Invalid(
        "stream-skippable-first",
        "stream",
        "a skippable frame before",
        _stored("w", lambda s: b"\x50\x2a\x4d\x18" + bytes(4) + s),
        "gaps",
    ),
    Invalid(
        "stream-trailing",
        "stream",
        "bytes after the frame",
        _stored("w", lambda s: s + b"\0"),
        "gaps",
    ),
    Invalid("stream-cut", "stream", "a frame that is cut", _stored("w", lambda s: s[:-1]), "gaps"),
    Invalid("stream-no-frame", "stream", "no frame", _stored("w", lambda s: b"\0" + s[1:]), "gaps"),
    Invalid("stream-no-size", "stream", "no content size", _stored("w", _unsized), "gaps"),
    Invalid(
        "stream-checksum", "stream", "a checksum in the frame", _stored("w", _with_checksum), "gaps"
    ),
    Invalid(
        "stream-dictionary", "stream", "a dictionary id", _stored("w", _with_dictionary(7)), "gaps"
    ),
    Invalid(
        "stream-dictionary-zero",
        "stream",
        "a dictionary id of 0",
        _stored("w", _with_dictionary(0)),
        "gaps",
    ),
    Invalid(
        "stream-announced",
        "stream",
        "a content far too large",
        _stored("w", lambda _: compressed(bytes(1 << 20))),
        "gaps",
    ),
    Invalid(
        "stream-announced-lie",
        "stream",
        "another size than announced",
        _stored("w", lambda s: raw_frame(plain(s), size=len(plain(s)) + 1)),
        "gaps",
    ),
    Invalid(
        "stream-leftover",
        "stream",
        "bytes after the last part",
        _stored("w", lambda s: compressed(plain(s) + b"\0")),
        "gaps",
    ),
    Invalid(
        "stream-short",
        "stream",
        "a last part that is cut",
        _stored("w", lambda s: compressed(plain(s)[:-1])),
        "gaps",
    ),
    Invalid(
        "stream-popcount",
        "stream",
        "a bitmap of one word more or less",
        _masks(_flip_first),
        "bitmap",
    ),
    Invalid(
        "stream-padding-mask",
        "stream",
        "a padding bit in a bitmap",
        _masks(lambda m: set_bit(m, -1)),
        "bitmap",
    ),
    Invalid(
        "stream-padding-gaps",
        "stream",
        "a padding bit in the gaps' low bits",
        _masks(lambda m: set_bit(m, 95)),
        "gaps",
    ),
    Invalid(
        "stream-padding-signs",
        "stream",
        "a padding bit in the signs",
        _streams(lambda s: with_part(s, SIGNS, set_bit(s.parts[SIGNS], -1))),
        "bitmap",
    ),
    Invalid(
        "stream-padding-classes",
        "stream",
        "a padding bit in the classes",
        _streams(lambda s: with_part(s, CLASSES, set_bit(s.parts[CLASSES], -1))),
        "bitmap",
    ),
    Invalid(
        "stream-padding-rows",
        "stream",
        "a padding bit in the row flags",
        _stored("w", lambda s: compressed(set_bit(plain(s), 127))),
        "rows",
    ),
    Invalid(
        "stream-gap-overrun", "stream", "a gap that leaves its context", _masks(_overrun), "gaps"
    ),
    Invalid(
        "stream-gap-escape",
        "stream",
        "an escape without its four bytes",
        _masks(lambda m: m[:12] + b"\xff" + m[13:]),
        "gaps",
    ),
    Invalid(
        "stream-escape-overrun",
        "stream",
        "an escape that leaves its context",
        _masks(lambda m: m[:-1] + b"\xff"),
        "escape",
    ),
    Invalid("stream-too-many", "stream", "more changed words than words", _too_many, "bitmap"),
    Invalid(
        "stream-row-unchanged",
        "stream",
        "a flagged row without a changed word",
        _flag_a_row,
        "rows",
    ),
    Invalid(
        "stream-exponent",
        "stream",
        "an exponent of 31 in words of 32 bits",
        _streams(_far_step(b"\x1f", bytes(4))),
        "one-step",
    ),
    Invalid(
        "stream-exponent-large",
        "stream",
        "an exponent of 200",
        _streams(_far_step(b"\xc8", bytes(25))),
        "one-step",
    ),
    Invalid(
        "stream-step",
        "stream",
        "a step that leaves its words",
        _streams(_far_step(b"\x1e", b"\xff\xff\xff\x3f")),
        "one-step",
    ),
    Invalid(
        "stream-whole-size",
        "stream",
        "a whole chunk of another size",
        _stored("i_new", lambda s: compressed(plain(s) + b"\0")),
        "mixed",
    ),
    Invalid(
        "stream-whole-short",
        "stream",
        "a whole chunk that is cut",
        _stored("i_new", lambda s: compressed(plain(s)[:-1])),
        "mixed",
    ),
)

RESULTS: Final = (
    Invalid("base-check", "base", "a wrong check of base words", _off("b_delta", "base")),
    Invalid("base-digest", "base", "a wrong digest of a source", _bad_base_digest),
    Invalid(
        "base-state",
        "base",
        "a wrong state digest of the base",
        _manifest(base={"digest": "0" * 64}),
    ),
    Invalid("base-words", "base", "a base of other words", _file(_same), base="mixed-words"),
    Invalid(
        "base-same",
        "base",
        "a base of other words in an unchanged tensor",
        _file(_same),
        base="mixed-same",
    ),
    Invalid(
        "base-unused",
        "base",
        "a base of other words in a removed tensor",
        _file(_same),
        base="mixed-unused",
    ),
    Invalid("base-missing", "base", "a base without a source", _file(_same), base="mixed-missing"),
    Invalid(
        "base-less", "base", "a base without a removed tensor", _file(_same), base="mixed-less"
    ),
    Invalid("base-more", "base", "a base with a tensor more", _file(_same), base="mixed-more"),
    Invalid("base-dtype", "base", "a source of another dtype", _file(_same), base="mixed-dtype"),
    Invalid("base-short", "base", "a source that is too short", _file(_same), base="mixed-short"),
    Invalid("result-delta", "result", "a wrong result of a delta chunk", _off("b_delta", "result")),
    Invalid("result-whole", "result", "a wrong result of a whole chunk", _off("i_new", "result")),
    Invalid(
        "result-widened", "result", "a wrong result of a widened chunk", _off("f_wide", "result")
    ),
    Invalid("result-digest", "result", "a wrong digest of a tensor", _bad_digest),
)

INVALID: Final = (
    *HEADER,
    *MANIFEST,
    *MISSING,
    *CHECKSUM,
    *TENSORS,
    *CHUNKS,
    *FILES,
    *LIMITS,
    *STREAMS,
    *RESULTS,
)


def _other_bases() -> dict[str, Tensors]:
    """Bases that are not the one of ``mixed``, each by one thing."""
    base = _mixed().base
    less = {name: t for name, t in base.items() if name != "g_gone"}
    short = replace(base["b_delta"], shape=(15, 16), data=base["b_delta"].data[: 15 * 32])
    return {
        "mixed-words": {**base, "b_delta": moved("ow", base["b_delta"], [200])},
        "mixed-same": {**base, "a_same": moved("os", base["a_same"], [3])},
        "mixed-unused": {**base, "g_gone": raw("another", "U8", 7)},
        "mixed-missing": {name: t for name, t in base.items() if name != "b_delta"},
        "mixed-less": less,
        "mixed-more": {**base, "z": raw("z", "U8", 3)},
        "mixed-dtype": {**base, "b_delta": replace(base["b_delta"], dtype="F16")},
        "mixed-short": {**base, "b_delta": short},
    }


def _one_step() -> Pair:
    base = {"w": floats("one", "F32", 40)}
    about = "one step of many binary digits"
    return Pair(about, base, {"w": moved("s1", base["w"], [17], steps=(100_000,))})


# --- writing ---------------------------------------------------------------------------------


def _write(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _read(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encode_pair(pair: Pair, work: Path) -> Parent:
    """Encode a pair in an empty folder, and take the delta apart if it is one file."""
    base = work / "models--example--base" / "snapshots" / COMMIT if pair.hints else work / "base"
    _write(base, {MODEL: safetensors(pair.base)})
    _write(work / "tuned", pair.tuned_files())
    encode_delta(base, work / "tuned", work / "delta", threads=1, **pair.options)
    folder = work / "delta" / "rlsparse"
    if pair.edit is not None:
        (folder / DELTA).write_bytes(pair.edit(Draft.read(work / "delta")))
    files = _read(folder)
    draft = Draft.read(work / "delta") if DELTA in files else Draft({}, _no_index(), [])
    return Parent(pair, draft, files)


def _no_index() -> Index:
    return None  # type: ignore[return-value]


def _digests(files: Files) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def _valid_entry(name: str, parent: Parent, out: Path, work: Path) -> Json:
    files = parent.pair.rebuilt or parent.pair.tuned_files()
    _write(work / "expected", files)
    with open_checkpoint(work / "expected") as checkpoint:
        tuned = checkpoint_state(checkpoint)
    base = SHARED_BASES.get(name, name)
    if base == name:
        _write(out / "bases" / name, {MODEL: safetensors(parent.pair.base)})
    _write(out / "valid" / name / "rlsparse", parent.files)
    return {
        "id": name,
        "kind": "valid",
        "about": parent.pair.about,
        "delta": f"valid/{name}",
        "base": f"bases/{base}",
        "sha256": _digests(parent.files),
        "expected": {"tuned": tuned, "files": _digests(files)},
    }


def _invalid_entry(vector: Invalid, parent: Parent, out: Path) -> Json:
    made = vector.make(parent)
    files = {DELTA: made} if isinstance(made, bytes) else made
    if not vector.base and files == parent.files:
        msg = f"{vector.id} is no other than {vector.parent}"
        raise ValueError(msg)
    _write(out / "invalid" / vector.id / "rlsparse", files)
    return {
        "id": vector.id,
        "kind": "invalid",
        "about": vector.about,
        "delta": f"invalid/{vector.id}",
        "base": f"bases/{vector.base or SHARED_BASES.get(vector.parent, vector.parent)}",
        "sha256": _digests(files),
        "expected": {"code": vector.code},
    }


def generate_into(out: Path) -> Json:
    """Write every vector into an empty folder and return the index of them."""
    pairs = {**PAIRS, "one-step": _one_step}
    parents: dict[str, Parent] = {}
    vectors: list[Json] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in pairs.items():
            work = Path(temporary) / name
            parents[name] = encode_pair(make(), work)
            vectors.append(_valid_entry(name, parents[name], out, work))
    for name, tensors in _other_bases().items():
        _write(out / "bases" / name, {MODEL: safetensors(tensors)})
    vectors += [_invalid_entry(vector, parents[vector.parent], out) for vector in INVALID]
    bases = {f"bases/{p.name}": _digests(_read(p)) for p in sorted((out / "bases").iterdir())}
    version = list(zstandard.ZSTD_VERSION)
    listing = {"format": FORMAT_VERSION, "zstd": version, "bases": bases, "vectors": vectors}
    (out / "index.json").write_text(_printed(listing))
    return listing


def _printed(listing: Json) -> str:
    """The index as JSON, a vector or a base to a line: short, and a change is one line."""

    def lines(items: Iterable[str]) -> str:
        return ",\n".join(f"  {item}" for item in items)

    head = "".join(f' "{key}": {json.dumps(listing[key])},\n' for key in ("format", "zstd"))
    bases = lines(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in listing["bases"].items())
    found = lines(map(json.dumps, listing["vectors"]))
    return f'{{\n{head} "bases": {{\n{bases}\n }},\n "vectors": [\n{found}\n ]\n}}\n'


# --- checking --------------------------------------------------------------------------------


def load(folder: Path = VECTORS) -> Json:
    """The index of the vectors."""
    listing: Json = json.loads((folder / "index.json").read_text())
    return listing


def _listed(listing: Json) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of every file that belongs to the vectors."""
    for folder, files in listing["bases"].items():
        for name, digest in files.items():
            yield f"{folder}/{name}", digest
    for vector in listing["vectors"]:
        for name, digest in vector["sha256"].items():
            yield f"{vector['delta']}/rlsparse/{name}", digest


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problem_with(folder: Path) -> str | None:
    """What is wrong with the files of the vectors, in one line, or ``None``."""
    found = _tree(folder)
    listed = dict(_listed(load(folder)))
    for path, digest in listed.items():
        if path not in found:
            return f"{path} is missing"
        if hashlib.sha256(found[path]).hexdigest() != digest:
            return f"{path} does not have its SHA-256"
    extra = found.keys() - listed.keys() - {"index.json", "README.md"}
    return f"{min(extra)} is not listed" if extra else None


def difference_from(folder: Path) -> str | None:
    """The first file that generating would write otherwise, or ``None``."""
    with tempfile.TemporaryDirectory() as temporary:
        generate_into(Path(temporary))
        wanted, found = _tree(Path(temporary)), _tree(folder)
    found.pop("README.md", None)
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            return f"{path} is not what `generate` writes"
    return None


@click.group()
def main() -> None:
    """Write and check the vectors of the format."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=VECTORS, show_default=True)
def generate(out: Path) -> None:
    """Write every vector anew."""
    readme = out / "README.md"
    kept = readme.read_bytes() if readme.exists() else None
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    if kept is not None:
        readme.write_bytes(kept)
    listing = generate_into(out)
    kinds = [vector["kind"] for vector in listing["vectors"]]
    size = sum(len(data) for data in _tree(out).values())
    valid, invalid = kinds.count("valid"), kinds.count("invalid")
    click.echo(f"{valid} valid and {invalid} invalid vectors, {size} bytes")


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=VECTORS, show_default=True)
def check(folder: Path) -> None:
    """Fail unless every file is as listed and as ``generate`` writes it."""
    problem = problem_with(folder)
    if problem is None:
        recorded = tuple(load(folder)["zstd"])
        if recorded == zstandard.ZSTD_VERSION:
            problem = difference_from(folder)
        else:
            ours = ".".join(map(str, zstandard.ZSTD_VERSION))
            click.echo(f"not generated anew: zstd {ours} may write other bytes")
    if problem is not None:
        click.echo(problem, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

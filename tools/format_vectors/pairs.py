"""The pairs of checkpoints that valid vectors are encoded from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from format_vectors.checkpoints import (
    COMMIT,
    LISTING,
    MODEL,
    Files,
    Json,
    Tensor,
    Tensors,
    floats,
    moved,
    of_words,
    raw,
    safetensors,
)
from format_vectors.chunks_by_hand import recoded, step_counts, whole_chunk, with_contexts
from format_vectors.draft import fill_index, plain
from format_vectors.frames import MAGIC, block, with_blocks
from rlsparse_store.format.digests import digest_of_leaves, leaf_hashes
from rlsparse_store.format.dtypes import DTYPES, OrderMap, WordCoding
from rlsparse_store.format.index.records import NO_STEPS, Kind
from rlsparse_store.format.words import Widening, cast_to_bf16, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from format_vectors.draft import Draft


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
        edit_files: What is done to the files of the delta.
        reader: How a reader is configured for this vector.
        base_name: Folder of the base.
    """

    about: str
    base: Tensors
    tuned: Tensors | Files
    options: Json = field(default_factory=dict)
    rebuilt: Files | None = None
    hints: bool = False
    edit: Callable[[Draft], bytes] | None = None
    edit_files: Callable[[Files], Files] | None = None
    reader: Json = field(default_factory=dict)

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
    tuned["whole"] = raw("f4/w", "F4", 7, 4)
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


def _renamed_two() -> Pair:
    base = {f"model.layers.{i}.w": floats(f"renamed/{i}", "BF16", 20, 10) for i in range(2)}
    tuned = {
        f"policy.layers.{i}.w": moved(f"rn{i}", base[f"model.layers.{i}.w"], 11) for i in range(2)
    }
    return Pair("two tensors of other names in the base", base, tuned)


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


def _repeated() -> Pair:
    base = {"kept": raw("kept", "U8", 8)}
    tuned = {**base, "zeros": Tensor("U8", (131_073,), bytes(131_073))}
    return Pair("a whole tensor of two blocks, a byte repeated", base, tuned)


def _padded() -> Pair:
    base = {"w": of_words("BF16", [0x3F01] * 3001)}
    about = "streams that all end within a byte"
    return Pair(about, base, {"w": moved("padded", base["w"], 61, steps=(5, 1, -1))})


def _contexts_signed() -> Pair:
    small = raw("signed/s", "I16", 1500).words.astype(np.int64) % 200 - 100
    large = raw("signed/l", "I16", 1500).words.astype(np.int64) | 0x4000
    words = np.stack([small, large], axis=1).ravel() & 0xFFFF
    base = {"w": of_words("I16", words.astype(np.uint64))}
    where = [*range(0, 3000, 4), *range(1, 3000, 100)]
    about = "contexts of two's complement words of either sign"
    return Pair(about, base, {"w": moved("signed", base["w"], sorted(where))})


def _rows_within() -> Pair:
    base = {"w": floats("rows-within", "BF16", 40, 50)}
    where = [row * 50 + column for row in (4, 11, 25) for column in range(0, 50, 2)]
    tuned = {"w": moved("rw", base["w"], where)}
    pair = Pair("row flags of a chunk that starts and ends within rows", base, tuned)

    def edit(draft: Draft) -> bytes:
        record, stored = recoded(pair, draft, 0, 130, 1170, rows=True)
        draft = draft.with_chunks([record], [stored])
        steps = tuple(step_counts(pair, "w", [(130, 1170)]))
        return draft.with_tensor("w", steps=steps, moved=0).sealed()

    return replace(pair, edit=edit)


def _whole_tail() -> Pair:
    base = {"v": floats("whole-tail/v", "BF16", 4, 4), "w": floats("whole-tail", "BF16", 10, 10)}
    words = [
        *moved("wt", base["w"], [91, 95, 99]).words.tolist(),
        *floats("wtm", "BF16", 20).words.tolist(),
    ]
    more = [*base["v"].words.tolist(), *floats("wtv", "BF16", 8).words.tolist()]
    tuned = {"v": of_words("BF16", more, 6, 4), "w": of_words("BF16", words, 12, 10)}
    pair = Pair("a whole chunk across the end of the shared part", base, tuned)

    def edit(draft: Draft) -> bytes:
        places = [(0, 16, 8), (1, 90, 20), (1, 110, 10)]
        parts = [whole_chunk(pair, draft, *place) for place in places]
        draft = draft.with_chunks([part[0] for part in parts], [part[1] for part in parts])
        return draft.with_tensor("w", steps=NO_STEPS, moved=3).sealed()

    return replace(pair, edit=edit)


def _names() -> Pair:
    names = ['"', "\\", "a/b", "\u00e9", "\u4e2d\u6587", "\U0001f40d", "n" * 1024]
    base = {name: raw(f"names/{i}", "U8", 3) for i, name in enumerate(names)}
    tuned = {name: moved(f"names/m{i}", t, [1]) for i, (name, t) in enumerate(base.items())}
    return Pair("names that JSON escapes, that are not ASCII, and of 1,024 bytes", base, tuned)


def _index_largest() -> Pair:
    about = "an index of the largest content that its frame may have"
    return replace(_bitmap(), about=about, edit=lambda draft: fill_index(draft, 0))


def _listing_floats() -> Pair:
    pair = _split(rebuilt=True)
    files = pair.tuned_files()
    listing = json.loads(files[LISTING])
    listing["metadata"] = {"share": 1e-05, "none": None}
    text = json.dumps(listing, indent=2, sort_keys=True) + "\n"
    about = "an index file kept verbatim for its fraction and its null"
    return replace(pair, about=about, tuned={**files, LISTING: text.encode()})


def _same_dtypes() -> Pair:
    base = _every_dtype().base
    return Pair("an unchanged tensor of every dtype", base, base)


def _same_wide() -> Pair:
    base = {code.lower(): raw(f"wide/{code}", code, 64) for code in ("F64", "I64", "U64")}
    return Pair("unchanged tensors of 64 words of 64 bits", base, base)


def _no_tensor() -> Pair:
    return Pair("checkpoints without tensors", {}, {})


def _leaves() -> Pair:
    base = {"kept": raw("leaves", "U8", 8)}
    data = bytes(i // 3 % 251 for i in range(46_000))
    tuned = {**base, "new": Tensor("U8", (46_000,), data)}
    pair = Pair("chunks that end within leaves", base, tuned)

    def edit(draft: Draft) -> bytes:
        parts = [
            whole_chunk(pair, draft, 1, *place)
            for place in ((0, 8000), (8000, 30_000), (38_000, 8000))
        ]
        return draft.with_chunks([part[0] for part in parts], [part[1] for part in parts]).sealed()

    return replace(pair, edit=edit)


def _largest_contents() -> Pair:
    """Chunks whose contents are as large as they can be, or nearly."""
    far = 1 << 31
    # Four gaps of 255 take four bytes more each; a bit each is more than that for 6 k >= n.
    gaps = [255] * 4 + [0] * 245
    ranks = np.cumsum(np.array(gaps) + 1) - 1
    words = np.zeros(1500, np.uint64)
    words[ranks] = far
    base = {
        "bits": of_words("U32", [0] * 200),
        "gaps": of_words("U32", [0] * 1500),
        "rows": Tensor("F4", (1, 2), b"\0"),
    }
    tuned = {
        "bits": of_words("U32", [far] * 199 + [0]),
        "gaps": of_words("U32", words),
        "rows": Tensor("F4", (1, 2), b"\x0f"),
    }
    pair = Pair("contents that are as large as they can be", base, tuned)

    def edit(draft: Draft) -> bytes:
        lengths = (200, 1500, 2)
        parts = [
            recoded(pair, draft, i, 0, length, rows=i == 2) for i, length in enumerate(lengths)
        ]
        for (record, _), (name, before) in zip(parts, base.items(), strict=True):
            data = np.frombuffer(before.data, np.uint8)
            changes: Json = {
                "kind": Kind.DELTA,
                "origin": name,
                "steps": (0, 0, 0, *record.changed, 0, 0, 0, 0),
                "moved": 0,
                "base_digest": digest_of_leaves(data.size, leaf_hashes(data)),
            }
            draft = draft.with_tensor(name, **changes)
        return draft.with_chunks([part[0] for part in parts], [part[1] for part in parts]).sealed()

    return replace(pair, edit=edit)


def _lengths() -> Pair:
    sizes = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 128, 129, 130, 240, 241, 1024, 1025, 1089, 5000)
    base = {f"n{size:04}": raw(f"lengths/{size}", "U8", size) for size in sizes}
    return Pair("tensors of lengths that XXH3 treats in different ways", base, base)


def _size_of_eight() -> Pair:
    def edit(draft: Draft) -> bytes:
        content = plain(draft.stored[0])
        frame = MAGIC + b"\xe0" + len(content).to_bytes(8, "little")
        return draft.with_stored(0, frame + block(0, len(content), content)).sealed()

    return replace(_bitmap(), about="a frame whose content size takes 8 bytes", edit=edit)


def _four_bits_two() -> Pair:
    base = {"f4": raw("f4/two", "F4", 40, 16)}
    pair = Pair("two chunks of 4-bit words", base, {"f4": moved("f4/n", base["f4"], 40)})

    def edit(draft: Draft) -> bytes:
        parts = [recoded(pair, draft, 0, first, 320) for first in (0, 320)]
        return draft.with_chunks([part[0] for part in parts], [part[1] for part in parts]).sealed()

    return replace(pair, edit=edit)


def _gaps_plain() -> Pair:
    base = {"w": of_words("BF16", [0x3F01] * 100)}
    about = "gaps without low bits"
    return Pair(about, base, {"w": moved("gp", base["w"], list(range(3, 93, 9)))})


def _far_steps() -> Pair:
    base = {"w": floats("far", "BF16", 600)}
    steps = (300, -700, 5000, -20_000, 1, 32_000, -32_768)
    return Pair(
        "steps of many binary digits", base, {"w": moved("far/m", base["w"], 20, steps=steps)}
    )


def _large_enough() -> Pair:
    about = "as many bytes of tensors as the reader's caller accepts"
    return replace(_bitmap(), about=about, reader={"max_tuned_bytes": 122})


def _listing_keys() -> Pair:
    name = "delta.safetensors.index.json"
    more = {
        "integer": 10**19 - 1,
        "deep": nested(31, 1, "scalars are no level"),
        "numbers": [0.5, -1, -0.0, 1e300],
        "others": [None, True, "\U0001f40d", "{" * 40],
    }

    def edit(files: Files) -> Files:
        text = json.dumps(json.loads(files[name]) | more, indent=1)
        return {**files, name: text.replace('"deep"', '"\\u0064eep"').encode()}

    return replace(
        _shards(), about="an index of shards with keys that nobody knows", edit_files=edit
    )


def _widest() -> Pair:
    """What is as large as a limit allows."""
    base = {
        "a": raw("widest/a", "U8", *[1] * 31, 5),
        "b": raw("widest/b", "F32", 0, 1 << 48),
        "c": floats("widest/c", "BF16", 400),
        "z": raw("widest/z", "U8", 6),
    }
    tuned = {
        **base,
        "byte": Tensor("U8", (1,), b"\7"),
        "c": moved("widest/c", base["c"], 40),
    }
    tuned["a"] = moved("widest/a", base["a"], [4])
    tuned["y"] = tuned["zz"] = raw("widest/y", "U8", 7)
    pair = Pair(
        "32 dimensions, 2^48, 16 contexts, 10 stored bytes, 1,000 blocks, an alias of the last",
        base,
        tuned,
    )

    def edit(draft: Draft) -> bytes:
        number = draft.chunk_of("c")
        chunk = draft.index.chunks[number]
        record, stored = with_contexts(pair, draft, chunk, 16)
        byte = draft.chunk_of("byte")
        draft = draft.with_stored(number, stored).with_chunk(
            number, coding=record.coding, bounds=record.bounds, changed=record.changed
        )
        draft = draft.with_stored(byte, MAGIC + bytes.fromhex("2001090000") + b"\7")
        twin = draft.chunk_of("y")
        keep = [i for i in range(len(draft.stored)) if i != twin]
        draft = draft.with_chunks(
            [draft.index.chunks[i] for i in keep], [draft.stored[i] for i in keep]
        )
        changes: Json = {"kind": Kind.ALIAS, "coding": None, "origin": "zz", "tuned_digest": b""}
        draft = draft.with_tensor("y", **changes)
        blocks = {f"{i:03}": b"" for i in range(1000)}
        return replace(draft, index=replace(draft.index, blocks=blocks)).sealed()

    return replace(pair, edit=edit)


def _last_empty() -> Pair:
    pair = _bitmap()

    def edit(draft: Draft) -> bytes:
        content = plain(draft.stored[0])
        blocks = block(0, len(content), content, last=False) + block(0, 0, b"")
        return draft.with_stored(0, with_blocks(blocks)(draft.stored[0])).sealed()

    return replace(pair, about="a frame whose last block is empty", edit=edit)


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
    more = [1, True, {"\u00e9": "\n"}, [], {}, -7]
    metadata: Json = {"total_size": 360, "more": more}
    files: Files = {}
    weights = {n: f"model-0000{k}-of-00002.safetensors" for n, k in names.items()}
    for file in sorted(set(weights.values())):
        files[file] = safetensors({n: tuned[n] for n in tuned if weights[n] == file})
    listing = {"metadata": metadata, "weight_map": weights}
    if rebuilt:
        text = json.dumps(listing, indent=2, sort_keys=True) + "\n"
    else:
        text = json.dumps(dict(reversed(listing.items())))
    about = "two files and an index file that is " + ("rebuilt" if rebuilt else "kept verbatim")
    return Pair(about, base, {**files, LISTING: text.encode()})


def _hints() -> Pair:
    return replace(_bitmap(), about="a manifest that names repository and commit", hints=True)


def nested(depth: int, *innermost: object) -> list[Any]:
    """Lists within each other, ``depth`` of them; the last one holds ``innermost``."""
    return [nested(depth - 1, *innermost)] if depth > 1 else list(innermost)


def _manifest_keys() -> Pair:
    more: Json = {
        "zeta": {"a": [1]},
        "objects": [{"k": i} for i in range(70)],
        "braces": "{" * 70,
        "deep": nested(31, 1, "scalars are no level"),
        "largest": (1 << 53) - 1,
        "text": '\b\t\n\f\r\x01\x7f"/\\µ\ufffd\U0001f40d',
        "\ufffd": 1,
        "\U0001f40d": 2,
    }

    def edit(draft: Draft) -> bytes:
        return draft.sealed(manifest=lambda fields: fields | more)

    about = "manifest keys that nobody knows"
    return replace(_bitmap(), about=about, edit=edit)


BLOCKS: Final = {"example.org/note": b"skip me", "hints": bytes(300), "zz": b""}
FEATURE: Final = "example.org/test"


def _optional_blocks() -> Pair:
    def edit(draft: Draft) -> bytes:
        return replace(draft, index=replace(draft.index, blocks=BLOCKS)).sealed()

    return replace(_bitmap(), about="optional blocks that no reader knows", edit=edit)


def _minor() -> Pair:
    def edit(draft: Draft) -> bytes:
        index = replace(draft.index, blocks=BLOCKS)
        more = {"format": "1.999999", "later": {"key": "and its value"}}
        return replace(draft, index=index).sealed(manifest=lambda fields: fields | more)

    about = "the highest MINOR, with a manifest key and optional blocks that no reader knows"
    return replace(_bitmap(), about=about, edit=edit)


def _feature() -> Pair:
    def edit(draft: Draft) -> bytes:
        index = replace(draft.index, features={FEATURE: b"\x01\x02"}, blocks={"zz": b"z"})
        return replace(draft, index=index).sealed(manifest=lambda m: m | {"features": [FEATURE]})

    about = "a feature with a block of its own, for readers that know it, and an optional block"
    return replace(_bitmap(), about=about, edit=edit, reader={"features": [FEATURE]})


def _hint_delta(about: str, delta: Json) -> Pair:
    """A base that is itself a delta's result."""

    def edit(draft: Draft) -> bytes:
        hints = {"repo": "example/base", "revision": COMMIT, "delta": delta}
        return draft.sealed(manifest=lambda m: m | {"base": m["base"] | hints})

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


def mixed() -> Pair:
    """Every kind of tensor in one pair: the parent of most invalid vectors."""
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
    "renamed-two": _renamed_two,
    "new-tie": _new_tie,
    "vocabulary": _vocabulary,
    "widening-bf16": _widening_bf16,
    "widening-f16": _widening_f16,
    "added-removed": _added_removed,
    "reshape": _reshape,
    "identical": _identical,
    "shards": _shards,
    "cast": _cast,
    "listing-keys": _listing_keys,
    "large-enough": _large_enough,
    "same-dtypes": _same_dtypes,
    "lengths": _lengths,
    "same-wide": _same_wide,
    "no-tensor": _no_tensor,
    "leaves": _leaves,
    "largest-contents": _largest_contents,
    "size-of-eight": _size_of_eight,
    "four-bits-two": _four_bits_two,
    "gaps-plain": _gaps_plain,
    "far-steps": _far_steps,
    "widest": _widest,
    "last-block-empty": _last_empty,
    "repeated": _repeated,
    "padded": _padded,
    "contexts-signed": _contexts_signed,
    "rows-within": _rows_within,
    "whole-tail": _whole_tail,
    "names": _names,
    "index-largest": _index_largest,
    "files-floats": _listing_floats,
    "verbatim": _verbatim,
    "files-rebuilt": lambda: _split(rebuilt=True),
    "files-verbatim": lambda: _split(rebuilt=False),
    "hints": _hints,
    "manifest-keys": _manifest_keys,
    "optional-blocks": _optional_blocks,
    "minor": _minor,
    "feature": _feature,
    "base-delta-path": lambda: _hint_delta(
        "a base that is the result of a delta beside this one", {"path": "../keyframes/step-100"}
    ),
    "base-delta-id": lambda: _hint_delta(
        "a base that is the result of a delta in a repository",
        {"repo": "example/run", "revision": COMMIT, "path": "step-100", "zz": "ignored"},
    ),
    "several-chunks": _several_chunks,
    "mixed": mixed,
}

SHARED_BASES: Final = {
    "hints": "bitmap",
    "manifest-keys": "bitmap",
    "index-largest": "bitmap",
    "listing-keys": "shards",
    "large-enough": "bitmap",
    "size-of-eight": "bitmap",
    "same-dtypes": "every-dtype",
    "last-block-empty": "bitmap",
    "files-floats": "files-rebuilt",
    "optional-blocks": "bitmap",
    "feature": "bitmap",
    "base-delta-path": "bitmap",
    "base-delta-id": "bitmap",
    "layout-by-dtype": "every-dtype",
    "files-verbatim": "files-rebuilt",
}
"""Vectors whose base is another one's."""


def one_step() -> Pair:
    """One step of many binary digits."""
    base = {"w": floats("one", "F32", 40)}
    about = "one step of many binary digits"
    return Pair(about, base, {"w": moved("s1", base["w"], [17], steps=(100_000,))})


def one_step_wide() -> Pair:
    """One step of 1 of a word of 64 bits."""
    base = {"w": raw("one-wide", "I64", 40)}
    return Pair("one step of a word of 64 bits", base, {"w": moved("sw", base["w"], [17])})


def other_bases() -> dict[str, Tensors]:
    """Bases that are not the one of ``mixed``, each by one thing."""
    base = mixed().base
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

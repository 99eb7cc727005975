"""Invalid indexes: names, tensors, chunks (sections 3, 4, 10) and limits (section 13)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from format_vectors.chunks_by_hand import whole_chunk, words_check
from format_vectors.draft import compressed, fill_index, plain, unchanged
from format_vectors.frames import (
    MAGIC,
    block,
    frame_with_checksum,
    raw_frame,
    unsized_frame,
    with_blocks,
)
from format_vectors.invalid import (
    Invalid,
    Parent,
    edit_file,
    resealed,
    with_chunk,
    with_frame,
    with_manifest,
    with_tensor,
)
from format_vectors.manifest import with_totals
from format_vectors.pairs import FEATURE
from rlsparse_store.codec.chunk import encode_whole
from rlsparse_store.format.dtypes import DTYPES, Dtype, OrderMap, WordCoding
from rlsparse_store.format.index.columns import ColumnWriter
from rlsparse_store.format.index.records import NO_STEPS, ChunkCoding, Kind
from rlsparse_store.format.words import Widening
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from format_vectors.checkpoints import Json


def with_index(**changes: object) -> Callable[[Parent], bytes]:
    """Exchange tensors or removed names."""

    def make(parent: Parent) -> bytes:
        index = parent.draft.index
        named = {f: c for f, c in changes.items() if f in ("tensors", "removed")}
        return replace(parent.draft, index=replace(index, **named)).sealed()  # type: ignore[arg-type]

    return make


def integer_column(values: Sequence[int]) -> bytes:
    """One integer column."""
    writer = ColumnWriter()
    writer.integers(values)
    return writer.content()


def name_list(names: Sequence[str]) -> bytes:
    """One name list."""
    writer = ColumnWriter()
    writer.names(names)
    return writer.content()


def _counts(place: int, value: int) -> Callable[[Parent], bytes]:
    """Claim another number of something, and nothing else."""

    def make(parent: Parent) -> bytes:
        def edit(content: bytes) -> bytes:
            counts = list(content[1:6])
            counts[place] = value
            return integer_column(counts) + content[6:]

        return parent.draft.sealed(content=edit)

    return make


def _sources(names: list[str], *, origin: str = "") -> Callable[[Parent], bytes]:
    """Exchange the list of sources, after pointing ``b_delta`` to a source if asked to."""

    def make(parent: Parent) -> bytes:
        draft = parent.draft
        draft = draft.with_tensor("b_delta", origin=origin) if origin else draft
        old = sorted({"old.layer.norm", origin} - {""})

        def edit(content: bytes) -> bytes:
            head = content[:6] + name_list([t.name for t in draft.index.tensors])
            counts = list(content[1:6])
            counts[1] = len(names)
            rest = content[len(head) + len(name_list(old)) :]
            return integer_column(counts) + head[6:] + name_list(names) + rest

        return draft.sealed(content=edit)

    return make


def _only_source(parent: Parent) -> bytes:
    """A list of one source for a tensor that has its own."""
    old = integer_column([1, 0, 0, 1, 1]) + name_list(["w"]) + name_list([])
    new = integer_column([1, 1, 0, 1, 1]) + name_list(["w"]) + name_list(["z"])
    return _patched(old, new)(parent)


def _swapped(parent: Parent) -> bytes:
    """Give the first tensor, whose source is then foreign, the last name."""
    return parent.draft.with_tensor("a_same", name="z", origin="a_same").sealed()


def _renamed_to(name: str) -> Callable[[Parent], bytes]:
    """Rename the last tensor, whose source is foreign in any case."""
    return with_tensor("new.layer.norm", name=name)


def _long_name(rest: str) -> Callable[[Parent], bytes]:
    """Give the last tensor a name that shares 600 bytes with the one before."""
    shared = "n" * 600

    def make(parent: Parent) -> bytes:
        draft = parent.draft.with_tensor("j_twin", name=shared)
        return draft.with_tensor("new.layer.norm", name=shared + rest).sealed()

    return make


def _patched(old: bytes, new: bytes) -> Callable[[Parent], bytes]:
    """Exchange bytes of the index content that stand there exactly once."""

    def edit(content: bytes) -> bytes:
        if content.count(old) != 1:
            msg = f"{old!r} stands {content.count(old)} times in the index"
            raise ValueError(msg)
        return content.replace(old, new)

    return resealed(content=edit)


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


def as_alias(name: str, origin: str) -> Callable[[Parent], bytes]:
    """Make a tensor without chunks an alias."""
    changes: Json = {"kind": Kind.ALIAS, "origin": origin, "tuned_digest": b"", "coding": None}
    return with_tensor(name, **changes)


def _without_chunks(coding: WordCoding | None) -> Callable[[Parent], bytes]:
    """Make the unchanged tensor one of kind `delta`, which needs no chunk."""

    def make(parent: Parent) -> bytes:
        digest = parent.draft.tensor("a_same").tuned_digest
        changes: Json = {"kind": Kind.DELTA, "coding": coding, "base_digest": digest}
        return parent.draft.with_tensor("a_same", **changes).sealed()

    return make


def _widened_whole(parent: Parent) -> bytes:
    """A whole tensor whose chunk holds the words to be widened."""
    draft, number = parent.draft, parent.draft.chunk_of("f_wide")
    words = np.frombuffer(parent.pair.tensor("f_wide").data, "<u4") >> 16
    coding = draft.tensor("f_wide").coding or DTYPES["BF16"].coding
    stored = encode_whole(get_backend(), 0, words.astype(np.uint16), coding).stored
    whole = {"coding": ChunkCoding.WHOLE, "base": 0, "bounds": (), "changed": ()}
    draft = draft.with_stored(number, stored).with_chunk(number, **whole)
    changes: Json = {"kind": Kind.WHOLE, "origin": "", "steps": NO_STEPS, "base_digest": b""}
    return draft.with_tensor("f_wide", **changes).sealed()


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


def _wrong_steps(parent: Parent) -> bytes:
    """Count a word less than the chunks change."""
    steps = list(parent.draft.tensor("b_delta").steps)
    full = next(i for i, count in enumerate(steps) if count)
    steps[full] -= 1
    return parent.draft.with_tensor("b_delta", steps=tuple(steps)).sealed()


_FLOAT32 = DTYPES["F32"].coding


def _foreign(name: str) -> Callable[[Parent], bytes]:
    """Exchange the name of the foreign source."""
    return with_tensor("new.layer.norm", origin=name)


def _wrapped_steps(parent: Parent) -> bytes:
    """Steps that are 2^64 too many in all."""
    old = parent.draft.tensor("b_delta").steps
    steps = (old[0] + (1 << 63), old[1] + (1 << 63), *old[2:])
    return parent.draft.with_tensor("b_delta", steps=steps).sealed(totals=False)


def _origin_of(name: str, origin: int) -> Callable[[Parent], bytes]:
    """Exchange one value of the column ``origin``, which records hold as names."""

    def make(parent: Parent) -> bytes:
        records = parent.draft.index.tensors
        names = [t.name for t in records]
        # What the parent has: the source of new.layer.norm, and the target of j_twin.
        old = [0, 0, 0, 0, 0, names.index("i_new") + 1, 1]
        new = list(old)
        new[names.index(name)] = origin
        return _patched(
            integer_column([0, 0, 0, 1, 0, 0, 0]) + integer_column(old),
            integer_column([0, 0, 0, 1, 0, 0, 0]) + integer_column(new),
        )(parent)

    return make


def _raw_blocks(
    blocks: list[tuple[bytes, bytes]], *, count: int | None = None, cut: int = 0
) -> Callable[[Parent], bytes]:
    """Exchange the optional blocks, of which the parent has none."""
    writer = ColumnWriter()
    writer.integers([len(blocks) if count is None else count])
    for name, content in blocks:
        writer.text(name)
        writer.text(content)
    raw = writer.content()
    return resealed(content=lambda c: c[:-1] + raw[: len(raw) - cut])


def _too_full(parent: Parent) -> bytes:
    return fill_index(parent.draft, 1)


def _wrapped_skip(parent: Parent) -> bytes:
    """Let the second chunk start 8 words before the first ends."""
    first, _, third = parent.draft.index.chunks
    start = first.first + first.length - 8 + (1 << 64)
    draft = parent.draft.with_chunk(1, first=start)
    return draft.with_chunk(2, first=third.first + (1 << 64)).sealed()


def _wrapped_tensor(parent: Parent) -> bytes:
    """Let the last chunk be of the tensor before its own."""
    chunks = parent.draft.index.chunks
    return parent.draft.with_chunk(
        len(chunks) - 1, tensor=chunks[-2].tensor - 1 + (1 << 64)
    ).sealed()


def _last_chunk_of(tensor: int) -> Callable[[Parent], bytes]:
    return lambda p: p.draft.with_chunk(len(p.draft.index.chunks) - 1, tensor=tensor).sealed()


def _longer_whole(parent: Parent) -> bytes:
    """A whole chunk of 41 words for a tensor of 40."""
    draft, number = parent.draft, parent.draft.chunk_of("i_new")
    words = plain(draft.stored[number]) + b"\0"
    draft = draft.with_content(number, words)
    result = words_check(np.frombuffer(words, np.uint8))
    return draft.with_chunk(number, length=41, result=result).sealed()


def _bound_twice(parent: Parent) -> bytes:
    """The only bound twice: the second context is empty, and changes nothing."""
    chunk = parent.draft.index.chunks[0]
    return parent.draft.with_chunk(0, bounds=chunk.bounds * 2, changed=(*chunk.changed, 0)).sealed()


def _bound_behind(parent: Parent) -> bytes:
    """One more context, of the keys above the bound, which changes nothing."""
    chunk = parent.draft.index.chunks[0]
    changes = {"bounds": (*chunk.bounds, 1 << 15), "changed": (*chunk.changed, 0)}
    return parent.draft.with_chunk(0, **changes).sealed()


def _many_changed(parent: Parent) -> bytes:
    many = (1 << 26) + 1
    draft = parent.draft.with_chunk(0, changed=(many,))
    return draft.with_tensor("w", steps=(many, *[0] * 7)).sealed()


def _rows_of_half_words(parent: Parent) -> bytes:
    """Row flags where a row is no whole number of words."""
    draft = parent.draft.with_chunk(0, length=3075)
    coding = WordCoding(32, OrderMap.SIGN_MAGNITUDE)
    return draft.with_tensor("w", shape=(2050, 3), coding=coding).sealed()


def _half_byte(parent: Parent) -> bytes:
    """65 numbers of 4 bits: the totals are those of 64."""
    draft = parent.draft.with_tensor("a_same", shape=(65,), dtype=DTYPES["F4"])

    def count(fields: Json) -> Json:
        totals = fields["totals"]
        return fields | {"totals": totals | {"elements": totals["elements"] + 48}}

    return draft.sealed(totals=False, manifest=count)


def _half_word(parent: Parent) -> bytes:
    """A tensor of 14 bytes in words of four."""
    draft = parent.draft.with_chunk(parent.draft.chunk_of("whole"), length=3)
    coding = WordCoding(32, OrderMap.UNSIGNED)
    return draft.with_tensor("whole", coding=coding).sealed()


def _one_step_of(name: str) -> Callable[[Parent], bytes]:
    """A step of a tensor that has none, which the totals count, too."""

    def make(parent: Parent) -> bytes:
        draft = parent.draft.with_tensor(name, steps=(1, *[0] * 7))
        changed = draft.index.totals().changed + 1

        def count(fields: Json) -> Json:
            return fields | {"totals": fields["totals"] | {"changed": changed}}

        return draft.sealed(manifest=count)

    return make


def _no_target(parent: Parent) -> bytes:
    """The alias's origin, which stands between zeros, is 0."""
    count = len(parent.draft.index.tensors)
    names = [t.name for t in parent.draft.index.tensors]
    old = [0] * count
    old[names.index("y")] = count
    return _patched(integer_column(old), integer_column([0] * count))(parent)


def _nothing_changed(parent: Parent) -> bytes:
    """A chunk without content, whose result is its base."""
    draft, chunk = parent.draft, parent.draft.index.chunks[0]
    empty = MAGIC + b"\x20\0" + block(0, 0, b"", last=False) + block(0, 0, b"")
    draft = draft.with_stored(0, empty).with_chunk(0, changed=(0,), result=chunk.base)
    digest = draft.tensor("w").base_digest
    return draft.with_tensor("w", steps=NO_STEPS, tuned_digest=digest).sealed()


def _chunk_of_same(parent: Parent) -> bytes:
    """One more chunk, which is right, but of a tensor that has none."""
    record, stored = whole_chunk(parent.pair, parent.draft, 0, 0, 16)
    chunks = [record, *parent.draft.index.chunks]
    return parent.draft.with_chunks(chunks, [stored, *parent.draft.stored]).sealed()


TENSORS: Final = (
    Invalid("index-cut", "index", "an index that ends early", resealed(content=lambda c: c[:-1])),
    Invalid(
        "index-longer", "index", "bytes after the index", resealed(content=lambda c: c + b"\0")
    ),
    Invalid("index-entry-short", "index", "an entry of 7 bytes", resealed(entry=lambda e: e[:7])),
    Invalid(
        "index-second-frame",
        "index",
        "a second frame",
        resealed(frame=lambda f: f + compressed(b"x")),
    ),
    Invalid(
        "index-no-size", "index", "a frame without content size", resealed(frame=unsized_frame)
    ),
    Invalid(
        "index-frame-checksum",
        "index",
        "a frame with a checksum",
        resealed(frame=frame_with_checksum),
    ),
    Invalid(
        "index-column-wide",
        "index",
        "a column wider than its values",
        resealed(content=lambda c: b"\x02" + c[1:6] + bytes(5) + c[6:]),
    ),
    Invalid(
        "index-column-width",
        "index",
        "a column of three bytes",
        resealed(content=lambda c: b"\x03" + c[1:6] + bytes(10) + c[6:]),
    ),
    Invalid("names-descending", "index", "names out of order", _swapped),
    Invalid(
        "name-twice", "index", "a name twice", with_tensor("j_twin", name="i_new", origin="b_delta")
    ),
    Invalid("name-control", "index", "a control character in a name", _renamed_to("new\n")),
    Invalid("name-reversed", "index", "a mark that reverses text", _renamed_to("new\u202e")),
    Invalid("name-long", "index", "a name of 1025 bytes", _renamed_to("n" * 1025)),
    Invalid(
        "name-long-shared",
        "index",
        "a name of 1025 bytes, 600 of which it shares with the one before",
        _long_name("z" * 425),
    ),
    Invalid(
        "name-long-bytes",
        "index",
        "a name of 1025 bytes in 813 characters",
        _long_name("\u00e9" * 212 + "z"),
    ),
    Invalid(
        "name-tensor-not-utf8",
        "index",
        "a tuned tensor's name that is no UTF-8",
        _patched(b"j_twin", b"j_tw\xffn"),
    ),
    Invalid("name-not-utf8", "index", "a name that is no UTF-8", _patched(b"g_gone", b"g_g\xffne")),
    Invalid(
        "name-prefix",
        "index",
        "a prefix that is not the longest",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x01\x00\x04\x01\x06\x02gone.a.b"),
        "added-removed",
    ),
    Invalid("kind-unknown", "index", "an unknown kind", with_tensor("a_same", kind=4)),
    Invalid(
        "dtype-unknown",
        "index",
        "an unknown dtype",
        with_tensor("a_same", dtype=_fake("BF16", number=22)),
    ),
    Invalid(
        "width-unknown",
        "index",
        "words of 2 bits",
        _without_chunks(WordCoding(2, OrderMap(0))),
    ),
    Invalid(
        "width-none",
        "index",
        "a tensor of kind `delta` and no width",
        _without_chunks(None),
    ),
    Invalid(
        "map-unknown",
        "index",
        "an unknown order map",
        with_tensor("i_new", coding=WordCoding(8, 3)),  # type: ignore[arg-type]
    ),
    Invalid(
        "map-of-same",
        "index",
        "an order map of a tensor without chunks",
        with_tensor("a_same", coding=_NoWidth(0, OrderMap(1))),
    ),
    Invalid(
        "width-of-same",
        "index",
        "a width of a tensor without chunks",
        with_tensor("a_same", coding=_FLOAT32),
    ),
    Invalid(
        "widening-unknown",
        "index",
        "an unknown widening",
        with_tensor("f_wide", totals=False, widening=3),
    ),
    Invalid(
        "widening-dtype",
        "index",
        "a widening to BF16",
        with_tensor("b_delta", totals=False, widening=Widening.BF16_TO_F32),
    ),
    Invalid(
        "widening-unsigned",
        "index",
        "a widening to U32",
        with_tensor("f_wide", dtype=DTYPES["U32"]),
    ),
    Invalid(
        "widening-width",
        "index",
        "a widening that codes 32-bit words",
        with_tensor("f_wide", totals=False, coding=_FLOAT32),
    ),
    Invalid("tail-of-whole", "index", "a tail of a whole tensor", with_tensor("i_new", tail=1)),
    Invalid("steps-wrong", "index", "steps that the chunks do not have", _wrong_steps),
    Invalid(
        "steps-large",
        "index",
        "more steps than a tensor can have words",
        with_tensor("w", steps=(1 << 50, *[0] * 7)),
        "bitmap",
    ),
    Invalid(
        "moved-more",
        "index",
        "more changed words than a whole chunk has",
        with_tensor("w", moved=61),
        "several-chunks",
    ),
    Invalid("alias-of-alias", "index", "an alias of an alias", as_alias("a_same", "j_twin")),
    Invalid(
        "alias-of-itself", "index", "an alias of itself", with_tensor("j_twin", origin="j_twin")
    ),
    Invalid(
        "alias-shape", "index", "an alias of another shape", with_tensor("j_twin", shape=(4, 10))
    ),
    Invalid(
        "alias-dtype",
        "index",
        "an alias of another dtype",
        with_tensor("j_twin", dtype=DTYPES["I8"]),
    ),
    Invalid(
        "source-unused", "index", "a source that is not used", _sources(["old.layer.norm", "z"])
    ),
    Invalid("source-only-unused", "index", "the only source is not used", _only_source, "bitmap"),
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
        with_index(removed=["a_same", "g_gone"]),
    ),
    Invalid(
        "removed-source",
        "index",
        "a removed tensor that is a source",
        with_index(removed=["g_gone", "old.layer.norm"]),
    ),
    Invalid(
        "removed-descending",
        "index",
        "removed tensors out of order",
        with_index(removed=["h", "g_gone"]),
    ),
    Invalid(
        "removed-less",
        "index",
        "a base tensor that is neither used nor removed",
        with_index(removed=[]),
    ),
    Invalid(
        "removed-more",
        "base",
        "a removed tensor that the base lacks",
        with_index(removed=["g_gone", "h_gone"]),
    ),
    Invalid(
        "totals-changed",
        "index",
        "a total that is not that of the index",
        resealed(
            manifest=lambda m: m | {"totals": m["totals"] | {"changed": m["totals"]["changed"] + 1}}
        ),
    ),
    Invalid(
        "totals-bytes",
        "index",
        "a total of bytes that is not that of the index",
        resealed(manifest=lambda m: m | {"totals": m["totals"] | {"tuned_bytes": 0}}),
    ),
    Invalid(
        "tuned-digest",
        "index",
        "the state digest of another checkpoint",
        with_manifest(tuned={"digest": "0" * 64}),
    ),
    Invalid(
        "index-window",
        "index",
        "a frame with a window",
        resealed(frame=lambda f: raw_frame(plain(f), window=20)),
    ),
    Invalid(
        "index-block-reserved",
        "index",
        "a block of the reserved type",
        resealed(
            frame=lambda f: with_blocks(
                block(0, len(plain(f)), plain(f), last=False), block(3, 0, b"")
            )(f)
        ),
    ),
    Invalid("index-no-frame", "index", "no frame", resealed(frame=lambda f: b"\0" + f[1:])),
    Invalid(
        "index-frame-short",
        "index",
        "a frame that is cut within its header",
        resealed(frame=lambda f: f[:4]),
    ),
    Invalid(
        "index-announced-lie",
        "index",
        "another size than declared",
        resealed(frame=lambda f: raw_frame(plain(f), size=len(plain(f)) + 1)),
    ),
    Invalid(
        "index-column-empty",
        "index",
        "a column of no values with a width",
        resealed(content=lambda c: c[:10] + b"\1" + c[11:]),
        "bitmap",
    ),
    Invalid(
        "index-column-nine",
        "index",
        "a column of nine bytes",
        resealed(content=lambda c: b"\x09" + c[1:6] + bytes(40) + c[6:]),
    ),
    Invalid("name-empty", "index", "a name of no bytes", with_tensor("a_same", name="")),
    Invalid(
        "name-metadata",
        "index",
        "the name __metadata__",
        with_tensor("a_same", name="__metadata__"),
    ),
    Invalid("name-c1", "index", "a control character of Unicode", _renamed_to("new\u0085")),
    Invalid("name-delete", "index", "the control character U+007F", _renamed_to("new\x7f")),
    Invalid("name-isolate", "index", "a mark that isolates text", _renamed_to("new\u2066")),
    Invalid(
        "name-surrogate",
        "index",
        "half a surrogate pair in a name",
        _patched(b"g_gone", b"g_\xed\xa0\x80e"),
    ),
    Invalid(
        "name-prefix-first",
        "index",
        "a prefix of the first name",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x01\x01\x05\x01\x05\x01gone.b"),
        "added-removed",
    ),
    Invalid(
        "name-prefix-long",
        "index",
        "a prefix longer than the name before",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x01\x00\x07\x01\x06\x01gone.ab"),
        "added-removed",
    ),
    Invalid(
        "name-prefix-same",
        "index",
        "a name that the one before begins with",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x01\x00\x05\x01\x06\x00gone.a"),
        "added-removed",
    ),
    Invalid(
        "name-prefix-huge",
        "index",
        "a prefix of 1025 bytes",
        _patched(b"\x01\x00\x05\x01\x06\x01gone.ab", b"\x02\x00\x01\x00\x04\x01\x06\x01gone.ab"),
        "added-removed",
    ),
    Invalid(
        "source-name", "index", "a source of a name that no tensor may have", _foreign("old\n")
    ),
    Invalid(
        "removed-name",
        "index",
        "a removed tensor of a name that none may have",
        with_index(removed=["g_gone", "h\n"]),
    ),
    Invalid(
        "removed-twice", "index", "a removed tensor twice", with_index(removed=["g_gone", "g_gone"])
    ),
    Invalid(
        "source-twice", "index", "a source twice", _sources(["old.layer.norm", "old.layer.norm"])
    ),
    Invalid(
        "widening-of-whole",
        "index",
        "a widening of a whole tensor",
        _widened_whole,
    ),
    Invalid(
        "widening-of-same",
        "index",
        "a widening of an unchanged tensor",
        with_tensor("a_same", dtype=DTYPES["F32"], shape=(8,), widening=Widening.BF16_TO_F32),
    ),
    Invalid(
        "widening-map",
        "index",
        "a widening of words in another order",
        with_tensor("f_wide", coding=WordCoding(16, OrderMap.UNSIGNED)),
    ),
    Invalid(
        "tail-of-same", "index", "a tail of an unchanged tensor", with_tensor("a_same", tail=1)
    ),
    Invalid(
        "moved-of-same",
        "index",
        "moved words of an unchanged tensor",
        with_tensor("a_same", moved=1),
    ),
    Invalid(
        "moved-of-whole", "index", "moved words of a whole tensor", with_tensor("i_new", moved=1)
    ),
    Invalid("steps-wrap", "index", "steps whose sum of 64 bits is right", _wrapped_steps),
    Invalid("origin-of-whole", "index", "a whole tensor with a source", _origin_of("i_new", 1)),
    Invalid("origin-unknown", "index", "a source that is not there", _origin_of("b_delta", 2)),
    Invalid("alias-of-nothing", "index", "an alias without a target", _origin_of("j_twin", 0)),
    Invalid(
        "alias-unknown", "index", "an alias of a tensor that is not there", _origin_of("j_twin", 8)
    ),
    Invalid(
        "totals-tensors",
        "index",
        "a total of tensors that is not that of the index",
        with_totals(tensors=8),
    ),
    Invalid(
        "totals-elements",
        "index",
        "a total of words that is not that of the index",
        with_totals(elements=1),
    ),
    Invalid(
        "totals-chunks",
        "index",
        "a total of chunks that is not that of the index",
        with_totals(chunks=1),
    ),
    Invalid(
        "block-order",
        "index",
        "optional blocks out of order",
        _raw_blocks([(b"b", b""), (b"a", b"")]),
    ),
    Invalid(
        "block-twice", "index", "an optional block twice", _raw_blocks([(b"a", b""), (b"a", b"")])
    ),
    Invalid("block-name", "index", "an optional block in upper case", _raw_blocks([(b"A", b"")])),
    Invalid(
        "block-name-empty", "index", "an optional block without a name", _raw_blocks([(b"", b"")])
    ),
    Invalid(
        "block-name-long",
        "index",
        "an optional block with a name of 129 bytes",
        _raw_blocks([(b"a" * 129, b"")]),
    ),
    Invalid(
        "block-cut", "index", "an optional block that is cut", _raw_blocks([(b"a", b"abc")], cut=1)
    ),
    Invalid(
        "feature-no-block",
        "index",
        "a feature without its block",
        with_manifest(features=[FEATURE]),
        reader={"features": [FEATURE]},
    ),
    Invalid(
        "index-column-loose",
        "index",
        "a column of two bytes for a value of 200",
        resealed(content=lambda c: c[:-1] + b"\1\1" + b"\1\1a" + b"\2\xc8\0" + bytes(200)),
    ),
    Invalid("steps-of-same", "index", "steps of an unchanged tensor", _one_step_of("a_same")),
    Invalid(
        "steps-of-same-only",
        "index",
        "steps of an unchanged tensor that the totals do not count",
        with_tensor("a_same", steps=(1, *[0] * 7)),
    ),
    Invalid("steps-of-whole", "index", "steps of a whole tensor", _one_step_of("i_new")),
    Invalid(
        "tail-long",
        "index",
        "a tail longer than its tensor",
        with_tensor("w", tail=401, moved=0),
        "whole",
    ),
    Invalid(
        "alias-before",
        "index",
        "an alias of nothing, where the last tensor is alike",
        _no_target,
        "widest",
    ),
    Invalid("bytes-not-whole", "index", "no whole number of bytes", _half_byte),
    Invalid("words-not-whole", "index", "no whole number of words", _half_word, "four-bits"),
)


CHUNKS: Final = (
    Invalid(
        "chunk-beyond", "index", "a chunk that leaves its tensor", with_chunk("b_delta", length=257)
    ),
    Invalid("chunk-empty", "index", "a chunk of no words", with_chunk("f_wide", length=0)),
    Invalid(
        "chunk-stored",
        "index",
        "a chunk of 9 bytes",
        with_frame("w", lambda _: MAGIC + bytes.fromhex("2000010000")),
        "several-chunks",
    ),
    Invalid(
        "chunk-shard",
        "index",
        "a chunk in a shard that is not there",
        with_chunk("b_delta", shard=1),
    ),
    Invalid(
        "chunk-delta-in-whole",
        "index",
        "a delta chunk of a whole tensor",
        with_chunk("i_new", coding=ChunkCoding.DELTA, bounds=(127,), changed=(1,)),
    ),
    Invalid(
        "chunk-in-tail",
        "index",
        "a delta chunk that reaches into the tail",
        with_tensor("c_grown", tail=80),
    ),
    Invalid(
        "chunk-rows",
        "index",
        "row flags without rows",
        with_chunk("f_wide", coding=ChunkCoding.DELTA_WITH_ROWS),
    ),
    Invalid(
        "chunk-bounds",
        "index",
        "bounds that do not ascend",
        with_chunk("b_delta", bounds=(9, 9), changed=(1, 1)),
    ),
    Invalid(
        "chunk-bound-large",
        "index",
        "a bound above every key",
        with_chunk("w", bounds=(1 << 15,)),
        "bitmap",
    ),
    Invalid("chunk-bound-last", "index", "a last bound above every key", _bound_behind, "bitmap"),
    Invalid(
        "chunk-no-contexts",
        "index",
        "a delta chunk without context",
        with_chunk("b_delta", bounds=(), changed=()),
    ),
    Invalid(
        "chunk-odd-start",
        "index",
        "4-bit words from an odd one on",
        with_chunk("f4", first=1, length=638),
        "four-bits",
    ),
    Invalid(
        "chunk-odd-length",
        "index",
        "an odd number of 4-bit words",
        with_chunk("f4", length=639),
        "four-bits",
    ),
    Invalid("whole-uncovered", "index", "a whole tensor without chunk", _uncovered("i_new")),
    Invalid("tail-uncovered", "index", "a tail without chunk", _uncovered("c_grown")),
    Invalid(
        "whole-gap",
        "index",
        "a whole tensor with a word in no chunk",
        with_chunk("i_new", first=1, length=39),
    ),
    Invalid(
        "data-longer", "index", "data after the last chunk", resealed(data=lambda d: d + b"\0")
    ),
    Invalid(
        "data-shorter", "index", "data that ends within a chunk", resealed(data=lambda d: d[:-1])
    ),
    Invalid(
        "chunk-skip-wrap",
        "index",
        "a chunk before another, by a sum of 64 bits",
        _wrapped_skip,
        "several-chunks",
    ),
    Invalid(
        "chunk-tensor-wrap",
        "index",
        "a chunk of the tensor before, by a sum of 64 bits",
        _wrapped_tensor,
    ),
    Invalid(
        "chunk-tensor-beyond", "index", "a chunk of a tensor that is not there", _last_chunk_of(7)
    ),
    Invalid("chunk-whole-beyond", "index", "a whole chunk that leaves its tensor", _longer_whole),
    Invalid("chunk-overlap-bounds", "index", "a bound twice", _bound_twice, "bitmap"),
    Invalid(
        "chunk-one-dimension",
        "index",
        "row flags of one dimension",
        with_chunk("w", coding=ChunkCoding.DELTA_WITH_ROWS),
        "bitmap",
    ),
    Invalid(
        "moved-shared",
        "index",
        "more moved words than the shared part of a whole chunk",
        with_tensor("w", moved=11),
        "whole-tail",
    ),
    Invalid("chunk-rows-part", "index", "rows of one word and a half", _rows_of_half_words, "rows"),
    Invalid("chunk-coding", "index", "an unknown coding", with_chunk("b_delta", coding=3)),
    Invalid(
        "chunk-no-changes",
        "index",
        "a delta chunk that changes nothing",
        _nothing_changed,
        "bitmap",
    ),
    Invalid("chunk-of-same", "index", "a chunk of a tensor of kind `same`", _chunk_of_same),
    Invalid(
        "chunk-odd-three",
        "index",
        "4-bit words from the third on",
        with_chunk("f4", first=3, length=636),
        "four-bits",
    ),
)


LIMITS: Final = (
    Invalid(
        "limit-header",
        "limit",
        "a header of more than 1 MiB",
        edit_file(lambda f: ((1 << 20) + 8).to_bytes(8, "little") + f[8:]),
        "bitmap",
    ),
    Invalid("limit-rank", "limit", "33 dimensions", with_tensor("a_same", shape=(16, *[1] * 32))),
    Invalid("limit-contexts", "limit", "17 contexts", _add_contexts),
    Invalid(
        "limit-dimension",
        "limit",
        "a dimension above 2^48",
        with_tensor("a_same", shape=(0, (1 << 48) + 1)),
    ),
    Invalid(
        "limit-chunk-words",
        "limit",
        "a chunk of more than 2^26 words",
        with_chunk("b_delta", length=(1 << 26) + 1),
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
        resealed(content=lambda c: c + bytes(1 << 20)),
    ),
    Invalid(
        "limit-stored",
        "limit",
        "a chunk of more than 2^40 bytes",
        with_chunk("b_delta", stored=(1 << 40) + 1),
    ),
    Invalid("limit-check", "limit", "a check of 2^32", with_chunk("b_delta", check=1 << 32)),
    Invalid(
        "limit-result",
        "limit",
        "a check of a result of 2^32",
        with_chunk("b_delta", result=1 << 32),
    ),
    Invalid(
        "limit-base", "limit", "a check of base words of 2^32", with_chunk("b_delta", base=1 << 32)
    ),
    Invalid(
        "limit-changed",
        "limit",
        "more than 2^26 changed words of a context",
        _many_changed,
        "bitmap",
    ),
    Invalid(
        "limit-words",
        "limit",
        "a tensor of more than 2^48 words",
        with_tensor("a_same", shape=(1 << 48, 2), dtype=DTYPES["U8"]),
    ),
    Invalid(
        "limit-words-wrap",
        "limit",
        "2^64 words",
        with_tensor("a_same", totals=False, shape=(1 << 32, 1 << 32)),
    ),
    Invalid(
        "limit-tuned-bytes",
        "limit",
        "tensors of more than 2^50 bytes",
        with_tensor("a_same", shape=(1 << 47, 1), dtype=DTYPES["I64"]),
    ),
    Invalid("limit-blocks", "limit", "1,001 optional blocks", _raw_blocks([], count=1001)),
    Invalid(
        "limit-index-frame", "limit", "32 times the entry and not the frame", _too_full, "bitmap"
    ),
    Invalid(
        "large",
        "large",
        "more than the reader accepts",
        edit_file(unchanged),
        reader={"max_tuned_bytes": 1231},
    ),
)

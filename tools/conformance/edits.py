"""Random edits of a delta: of its bytes, or of what its checksums hide, sealed again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from format_vectors.draft import plain

if TYPE_CHECKING:
    import random

    from format_vectors.draft import Draft

NUMBERS: Final = (0, 1, 2, 3, 15, 16, 127, 128, 255)

_NUMBERS_OF_CHUNK: Final = (
    *("first", "length", "shard", "stored", "check"),
    *("result", "base", "bounds", "changed"),
)


def edited(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three small edits."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        run = rng.choice((1, 1, 1, 2, 4, 8))
        fresh = rng.choice((bytes([rng.choice(NUMBERS)]) * run, rng.randbytes(run)))
        match rng.randrange(6):
            case 0 | 1:
                data = data[:at] + fresh + data[at + run :]
            case 2:
                data = data[:at] + data[at + run :]
            case 3:
                data = data[:at] + fresh + data[at:]
            case 4 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case _:
                data = data[:at] + data[at : at + run] * 2 + data[at + run :]
    return data


def edited_json(fields: Any, rng: random.Random) -> Any:  # noqa: ANN401 - any JSON
    """A manifest with one value exchanged, or a key more or less."""
    fields = json.loads(json.dumps(fields))
    group = fields
    inner = [value for value in fields.values() if isinstance(value, dict)]
    if inner and rng.random() < 0.6:
        group = rng.choice(inner)
    key = rng.choice([*sorted(group), "repo", "revision", "delta", "cast"])
    fresh: tuple[Any, ...] = (
        0,
        1,
        -1,
        1 << 53,
        "",
        "a/b",
        "../a",
        "BF16",
        [],
        {},
        {"path": "../a"},
    )
    group[key] = rng.choice((*fresh, "0" * 64, None, True, 0.5, "\ud800", "é"))
    if rng.random() < 0.2:
        del group[key]
    return fields


def sealed(draft: Draft, rng: random.Random) -> bytes:
    """A delta of which one piece was edited, with the checksums and checks over it made anew."""
    edits = [_edited_index] * 3 + [_edited_manifest, _edited_text, _edited_frame, _edited_header]
    if draft.stored:
        edits += [_edited_stored, *[_edited_content] * 3, *[_edited_record] * 2]
    return rng.choice(edits)(draft, rng)


def _edited_index(draft: Draft, rng: random.Random) -> bytes:
    content = edited(draft.content, rng)
    return draft.sealed(content=lambda _: content)


def _edited_manifest(draft: Draft, rng: random.Random) -> bytes:
    return draft.sealed(manifest=lambda fields: edited_json(fields, rng))


def _edited_text(draft: Draft, rng: random.Random) -> bytes:
    """As JSON, the manifest is a string in the header: only ASCII gets that far."""
    return draft.sealed(text=lambda text: bytes(byte & 127 for byte in edited(text, rng)))


def _edited_frame(draft: Draft, rng: random.Random) -> bytes:
    return draft.sealed(frame=lambda frame: edited(frame, rng))


def _edited_header(draft: Draft, rng: random.Random) -> bytes:
    return draft.sealed(header=lambda header: edited(header, rng))


def _edited_stored(draft: Draft, rng: random.Random) -> bytes:
    number = rng.randrange(len(draft.stored))
    return draft.with_stored(number, edited(draft.stored[number], rng)).sealed()


def _edited_content(draft: Draft, rng: random.Random) -> bytes:
    number = rng.randrange(len(draft.stored))
    return draft.with_content(number, edited(plain(draft.stored[number]), rng)).sealed()


def _edited_record(draft: Draft, rng: random.Random) -> bytes:
    """One number of a chunk's record, near what it was or at an edge."""
    number = rng.randrange(len(draft.stored))
    record = draft.index.chunks[number]
    name = rng.choice(_NUMBERS_OF_CHUNK)
    value = getattr(record, name)
    fresh: object = _near(value, rng) if isinstance(value, int) else _one_near(value, rng)
    try:
        return draft.with_chunk(number, **{name: fresh}).sealed(totals=rng.random() < 0.8)
    except OverflowError:  # a chunk before the end of the last one: no column says that
        return _edited_index(draft, rng)


def _near(value: int, rng: random.Random) -> int:
    choices = (value + 1, value - 1, value * 2, 0, 1, 1 << rng.randrange(48), (1 << 48) - 1)
    return max(0, rng.choice(choices))


def _one_near(values: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """With one of the numbers exchanged, left out, or there twice."""
    if not values:
        return values
    at = rng.randrange(len(values))
    middle = rng.choice(((_near(values[at], rng),), (), (values[at], values[at])))
    return (*values[:at], *middle, *values[at + 1 :])

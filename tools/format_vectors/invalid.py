"""What an invalid vector is, and the edits that vectors of several sections share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from format_vectors.draft import DELTA, Draft

if TYPE_CHECKING:
    from collections.abc import Callable

    from format_vectors.checkpoints import Files, Json
    from format_vectors.pairs import Pair


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
        reader: How a reader is configured for this vector.
        codes: All codes that are allowed, if there are several.
    """

    id: str
    code: str
    about: str
    make: Callable[[Parent], bytes | Files]
    parent: str = "mixed"
    base: str = ""
    reader: Json = field(default_factory=dict)
    codes: tuple[str, ...] = ()


def edit_file(edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the file as it is."""
    return lambda parent: edit(parent.files[DELTA])


def resealed(**edits: Any) -> Callable[[Parent], bytes]:  # noqa: ANN401 - arguments of sealed()
    """The file put together again, with the arguments of :meth:`Draft.sealed`."""
    return lambda parent: parent.draft.sealed(**edits)


def with_manifest(**changes: object) -> Callable[[Parent], bytes]:
    """Exchange keys of the manifest; ``None`` takes one away."""

    def edit(fields: Json) -> Json:
        return {k: v for k, v in (fields | changes).items() if v is not None}

    return resealed(manifest=edit)


def with_tensor(
    name: str, /, *, totals: bool = True, **changes: object
) -> Callable[[Parent], bytes]:
    """Exchange fields of one tensor."""
    return lambda parent: parent.draft.with_tensor(name, **changes).sealed(totals=totals)


def with_chunk(name: str, nth: int = 0, **changes: object) -> Callable[[Parent], bytes]:
    """Exchange fields of one chunk."""
    return lambda p: p.draft.with_chunk(p.draft.chunk_of(name, nth), **changes).sealed()


def with_frame(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the frame of a tensor's first chunk."""

    def make(parent: Parent) -> bytes:
        number = parent.draft.chunk_of(name)
        return parent.draft.with_stored(number, edit(parent.draft.stored[number])).sealed()

    return make


def with_wrong_check(name: str, field_name: str, nth: int = 0) -> Callable[[Parent], bytes]:
    """A check that is off by one bit."""

    def make(parent: Parent) -> bytes:
        number = parent.draft.chunk_of(name, nth)
        value = getattr(parent.draft.index.chunks[number], field_name) ^ 1
        return parent.draft.with_chunk(number, **{field_name: value}).sealed()

    return make

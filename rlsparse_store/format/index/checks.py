"""What must hold of the records of an index, whatever the data is (sections 3, 4 and 10)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rlsparse_store.errors import IndexFormatError, LimitError
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.index.records import (
    NO_STEPS,
    ChunkCoding,
    ChunkRecord,
    Kind,
    TensorRecord,
)
from rlsparse_store.format.limits import MAX_DIMENSION
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_aliases", "check_chunks", "check_names", "check_tensor", "require"]


def require(condition: bool, message: str, tensor: str | None = None) -> None:  # noqa: FBT001
    """Refuse the index, in the name of a tensor, if a condition does not hold.

    Raises:
        IndexFormatError: It does not.
    """
    if not condition:
        raise IndexFormatError(message, tensor=None if tensor is None else printable(tensor))


def check_names(names: list[str], what: str, accept: Callable[[list[str]], bool]) -> None:
    """Check that names are acceptable and in strictly ascending order.

    Raises:
        IndexFormatError: They are not.
    """
    require(accept(names), f"an unacceptable {what}")
    # Text compares by code points, which is the order of its UTF-8 bytes.
    require(all(a < b for a, b in pairwise(names)), f"the {what}s are not in ascending order")


def check_tensor(t: TensorRecord) -> None:
    """Check one tensor for itself.

    Raises:
        IndexFormatError: It contradicts itself.
        LimitError: It is too large.
    """
    require(t.nbytes >= 0, "its size is no whole number of bytes", t.name)
    if t.words > MAX_DIMENSION:
        msg = f"{t.words} words; at most {MAX_DIMENSION} are accepted"
        raise LimitError(msg, tensor=printable(t.name))
    if t.kind in (Kind.SAME, Kind.ALIAS):
        if t.coding or t.widening or t.tail or t.moved or t.steps != NO_STEPS:
            msg = "a tensor without chunks has words"
            raise IndexFormatError(msg, tensor=printable(t.name))
        return
    if t.coding is None:
        msg = "a tensor of this kind has no word width"
        raise IndexFormatError(msg, tensor=printable(t.name))
    if t.kind is Kind.WHOLE:
        require(not (t.widening or t.tail or t.changed), "a whole tensor shares words", t.name)
    if t.widening:
        expected = DTYPES[t.widening.source_code].coding
        require(t.dtype.code == "F32" and t.coding == expected, "an impossible widening", t.name)
    else:
        require(t.nbytes * 8 % t.coding.width == 0, "no whole number of words", t.name)


def check_aliases(tensors: list[TensorRecord]) -> None:
    """Check that every alias repeats a tensor that is not an alias and looks the same.

    Raises:
        IndexFormatError: One does not.
    """
    aliases = [t for t in tensors if t.kind is Kind.ALIAS]
    by_name = {t.name: t for t in tensors}
    for t in aliases:
        target = by_name[t.origin]
        require(target.kind is not Kind.ALIAS, "an alias of an alias", t.name)
        require(
            (target.dtype, target.shape) == (t.dtype, t.shape),
            "an alias of a tensor of another dtype or shape",
            t.name,
        )


def check_chunks(tensors: list[TensorRecord], chunks: list[ChunkRecord]) -> None:
    """Check each chunk against its tensor, and that whole parts are covered."""
    whole: dict[int, list[ChunkRecord]] = {}
    changed = [0] * len(tensors)
    for c in chunks:
        t = tensors[c.tensor]
        if t.coding is None:
            msg = "a chunk of a tensor without chunks"
            raise IndexFormatError(msg, tensor=printable(t.name))
        require(c.first + c.length <= t.words, "a chunk leaves its tensor", t.name)
        if t.coding.width == 4:
            require(c.first % 2 == 0 and c.length % 2 == 0, "a chunk splits a byte", t.name)
        if c.coding is ChunkCoding.WHOLE:
            whole.setdefault(c.tensor, []).append(c)
            continue
        require(sum(c.changed) >= 1, "a chunk without changes", t.name)
        require(all(a < b for a, b in pairwise(c.bounds)), "context bounds descend", t.name)
        require(c.bounds[-1] < 1 << t.coding.key_bits, "a bound above every key", t.name)
        if c.coding is ChunkCoding.DELTA_WITH_ROWS:
            require(t.row_words is not None, "row flags in a tensor without rows", t.name)
        changed[c.tensor] += sum(c.changed)
    for number, t in enumerate(tensors):
        if t.kind is Kind.DELTA:
            agree = sum(t.steps) == changed[number]
            require(agree, "its number of steps differs from the changes of its chunks", t.name)
            room = sum(max(0, min(c.length, t.shared - c.first)) for c in whole.get(number, ()))
            require(t.moved <= room, "more words changed than its whole chunks share", t.name)
        if t.kind is Kind.WHOLE or t.tail:
            start = 0 if t.kind is Kind.WHOLE else t.shared
            _check_cover(t, start, whole.get(number, ()))


def _check_cover(t: TensorRecord, start: int, chunks: Iterable[ChunkRecord]) -> None:
    """Check that whole chunks cover a tensor from a word on.

    So no delta chunk has a word of this part, and no part starts before the tensor.
    """
    covered = start
    for c in chunks:
        if c.first <= covered:
            covered = max(covered, c.first + c.length)
    require(covered >= t.words, "a part that the source does not share is not stored", t.name)

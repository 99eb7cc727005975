"""Order maps, keys and steps of words (``specs/format.md`` section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rlsparse_store.format.dtypes import OrderMap, WordCoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words

__all__ = ["add_steps", "keys", "steps"]


def _low_mask(words: Words, coding: WordCoding) -> np.unsignedinteger[Any]:
    low: np.unsignedinteger[Any] = words.dtype.type((1 << (coding.width - 1)) - 1)
    return low


def _is_negative(words: Words, coding: WordCoding) -> NDArray[np.bool_]:
    return words > _low_mask(words, coding)


def _order(words: Words, coding: WordCoding) -> Words:
    """The order map, which is its own inverse for every map there is."""
    if coding.order is not OrderMap.SIGN_MAGNITUDE:
        return words
    sign = words >> words.dtype.type(coding.width - 1)
    ordered: Words = words ^ (sign * _low_mask(words, coding))
    return ordered


def keys(words: Words, coding: WordCoding) -> Words:
    """What each word is classed by: its magnitude, or itself where it has no sign."""
    low = _low_mask(words, coding)
    if coding.order is OrderMap.UNSIGNED:
        return words
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        return words & low
    return np.where(_is_negative(words, coding), ~words & low, words)


def steps(base: Words, tuned: Words, coding: WordCoding) -> NDArray[np.int64]:
    """The signed distance of each tuned word from its base word in the order map."""
    distance = (_order(tuned, coding) - _order(base, coding)).astype(np.uint64)
    return _sign_extend(distance, coding.width)


def _sign_extend(values: NDArray[np.uint64], width: int) -> NDArray[np.int64]:
    shift = np.uint64(64 - width)
    return (values << shift).view(np.int64) >> np.int64(64 - width)


def add_steps(base: Words, step: NDArray[np.int64], coding: WordCoding) -> Words:
    """The tuned words at these signed distances from the base words."""
    moved = _order(base, coding).astype(np.uint64) + step.view(np.uint64)
    moved &= np.uint64((1 << coding.width) - 1)
    return _order(moved.astype(base.dtype), coding)

"""JSON from strangers: no duplicate keys, no numbers but integers, no bombs."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any, Final, NoReturn

from rlsparse_store.format.limits import MAX_JSON_DEPTH

__all__ = ["JsonDepthError", "StrictJsonError", "canonical", "parse", "parse_document", "printed"]

_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")

_MAX_DIGITS: Final = 19
"""Digits of an integer, its sign included."""

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class StrictJsonError(ValueError):
    """The text is not JSON as this package accepts it. Callers turn it into their own error."""


class JsonDepthError(StrictJsonError):
    """Objects and lists are nested too deeply: a limit of the format."""


def _refuse_number(text: str) -> NoReturn:
    msg = f"the number {text[:40]} is not an integer"
    raise StrictJsonError(msg)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        msg = f"an integer of {len(text)} digits"
        raise StrictJsonError(msg)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                msg = f"the key {key[:80]!r} stands twice"
                raise StrictJsonError(msg)
            seen.add(key)
    return found


def _count_keys(value: object) -> int:
    """Count the keys of all objects in a value."""
    count, level = 0, [value]
    while level:
        objects = [part for part in level if type(part) is dict]
        count += sum(map(len, objects))
        lists = [part for part in level if type(part) is list]
        level = [*chain.from_iterable(part.values() for part in objects), *chain(*lists)]
    return count


def _has_more(text: bytes, sign: bytes, most: int) -> bool:
    """Whether a sign stands outside of strings more often than it may."""
    return text.count(sign) > most and _STRING.sub(b"", text).count(sign) > most


def _decoded(text: bytes, *, any_number: bool) -> Any:  # noqa: ANN401 - as parse
    """Decode JSON text. Duplicate keys and long integers are errors.

    A hook per object and integer takes most of the time of a long header. Each key is followed by a
    colon, so a text without more colons than keys has no duplicate.
    """
    parse_float = float if any_number else _refuse_number
    if b"0" * _MAX_DIGITS not in text.translate(_DIGITS):
        value = json.loads(
            text.decode("utf-8"), parse_float=parse_float, parse_constant=_refuse_number
        )
        if _count_keys(value) == text.count(b":"):
            return value
    return json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_float=parse_float,
        parse_constant=_refuse_number,
        parse_int=_integer,
    )


def parse(text: bytes, *, most_objects: int, any_number: bool = False) -> Any:  # noqa: ANN401 - JSON has no one type
    """Parse JSON text.

    Args:
        text: UTF-8 without a byte-order mark.
        most_objects: Objects, and half of the arrays, that it may hold: what a bomb is made of.
            The length of a short text leaves it to that.
        any_number: Accept fractions and exponents too.

    Raises:
        StrictJsonError: It is not UTF-8 JSON, has a duplicate key, a number that is no
            integer, or too many or too deeply nested objects.
    """
    if _has_more(text, b"{", most_objects) or _has_more(text, b"[", 2 * most_objects):
        msg = f"more than {most_objects} objects"
        raise StrictJsonError(msg)
    try:
        return _decoded(text, any_number=any_number)
    except StrictJsonError:
        raise
    except RecursionError as error:
        msg = "nested too deeply"
        raise JsonDepthError(msg) from error
    except (UnicodeDecodeError, ValueError) as error:
        msg = f"not valid JSON ({error})"
        raise StrictJsonError(msg) from error


def parse_document(text: bytes, *, any_number: bool = False) -> Any:  # noqa: ANN401 - as parse
    """Parse a JSON text of a delta, and check all of it, used or not.

    Args:
        text: UTF-8 without a byte-order mark, whose length the caller has bounded.
        any_number: Accept fractions and exponents too.

    Raises:
        JsonDepthError: It is nested too deeply.
        StrictJsonError: As :func:`parse`, or a string is not Unicode.
    """
    value = parse(text, most_objects=len(text), any_number=any_number)
    level, depth = [value], 0
    while level:
        groups = [part for part in level if isinstance(part, dict | list)]
        depth += 1
        if groups and depth > MAX_JSON_DEPTH:
            msg = f"nested more than {MAX_JSON_DEPTH} deep"
            raise JsonDepthError(msg)
        keys = [key for group in groups if isinstance(group, dict) for key in group]
        strings = [part for part in level if isinstance(part, str)]
        # Only an escape can be half a pair: the text is UTF-8.
        if b"\\u" in text and any(map(_SURROGATE.search, keys + strings)):
            msg = "a string with half a surrogate pair"
            raise StrictJsonError(msg)
        level = [
            part
            for group in groups
            for part in (group.values() if isinstance(group, dict) else group)
        ]
    return value


def canonical(value: object) -> bytes:
    """The one text of a value: sorted keys, no white space, all ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def printed(value: object) -> bytes:
    """The text of a value in an index file: sorted keys, two spaces a level, all ASCII."""
    return json.dumps(value, sort_keys=True, indent=2).encode("ascii")

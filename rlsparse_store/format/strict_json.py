"""JSON from strangers: no duplicate keys, no numbers but integers, no bombs."""

from __future__ import annotations

import json
from typing import Any, NoReturn

__all__ = ["StrictJsonError", "canonical", "parse"]


class StrictJsonError(ValueError):
    """The text is not JSON as this package accepts it. Callers turn it into their own error."""


def _refuse_number(text: str) -> NoReturn:
    msg = f"the number {text[:40]} is not an integer"
    raise StrictJsonError(msg)


def _integer(text: str) -> int:
    if len(text) > 19:
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
    if text.count(b"{") > most_objects or text.count(b"[") > 2 * most_objects:
        msg = f"more than {most_objects} objects"
        raise StrictJsonError(msg)
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=float if any_number else _refuse_number,
            parse_constant=_refuse_number,
            parse_int=_integer,
        )
    except StrictJsonError:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        msg = f"not valid JSON ({error})"
        raise StrictJsonError(msg) from error


def canonical(value: object) -> bytes:
    """The one text of a value: sorted keys, no white space, all ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")

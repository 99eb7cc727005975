"""Every numbered rule of the format has vectors, and every invalid vector a rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from format_vectors.listing import load
from format_vectors.rules import RULES, TOO_LARGE

SPEC = (Path(__file__).parents[2] / "specs" / "format.md").read_text(encoding="utf-8")
LISTING = load()
INVALID: dict[str, Any] = {v["id"]: v for v in LISTING["vectors"] if v["kind"] == "invalid"}


def rules() -> dict[str, set[str]]:
    """Each rule of the text and its codes."""
    found = {}
    for line in SPEC.splitlines():
        if rule := re.match(r"\* \*\*([A-Z]\d+)\*\* ((?:`[a-z]+`(?:, )?)+)", line):
            found[rule[1]] = set(re.findall("[a-z]+", rule[2]))
    return found


def test_rules_are_those_of_the_text() -> None:
    assert sorted(RULES) == sorted(rules())
    assert {rule for rule, vectors in RULES.items() if not vectors} == TOO_LARGE.keys()
    assert LISTING["rules"] == {rule: vectors.split() for rule, vectors in RULES.items()}


def test_the_text_is_read_in_half_an_hour() -> None:
    assert len(SPEC.split()) <= 7000  # at 233 words a minute


def test_rules_are_in_order() -> None:
    for letter in sorted({rule[0] for rule in rules()}):
        numbers = [int(rule[1:]) for rule in rules() if rule[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


def test_every_invalid_vector_is_of_a_rule() -> None:
    listed = {vector for vectors in RULES.values() for vector in vectors.split()}
    assert listed == INVALID.keys()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in TOO_LARGE])
def test_vectors_of_a_rule_have_its_codes(rule: str) -> None:
    for vector in RULES[rule].split():
        assert rules()[rule] & set(INVALID[vector]["expected"]["codes"]), vector

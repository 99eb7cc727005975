"""Every numbered rule of the format has vectors, and every invalid vector a rule."""

from __future__ import annotations

from typing import Any

import pytest

from format_vectors.listing import load
from format_vectors.rules import RULES, TOO_LARGE
from format_vectors.text import SPEC, rules_of_text

LISTING = load()
INVALID: dict[str, Any] = {v["id"]: v for v in LISTING["vectors"] if v["kind"] == "invalid"}


def test_rules_are_those_of_the_text() -> None:
    assert sorted(RULES) == sorted(rules_of_text())
    assert {rule for rule, vectors in RULES.items() if not vectors} == TOO_LARGE.keys()
    assert LISTING["rules"] == {rule: vectors.split() for rule, vectors in RULES.items()}


def test_the_text_is_read_in_half_an_hour() -> None:
    assert len(SPEC.split()) <= 7000  # at 233 words a minute


def test_rules_are_in_order() -> None:
    for letter in sorted({rule[0] for rule in rules_of_text()}):
        numbers = [int(rule[1:]) for rule in rules_of_text() if rule[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


def test_every_invalid_vector_is_of_a_rule() -> None:
    listed = {vector for vectors in RULES.values() for vector in vectors.split()}
    assert listed == INVALID.keys()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in TOO_LARGE])
def test_vectors_of_a_rule_have_its_codes(rule: str) -> None:
    codes, _ = rules_of_text()[rule]
    for vector in RULES[rule].split():
        assert codes & set(INVALID[vector]["expected"]["codes"]), vector

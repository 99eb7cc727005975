"""The numbered rules of the format, as its text has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SPEC: Final = (Path(__file__).parents[2] / "specs" / "format.md").read_text(encoding="utf-8")

_RULE: Final = re.compile(r"\* \*\*([A-Z]\d+)\*\* ((?:`[a-z]+`(?:, )?)+) *(.*)")


def rules_of_text() -> dict[str, tuple[set[str], str]]:
    """Each rule's codes and sentence, in the order of the text."""
    found = filter(None, map(_RULE.match, SPEC.splitlines()))
    return {rule[1]: (set(re.findall("[a-z]+", rule[2])), rule[3]) for rule in found}

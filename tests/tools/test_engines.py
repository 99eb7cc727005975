"""Whether engines were run with the integrations' code."""

from __future__ import annotations

import json

import pytest

from comparison import code_digest, part_of, results
from sglang_matrix import PARTS


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_the_engines_ran_with_this_code(engine: str) -> None:
    result = json.loads(results(engine).read_text("utf-8"))
    assert result["failed"] == 0
    assert result["code"] == code_digest(engine), f"run tools/engines/{engine}_matrix.py again"


def test_every_part_of_sglangs_matrix_ran() -> None:
    result = json.loads(results("sglang").read_text("utf-8"))
    assert {part_of(line) for line in result["checks"]} == PARTS.keys()

"""The tools that test the readers: what they change, and what they call an agreement."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from conformance.edits import edited, sealed
from conformance.memory import MemoryPath
from conformance.mutation import mutants
from conformance.readers import (
    DECODER,
    ROOT,
    agree,
    is_expected,
    library_outcome,
    load_decoder,
    second_outcome,
    use_fast_hash,
)
from format_vectors.draft import Draft
from format_vectors.listing import VECTORS, load
from mutants import justified

SOURCE = '''
def check(value, code):
    """Docstrings, annotations and messages stay."""
    need(0 <= value < 7 and not value % 2, "index", f"a value of {value + 1}")
    return value + 1
'''


def test_mutants_change_one_thing_each() -> None:
    made = list(mutants(SOURCE))
    names = [mutant.name for mutant in made]
    assert len(set(names)) == len(names)
    assert len({mutant.source() for mutant in made}) == len(made)
    for what in (
        "0 <= value < 7 -> 0 < value < 7",
        "0 <= value < 7 -> 0 <= value <= 7",
        "7 -> 8",
        "7 -> 6",
        "not value % 2 -> value % 2",
        "value + 1 -> value - 1",
        "'index' -> 'another code'",
    ):
        assert f"check: {what}" in names
    assert any(mutant.what.endswith("-> pass") for mutant in made)
    assert all("a value of" in mutant.source() or "pass" in mutant.what for mutant in made)


def test_readers_agree_by_code_or_by_bytes() -> None:
    assert agree("index", "index")
    assert agree("index", "limit")
    assert not agree("index", "stream")
    assert not agree("index", {"model.safetensors": "0"})
    assert agree({"model.safetensors": "0"}, {"model.safetensors": "0"})
    assert not agree({"model.safetensors": "0"}, {"model.safetensors": "1"})
    assert is_expected("limit", {"codes": ["index", "limit"]})
    assert not is_expected("limit", {"files": {}})


def test_deltas_in_memory_are_read_as_those_on_disk() -> None:
    decoder = load_decoder()
    use_fast_hash(decoder)
    for vector in load()["vectors"]:
        delta, base, reader = (vector["delta"], vector["base"], vector.get("reader", {}))
        files = {path.name: path.read_bytes() for path in (VECTORS / delta / "rlsparse").iterdir()}
        for place in (VECTORS / delta, MemoryPath(files)):
            one = library_outcome(place, VECTORS / base, reader)
            other = second_outcome(decoder, place, decoder.read_checkpoint(VECTORS / base), reader)
            assert is_expected(one, vector["expected"]), vector["id"]
            assert is_expected(other, vector["expected"]), vector["id"]


@pytest.mark.parametrize("which", ["decoder", "library"])
def test_survivors_are_mutants(which: str) -> None:
    listed = justified(which)
    assert all(listed.values())
    sources = {name.rpartition(".py: ")[0] for name in listed}
    for source in sources:
        path = ROOT / f"{source}.py" if source else DECODER
        prefix = f"{source}.py: " if source else ""
        made = {prefix + mutant.name for mutant in mutants(path.read_text(encoding="utf-8"))}
        assert {name for name in listed if name.startswith(prefix)} <= made


def test_edits_are_repeatable() -> None:
    draft = Draft.read(Path(VECTORS) / "valid" / "bitmap")
    one, other = random.Random(5), random.Random(5)  # noqa: S311 - repeatable
    for _ in range(20):
        assert sealed(draft, one) == sealed(draft, other)
        assert edited(b"some bytes", one) == edited(b"some bytes", other)

"""The vectors of the format: this library and the second decoder must agree on every one."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner

from conformance.readers import is_expected, library_outcome, load_decoder, second_outcome
from format_vectors.checkpoints import COMMIT
from format_vectors.draft import DELTA, Draft, plain
from format_vectors.large import large_vectors
from format_vectors.listing import VECTORS, load
from format_vectors.pairs import BLOCKS, FEATURE, PAIRS
from format_vectors.rules import TOO_LARGE
from rlsparse_store.delta import apply_delta, verify_delta
from rlsparse_store.errors import FormatError, UnsupportedFeatureError
from rlsparse_store.files.base_hint import write_named
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import OutputFile
from rlsparse_store.format import manifest
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.format.manifest import BaseDelta
from rlsparse_store.format.words import Widening
from vectors import main as vectors_command

FOLDER = VECTORS
LISTING = load()
ALL: list[dict[str, Any]] = LISTING["vectors"]
VALID = [pytest.param(v, id=v["id"]) for v in ALL if v["kind"] == "valid"]
INVALID = [pytest.param(v, id=v["id"]) for v in ALL if v["kind"] == "invalid"]

# What `generate` can only be asked of the zstd that wrote the vectors.
SAME_ZSTD = tuple(LISTING["zstd"]) == zstandard.ZSTD_VERSION


DECODER = load_decoder()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, vector: dict[str, Any]) -> dict[str, Any]:
    """Both readers as a vector wants them, and what remains to be passed to each call."""
    reader = dict(vector.get("reader", {}))
    known = frozenset(reader.pop("features", []))
    monkeypatch.setattr(manifest, "KNOWN_FEATURES", known)
    monkeypatch.setattr(DECODER, "KNOWN_FEATURES", known)
    return reader


def decode_second(vector: dict[str, Any], most: int | None = None) -> dict[str, bytes]:
    delta, base = FOLDER / vector["delta"], FOLDER / vector["base"]
    tensors = DECODER.decode(delta, DECODER.read_checkpoint(base), most)
    files: dict[str, bytes] = DECODER.rebuild_files(delta, tensors)
    return files


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("vector", VALID)
def test_valid_vector_is_rebuilt_byte_for_byte(vector: dict[str, Any], tmp_path: Path) -> None:
    delta, base = FOLDER / vector["delta"], FOLDER / vector["base"]
    report = apply_delta(delta, tmp_path / "out", base=base, threads=1)
    rebuilt = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert digests(rebuilt) == vector["expected"]["files"]
    assert report.tuned_digest == vector["expected"]["tuned"]
    verify_delta(delta, base=base, tuned=tmp_path / "out", threads=1)


@pytest.mark.parametrize("vector", VALID)
def test_second_decoder_rebuilds_valid_vector(
    vector: dict[str, Any], configured: dict[str, Any]
) -> None:
    found = decode_second(vector, configured.get("max_tuned_bytes"))
    assert digests(found) == vector["expected"]["files"]


@pytest.mark.parametrize("vector", INVALID)
def test_invalid_vector_is_refused(vector: dict[str, Any], configured: dict[str, Any]) -> None:
    delta, base = FOLDER / vector["delta"], FOLDER / vector["base"]
    with pytest.raises(FormatError) as refused:  # noqa: PT012 - which of the two does not matter
        DeltaReader(delta, **configured).close()
        verify_delta(delta, base=base, threads=1)
    assert refused.value.code in vector["expected"]["codes"]


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("vector", [v for v in INVALID if v.id != "large"])
def test_invalid_vector_leaves_nothing_behind(vector: dict[str, Any], tmp_path: Path) -> None:
    # `apply` need not look at base tensors that nothing is made from, nor at the state of a base
    # all sources of which are right; whatever it does write must be what was encoded.
    delta, base, out = FOLDER / vector["delta"], FOLDER / vector["base"], tmp_path / "out"
    codes, found = vector["expected"]["codes"], None
    try:
        apply_delta(delta, out, base=base, threads=1)
    except FormatError as error:
        found = error.code
    if found is None:
        assert codes == ["base"] or vector["id"] in ("removed-less", "base-more")
        verify_delta(FOLDER / "valid" / "mixed", tuned=out, threads=1)
    else:
        assert found in codes
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("vector", INVALID)
def test_second_decoder_refuses_invalid_vector(
    vector: dict[str, Any], configured: dict[str, Any]
) -> None:
    with pytest.raises(DECODER.Refused) as refused:
        decode_second(vector, configured.get("max_tuned_bytes"))
    assert refused.value.code in vector["expected"]["codes"]


Fault = Callable[[Draft], Draft]


def off(tensor: str, field: str) -> Fault:
    """A check of a tensor's first chunk that is wrong by a bit."""

    def edit(draft: Draft) -> Draft:
        number = draft.chunk_of(tensor)
        value = getattr(draft.index.chunks[number], field) ^ 1
        return draft.with_chunk(number, **{field: value})

    return edit


def other_content(tensor: str, size: int) -> Fault:
    """A first chunk of a tensor whose content is so many zeros."""
    return lambda draft: draft.with_content(draft.chunk_of(tensor), bytes(size))


def other_digest(tensor: str, field: str) -> Fault:
    return lambda draft: draft.with_tensor(tensor, **{field: bytes(16)})


def wrong_steps(draft: Draft) -> Draft:
    return draft.with_tensor("new.layer.norm", steps=(1, *[0] * 7))


# Each breaks two rules; the code is that of the one that section 14 has first.
ORDER: dict[str, tuple[str, Fault, Fault]] = {
    "index-chunk": ("index", off("b_delta", "check"), wrong_steps),
    "stored-frame": ("checksum", other_content("b_delta", 1 << 12), off("b_delta", "check")),
    "frame-base": ("stream", other_content("b_delta", 1 << 12), off("b_delta", "base")),
    "base-content": ("base", other_content("b_delta", 12), off("b_delta", "base")),
    "content-result": ("stream", other_content("b_delta", 12), off("b_delta", "result")),
    "chunk-source": ("result", off("b_delta", "result"), other_digest("b_delta", "base_digest")),
    "source-digest": (
        "base",
        other_digest("b_delta", "base_digest"),
        other_digest("b_delta", "tuned_digest"),
    ),
    "digest-next": ("result", other_digest("b_delta", "tuned_digest"), off("c_grown", "check")),
    "source-next": ("base", other_digest("a_same", "tuned_digest"), off("b_delta", "check")),
    "tensors-state": (
        "result",
        off("new.layer.norm", "result"),
        lambda draft: replace(draft, fields=draft.fields | {"base": {"digest": "0" * 64}}),
    ),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", ORDER)
def test_errors_come_in_the_order_of_the_format(what: str, threads: int, tmp_path: Path) -> None:
    code, first, second = ORDER[what]
    draft = second(first(Draft.read(FOLDER / "valid" / "mixed")))
    (tmp_path / "rlsparse").mkdir()
    (tmp_path / "rlsparse" / DELTA).write_bytes(draft.sealed())
    base = FOLDER / "bases" / "mixed"
    with pytest.raises(FormatError) as refused:
        verify_delta(tmp_path, base=base, threads=threads)
    assert refused.value.code == code
    with pytest.raises(DECODER.Refused) as refused_again:
        DECODER.decode(tmp_path, DECODER.read_checkpoint(base))
    assert refused_again.value.code == code


def test_every_error_code_has_vectors() -> None:
    known = {cls.code for cls in FormatError.__subclasses__()} | {FormatError.code}
    assert {code for v in ALL for code in v["expected"].get("codes", ())} == known


def relisted(edit: Callable[[dict[str, Any]], object], folder: Path) -> Path:
    """A copy of a delta of several shards whose list was edited."""
    shutil.copytree(FOLDER / "valid" / "shards", folder / "delta")
    path = folder / "delta" / "rlsparse" / "delta.safetensors.index.json"
    listing = json.loads(path.read_text())
    edit(listing)
    path.write_text(json.dumps(listing))
    return folder / "delta"


def test_other_keys_of_the_list_of_shards_are_ignored(tmp_path: Path) -> None:
    other = {"metadata": [{"number": 0.5}] * 200, "braces": "{" * 200, "none": None}
    delta = relisted(lambda listing: listing.update(other), tmp_path)
    DeltaReader(delta).close()
    assert len(DECODER.shard_paths(delta)) == 2


def many_shards(listing: dict[str, Any]) -> None:
    listing["weight_map"] = {str(i): "" for i in range(10_002)}


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda listing: listing.update(a=10**19), "missing"),
        (lambda listing: listing.update(a=float("nan")), "missing"),
        (lambda listing: listing.update(a=" " * (4 << 20)), "limit"),
        (many_shards, "limit"),
    ],
    ids=["integer", "no-number", "length", "shards"],
)
def test_lists_of_shards_that_are_refused(
    edit: Callable[[dict[str, Any]], object], code: str, tmp_path: Path
) -> None:
    delta = relisted(edit, tmp_path)
    with pytest.raises(FormatError) as refused:
        DeltaReader(delta)
    assert refused.value.code == code
    with pytest.raises(DECODER.Refused) as refused_again:
        DECODER.shard_paths(delta)
    assert refused_again.value.code == code


def test_large_vectors(tmp_path: Path) -> None:
    made = large_vectors(tmp_path)
    assert {name for rule in TOO_LARGE for name in TOO_LARGE[rule].split()} == {
        vector["id"] for vector in made if vector["kind"] == "invalid"
    }
    for vector in made:
        base = FOLDER / vector["base"]
        assert is_expected(library_outcome(Path(vector["delta"]), base, {}), vector["expected"])
        found = second_outcome(DECODER, Path(vector["delta"]), DECODER.read_checkpoint(base), {})
        assert is_expected(found, vector["expected"])


def test_ids_are_distinct() -> None:
    assert len({(v["kind"], v["id"]) for v in ALL}) == len(ALL)


def opened(name: str) -> DeltaReader:
    return DeltaReader(FOLDER / "valid" / name)


def test_vectors_show_what_they_say() -> None:
    """An encoder that chooses otherwise would leave a part of the format without a vector."""
    with opened("contexts") as reader:
        (chunk,) = reader.index.chunks
        assert len(chunk.bounds) > 1
        words = PAIRS["contexts"]().base["w"].words & 0x7FFF
        edges = [-1, *chunk.bounds]
        counts = [int(((words > a) & (words <= b)).sum()) for a, b in itertools.pairwise(edges)]
        dense = [6 * k >= n for n, k in zip(counts, chunk.changed, strict=True) if 0 < k < n]
        assert set(dense) == {True, False}
    with opened("rows") as reader:
        assert [c.coding for c in reader.index.chunks] == [ChunkCoding.DELTA_WITH_ROWS]
    with opened("contexts-signed") as reader:
        (chunk,) = reader.index.chunks
        assert len(chunk.bounds) > 1
    with opened("whole") as reader:
        assert {c.coding for c in reader.index.chunks} == {ChunkCoding.WHOLE}
        assert {t.kind for t in reader.index.tensors} == {Kind.DELTA}
    with opened("four-bits") as reader:
        assert {t.coding.width for t in reader.index.tensors if t.coding} == {4}
        assert {t.kind for t in reader.index.tensors} == {Kind.DELTA, Kind.WHOLE}
    with opened("every-dtype") as reader:
        assert {t.dtype.code for t in reader.index.tensors} == set(DTYPES)
        assert all(t.kind is Kind.DELTA for t in reader.index.tensors)
    with opened("escape") as reader:
        (chunk,) = reader.index.chunks
        content = plain(reader.stored(chunk))
        assert (len(chunk.bounds), chunk.changed) == (1, (60,))
        assert 255 in content[23 : 23 + 60]  # after 60 times 3 low bits


def test_vectors_show_every_kind_of_tensor() -> None:
    with opened("alias") as reader:
        assert [t.kind for t in reader.index.tensors] == [Kind.DELTA, Kind.ALIAS]
    with opened("renamed") as reader:
        assert reader.index.tensors[0].origin == "model.layers.0.w"
    with opened("new-tie") as reader:
        assert [t.origin for t in reader.index.tensors] == ["embed", "embed"]
    with opened("vocabulary") as reader:
        assert [t.tail for t in reader.index.tensors] == [40, 0]
    for name, widening in (("bf16", Widening.BF16_TO_F32), ("f16", Widening.F16_TO_F32)):
        with opened(f"widening-{name}") as reader:
            assert {t.widening for t in reader.index.tensors} == {widening}
    with opened("added-removed") as reader:
        assert reader.index.removed == ["gone.a", "gone.b"]
    with opened("identical") as reader:
        assert not reader.index.chunks
    with opened("shards") as reader:
        assert {c.shard for c in reader.index.chunks} == {0, 1}
    with opened("several-chunks") as reader:
        assert [c.coding for c in reader.index.chunks] == [0, 1, 0]


def test_vectors_show_every_layout() -> None:
    layouts = {"bitmap": 0, "layout-by-dtype": 1, "verbatim": 2}
    for name, layout in layouts.items():
        with opened(name) as reader:
            assert [file.layout for file in reader.index.files.files] == [layout]
    for name, layout in {"bitmap": 0, "files-rebuilt": 1, "files-verbatim": 2}.items():
        with opened(name) as reader:
            assert reader.index.files.index_layout == layout
    with opened("cast") as reader:
        assert reader.manifest.cast == "BF16"
    with opened("hints") as reader:
        assert (reader.manifest.repo, reader.manifest.revision) == ("example/base", COMMIT)
    with opened("base-delta-path") as reader:
        assert reader.manifest.base_delta == BaseDelta("../keyframes/step-100")
    with opened("base-delta-id") as reader:
        assert reader.manifest.base_delta == BaseDelta("step-100", "example/run", COMMIT)


def test_vectors_show_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("optional-blocks") as reader:
        assert reader.index.blocks == BLOCKS
    monkeypatch.setattr(manifest, "KNOWN_FEATURES", {FEATURE})
    with opened("feature") as reader:
        assert (reader.index.features, reader.index.blocks) == (
            {FEATURE: b"\x01\x02"},
            {"zz": b"z"},
        )


def test_a_feature_is_refused_where_it_is_unknown() -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"example\.org/test"):
        opened("feature")
    with pytest.raises(DECODER.Refused) as refused:
        DECODER.open_delta(FOLDER / "valid" / "feature")
    assert refused.value.code == "feature"


def test_a_hint_of_a_delta_is_written_as_it_was_read() -> None:
    for name in ("base-delta-path", "base-delta-id", "hints", "cast"):
        with opened(name) as reader:
            text = reader.shards[-1].manifest_text
            assert reader.manifest.text(1) == text.replace(b',"zz":"ignored"', b"")


def test_naming_the_base_keeps_keys_that_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "rlsparse").mkdir()
    out = tmp_path / "rlsparse" / "delta.safetensors"
    with opened("manifest-keys") as reader, OutputFile(out) as file:
        write_named(reader, file, "me/base", COMMIT)
        expected = json.loads(reader.shards[-1].manifest_text)
    expected["base"] |= {"repo": "me/base", "revision": COMMIT}
    with DeltaReader(tmp_path) as reader:
        assert json.loads(reader.shards[-1].manifest_text) == expected
        assert expected["zeta"] == {"a": [1]}
        reader.check_state()


def test_check_accepts_the_vectors() -> None:
    result = CliRunner().invoke(vectors_command, ["check"])
    assert result.exit_code == 0, result.output
    assert ("not generated anew" in result.output) is not SAME_ZSTD


def test_vectors_are_small() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 900_000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of vectors as `generate` writes it."""
    result = CliRunner().invoke(vectors_command, ["generate", "--out", str(tmp_path / "vectors")])
    assert result.exit_code == 0, result.output
    return tmp_path / "vectors"


def reason(folder: Path) -> str:
    result = CliRunner().invoke(vectors_command, ["check", "--folder", str(folder)])
    assert result.exit_code == 1
    return result.output.strip().splitlines()[-1]


def test_check_refuses_a_changed_file(copy: Path) -> None:
    file = copy / "bases" / "gaps" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert reason(copy) == "bases/gaps/model.safetensors does not have its SHA-256"


def test_check_refuses_a_missing_file(copy: Path) -> None:
    (copy / "bases" / "gaps" / "model.safetensors").unlink()
    assert reason(copy) == "bases/gaps/model.safetensors is missing"


def test_check_refuses_an_unlisted_file(copy: Path) -> None:
    (copy / "valid" / "more").write_bytes(b"")
    assert reason(copy) == "valid/more is not listed"


def test_check_refuses_what_generate_does_not_write(copy: Path) -> None:
    index = copy / "index.json"
    index.write_text(index.read_text().replace("a bitmap mask", "A bitmap mask"))
    assert reason(copy) == "index.json is not what `generate` writes"


def test_check_does_not_compare_with_another_zstd(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zstandard, "ZSTD_VERSION", (1, 0, 0))
    result = CliRunner().invoke(vectors_command, ["check", "--folder", str(copy)])
    assert result.exit_code == 0
    assert "zstd 1.0.0" in result.output

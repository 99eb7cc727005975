"""Open deltas: the bits of the tuned checkpoint, decoded on demand."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from descriptors import open_files
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import (
    SINGLE,
    Tensor,
    bf16_tensor,
    contents,
    file_bytes,
    random_tensor,
    save,
    save_sharded,
    tune,
)
from safetensors import SafetensorError, safe_open

from format_vectors import checkpoints
from format_vectors.listing import VECTORS, load
from rlsparse_store import open_delta
from rlsparse_store.delta import apply_delta, encode_delta
from rlsparse_store.errors import (
    BaseMismatchError,
    FormatError,
    MissingDependencyError,
    NotFoundError,
    RlsparseError,
    TensorNotFoundError,
    UnsupportedDtypeError,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.pipeline import spans
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pairs import Tensors

    from rlsparse_store.delta.open import DeltaCheckpoint, Verify

FOLDER = VECTORS
ALL: list[dict[str, Any]] = load()["vectors"]
VALID = [pytest.param(v, id=v["id"]) for v in ALL if v["kind"] == "valid" and "reader" not in v]
INVALID = [pytest.param(v, id=v["id"]) for v in ALL if v["kind"] == "invalid" and "reader" not in v]
WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Case(NamedTuple):
    """A pair of checkpoints, and the delta between them."""

    base: Path
    tuned: Path
    delta: Path

    def open(self, **options: Any) -> DeltaCheckpoint:  # noqa: ANN401
        given: dict[str, Any] = {"base": self.base, "framework": "bits"} | options
        return open_delta(self.delta, **given)


def make(work: Path, base: Tensors, tuned: Tensors) -> Case:
    case = Case(save(work / "base", base), save(work / "tuned", tuned), work / "delta")
    encode_delta(case.base, case.tuned, case.delta, threads=2)
    return case


def read(path: Path) -> Tensors:
    """Read all tensors of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        return {
            t.name: Tensor(t.dtype.code, t.shape, checkpoint.read(t, 0, t.nbytes).tobytes())
            for t in checkpoint.tensors.values()
        }


def words(tensor: Tensor) -> Any:  # noqa: ANN401 - of the element's size
    """Return the expected words of a tensor in the bits framework."""
    bits = DTYPES[tensor.dtype].bits
    if bits < 8:
        return np.frombuffer(tensor.data, np.uint8)
    return np.frombuffer(tensor.data, WORDS[bits]).reshape(tensor.shape)


def check_words(found: Any, expected: Any) -> None:  # noqa: ANN401 - arrays of any words
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def torch_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def check_bits(opened: DeltaCheckpoint, expected: Tensors) -> None:
    assert list(opened) == list(opened.keys()) == sorted(expected, key=str.encode)
    assert len(opened) == len(expected)
    assert "no such tensor" not in opened
    assert opened.get("no such tensor") is None
    assert set(opened.slices()) == set(expected)
    for name, found in opened.items():
        check_words(found, words(expected[name]))
    for name, tensor in expected.items():
        assert name in opened
        check_words(opened[name], words(tensor))
        check_words(opened.get_tensor(name), words(tensor))
        part = opened.get_slice(name)
        assert part.get_shape() == list(tensor.shape)
        assert part.get_dtype() == tensor.dtype
        assert part.dtype is words(tensor).dtype.type
        assert part.ndim == len(tensor.shape)
        assert name in repr(part)
        check_words(part[...], words(tensor))
        check_words(part[()], words(tensor))


def check_torch(opened: DeltaCheckpoint, files: list[Path]) -> None:
    """Compare with the tensors of safetensors."""
    for path in files:
        with safe_open(path, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - it is no mapping
                try:
                    expected = reader.get_tensor(name)
                except SafetensorError:
                    with pytest.raises(UnsupportedDtypeError, match="framework='bits'"):
                        opened.get_tensor(name)
                    continue
                part = opened.get_slice(name)
                for found in (opened.get_tensor(name), opened[name], part[...]):
                    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
                    assert torch_bytes(found) == torch_bytes(expected)
                assert part.get_dtype() == reader.get_slice(name).get_dtype()
                assert part.get_shape() == reader.get_slice(name).get_shape()
                assert part.dtype is expected.dtype
                assert part.is_floating_point() == expected.is_floating_point()


# --- every kind of tensor --------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["touched", "full", "none"])
@pytest.mark.parametrize("vector", VALID)
def test_valid_vectors(vector: dict[str, Any], tmp_path: Path, verify: Verify) -> None:
    delta, base, out = FOLDER / vector["delta"], FOLDER / vector["base"], tmp_path / "out"
    apply_delta(delta, out, base=base, threads=1)
    files = sorted(out.glob("*.safetensors"))
    with open_delta(delta, base=base, framework="bits", verify=verify) as opened:
        check_bits(opened, read(out))
        with safe_open(files[0], "np") as reader:
            assert opened.metadata() == reader.metadata()
    with open_delta(delta, base=base, verify=verify) as opened:
        check_torch(opened, files)


def test_metadata_of_many_tensors_in_random_order(tmp_path: Path) -> None:
    tensors = {f"t{i}": checkpoints.raw(f"many/{i}", "U8", 4) for i in range(1200)}
    order = [*sorted(tensors)[1:], "t0"]
    file = checkpoints.safetensors(tensors, metadata={"format": "pt"}, names=order)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    base.write_bytes(file)
    tuned.write_bytes(file[:-1] + bytes([file[-1] ^ 1]))
    encode_delta(base, tuned, tmp_path / "delta")
    with open_delta(tmp_path / "delta", base=base, framework="bits") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tensors]:
    """A function that returns the tensors of a valid vector by name."""
    known: dict[str, Tensors] = {}

    def get(name: str) -> Tensors:
        if name not in known:
            out = tmp_path_factory.mktemp("encoded") / "out"
            apply_delta(FOLDER / "valid" / name, out, base=FOLDER / "bases" / name, threads=1)
            known[name] = read(out)
        return known[name]

    return get


@pytest.mark.parametrize("vector", INVALID)
def test_invalid_vectors_give_an_error_or_correct_bits(
    vector: dict[str, Any], encoded: Callable[[str], Tensors]
) -> None:
    parent = Path(vector["base"]).name.partition("mixed")
    expected = encoded(parent[1] or parent[0])
    try:
        opened = open_delta(
            FOLDER / vector["delta"], base=FOLDER / vector["base"], framework="bits"
        )
    except RlsparseError:
        return
    with opened:
        assert list(opened) == list(expected)
        for name in opened:
            if (vector["id"], name) == ("base-same", "a_same"):
                continue  # no chunk's check covers it: only verify="full" sees another base
            try:
                found = opened.get_tensor(name)
            except FormatError:
                continue
            check_words(found, words(expected[name]))


@pytest.mark.parametrize("vector", INVALID)
def test_invalid_vectors_are_rejected_by_full_verification(vector: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as refused:
        open_delta(
            FOLDER / vector["delta"],
            base=FOLDER / vector["base"],
            framework="bits",
            verify="full",
        )
    assert refused.value.code in vector["expected"]["codes"]


# --- slices ----------------------------------------------------------------------------------


def clustered(tensor: Tensor, seed: int) -> Tensor:
    """Change several ranges of a tensor of 16-bit words, and no others."""
    rng = np.random.default_rng(seed)
    moved = tensor.words(np.uint16)
    for start in rng.integers(0, moved.size - 4000, 6):
        moved[start : start + 4000] ^= rng.integers(0, 2, 4000).astype(np.uint16)
    return tensor.with_words(moved)


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, Tensors]]:
    """Tensors of many small chunks with unchanged words between them."""
    base = {
        "flat": bf16_tensor(1, 90_000),
        "rows": bf16_tensor(2, 300, 700),
        "deep": bf16_tensor(3, 12, 50, 300),
        "wide": bf16_tensor(4, 200, 700),
        "grown": bf16_tensor(5, 150, 700),
        "same": bf16_tensor(6, 30, 40),
        "step": random_tensor(7, "I64"),
        "none": random_tensor(8, "F32", 0, 5),
    }
    wide = clustered(base["wide"], 9).words(np.uint16).astype(np.uint32) << 16
    tuned = base | {name: clustered(base[name], 10) for name in ("flat", "rows", "deep")}
    tuned["wide"] = Tensor("F32", (200, 700), wide.astype(np.uint32).tobytes())
    data = clustered(base["grown"], 11).data + bf16_tensor(12, 60, 700).data
    tuned["grown"] = Tensor("BF16", (210, 700), data)
    tuned["new"] = random_tensor(13, "F64", 40, 5, 7)
    tuned["step"] = random_tensor(14, "I64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK_WORDS", 1 << 14)
        for name in ("CHUNK_CHANGES", "SHORT_CHUNK_CHANGES"):
            patch.setattr(spans, name, 300)
        case = make(tmp_path_factory.mktemp("sliced"), base, tuned)
    yield case, tuned
    assert read(case.base) == base


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Draw an index that both NumPy and the lazy reader support."""

    def part(size: int) -> st.SearchStrategy[Any]:
        ends = st.none() | st.integers(-size - 2, size + 2)
        steps = st.none() | st.integers(1, max(1, size))
        found: st.SearchStrategy[Any] = st.builds(slice, ends, ends, steps)
        if size:
            found |= st.integers(-size, size - 1) | st.integers(-size, size - 1).map(np.int64)
        return found

    @st.composite
    def draw_index(draw: st.DrawFn) -> Any:  # noqa: ANN401 - what stands in the brackets
        count = draw(st.integers(0, len(shape)))
        parts = [draw(part(size)) for size in shape[:count]]
        if draw(st.booleans()):
            back = draw(st.integers(0, len(shape) - count))
            behind = [draw(part(size)) for size in shape[len(shape) - back :]]
            parts = [*parts, ..., *behind]
        return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)

    return draw_index()


@given(data=st.data())
@settings(max_examples=150)
def test_any_slice(sliced: tuple[Case, Tensors], data: st.DataObject) -> None:
    case, tuned = sliced
    name = data.draw(st.sampled_from(sorted(tuned)))
    array = words(tuned[name])
    index = data.draw(indices(array.shape))
    with case.open() as opened:
        check_words(opened.get_slice(name)[index], np.asarray(array[index]))


@given(data=st.data())
@settings(max_examples=30)
def test_any_band(sliced: tuple[Case, Tensors], data: st.DataObject) -> None:
    # As where rows are longer than a band: dimension by dimension, and a few rows at a time.
    case, tuned = sliced
    name = data.draw(st.sampled_from(["deep", "rows", "new"]))
    array = words(tuned[name])
    index = data.draw(indices(array.shape))
    with pytest.MonkeyPatch.context() as patch, case.open() as opened:
        small = data.draw(st.sampled_from([100, 3000, 40_000]))
        patch.setattr("rlsparse_store.delta.slicing.BAND_BYTES", small)
        check_words(opened.get_slice(name)[index], np.asarray(array[index]))


def test_slices_in_torch(sliced: tuple[Case, Tensors]) -> None:
    case, tuned = sliced
    with case.open(framework="pt") as opened, safe_open(case.tuned / SINGLE, "pt") as reader:
        assert set(opened) == set(tuned)
        for name in ("rows", "deep", "wide", "grown", "new", "none"):
            expected = reader.get_tensor(name)
            for index in (0, slice(3, 9), (slice(None, None, 7), 2), (..., slice(1, 4))):
                if name == "none" and index == 0:
                    continue
                if expected.numel() == 0 and isinstance(index, tuple) and index[-1] == 2:
                    continue
                found = opened.get_slice(name)[index]
                part = expected[index]
                assert (found.dtype, found.shape) == (part.dtype, part.shape)
                assert torch_bytes(found) == torch_bytes(part)
                if found.numel():
                    found.zero_()  # what is handed out may be written to


def test_bits_ignore_the_default_device_of_torch(sliced: tuple[Case, Tensors]) -> None:
    with sliced[0].open(framework="pt") as opened, torch.device("meta"):
        assert opened.get_tensor("none").device.type == "cpu"


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (300, IndexError),
        (-301, IndexError),
        ((0, 700), IndexError),
        ((0, 0, 0), IndexError),
        ((..., 0, ...), IndexError),
        (slice(None, None, -1), IndexError),
        ((0, slice(9, 2, -2)), IndexError),
        (slice(None, None, 0), ValueError),
        (True, TypeError),
        (np.bool_(1), TypeError),
        ([0, 1], TypeError),
        (np.array([0, 1]), TypeError),
        (None, TypeError),
        (1.0, TypeError),
        ("a", TypeError),
    ],
)
def test_invalid_index(
    sliced: tuple[Case, Tensors],
    index: Any,  # noqa: ANN401 - whatever may stand in brackets
    error: type[Exception],
) -> None:
    with sliced[0].open() as opened, pytest.raises(error):
        opened.get_slice("rows")[index]


def test_elements_smaller_than_a_byte_cannot_be_sliced(tmp_path: Path) -> None:
    tensors = {"f4": random_tensor(1, "F4", 8, 8), "f6": random_tensor(2, "F6_E2M3", 8, 8)}
    with make(tmp_path, tensors, tensors).open() as opened:
        for name, tensor in tensors.items():
            check_words(opened.get_slice(name)[:, :], words(tensor))
            with pytest.raises(UnsupportedDtypeError, match="cannot be sliced"):
                opened.get_slice(name)[:4]


# --- laziness --------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the length of each decoded chunk."""
    lengths: list[int] = []
    decode = ChunkDecoder.decode

    def counted(self: ChunkDecoder, t: Any, chunk: Any, *rest: Any) -> Any:  # noqa: ANN401
        lengths.append(chunk.length)
        return decode(self, t, chunk, *rest)

    monkeypatch.setattr(ChunkDecoder, "decode", counted)
    return lengths


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Case, Tensors]:
    """A tensor that many chunks cover completely."""
    monkeypatch.setattr(spans, "BLOCK_WORDS", 1 << 14)
    for name in ("CHUNK_CHANGES", "SHORT_CHUNK_CHANGES"):
        monkeypatch.setattr(spans, name, 100)
    base = {"w": bf16_tensor(1, 512, 1024), "big": bf16_tensor(2, 1024, 600)}
    tuned = base | {"w": tune(base["w"], 3, 0.1)}
    return make(tmp_path, base, tuned), tuned


def test_slice_decodes_only_overlapping_chunks(
    many: tuple[Case, Tensors], decoded: list[int]
) -> None:
    case, tuned = many
    array = words(tuned["w"])
    with case.open() as opened:
        part = opened.get_slice("w")
        assert part.get_shape() == [512, 1024]
        opened.get_tensor("big")
        assert opened.metadata() == {"format": "pt"}
        assert decoded == []
        longest = max(chunk.length for chunk in opened._chunks["w"])
        assert longest * 16 < array.size
        for eighth in range(8):
            decoded.clear()
            check_words(part[eighth * 64 : eighth * 64 + 64], array[eighth * 64 : eighth * 64 + 64])
            assert 64 * 1024 <= sum(decoded) <= 64 * 1024 + 2 * longest
        decoded.clear()
        check_words(part[::3, 5:9], array[::3, 5:9])
        assert sum(decoded) <= array.size + 2 * longest


def test_unchanged_tensors_are_mapped_copy_on_write(
    many: tuple[Case, Tensors],
) -> None:
    case, tuned = many
    before = {name: hashlib.md5(data).digest() for name, data in contents(case.base).items()}  # noqa: S324 - no secret
    with case.open() as opened:
        first = opened.get_tensor("big")
        mapped = opened._mappings._files[0]
        assert np.shares_memory(first, mapped)
        first[:] = 0xFFFF
        later = opened.get_tensor("big")
        assert not np.shares_memory(first, later)
        check_words(later, words(tuned["big"]))
        later[:] = 0
        check_words(opened["big"], words(tuned["big"]))
        check_words(opened.get_slice("big")[5:9], words(tuned["big"])[5:9])
        assert not np.shares_memory(opened["w"], mapped)
        opened["w"][:] = 0
        check_words(opened["w"], words(tuned["w"]))
    assert (first == 0xFFFF).all()  # still there when the files are closed
    with case.open() as opened:
        check_bits(opened, tuned)
    after = {name: hashlib.md5(data).digest() for name, data in contents(case.base).items()}  # noqa: S324 - as above
    assert after == before


# --- what is wrong ---------------------------------------------------------------------------


def replace_base(case: Case, **tensors: Tensor | None) -> None:
    """Rewrite the base with other tensors."""
    kept = {name: t for name, t in (read(case.base) | tensors).items() if t is not None}
    (case.base / SINGLE).write_bytes(file_bytes(kept, {"format": "pt"}))


def test_base_with_other_values_in_a_changed_tensor(many: tuple[Case, Tensors]) -> None:
    case, _ = many
    replace_base(case, w=bf16_tensor(9, 512, 1024))
    with case.open() as opened, pytest.raises(BaseMismatchError, match="different values") as error:
        opened.get_tensor("w")
    assert error.value.tensor == "w"
    assert str(case.base) in str(error.value)
    # The words may lie elsewhere than the masks expect them: that alone is noticed.
    with case.open(verify="none") as opened, suppress(FormatError):
        assert opened.get_tensor("w").shape == (512, 1024)


def test_base_with_other_values_in_an_unchanged_tensor(many: tuple[Case, Tensors]) -> None:
    case, tuned = many
    other = bf16_tensor(9, 1024, 600)
    replace_base(case, big=other)
    with case.open() as opened:
        check_words(opened["w"], words(tuned["w"]))
        check_words(opened["big"], words(other))  # no check covers it but the digests
    with pytest.raises(BaseMismatchError, match=r"'big'.*different values"):
        case.open(verify="full")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (None, "is missing from the base"),
        (random_tensor(1, "F16", 512, 1024), "is F16 in the base, not BF16"),
        (bf16_tensor(1, 511, 1024), "bytes in the base, not"),
    ],
)
def test_base_with_other_structure_is_rejected(
    many: tuple[Case, Tensors], tensor: Tensor | None, problem: str
) -> None:
    replace_base(many[0], w=tensor)
    with pytest.raises(BaseMismatchError, match=f"'w'.*{problem}"):
        many[0].open()


def test_base_with_an_extra_tensor(many: tuple[Case, Tensors]) -> None:
    case, tuned = many
    replace_base(case, more=bf16_tensor(1, 4))
    with case.open() as opened:
        check_bits(opened, tuned)
    with pytest.raises(BaseMismatchError, match=r"'more'.*is not a tensor of the base"):
        case.open(verify="full")


@pytest.mark.parametrize("name", ["w", "big"])
def test_base_truncated_after_opening(many: tuple[Case, Tensors], name: str) -> None:
    file = many[0].base / SINGLE
    with many[0].open() as opened:
        os.truncate(file, 2000)
        for _ in range(2):
            with pytest.raises(RlsparseError, match="cut short") as error:
                opened.get_tensor(name)
            assert error.value.file == file
        with pytest.raises(RlsparseError, match="cut short"):
            opened.get_slice(name)[100:200]
        with pytest.raises(RlsparseError, match="changed while"):
            opened.check_unchanged()


def test_truncated_delta(many: tuple[Case, Tensors]) -> None:
    case, tuned = many
    file = case.delta / "rlsparse" / "delta.safetensors"
    with case.open() as opened:
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(RlsparseError, match="cut short") as error:
            opened.get_tensor("w")
        assert error.value.file == file
        check_words(opened["big"], words(tuned["big"]))
    with pytest.raises(FormatError, match=r"delta\.safetensors: .*length"):
        case.open()


def test_names_and_arguments(many: tuple[Case, Tensors], monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = many
    with case.open() as opened:
        for read_it in (opened.get_tensor, opened.get_slice):
            with pytest.raises(TensorNotFoundError, match=r"tensor 'x\?*': no such tensor"):
                read_it("x")
        with pytest.raises(KeyError):
            opened["x"]
    with pytest.raises(ValueError, match="framework 'tf': choose one of"):
        case.open(framework="tf")
    with pytest.raises(ValueError, match="verify='all': choose one of"):
        case.open(verify="all")
    with pytest.raises(ValueError, match="leave out device"):
        case.open(device="cuda")
    with case.open(device="cpu") as opened:
        assert len(opened) == 2
    with pytest.raises(NotFoundError, match="no such folder"):
        open_delta(case.delta / "x", base=case.base, framework="bits")
    with pytest.raises(NotFoundError, match="no such file or folder"):
        case.open(base=case.base / "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[torch\]'"):
        case.open(framework="pt")


# --- a base found in the cache ---------------------------------------------------------------

COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, offline."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def snapshot(cache: Path, repo: str, commit: str) -> Path:
    """Return the cache folder of a commit, and point the main branch to it."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def in_cache(cache: Path, work: Path) -> tuple[Case, Tensors]:
    base = {"a": bf16_tensor(1, 64, 64), "b": bf16_tensor(2, 64, 64)}
    tuned = base | {"a": tune(base["a"], 3)}
    case = Case(
        save(snapshot(cache, "org/name", COMMITS[0]), base),
        save(work / "tuned", tuned),
        work / "delta",
    )
    encode_delta(case.base, case.tuned, case.delta, threads=1)
    return case, tuned


@pytest.mark.parametrize("source", [None, "org/name", f"org/name@{COMMITS[0]}", "org/name@main"])
def test_base_is_the_named_commit_in_the_cache(
    cache: Path, tmp_path: Path, source: str | None
) -> None:
    case, tuned = in_cache(cache, tmp_path)
    with case.open(base=source) as opened:
        assert opened.base == case.base
        check_bits(opened, tuned)


@pytest.mark.parametrize("repo", ["org/name", "other/copy"])
def test_base_is_another_commit_with_the_same_content(
    cache: Path, tmp_path: Path, repo: str
) -> None:
    case, tuned = in_cache(cache, tmp_path)
    other = snapshot(cache, repo, COMMITS[1])
    other.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(case.base, other)
    save(snapshot(cache, "aaa/wrong", COMMITS[0]), {"a": bf16_tensor(7, 64, 64)})
    for base in (None, f"{repo}@{COMMITS[1]}"):
        with case.open(base=base) as opened:
            assert opened.base == other
            check_bits(opened, tuned)


@pytest.mark.parametrize("name", ["a", "b"])
def test_commit_with_other_content_is_not_used(cache: Path, tmp_path: Path, name: str) -> None:
    case, _ = in_cache(cache, tmp_path)
    other = snapshot(cache, "org/name", COMMITS[1])
    shutil.move(case.base, other)
    tensors = read(other)
    flipped = bytearray(tensors[name].data)
    flipped[-1] ^= 1
    tensors[name] = replace(tensors[name], data=bytes(flipped))
    (other / SINGLE).write_bytes(file_bytes(tensors))
    with pytest.raises(NotFoundError, match="not in the cache") as error:
        case.open(base=None)
    assert error.value.file == f"org/name@{COMMITS[0]}"


def test_base_missing_from_the_cache(cache: Path, many: tuple[Case, Tensors]) -> None:
    assert not list(cache.iterdir())
    with pytest.raises(NotFoundError, match="does not name its base") as error:
        many[0].open(base=None)
    assert error.value.file == many[0].delta
    with pytest.raises(NotFoundError, match="the base is not in the cache"):
        many[0].open(base="org/name")
    with pytest.raises(NotFoundError, match="the delta is not in the cache"):
        open_delta("org/delta", framework="bits")


# --- threads, processes, descriptors ---------------------------------------------------------


def test_many_threads(many: tuple[Case, Tensors]) -> None:
    case, tuned = many
    with case.open() as opened, ThreadPoolExecutor(8) as pool:

        def read_all(_: int) -> None:
            for name in opened:
                found = opened.get_tensor(name)
                check_words(found, words(tuned[name]))
                found[:] = 0
                check_words(opened.get_slice(name)[9:50], words(tuned[name])[9:50])

        for _ in pool.map(read_all, range(32)):
            pass


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process and return its exit status."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:  # noqa: BLE001 - nothing may get past the fork
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests' threads
def test_forked_processes(many: tuple[Case, Tensors]) -> None:
    case, tuned = many
    with case.open() as opened:

        def read_and_close() -> None:
            for name in opened:
                found = opened.get_tensor(name)
                check_words(found, words(tuned[name]))
                found[:] = 0
            opened.close()

        def fail() -> None:
            raise ValueError

        assert in_child(fail) == 1
        assert [in_child(read_and_close) for _ in range(2)] == [0, 0]
        check_bits(opened, tuned)
        assert in_child(read_and_close) == 0
        check_bits(opened, tuned)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux counts them")
@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_open_delta_is_not_copied(
    many: tuple[Case, Tensors], copied: Callable[[Any], object]
) -> None:
    """In another process, the descriptors that a pickle holds are those of other files."""
    case, _ = many
    with open_delta(case.delta, base=case.base, framework="bits") as opened:
        name = next(iter(opened))
        for thing in (opened, opened.get_slice(name)) if copied is not copy.copy else (opened,):
            with pytest.raises(
                TypeError, match="DeltaCheckpoint: it holds files open; open it anew"
            ):
                copied(thing)
        opened.get_tensor(name)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    base = [{"a": bf16_tensor(1, 900, 900)}, {"b": bf16_tensor(2, 30, 30)}]
    tuned = [base[0], {"b": tune(base[1]["b"], 3)}]
    case = Case(
        save_sharded(tmp_path / "base", *base),
        save_sharded(tmp_path / "tuned", *tuned),
        tmp_path / "delta",
    )
    encode_delta(case.base, case.tuned, case.delta, threads=1)
    with case.open() as opened:  # whatever stays open, such as torch's, is open now
        check_bits(opened, base[0] | tuned[1])

    def count() -> int:
        gc.collect()
        return len(open_files())

    del opened
    before = count()
    opened = case.open()
    opened.get_tensor("b")
    assert count() == before + 3
    opened.close()
    assert count() == before
    opened.close()
    opened = case.open()
    mapped = opened.get_tensor("a")
    assert count() == before + 4  # Python's mappings have a descriptor of their own
    opened.close()
    assert count() == before + 1
    check_words(mapped, words(base[0]["a"]))
    del mapped
    assert count() == before  # though `opened` still lives
    for name in opened:
        with pytest.raises(RlsparseError, match="cannot be read"):
            opened.get_tensor(name)
    opened = case.open()
    kept = opened.get_tensor("b")
    part = opened.get_slice("b")
    del opened
    assert count() == before + 3  # the slice may still be read
    check_words(part[2:5], words(tuned[1]["b"])[2:5])
    del part
    assert count() == before
    check_words(kept, words(tuned[1]["b"]))
    (case.base / "model-00002-of-00002.safetensors").write_bytes(b"short")
    with pytest.raises(RlsparseError):
        case.open()
    assert count() == before

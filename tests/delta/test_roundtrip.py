"""Round trips of whole checkpoints: every kind of change decodes to the original files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import (
    INDEX,
    SINGLE,
    Tensor,
    bf16_tensor,
    contents,
    file_bytes,
    prove,
    random_tensor,
    save,
    save_sharded,
    tune,
    write_index,
)

from rlsparse_store.delta import (
    apply_delta,
    encode_delta,
    inspect_delta,
    measure_pair,
    verify_delta,
)
from rlsparse_store.errors import (
    BaseMismatchError,
    CheckpointError,
    DtypeMismatchError,
    VerificationError,
)
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.limits import MAX_CHUNK_WORDS, MAX_TENSORS
from rlsparse_store.format.strict_json import StrictJsonError, parse
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.spans import encode_span, tensor_spans
from rlsparse_store.pipeline.tensor_matching import DtypePolicy, plan_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from pairs import Tensors

    from rlsparse_store.delta import EncodeReport, TensorReport


def prove_pair(work: Path, base: Tensors, tuned: Tensors) -> EncodeReport:
    return prove(save(work / "base", base), save(work / "tuned", tuned), work)


def tensor_report(report: EncodeReport, name: str) -> TensorReport:
    return next(t for t in report.tensors if t.name == name)


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(tmp_path: Path, code: str) -> None:
    base = random_tensor(1, code, 30, 64)
    changed = bytearray(base.data)
    for place in range(0, len(changed), 97):
        changed[place] ^= 1 + place % 255
    tuned = {"sparse": replace(base, data=bytes(changed)), "dense": random_tensor(2, code, 6, 8)}
    report = prove_pair(tmp_path, {"sparse": base, "dense": random_tensor(3, code, 6, 8)}, tuned)
    assert tensor_report(report, "sparse").kind == "delta"
    assert report.changed > 0


@given(data=st.data())
@settings(max_examples=25)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base: Tensors = {}
    tuned: Tensors = {}
    for name in data.draw(st.sets(st.sampled_from(["a", "b.c", "é", 'q"\\']), min_size=1)):
        dtype = data.draw(st.sampled_from(list(DTYPES)))
        shape = tuple(data.draw(st.lists(st.sampled_from([0, 1, 3, 8]), max_size=3)))
        if DTYPES[dtype].nbytes(shape) is None:
            shape = (*shape, 4)
        size = DTYPES[dtype].nbytes(shape) or 0
        base[name] = Tensor(dtype, shape, data.draw(st.binary(min_size=size, max_size=size)))
        tuned[name] = base[name]
        if data.draw(st.booleans()):
            changed = data.draw(st.binary(min_size=size, max_size=size))
            tuned[name] = replace(base[name], data=changed)
    prove_pair(tmp_path_factory.mktemp("any"), base, tuned)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    base = {
        "scalar": random_tensor(1, "F32"),
        "step": random_tensor(2, "I64", 1),
        "empty": random_tensor(3, "BF16", 0, 4),
        "same": random_tensor(4, "F32"),
        "filled": random_tensor(5, "BF16", 0, 4),
        "emptied": random_tensor(6, "BF16", 3, 4),
    }
    tuned = base | {
        "scalar": random_tensor(7, "F32"),
        "step": random_tensor(8, "I64"),
        "new": random_tensor(9, "F16", 0),
        "filled": random_tensor(10, "BF16", 3, 4),
        "emptied": random_tensor(11, "BF16", 0, 4),
    }
    prove_pair(tmp_path, base, tuned)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    report = prove_pair(tmp_path, {}, {})
    assert report.changed == report.elements == 0


def test_identical_checkpoints(tmp_path: Path) -> None:
    tensors = {"a": bf16_tensor(1, 64, 64), "b": random_tensor(2, "I64", 5)}
    report = prove_pair(tmp_path, tensors, tensors)
    assert report.changed == 0
    assert report.bits_per_changed is None
    assert report.kinds == {"same": 2, "delta": 0, "whole": 0, "alias": 0}
    assert report.delta_bytes < 2000


def test_packed_numbers_are_coded_as_four_bit_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, 80000).astype(np.uint8)
    moved = np.where(rng.random(codes.size) < 0.02, (codes + 1) & 15, codes).astype(np.uint8)

    def packed(halves: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: str) -> Tensor:
        joined = halves[0::2] | (halves[1::2] << 4)
        return Tensor(dtype, (100, joined.size // 400), joined.tobytes())

    sizes = {}
    for dtype in ("I32", "U32"):
        folder = tmp_path / dtype
        report = prove_pair(folder, {"w": packed(codes, dtype)}, {"w": packed(moved, dtype)})
        sizes[dtype] = tensor_report(report, "w").stored_bytes
    assert sizes["I32"] * 4 < sizes["U32"] * 3


def test_chunks_stay_within_the_format_limit(tmp_path: Path) -> None:
    # Only the walk is tested, on files that are holes but for two bytes.
    words = MAX_CHUNK_WORDS + (3 << 20)
    fields = {"w": {"dtype": "F8_E4M3", "shape": [words], "data_offsets": [0, words]}}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    for name in ("base.safetensors", "tuned.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + words)
            for place in (0, words - 1) if name.startswith("tuned") else ():
                file.seek(8 + len(text) + place)
                file.write(b"\x01")
    with (
        open_checkpoint(tmp_path / "base.safetensors") as base,
        open_checkpoint(tmp_path / "tuned.safetensors") as tuned,
    ):
        (plan,) = plan_tensors(base, tuned, DtypePolicy())
        scratch, chunks = Scratch(), []
        for span in tensor_spans(0, plan, DTYPES["F8_E4M3"].coding):
            chunks += encode_span(get_backend(), span, base, tuned, scratch).chunks
    assert sum(chunk.changes for chunk in chunks) == 2
    assert max(chunk.record.length for chunk in chunks) <= MAX_CHUNK_WORDS


# --- names and shapes ------------------------------------------------------------------------


def model(prefix: str = "") -> Tensors:
    return {
        f"{prefix}layers.{n}.{part}.weight": bf16_tensor(10 * n + i, 48, 64)
        for n in range(2)
        for i, part in enumerate(["q", "k"])
    }


@pytest.mark.parametrize(("old", "new"), [("", "model."), ("model.", ""), ("a.b.", "c.b.")])
def test_prefixes(tmp_path: Path, old: str, new: str) -> None:
    tuned = {new + name: tune(t, 5) for name, t in model().items()}
    report = prove_pair(tmp_path, model(old), tuned)
    assert report.kinds["delta"] == 4
    assert report.removed == []
    for t in report.tensors:
        assert t.source == old + t.name.removeprefix(new)


def test_towers_of_one_shape(tmp_path: Path) -> None:
    """Small tensors, which have no content to be recognized by."""
    towers = {"language_model.model": "model.language_model", "vision_tower": "model.vision_tower"}
    base: Tensors = {}
    tuned: Tensors = {}
    for seed, (old, new) in enumerate(towers.items()):
        for layer in range(2):
            t = bf16_tensor(10 * seed + layer, 64)
            base[f"{old}.layers.{layer}.norm.weight"] = t
            tuned[f"{new}.layers.{layer}.norm.weight"] = tune(t, seed)
    report = prove_pair(tmp_path, base, tuned)
    assert not report.removed
    for tensor in report.tensors:
        old = next(old for old, new in towers.items() if tensor.name.startswith(new))
        assert tensor.source.startswith(old)


def test_unrecognizable_names(tmp_path: Path) -> None:
    base = model()
    tuned = {f"x{n}": tune(t, 5) for n, t in enumerate(base.values())}
    report = prove_pair(tmp_path, base, tuned)
    assert [t.source for t in report.tensors] == list(base)
    assert report.removed == []


def test_tied_tensor_stored_separately(tmp_path: Path) -> None:
    base = {"embed.weight": bf16_tensor(1, 64, 64)}
    tied = tune(base["embed.weight"], 2)
    report = prove_pair(tmp_path, base, {"embed.weight": tied, "lm_head.weight": tied})
    assert tensor_report(report, "lm_head.weight").kind == "alias"
    assert report.delta_bytes < 3000


def test_untied_tensor(tmp_path: Path) -> None:
    base = {"embed.weight": bf16_tensor(1, 64, 64)}
    tuned = {
        "embed.weight": tune(base["embed.weight"], 2),
        "lm_head.weight": tune(base["embed.weight"], 3),
    }
    report = prove_pair(tmp_path, base, tuned)
    assert tensor_report(report, "lm_head.weight").source == "embed.weight"
    assert report.kinds["delta"] == 2


@pytest.mark.parametrize("rows", [40, 100])
def test_resized_vocabulary(tmp_path: Path, rows: int) -> None:
    old, grown = bf16_tensor(1, 64, 32), bf16_tensor(2, 100, 32)
    joined = tune(old, 3).data + grown.data
    tuned = Tensor("BF16", (rows, 32), joined[: rows * 64])
    report = prove_pair(tmp_path, {"w": old}, {"w": tuned})
    assert tensor_report(report, "w").kind == "delta"
    assert tensor_report(report, "w").tail == max(0, rows - 64) * 32


def test_added_removed_and_reshaped_tensors(tmp_path: Path) -> None:
    base = {
        "gone": bf16_tensor(1, 8, 8),
        "flat": bf16_tensor(2, 30, 64),
        "turned": bf16_tensor(3, 30, 64),
        "square": bf16_tensor(4, 32, 32),
    }
    turned = base["turned"].words(np.uint16).reshape(30, 64).T.copy()
    tuned = {
        "new": random_tensor(5, "BF16", 3, 3),
        "flat": replace(tune(base["flat"], 6), shape=(5, 6, 64)),
        "turned": Tensor("BF16", (64, 30), turned.tobytes()),
        "square": random_tensor(7, "BF16", 32, 32),
    }
    report = prove_pair(tmp_path, base, tuned)
    assert report.removed == ["gone"]
    assert {t.name: t.kind for t in report.tensors} == {
        "flat": "delta",
        "new": "whole",
        "square": "delta",
        "turned": "whole",
    }
    assert tensor_report(report, "flat").changed < 100


# --- dtypes ----------------------------------------------------------------------------------


def widened(tensor: Tensor) -> Tensor:
    wide = tensor.words(np.uint16).astype(np.uint32) << 16
    return Tensor("F32", tensor.shape, wide.tobytes())


def test_float32_copy_has_the_size_of_the_bf16_delta(tmp_path: Path) -> None:
    base = bf16_tensor(1, 100, 100)
    tuned = tune(base, 2)
    narrow = prove_pair(tmp_path / "narrow", {"w": base}, {"w": tuned})
    wide = prove_pair(tmp_path / "wide", {"w": base}, {"w": widened(tuned)})
    assert abs(wide.delta_bytes - narrow.delta_bytes) < 40
    assert wide.changed == narrow.changed


def test_float32_copy_of_an_unchanged_base(tmp_path: Path) -> None:
    base = {"w": random_tensor(1, "BF16", 10, 10), "h": bf16_tensor(2, 4)}
    report = prove_pair(tmp_path, base, {name: widened(t) for name, t in base.items()})
    assert report.changed == 0


def test_widened_and_grown_tensor(tmp_path: Path) -> None:
    tuned = widened(random_tensor(2, "BF16", 90, 16))
    prove_pair(tmp_path, {"w": bf16_tensor(1, 64, 16)}, {"w": tuned})


def test_float32_that_is_not_exactly_bf16(tmp_path: Path) -> None:
    tensors = {"w": bf16_tensor(1, 64, 64), "n": bf16_tensor(2, 9)}
    base = save(tmp_path / "base", tensors)
    noise = np.random.default_rng(2).integers(0, 1 << 15, 64 * 64).astype(np.uint32)
    wide = widened(tensors["w"])
    inexact = wide.with_words(wide.words(np.uint32) + noise)
    tuned = save(tmp_path / "tuned", {"w": inexact, "n": widened(tensors["n"])})
    with pytest.raises(DtypeMismatchError, match=r"--cast bf16.*--keep-dtype"):
        encode_delta(base, tuned, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()
    kept = prove(base, tuned, tmp_path / "kept", keep_dtype=True)
    assert {t.name: t.kind for t in kept.tensors} == {"w": "whole", "n": "delta"}
    report = encode_delta(base, tuned, tmp_path / "delta", cast="bf16")
    assert report.cast == "BF16"
    apply_delta(tmp_path / "delta", tmp_path / "out", base=base)
    assert contents(tmp_path / "out") == contents(base)
    with pytest.raises(ValueError, match="only 'bf16'"):
        encode_delta(base, tuned, tmp_path / "other", cast="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("left", "right", "remedy"),
    [
        ("F16", "BF16", 'give the base in BF16, too: load it with dtype="bfloat16"'),
        ("F32", "F16", 'give the base in F16, too: load it with dtype="float16"'),
        ("F8_E4M3", "BF16", "the base is quantized: give the one that it was made from"),
        ("BF16", "F8_E4M3", "save it in the base's dtype"),
        ("F64", "F32", "save it in the base's dtype"),
        ("BOOL", "BF16", "save it in the base's dtype"),
    ],
)
def test_incompatible_dtype(tmp_path: Path, left: str, right: str, remedy: str) -> None:
    base = save(tmp_path / "base", {"w": random_tensor(1, left, 8, 8)})
    tuned = save(tmp_path / "tuned", {"w": random_tensor(1, right, 8, 8)})
    with pytest.raises(DtypeMismatchError, match=f"{re.escape(remedy)}.*--keep-dtype"):
        encode_delta(base, tuned, tmp_path / "delta")
    prove(base, tuned, tmp_path, keep_dtype=True)


# --- files -----------------------------------------------------------------------------------


def test_different_shards(tmp_path: Path) -> None:
    base = model()
    names = list(base)
    tuned = {name: tune(t, 3) for name, t in base.items()}
    old = save_sharded(
        tmp_path / "base", *({n: base[n] for n in part} for part in (names[:1], names[1:]))
    )
    new = save_sharded(
        tmp_path / "tuned", *({n: tuned[n] for n in part} for part in (names[::2], names[1::2]))
    )
    prove(old, new, tmp_path)
    prove(save(tmp_path / "one", base), new, tmp_path / "from-one")


def test_side_files_are_stored(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model())
    tuned = save(tmp_path / "tuned", model())
    (tuned / "config.json").write_text("{}")
    (tuned / "optimizer.pt").write_bytes(b"pickle")
    report = encode_delta(base, tuned, tmp_path / "delta")
    assert report.carried_files == ["config.json"]
    assert report.skipped_files == ["optimizer.pt"]
    apply_delta(tmp_path / "delta", tmp_path / "out", base=base)
    assert set(contents(tmp_path / "out")) == {SINGLE, "config.json"}


def test_links_in_a_delta_are_not_followed(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model())
    encode_delta(base, base, tmp_path / "delta")
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("config.json", "chat.jinja"):
        (secret / name).write_text("hf_secret")
    (tmp_path / "delta" / ".git").mkdir()
    (tmp_path / "delta" / ".git" / "config").write_text("hf_secret")
    for name, target in (
        ("config.json", secret / "config.json"),
        ("tokenizer.json", "../secret/config.json"),
        ("vocab.json", ".git/config"),
        ("additional_chat_templates", secret),
    ):
        link = tmp_path / "delta" / name
        link.symlink_to(target)
        with pytest.raises(CheckpointError, match="is a link") as caught:
            apply_delta(tmp_path / "delta", tmp_path / "out", base=base)
        assert str(link) in str(caught.value)
        assert not (tmp_path / "out").exists()
        link.unlink()


def test_links_out_of_a_checkpoint_are_followed_only_on_request(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", model()), save(tmp_path / "tuned", model())
    (base / "config.json").write_text("{}")
    (tuned / "config.json").symlink_to(base / "config.json")
    (tuned / "vocab.json").write_text("{}")
    (tuned / "tokenizer.json").symlink_to("vocab.json")
    report = encode_delta(base, tuned, tmp_path / "delta")
    assert report.carried_files == ["tokenizer.json", "vocab.json"]
    assert report.skipped_files == ["config.json"]
    assert any("config.json is a link" in note for note in report.notes)
    encode_delta(base, tuned, tmp_path / "named", include=["config.json"])
    for name in ("tokenizer.json", "vocab.json", "config.json"):
        assert (tmp_path / "named" / name).read_text() == "{}"
        assert not (tmp_path / "named" / name).is_symlink()


def test_links_of_the_cache_are_followed(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model())
    snapshot = tmp_path / "models--me--run" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    encode_delta(base, base, snapshot / "step-1")
    (tmp_path / "models--me--run" / "blobs").mkdir()
    (tmp_path / "models--me--run" / "blobs" / "a1").write_text("{}")
    (snapshot / "step-1" / "config.json").symlink_to("../../../blobs/a1")
    (tmp_path / "elsewhere").symlink_to(snapshot / "step-1")
    apply_delta(tmp_path / "elsewhere", tmp_path / "out", base=base)
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_single_files(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    tensors = model()
    base.write_bytes(file_bytes(tensors))
    tuned.write_bytes(file_bytes({n: tune(t, 1) for n, t in tensors.items()}, {"b": "1", "a": "2"}))
    prove(base, tuned, tmp_path)


@pytest.mark.parametrize("name", ["my model.safetensors", "weights", "über.safetensors"])
def test_invalid_file_name_is_rejected_before_encoding(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(file_bytes(model()))
    try:
        encode_delta(tmp_path / name, tmp_path / name, tmp_path / "delta")
    except CheckpointError:
        return
    apply_delta(tmp_path / "delta", tmp_path / "out", base=tmp_path / name)


@pytest.mark.parametrize("text", ["1", "[1.50]", "null", '{"é": 1e3}'])
def test_odd_index_files(tmp_path: Path, text: str) -> None:
    tuned = save_sharded(tmp_path / "tuned", {"a": bf16_tensor(1, 4)}, {"b": bf16_tensor(2, 4)})
    fields = json.loads((tuned / INDEX).read_text())
    (tuned / INDEX).write_text(
        f'{{"metadata":{text},"weight_map":{json.dumps(fields["weight_map"])}}}', encoding="utf-8"
    )
    prove(tuned, tuned, tmp_path)


def test_an_index_file_with_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    tuned = save_sharded(tmp_path / "tuned", {"a": bf16_tensor(1, 4)}, {"b": bf16_tensor(2, 4)})
    fields = json.loads((tuned / INDEX).read_text())
    (tuned / INDEX).write_text(json.dumps(fields | {"metadata": "\ud800"}))
    with pytest.raises(CheckpointError, match="surrogate"):
        encode_delta(tuned, tuned, tmp_path / "delta")


def test_an_index_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    tuned = save_sharded(tmp_path / "tuned", {"a": bf16_tensor(1, 4)}, {"b": bf16_tensor(2, 4)})
    file = file_bytes({"a": bf16_tensor(1, 4), "unlisted": bf16_tensor(3, 4)})
    (tuned / "model-00001-of-00002.safetensors").write_bytes(file)
    with pytest.raises(CheckpointError, match="'unlisted'"):
        encode_delta(tuned, tuned, tmp_path / "delta")


def test_files_that_differ_by_case_are_refused(tmp_path: Path) -> None:
    tuned = save_sharded(tmp_path / "tuned", {"a": bf16_tensor(1, 4)}, {"b": bf16_tensor(2, 4)})
    if (tuned / INDEX.upper()).exists():
        pytest.skip("this file system ignores case")
    for old, new in (("model-00001-of-00002", "M"), ("model-00002-of-00002", "m")):
        (tuned / f"{old}.safetensors").rename(tuned / f"{new}.safetensors")
    write_index(tuned, {"a": "M.safetensors", "b": "m.safetensors"}, {})
    with pytest.raises(CheckpointError, match="differ by case"):
        encode_delta(tuned, tuned, tmp_path / "delta")


def test_a_header_with_a_lone_surrogate(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    text = b'{"__metadata__":{"a":"\\ud800"}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        prove(path, path, tmp_path)
    except CheckpointError:
        return


def test_metadata_of_a_million_braces(tmp_path: Path) -> None:
    # Signs within texts are no objects, of which a header may hold only so many.
    signs = np.random.default_rng(1).choice(list('{{{{[[[["\\:,ab'), 4 * MAX_TENSORS)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    tensor = bf16_tensor(1, 64, 64)
    base.write_bytes(file_bytes({"w": tensor}, {"a": "".join(signs)}))
    tuned.write_bytes(file_bytes({"w": tune(tensor, 2)}, {"a": "".join(signs)}))
    prove(base, tuned, tmp_path)
    tuned.write_bytes(file_bytes({"w": tune(tensor, 2)}, {"a": "{" * MAX_TENSORS}))
    with pytest.raises(CheckpointError, match="shorter metadata"):
        encode_delta(base, tuned, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(StrictJsonError, match="more than 2 objects"):
        parse(b'{"a":{"{{{":1},"b":{}}', most_objects=2)
    assert parse(b'{"a":{"{{{":"[[[[["}}', most_objects=2) == {"a": {"{{{": "[[[[["}}


def test_threads_and_shards(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model() | {"x": random_tensor(1, "BF16", 5)})
    tuned = save(tmp_path / "tuned", {n: tune(t, 4) for n, t in model().items()})
    found = []
    for threads in (1, 2, 4):
        out = tmp_path / f"delta-{threads}"
        report = encode_delta(base, tuned, out, threads=threads, shard_bytes=64)
        found.append(contents(out))
        assert report.delta_bytes == sum(map(len, found[-1].values()))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5
    assert verify_delta(tmp_path / "delta-1", base=base, tuned=tuned).chunks == 4
    apply_delta(tmp_path / "delta-1", tmp_path / "out", base=base, threads=1)
    assert contents(tmp_path / "out") == contents(tuned)


# --- another base, another tuned checkpoint --------------------------------------------------

BASE = {
    "a.same": bf16_tensor(1, 16, 16),
    "b.delta": bf16_tensor(2, 2000, 1100),
    "c.short": bf16_tensor(3, 1024, 16),
    "d.gone": bf16_tensor(4, 16),
    "e.same": bf16_tensor(5, 16, 16),
}


def tuned_of(base: Tensors) -> Tensors:
    words = base["b.delta"].words(np.uint16)
    words[5] ^= 1
    return {
        "a.same": base["a.same"],
        "b.delta": base["b.delta"].with_words(words),
        "c.short": Tensor("BF16", (512, 16), tune(base["c.short"], 1).data[: 512 * 32]),
        "e.same": base["e.same"],
    }


def flipped(tensor: Tensor, position: int) -> Tensor:
    words = tensor.words(np.uint16)
    words[position] ^= 0x4000
    return tensor.with_words(words)


WRONG: dict[str, Tensors] = {
    "in a chunk": BASE | {"b.delta": flipped(BASE["b.delta"], 9)},
    "outside any chunk": BASE | {"b.delta": flipped(BASE["b.delta"], -1)},
    "beyond the shared part": BASE | {"c.short": flipped(BASE["c.short"], -1)},
    "unchanged tensor": BASE | {"a.same": flipped(BASE["a.same"], 0)},
    "last tensor, unchanged": BASE | {"e.same": flipped(BASE["e.same"], 0)},
    "missing": {name: t for name, t in BASE.items() if name != "b.delta"},
    "dtype": BASE | {"a.same": replace(BASE["a.same"], dtype="F16")},
    "shape": BASE | {"a.same": bf16_tensor(1, 15, 16)},
    "longer": BASE | {"c.short": bf16_tensor(3, 1025, 16)},
}


@pytest.fixture(scope="module")
def wrong_base_delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two deltas against BASE; the last tensor of the second is stored whole."""
    folder = tmp_path_factory.mktemp("wrong")
    base = save(folder / "base", BASE)
    tuned = tuned_of(BASE)
    encode_delta(base, save(folder / "tuned", tuned), folder / "plain")
    added = tuned | {"z.added": random_tensor(9, "BF16", 7)}
    encode_delta(base, save(folder / "more", added), folder / "added")
    return folder


@pytest.mark.parametrize("delta", ["plain", "added"])
def test_the_right_base_is_accepted(wrong_base_delta: Path, delta: str) -> None:
    verify_delta(wrong_base_delta / delta, base=wrong_base_delta / "base")


@pytest.mark.parametrize("delta", ["plain", "added"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_base_is_reported(
    wrong_base_delta: Path, tmp_path: Path, what: str, delta: str
) -> None:
    base = save(tmp_path / "base", WRONG[what])
    with pytest.raises(BaseMismatchError):
        apply_delta(wrong_base_delta / delta, tmp_path / "out", base=base, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    with pytest.raises(BaseMismatchError):
        verify_delta(wrong_base_delta / delta, base=base)


@pytest.mark.parametrize(
    "extra",
    [{"d.gone": flipped(BASE["d.gone"], 0)}, {"f.more": bf16_tensor(1, 4)}, None],
    ids=["changed", "more", "missing"],
)
def test_verify_checks_unused_base_tensors(
    wrong_base_delta: Path, tmp_path: Path, extra: Tensors | None
) -> None:
    tensors = {n: t for n, t in BASE.items() if n != "d.gone"} if extra is None else BASE | extra
    base = save(tmp_path / "base", tensors)
    with pytest.raises(BaseMismatchError):
        verify_delta(wrong_base_delta / "plain", base=base)


@pytest.mark.parametrize("what", ["values", "missing", "more", "dtype", "shape"])
def test_verify_rejects_another_tuned_checkpoint(
    wrong_base_delta: Path, tmp_path: Path, what: str
) -> None:
    tuned = tuned_of(BASE)
    same = tuned["a.same"]
    others: dict[str, Tensors] = {
        "values": {"a.same": flipped(same, 3)},
        "more": {"other": same},
        "dtype": {"a.same": replace(same, dtype="F16")},
        "shape": {"a.same": replace(same, shape=(8, 32))},
        "missing": {},
    }
    changed = tuned | others[what]
    if what == "missing":
        del changed["a.same"]
    with pytest.raises(VerificationError):
        verify_delta(wrong_base_delta / "plain", tuned=save(tmp_path / "tuned", changed))


# --- the report ------------------------------------------------------------------------------


def order_of(words: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> list[int]:
    return [-(int(w) & 0x7FFF) - 1 if w & 0x8000 else int(w) for w in words]


def test_report_equals_brute_force(tmp_path: Path) -> None:
    names = ["model.embed.weight", "model.layers.0.q.weight", "model.layers.1.q.weight", "q.bias"]
    base = {name: bf16_tensor(n, 40, 30 + n) for n, name in enumerate(names)}
    tuned, rng = {}, np.random.default_rng(5)
    changed: dict[str, int] = {}
    steps = [0] * 8
    for name, tensor in base.items():
        before = tensor.words(np.uint16).astype(np.uint16)
        move = rng.integers(-6, 7, before.size) * (rng.random(before.size) < 0.05)
        after = (before + move).astype(np.uint16)
        tuned[name] = tensor.with_words(after)
        changed[name] = int((before != after).sum())
        for b, t in zip(order_of(before), order_of(after), strict=True):
            if b != t:
                steps[min(abs(t - b), 4) - 1 + (0 if t < b else 4)] += 1
    report = prove_pair(tmp_path, base, tuned)
    assert {t.name: t.changed for t in report.tensors} == changed
    assert report.steps == steps
    assert report.elements == sum(len(t.data) // 2 for t in base.values())
    assert report.density == report.changed / report.elements
    q = [names[1], names[2]]
    groups = {g.name: (g.tensors, g.elements, g.changed) for g in report.modules}
    assert groups["q"] == (2, sum(len(base[n].data) // 2 for n in q), sum(changed[n] for n in q))
    layers = {g.name: g.changed for g in report.layers}
    assert layers["0"] == changed[names[1]]
    assert layers["other"] == changed[names[0]] + changed[names[3]]
    assert report.delta_bytes == sum(map(len, contents(tmp_path / "delta").values()))
    inspected = inspect_delta(tmp_path / "delta").as_json()
    whole = report.as_json()
    assert inspected == {key: whole[key] for key in inspected}
    json.dumps(whole)
    measured = measure_pair(tmp_path / "base", tmp_path / "tuned")
    assert measured.delta_bytes == report.delta_bytes
    assert measured.tensors == report.tensors

"""Reading checkpoints: what is accepted, what is refused, and how files are described."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import (
    INDEX,
    SINGLE,
    bf16_tensor,
    file_bytes,
    framed,
    random_tensor,
    save,
    save_sharded,
    write_index,
)

from rlsparse_store.errors import CheckpointError, NotFoundError, PickleRefusedError, RlsparseError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.checkpoint_layout import (
    FileLayout,
    IndexLayout,
    LayoutError,
    TensorShape,
    describe_file,
    describe_index,
    rebuild_header,
    rebuild_index,
)
from rlsparse_store.files.hub_cache import base_hint_from_path
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.header import HeaderError, parse_header

if TYPE_CHECKING:
    from pairs import Tensors

# --- headers ---------------------------------------------------------------------------------

ENTRY = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


def entry(dtype: str = '"U8"', shape: str = "[2]", offsets: str = "[0,2]") -> str:
    return f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


BROKEN = {
    "empty": "",
    "array": "[]",
    "leading space": " {}",
    "byte-order mark": "\ufeff" + entry(),
    "cut short": entry()[:-1],
    "trailing text": entry() + "x",
    "duplicate tensor": f'{{"w":{ENTRY},"w":{ENTRY}}}',
    "duplicate field": '{"w":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "duplicate metadata": f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{ENTRY}}}',
    "duplicate metadata key": f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{ENTRY}}}',
    "number in metadata": f'{{"__metadata__":{{"a":1}},"w":{ENTRY}}}',
    "metadata is a list": f'{{"__metadata__":[],"w":{ENTRY}}}',
    "missing field": '{"w":{"dtype":"U8","shape":[2]}}',
    "unknown field": '{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":0}}',
    "entry is a list": '{"w":[]}',
    "unknown dtype": entry(dtype='"Q4"'),
    "dtype is a number": entry(dtype="4"),
    "dtype is a list": entry(dtype="[]"),
    "fraction": entry(shape="[2.0]"),
    "exponent": entry(shape="[2e0]"),
    "boolean": entry(shape="[true,2]"),
    "negative": entry(shape="[-2]"),
    "negative pair": entry(shape="[-1,-2]"),
    "text": entry(shape='["2"]'),
    "null": entry(shape="null"),
    "not a number": entry(shape="[NaN]"),
    "infinity": entry(shape="[Infinity]"),
    "huge": entry(shape="[18446744073709551618]"),
    "long": entry(shape=f"[{'9' * 5000}]"),
    "huge product": entry(shape="[4294967296,4294967296]"),
    "rank": entry(shape=f"[{'1,' * 32}2]"),
    "one offset": entry(offsets="[0]"),
    "three offsets": entry(offsets="[0,2,2]"),
    "offset is a boolean": entry(offsets="[false,2]"),
    "offset is a fraction": entry(offsets="[0.0,2]"),
    "offsets swapped": entry(offsets="[2,0]"),
    "too long": entry(offsets="[0,3]"),
    "past the end": entry(offsets="[1,3]"),
    "shape of other size": entry(shape="[3]"),
    "deep": '{"w":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep objects": '{"w":' * 50_000 + "0" + "}" * 50_000,
    "half a byte": '{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}',
    "empty name": f'{{"":{ENTRY}}}',
    "control character": f'{{"a\\u0007":{ENTRY}}}',
    "escape sequence": f'{{"a\\u001b[2J":{ENTRY}}}',
    "reversed text": f'{{"a\\u202e":{ENTRY}}}',
    "surrogate": f'{{"a\\ud800":{ENTRY}}}',
    "long name": f'{{"{"a" * 1025}":{ENTRY}}}',
    "long name in bytes": f'{{"{"é" * 513}":{ENTRY}}}',
}


def two(first: tuple[int, int], second: tuple[int, int]) -> str:
    def one(span: tuple[int, int]) -> dict[str, Any]:
        return {"dtype": "U8", "shape": [span[1] - span[0]], "data_offsets": list(span)}

    return json.dumps({"a": one(first), "b": one(second)})


COVERS = {
    "overlap": two((0, 2), (1, 3)),
    "same place": two((0, 3), (0, 3)),
    "hole": two((0, 1), (2, 3)),
    "hole at the start": two((1, 2), (2, 3)),
    "hole at the end": two((0, 1), (1, 2)),
    "past the end": two((0, 2), (2, 4)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_headers_that_are_refused(what: str) -> None:
    with pytest.raises(HeaderError):
        parse_header(BROKEN[what].encode("utf-8", "surrogatepass"), 2)


@pytest.mark.parametrize("what", COVERS)
def test_data_must_be_covered_once(what: str) -> None:
    with pytest.raises(HeaderError):
        parse_header(COVERS[what].encode(), 3)


def test_headers_that_are_accepted() -> None:
    (found,) = parse_header(entry().encode() + b"  ", 2).entries
    assert (found.name, found.dtype, found.shape) == ("w", DTYPES["U8"], (2,))
    assert (found.start, found.end) == (0, 2)
    assert parse_header(b"{}", 0).entries == []
    assert parse_header(b'{"__metadata__":{"a":"b"}}', 0).metadata == {"a": "b"}
    unordered = two((2, 3), (0, 2))
    assert [e.name for e in parse_header(unordered.encode(), 3).entries] == ["a", "b"]
    with_empty = two((0, 0), (0, 3))
    assert len(parse_header(with_empty.encode(), 3).entries) == 2


@given(st.binary(max_size=80) | st.text(alphabet='{}[]",:01aw _', max_size=80).map(str.encode))
def test_any_header_parses_or_is_refused(header: bytes) -> None:
    try:
        parse_header(header, 0)
    except HeaderError:
        return


@given(st.data())
def test_a_header_with_a_changed_byte_parses_or_is_refused(data: st.DataObject) -> None:
    text = bytearray(two((0, 2), (2, 3)).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.sampled_from(string.printable.encode()))
    try:
        parse_header(bytes(text), 3)
    except HeaderError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        (100).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        (1).to_bytes(8, "little") + b"{}",
        framed("{}", b"x"),
        framed(entry(), b"x"),
    ],
)
def test_files_whose_lengths_lie(tmp_path: Path, data: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(data)
    with pytest.raises(CheckpointError, match=SINGLE), open_checkpoint(tmp_path):
        pass


def test_a_long_header_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / SINGLE).open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(100_000_100)
    with pytest.raises(CheckpointError, match="at most 100000000"), open_checkpoint(tmp_path):
        pass


# --- folders ---------------------------------------------------------------------------------

A: Tensors = {"a": bf16_tensor(1, 2, 3)}
B: Tensors = {"b": random_tensor(2, "I8", 5)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refused(path: Path, match: str, error: type[RlsparseError] = CheckpointError) -> None:
    with pytest.raises(error, match=match), open_checkpoint(path):
        pass


def test_one_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", B | A)
    for path in (folder, folder / SINGLE):
        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == ["a", "b"]
            for name, tensor in (A | B).items():
                ref = checkpoint.tensors[name]
                assert (ref.dtype.code, ref.shape) == (tensor.dtype, tensor.shape)
                assert checkpoint.read(ref, 0, ref.nbytes).tobytes() == tensor.data
                assert checkpoint.read(ref, 1, 2).tobytes() == tensor.data[1:3]
            assert checkpoint.nbytes == 17
            checkpoint.check_unchanged()


def test_several_files(tmp_path: Path) -> None:
    with open_checkpoint(save_sharded(tmp_path / "m", B, A)) as checkpoint:
        assert [file.name for file in checkpoint.files] == [FIRST, SECOND]
        assert {n: t.file for n, t in checkpoint.tensors.items()} == {"a": 1, "b": 0}


def test_links_are_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(file_bytes(A))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / SINGLE).symlink_to(blob)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_one_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(file_bytes(A))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.files[0].name == "adapter_model.safetensors"


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "no", "no such", NotFoundError)
    refused(tmp_path, "no safetensors file")
    refused(Path("org/name-of-no-folder"), "Hub ids look like ORG/NAME", NotFoundError)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "00.pth", "x.pt"])
def test_pickles_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path, "save_pretrained", PickleRefusedError)
    refused(tmp_path / name, "save_pretrained", PickleRefusedError)


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    (folder / "pytorch_model.bin").touch()
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_an_index_that_an_earlier_save_left_is_not_read(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / SINGLE).write_bytes(file_bytes(B))
    for removed in (FIRST, SECOND):
        # As `save_pretrained` does it, shards may be removed while their index stays.
        (folder / removed).unlink()
        with open_checkpoint(folder) as checkpoint:
            assert [file.name for file in checkpoint.files] == [SINGLE]
            assert list(checkpoint.tensors) == ["b"]
            assert checkpoint.index_text is None
            assert "not read" in checkpoint.notes[0]


def test_an_index_of_the_single_file_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    write_index(folder, {"a": SINGLE}, {})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.index_text == (folder / INDEX).read_bytes()


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE)
    refused(tmp_path, "not a regular file")


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    (folder / SECOND).unlink()
    refused(folder, f"{SECOND} is missing")
    write_index(folder, {}, {})
    refused(folder, "names 0 files")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..",
        "",
        "model.gguf",
        ".hidden.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
        "NUL.safetensors",
        "x.safetensors\n",
        "x\u202e.safetensors",
    ],
)
def test_index_with_a_name_that_is_no_plain_file(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "m", A)
    (tmp_path / "x.safetensors").write_bytes(file_bytes(B))
    write_index(folder, {"a": SINGLE, "b": name}, {})
    refused(folder, "not a plain safetensors file name")


def test_a_pickle_in_the_index(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    write_index(folder, {"a": SINGLE, "b": "pytorch_model.bin"}, {})
    refused(folder, "pickled", PickleRefusedError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map":[]}',
        '{"weight_map":{"a":1}}',
        '{"weight_map":{"a":"model.safetensors","a":"model.safetensors"}}',
        '{"weight_map":{"a":"model.safetensors"}} x',
        "[" * 100_000,
        '{"weight_map":{"a":"model.safetensors"},"metadata":NaN}',
    ],
)
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "m", A)
    (folder / INDEX).write_text(text)
    refused(folder, INDEX)


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    write_index(folder, {"a": SECOND, "b": FIRST}, {})
    refused(folder, "'a': is not in")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", A)
    with open_checkpoint(folder) as checkpoint:
        (folder / SINGLE).write_bytes(b"shorter")
        with pytest.raises(RlsparseError, match="cut short"):
            checkpoint.read(checkpoint.tensors["a"], 0, 12)
        with pytest.raises(RlsparseError, match="was changed"):
            checkpoint.check_unchanged()


# --- layouts ---------------------------------------------------------------------------------


def shapes_of(checkpoint: Checkpoint) -> list[TensorShape]:
    tensors = [TensorShape(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values()]
    return tensors[::-1]


def layout_of(path: Path) -> FileLayout:
    """The layout of a file, once it is proved that it rebuilds it."""
    with open_checkpoint(path) as checkpoint:
        (file,) = checkpoint.files
        layout = describe_file(file)
        framed_header, entries = rebuild_header(layout, shapes_of(checkpoint))
        data = (path if path.is_file() else path / file.name).read_bytes()
        assert data.startswith(framed_header)
        places = {e.name: len(framed_header) + e.start for e in entries}
        assert places == {name: t.offset for name, t in checkpoint.tensors.items()}
    return layout


MIXED = {
    "z.f32": np.zeros((2, 3), np.float32),
    "a.f16": np.ones(3, np.float16),
    "b.i64": np.arange(4),
    "b.bool": np.array([True, False]),
    'q"\\é\U0001f600': np.zeros(0, np.uint8),
}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "np"}, {"b": 'é"\\\n', "a": "/"}])
def test_files_of_safetensors_numpy(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    for tensors in (MIXED, {"b": MIXED["a.f16"], "a": MIXED["a.f16"]}):
        numpy_files.save_file(tensors, tmp_path / SINGLE, metadata)
        assert layout_of(tmp_path / SINGLE).layout in (0, 1)


def test_files_of_safetensors_torch(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    torch_files = pytest.importorskip("safetensors.torch")
    kinds = ("bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool")
    tensors = {f"{n}.{k}": torch.zeros(3, dtype=getattr(torch, k)) for n, k in enumerate(kinds)}
    torch_files.save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
    assert layout_of(tmp_path / SINGLE).layout in (0, 1)


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_checkpoints_of_transformers(tmp_path: Path, shard: str) -> None:
    pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=40,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size=shard)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (len(checkpoint.files) > 1) == (shard == "4KB")
        for number, file in enumerate(checkpoint.files):
            layout = describe_file(file)
            assert layout.layout in (0, 1)
            mine = [t for t in checkpoint.tensors.values() if t.file == number]
            shapes = [TensorShape(t.name, t.dtype, t.shape) for t in mine]
            rebuilt = rebuild_header(layout, shapes)[0]
            assert (tmp_path / file.name).read_bytes().startswith(rebuilt)
        index = describe_index(checkpoint)
        assert index.layout == (1 if shard == "4KB" else 0)
        names = {n: checkpoint.files[t.file].name for n, t in checkpoint.tensors.items()}
        assert rebuild_index(index, names) == checkpoint.index_text


def odd_headers() -> dict[str, bytes]:
    text = file_bytes(A | B)
    plain = text[8 : 8 + int.from_bytes(text[:8], "little")].rstrip()
    data = text[-17:]
    unpadded = plain + b" " * (3 - len(plain) % 2)
    return {
        "order": file_bytes(A | B, order=["b", "a"]),
        "spaces": framed(json.dumps(json.loads(plain)), data),
        "padding": len(unpadded).to_bytes(8, "little") + unpadded + data,
        "escapes": framed(b'{"__metadata__":{"a":"\\u00e9"},' + plain[1:], data),
        "newline": framed(plain + b"\n", data),
        "null": framed(b'{"__metadata__":null,' + plain[1:], data),
        "metadata last": framed(plain[:-1] + b',"__metadata__":{"a":"b"}}', data),
    }


@pytest.mark.parametrize("what", odd_headers())
def test_odd_headers_are_kept(tmp_path: Path, what: str) -> None:
    (tmp_path / SINGLE).write_bytes(odd_headers()[what])
    assert layout_of(tmp_path / SINGLE).layout == 2


def test_a_layout_must_fit_the_tensors() -> None:
    shapes = [TensorShape("w", DTYPES["U8"], (2,))]
    verbatim = entry().encode()
    expected = len(verbatim).to_bytes(8, "little") + verbatim
    assert rebuild_header(FileLayout("x", 2, verbatim), shapes)[0] == expected
    for broken in (
        FileLayout("x", 2, b"{}"),
        FileLayout("x", 2, entry(dtype='"I8"').encode()),
        FileLayout("x", 2, b"no"),
        FileLayout("x", 0, b'{"a":1}'),
        FileLayout("x", 0, b'{},"v":' + ENTRY.encode()),
        FileLayout("x", 1, b"null}"),
        FileLayout("x", 0, b"\xff"),
    ):
        with pytest.raises(LayoutError):
            rebuild_header(broken, shapes)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (1, b""),
        (1, b"{"),
        (1, b"\xff"),
        (1, b'{"a":1,"a":2}'),
        (2, b"[]"),
        (2, b"{}"),
        (2, b'{"weight_map":{"a":"other.safetensors"}}'),
    ],
)
def test_an_index_layout_must_be_sound(layout: int, text: bytes) -> None:
    with pytest.raises(LayoutError):
        rebuild_index(IndexLayout(layout, text), {"a": FIRST})


@pytest.mark.parametrize("kind", ["plain", "float", "unicode", "no newline", "more keys"])
def test_index_files(tmp_path: Path, kind: str) -> None:
    folder = save_sharded(tmp_path / "m", A, B)
    weight_map = {"a": FIRST, "b": SECOND}
    if kind == "float":
        write_index(folder, weight_map, {"total_size": 17.0, "total_parameters": 11})
    elif kind == "unicode":
        write_index(folder, weight_map, {"é": ["\n", None, True]})
    elif kind == "no newline":
        (folder / INDEX).write_bytes((folder / INDEX).read_bytes().rstrip())
    elif kind == "more keys":
        fields = {"metadata": {}, "weight_map": weight_map, "x": 1}
        (folder / INDEX).write_text(json.dumps(fields, indent=2))
    with open_checkpoint(folder) as checkpoint:
        layout = describe_index(checkpoint)
        assert layout.layout == (1 if kind == "plain" else 2)
        assert rebuild_index(layout, weight_map) == (folder / INDEX).read_bytes()


# --- hints -----------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "repo"),
    [
        (f"/home/me/.cache/models--Qwen--Qwen2.5-0.5B/snapshots/{COMMIT}", "Qwen/Qwen2.5-0.5B"),
        (f"models--a--b_c/snapshots/{COMMIT}/{SINGLE}", "a/b_c"),
        (f"/x/models--a--b/snapshots/{COMMIT[:-1]}", None),
        (f"/x/models--a--b/snapshots/{COMMIT.upper()}", None),
        (f"/x/models--a--b/refs/{COMMIT}", None),
        (f"/x/datasets--a--b/snapshots/{COMMIT}", None),
        (f"/x/models--gpt2/snapshots/{COMMIT}", None),
        (f"/x/models--a--b\u202e/snapshots/{COMMIT}", None),
        ("/x/checkpoint", None),
    ],
)
def test_hints_of_the_hub_cache(path: str, repo: str | None) -> None:
    hints = base_hint_from_path(Path(path))
    assert (hints.repo if hints else None) == repo
    assert hints is None or hints.revision == COMMIT

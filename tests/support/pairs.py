"""Small checkpoints, written without safetensors, and operations on pairs of them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlsparse_store.delta import apply_delta, encode_delta, verify_delta
from rlsparse_store.format.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.delta import EncodeReport

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Tensor:
    """A tensor: dtype code, dimensions, little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def words(self, dtype: type[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Return a writable copy of the words."""
        return np.frombuffer(self.data, dtype).copy()

    def with_words(self, words: NDArray[np.unsignedinteger[Any]]) -> Tensor:
        """Return the tensor with other words."""
        return replace(self, data=words.tobytes())


Tensors = dict[str, Tensor]


def random_tensor(seed: int, dtype: str, *shape: int) -> Tensor:
    """Return a tensor of random bits, which include NaN payloads."""
    elements = int(np.prod(shape, dtype=np.int64))
    nbytes = elements * DTYPES[dtype].bits // 8
    return Tensor(dtype, shape, np.random.default_rng(seed).bytes(nbytes))


def bf16_tensor(seed: int, *shape: int) -> Tensor:
    """Return a tensor of normally distributed bfloat16 weights."""
    values = np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)
    return Tensor("BF16", shape, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def tune(tensor: Tensor, seed: int, density: float = 0.02) -> Tensor:
    """Flip the lowest bit of some 16-bit words."""
    rng = np.random.default_rng(seed)
    words = tensor.words(np.uint16)
    hit = rng.random(words.size) < density
    return tensor.with_words(np.where(hit, words ^ 1, words).astype(np.uint16))


def file_bytes(
    tensors: Tensors, metadata: dict[str, str] | None = None, *, order: Iterable[str] | None = None
) -> bytes:
    """Return a safetensors file with its tensors in this order, by default by name."""
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place, data = 0, []
    for name in sorted(tensors) if order is None else order:
        t = tensors[name]
        offsets = [place, place + len(t.data)]
        fields[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": offsets}
        place += len(t.data)
        data.append(t.data)
    return framed(json.dumps(fields, separators=(",", ":"), ensure_ascii=False), b"".join(data))


def framed(header: str | bytes, data: bytes = b"") -> bytes:
    """Return a file with this header, padded, and this data."""
    text = header if isinstance(header, bytes) else header.encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def save(folder: Path, tensors: Tensors) -> Path:
    """Write a checkpoint of one file."""
    folder.mkdir(parents=True)
    (folder / SINGLE).write_bytes(file_bytes(tensors, {"format": "pt"}))
    return folder


def save_training(
    base: Path, trainer: Path, logs: Mapping[int, Sequence[dict[str, float]]]
) -> dict[str, Path]:
    """Save a base, and the checkpoints that a trainer leaves of it, each with its state.

    Args:
        base: Folder of the base.
        trainer: Folder of the checkpoints.
        logs: What the trainer has logged, by the step of a checkpoint.

    Returns:
        The folders of the checkpoints, by name.
    """
    tensors: Tensors = {f"layers.{n}.weight": bf16_tensor(n, 60, 64) for n in range(2)}
    save(base, tensors)
    saved = {}
    for number, log in logs.items():
        tensors = {name: tune(t, number, 0.05) for name, t in tensors.items()}
        path = save(trainer / f"checkpoint-{number}", tensors)
        state = {"global_step": number, "log_history": log}
        (path / "trainer_state.json").write_text(json.dumps(state))
        saved[path.name] = path
    return saved


def save_sharded(folder: Path, *shards: Tensors) -> Path:
    """Write a checkpoint of several files and their index."""
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / name).write_bytes(file_bytes(tensors, {"format": "pt"}))
        weight_map |= dict.fromkeys(tensors, name)
    size = sum(len(t.data) for tensors in shards for t in tensors.values())
    write_index(folder, weight_map, {"total_size": size})
    return folder


def write_index(folder: Path, weight_map: dict[str, str], metadata: dict[str, Any]) -> None:
    """Write an index file as transformers does."""
    fields = {"metadata": metadata, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def prove(base: Path, tuned: Path, work: Path, **options: Any) -> EncodeReport:  # noqa: ANN401
    """Encode, apply, compare the files, verify; the delta is left at ``work / "delta"``."""
    report = encode_delta(base, tuned, work / "delta", threads=2, **options)
    apply_delta(work / "delta", work / "out", base=base, threads=2)
    expected = contents(tuned) if tuned.is_dir() else {tuned.name: tuned.read_bytes()}
    assert contents(work / "out") == expected
    verified = verify_delta(work / "delta", base=base, tuned=tuned, threads=2)
    assert verified.decoded
    return report


# --- pairs of many tensors ---------------------------------------------------------------------

MIXED_SHAPES = [
    (1,),
    (7,),
    (16, 32),
    (3, 5, 11),
    (0, 4),
    (),
    (64, 64),
    (8192,),
    (8193,),
]
MIXED_DTYPES = ["BF16", "BF16", "BF16", "F16", "F32", "F64", "I8", "U8", "I32", "I64", "F8_E4M3"]


def random_pair(rng: np.random.Generator, count: int) -> tuple[Tensors, Tensors]:
    """A pair of many tensors, most of them small and unchanged or tuned, some of any other fate."""
    base: Tensors = {}
    tuned: Tensors = {}
    for i in range(count):
        name, seed = f"t.{i}", int(rng.integers(2**32))
        code, shape = rng.choice(MIXED_DTYPES), MIXED_SHAPES[rng.integers(len(MIXED_SHAPES))]
        old = bf16_tensor(seed, *shape) if code == "BF16" else random_tensor(seed, code, *shape)
        base[name] = tuned[name] = old
        fate = rng.integers(12)
        data = np.frombuffer(old.data, np.uint8).copy()
        if fate < 6 and data.size:
            bits = rng.integers(0, 256, data.size) * (rng.random(data.size) < rng.choice([0.03, 1]))
            half = data.size // 2 * int(rng.integers(2))  # Some leave many rows without changes.
            data[half:] ^= bits[half:].astype(np.uint8)
            tuned[name] = Tensor(old.dtype, old.shape, data.tobytes())
        elif fate == 6:
            del base[name]
        elif fate == 7 and code == "BF16":
            wide = np.frombuffer(old.data, np.uint16).astype(np.uint32) << 16
            tuned[name] = Tensor("F32", old.shape, wide.tobytes())
        elif fate == 8 and len(shape) == 2:
            more = random_tensor(seed + 1, code, 1, shape[1])
            tuned[name] = Tensor(code, (shape[0] + 1, shape[1]), old.data + more.data)
        elif fate == 9:
            tuned[name] = random_tensor(seed, "F8_E5M2", *shape)
    base["kept"] = tuned["kept"] = bf16_tensor(0, 16, 16)
    return base, tuned


def shuffled(rng: np.random.Generator, tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in rng.permutation(list(tensors))}


def save_shuffled(folder: Path, rng: np.random.Generator, tensors: Tensors) -> Path:
    """Two files whose tensors are in any order."""
    names = list(shuffled(rng, tensors))
    half = len(names) // 2
    save_sharded(
        folder, *({name: tensors[name] for name in part} for part in (names[:half], names[half:]))
    )
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = folder / f"model-{number:05}-of-00002.safetensors"
        file.write_bytes(file_bytes({n: tensors[n] for n in part}, {"format": "pt"}, order=part))
    return folder

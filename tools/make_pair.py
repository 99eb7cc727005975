#!/usr/bin/env python3
"""Write pairs of checkpoints that differ as a base model and its RL-tuned child do.

A pair is two Hugging Face folders, ``OUT/base`` and ``OUT/tuned``: safetensors shards, their index,
and a minimal ``config.json``. The base is Gaussian. The tuned model adds a little noise to it in
float32 and rounds to the stored dtype, so that a word changes only where the noise crosses a
rounding boundary. Tuning a bfloat16 checkpoint at a small learning rate is sparse for the same
reason.

    python tools/make_pair.py out/pair --gib 4 --density 0.02 --shards 4
    python tools/make_pair.py out/moe --tensors 100000 --tuned-shards 3
    python tools/make_pair.py out/one --single 67108864 --density 0.001

The seed determines all data. Tensors are written in chunks with independent random streams, so that
memory is constant and the number of threads does not change the result. Needs numpy, click and a
POSIX system.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Array: TypeAlias = np.ndarray[Any, Any]
Json: TypeAlias = dict[str, Any]

GIB = 1 << 30
BASE_STD = 0.02  # the usual initialization of a transformer, and close to trained weights
CHUNK = 1 << 16  # words; the arrays of a chunk fit in the cache of a core
FLOAT32_MOVE = 1e-5  # far above the spacing of float32, so that every move changes its word
NORM_DENSITY = 0.1  # relative to the density of the other tensors
FROZEN_TENSORS = 0.5  # fraction of expert tensors that tuning never routes to
UNTOUCHED_ROWS = 0.6  # fraction of embedding rows: tokens that tuning never sees

# Purposes of random streams. Streams of two purposes are independent.
_FOR_CHUNK, _FOR_ROWS, _FOR_FROZEN = range(3)


class Kind(Enum):
    """Initial values of a tensor, and which of its words tuning may move."""

    DENSE = "Gaussian; every word may move"
    EMBEDDING = "Gaussian; some rows never move"
    NORM = "ones; few words move"
    FROZEN = "Gaussian; no word moves"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = Kind.DENSE

    @property
    def words(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    """The tensors of a checkpoint, in the order of its files, and its ``config.json``."""

    tensors: Sequence[Tensor]
    config: Json


@dataclass(frozen=True)
class Dtype:
    """A stored dtype.

    Attributes:
        name: Name in safetensors.
        torch_name: Name in ``config.json``.
        word: NumPy dtype of the stored words.
        encode: Rounds float32 to words, ties to even.
        decode: Converts words to float32, exactly.
    """

    name: str
    torch_name: str
    word: np.dtype[Any]
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


@dataclass(frozen=True)
class Move:
    """How the tuned model differs from the base.

    Attributes:
        scale: Standard deviation of the noise added to a word.
        chance: Probability that noise is added to a word: 1 where rounding alone selects the
            words that change.
        norm_chance: Probability that a word of a norm moves to a neighboring value.
        untouched_rows: Fraction of embedding rows that do not move.
    """

    scale: float
    chance: float
    norm_chance: float
    untouched_rows: float


@dataclass(frozen=True)
class Options:
    """Options of a pair.

    Attributes:
        dtype: A key of ``DTYPES``.
        density: Fraction of the words of the checkpoint that change.
        shards: Number of files of the base.
        tuned_shards: Number of files of the tuned model; None for that of the base.
        untouched_rows: Fraction of embedding rows that do not move.
        seed: Seed of all random streams.
        threads: Number of threads. The result does not depend on it.
    """

    dtype: str = "BF16"
    density: float = 0.02
    shards: int = 4
    tuned_shards: int | None = None
    untouched_rows: float = UNTOUCHED_ROWS
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Written:
    """A written pair: words and bytes of one checkpoint, and changed words."""

    words: int
    changed: int
    nbytes: int

    @property
    def density(self) -> float:
        """Fraction of the words that changed."""
        return self.changed / self.words


# --- Stored dtypes ----------------------------------------------------------------------------


def _encode_bf16(values: Array) -> Array:
    """Round float32 to bfloat16 words; values must be finite."""
    bits = values.view(np.uint32)
    # Adding just under half a unit, plus one if the kept half is odd, carries into the kept half
    # exactly when rounding to nearest even rounds up.
    half = (bits >> 16) & 1
    half += 0x7FFF
    half += bits
    half >>= 16
    return half.astype(np.uint16)


def _decode_bf16(words: Array) -> Array:
    """Widen bfloat16 words to float32."""
    bits = words.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _encode_f16(values: Array) -> Array:
    """Round float32 to float16 words."""
    return values.astype(np.float16).view(np.uint16)


def _decode_f16(words: Array) -> Array:
    """Widen float16 words to float32."""
    return words.view(np.float16).astype(np.float32)


def _encode_f32(values: Array) -> Array:
    """Reinterpret float32 as words."""
    return values.view(np.uint32)


def _decode_f32(words: Array) -> Array:
    """Reinterpret words as float32."""
    return words.view(np.float32)


_U16, _U32 = np.dtype(np.uint16), np.dtype(np.uint32)
DTYPES: Mapping[str, Dtype] = {
    "BF16": Dtype("BF16", "bfloat16", _U16, _encode_bf16, _decode_bf16),
    "F16": Dtype("F16", "float16", _U16, _encode_f16, _decode_f16),
    "F32": Dtype("F32", "float32", _U32, _encode_f32, _decode_f32),
}


# --- Models -----------------------------------------------------------------------------------


def llama(words: int, dtype: str, layers: int | None = None) -> Model:
    """A Llama-like model of at most a given size.

    The width is a multiple of 64 and the intermediate size 2.75 times the width. The vocabulary,
    at least 8 times the width, fills the rest, so that the model falls short of the given size by
    less than one row of the embedding and one of the output.

    Args:
        words: Number of elements of the model.
        dtype: A key of ``DTYPES``.
        layers: Number of layers; None for a usual ratio of width to depth.

    Raises:
        click.BadParameter: If the size is too small for the smallest width.
    """
    # A layer has 10.75 width^2 words, embedding and output together 16 width^2; models of this
    # family are about 128 times as wide as deep.
    depth = layers or max(1, round((words / (10.75 * 128**2)) ** (1 / 3)))
    width = math.isqrt(int(words / (10.75 * depth + 16))) // 64 * 64
    blocks = [tensor for layer in range(depth) for tensor in _llama_layer(layer, width)]
    norm = Tensor("model.norm.weight", (width,), Kind.NORM)
    rest = words - sum(tensor.words for tensor in blocks) - norm.words
    if width == 0 or rest < 2 * width:
        msg = f"{words} words are too few for {depth} layers"
        raise click.BadParameter(msg)
    vocabulary = rest // (2 * width)
    embedding = Tensor("model.embed_tokens.weight", (vocabulary, width), Kind.EMBEDDING)
    head = Tensor("lm_head.weight", (vocabulary, width))
    config: Json = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": DTYPES[dtype].torch_name,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_hidden_layers": depth,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }
    return Model([embedding, *blocks, norm, head], config)


def _llama_layer(layer: int, width: int) -> list[Tensor]:
    """The tensors of one layer, with 8 heads, of which 2 have keys and values."""
    inner = width * 11 // 4
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 4, width),
        "self_attn.v_proj": (width // 4, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    prefix = f"model.layers.{layer}"
    return [
        Tensor(f"{prefix}.input_layernorm.weight", (width,), Kind.NORM),
        *(Tensor(f"{prefix}.{name}.weight", shape) for name, shape in shapes.items()),
        Tensor(f"{prefix}.post_attention_layernorm.weight", (width,), Kind.NORM),
    ]


def experts(count: int, words: int, dtype: str, seed: int = 0, layers: int | None = None) -> Model:
    """A mixture of experts with many small tensors, half of them frozen.

    Args:
        count: Number of tensors.
        words: Number of elements of the model, divided equally among tensors in whole rows.
        dtype: A key of ``DTYPES``.
        seed: Selects the frozen tensors.
        layers: Number of layers; 48 if None.
    """
    depth = layers or 48
    per_layer = math.ceil(count / (3 * depth))
    width = 32
    shape = (max(1, words // count // width), width)
    frozen = np.zeros(count, dtype=bool)
    frozen[: int(count * FROZEN_TENSORS)] = True
    _stream(seed, _FOR_FROZEN).shuffle(frozen)
    positions = itertools.product(range(depth), range(per_layer), ("gate", "up", "down"))
    tensors = [
        Tensor(
            f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight",
            shape,
            Kind.FROZEN if is_frozen else Kind.DENSE,
        )
        for is_frozen, (layer, expert, name) in zip(frozen, positions, strict=False)
    ]
    config: Json = {
        "dtype": DTYPES[dtype].torch_name,
        "hidden_size": width,
        "model_type": "rlsparse-test-experts",
        "num_experts": per_layer,
        "num_hidden_layers": depth,
    }
    return Model(tensors, config)


def single(words: int, dtype: str) -> Model:
    """A model with one tensor, ``weight``."""
    config: Json = {"dtype": DTYPES[dtype].torch_name, "model_type": "rlsparse-test-single"}
    return Model([Tensor("weight", (words,))], config)


# --- The move ---------------------------------------------------------------------------------


def solve_move(model: Model, options: Options) -> Move:
    """The move for which the expected fraction of changed words is the density.

    Raises:
        click.BadParameter: If the density exceeds the fraction of words that can move.
    """
    total = sum(tensor.words for tensor in model.tensors)
    norms = sum(tensor.words for tensor in model.tensors if tensor.kind is Kind.NORM)
    norm_chance = options.density * NORM_DENSITY
    open_words = _open_words(model, options.untouched_rows)
    target = options.density * total - norm_chance * norms
    if target > open_words:
        msg = f"a density of {options.density}: {open_words / total:.3f} of the words can move"
        raise click.BadParameter(msg)
    chance = target / open_words if open_words else 0.0
    if options.dtype == "F32" or chance == 0:
        # In float32 every move changes its word, so the words to move are drawn.
        return Move(FLOAT32_MOVE, chance, norm_chance, options.untouched_rows)
    scale = _solve_scale(DTYPES[options.dtype], chance)
    return Move(scale, 1.0, norm_chance, options.untouched_rows)


def _open_words(model: Model, untouched_rows: float) -> float:
    """Expected number of words that can move, without norms."""
    share = {Kind.DENSE: 1.0, Kind.EMBEDDING: 1.0 - untouched_rows}
    return sum(tensor.words * share.get(tensor.kind, 0.0) for tensor in model.tensors)


def _solve_scale(dtype: Dtype, chance: float) -> float:
    """The scale of the noise at which a word of the base changes with a given probability.

    The result is exact, without sampling, so that a density of 1e-6 is met as well as one of 0.1:
    for each of the few words of a 16-bit dtype, both the probability that the base has it and the
    probability that noise moves it over a rounding boundary are known. Negative words mirror the
    positive ones.
    """
    largest = int(dtype.encode(np.array([10 * BASE_STD], dtype=np.float32))[0])
    values = dtype.decode(np.arange(largest + 1, dtype=dtype.word)).astype(np.float64)
    boundaries = (values[1:] + values[:-1]) / 2
    up = boundaries - values[:-1]
    down = np.concatenate([up[:1], values[1:-1] - boundaries[:-1]])  # zero mirrors itself
    cumulative = [math.erf(value / (BASE_STD * math.sqrt(2))) for value in boundaries]
    share = np.diff(cumulative, prepend=0.0)
    common = share > 1e-12
    distances = np.concatenate([up[common], down[common]]) / math.sqrt(2)
    shares = np.concatenate([share[common], share[common]]) / 2

    def changed(scale: float) -> float:
        crossing = [math.erfc(distance / scale) for distance in distances]
        return float(shares @ np.array(crossing))

    low, high = 1e-12, 1e3
    for _ in range(40):
        middle = math.sqrt(low * high)  # bisection on a logarithmic scale
        low, high = (middle, high) if changed(middle) < chance else (low, middle)
    return high


def _stream(seed: int, purpose: int, tensor: int = 0, chunk: int = 0) -> np.random.Generator:
    """The random stream of a purpose, tensor and chunk."""
    return np.random.Generator(np.random.SFC64([seed, purpose, tensor, chunk]))


# --- Chunks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor, in whole rows if the tensor has rows.

    Attributes:
        tensor: Index of the tensor in the model.
        number: Index of the chunk in its tensor.
        start: Index of its first word in the tensor.
        words: Number of words.
    """

    tensor: int
    number: int
    start: int
    words: int


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Chunk]:
    """The chunks of all tensors, in order."""
    for index, tensor in enumerate(tensors):
        row = _row(tensor)
        step = max(1, CHUNK // row) * row
        for number, start in enumerate(range(0, tensor.words, step)):
            yield Chunk(index, number, start, min(step, tensor.words - start))


def _row(tensor: Tensor) -> int:
    """Number of words in a row of a tensor."""
    return math.prod(tensor.shape[1:])


@dataclass(frozen=True)
class Maker:
    """Generates the words of chunks, in any order."""

    tensors: Sequence[Tensor]
    dtype: Dtype
    move: Move
    seed: int

    def make(self, chunk: Chunk) -> tuple[Array, Array]:
        """The words of a chunk in the base and in the tuned model."""
        tensor = self.tensors[chunk.tensor]
        stream = _stream(self.seed, _FOR_CHUNK, chunk.tensor, chunk.number)
        # The base is drawn first, so that it does not depend on the move.
        if tensor.kind is Kind.NORM:
            base = self.dtype.encode(np.ones(chunk.words, dtype=np.float32))
            return base, self._move_norm(base, stream)
        values = stream.standard_normal(chunk.words, dtype=np.float32)
        values *= np.float32(BASE_STD)
        base = self.dtype.encode(values)
        if tensor.kind is Kind.FROZEN or self.move.chance == 0:
            return base, base
        if tensor.kind is Kind.EMBEDDING:
            return base, self._move_rows(base, chunk, stream)
        return base, self._move_words(base, stream)

    def _move_norm(self, base: Array, stream: np.random.Generator) -> Array:
        """Move a few words by one, up or down in value."""
        moved = stream.random(base.size) < self.move.norm_chance
        down = stream.random(base.size) < 0.5
        return np.where(moved, np.where(down, base - 1, base + 1), base).astype(base.dtype)

    def _move_rows(self, base: Array, chunk: Chunk, stream: np.random.Generator) -> Array:
        """Move the words of the rows that tuning sees."""
        row = _row(self.tensors[chunk.tensor])
        count, untouched = self.tensors[chunk.tensor].shape[0], self.move.untouched_rows
        rows = _touched_rows(self.seed, chunk.tensor, count, untouched)
        touched = rows[chunk.start // row :][: chunk.words // row]
        tuned = base.reshape(-1, row).copy()
        tuned[touched] = self._move_words(tuned[touched].ravel(), stream).reshape(-1, row)
        return tuned.ravel()

    def _move_words(self, base: Array, stream: np.random.Generator) -> Array:
        """Add noise to words in float32 and round them back."""
        noise = stream.standard_normal(base.size, dtype=np.float32)
        noise *= np.float32(self.move.scale)
        noise += self.dtype.decode(base)
        tuned = self.dtype.encode(noise)
        if self.move.chance < 1:
            drawn = stream.random(base.size, dtype=np.float32) < self.move.chance
            tuned = np.where(drawn, tuned, base)
        return tuned


@functools.lru_cache(maxsize=4)
def _touched_rows(seed: int, tensor: int, count: int, untouched: float) -> Array:
    """Which rows of an embedding tuning sees. Cached, since every chunk needs them."""
    return _stream(seed, _FOR_ROWS, tensor).random(count) >= untouched


# --- Files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The file and offset of each tensor of a checkpoint.

    Attributes:
        files: File names.
        first: Index of the first tensor of each file, followed by the number of tensors.
        file: Index of the file of each tensor.
        offset: Offset of each tensor in the data section of its file, in bytes.
    """

    files: Sequence[str]
    first: Sequence[int]
    file: Array
    offset: Array


def plan_layout(tensors: Sequence[Tensor], itemsize: int, shards: int) -> Layout:
    """Divide tensors, in order, into shards of about equal size.

    There are at most as many shards as tensors, so that no shard is empty.
    """
    shards = min(shards, len(tensors))
    sizes = np.array([tensor.words * itemsize for tensor in tensors], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    first = [0]
    for shard in range(1, shards):
        # The first tensor that starts after the equal share, but with at least one tensor for
        # this shard and each of the following ones.
        wanted = int(np.searchsorted(starts, total * shard // shards))
        first.append(min(max(wanted, first[-1] + 1), len(tensors) - shards + shard))
    bounds = [*first, len(tensors)]
    file = np.repeat(np.arange(shards), np.diff(bounds))
    if shards == 1:
        return Layout(["model.safetensors"], bounds, file, starts)
    files = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    return Layout(files, bounds, file, starts - starts[first][file])


def _header(tensors: Sequence[Tensor], layout: Layout, shard: int, dtype: Dtype) -> bytes:
    """The header of a safetensors file: the length and the padded JSON."""
    entries = ['"__metadata__":{"format":"pt"}']
    for index in range(layout.first[shard], layout.first[shard + 1]):
        tensor, start = tensors[index], int(layout.offset[index])
        entry = {
            "dtype": dtype.name,
            "shape": tensor.shape,
            "data_offsets": [start, start + tensor.words * dtype.word.itemsize],
        }
        # Serialized one by one: the objects take several times the memory of their text.
        entries.append(f"{json.dumps(tensor.name)}:{json.dumps(entry, separators=(',', ':'))}")
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class CheckpointWriter:
    """Writes one checkpoint folder. Chunks may come in any order, from any thread."""

    def __init__(self, folder: Path, model: Model, dtype: Dtype, shards: int) -> None:
        self._tensors = model.tensors
        self._itemsize = dtype.word.itemsize
        self._layout = plan_layout(model.tensors, self._itemsize, shards)
        self._stack = ExitStack()
        self._descriptors: list[int] = []
        self._data: list[int] = []  # offset of the data section of each file
        folder.mkdir(parents=True)
        _write_json(folder / "config.json", model.config)
        if len(self._layout.files) > 1:
            self._write_index(folder / "model.safetensors.index.json")
        for shard, name in enumerate(self._layout.files):
            self._open(folder / name, _header(model.tensors, self._layout, shard, dtype))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, chunk: Chunk, words: Array) -> None:
        """Write a chunk at its offset."""
        shard = int(self._layout.file[chunk.tensor])
        offset = self._data[shard] + int(self._layout.offset[chunk.tensor])
        offset += chunk.start * self._itemsize
        _write_at(self._descriptors[shard], offset, words)

    def _open(self, path: Path, header: bytes) -> None:
        """Create a file and write its header."""
        file = self._stack.enter_context(path.open("xb", buffering=0))
        file.write(header)
        self._descriptors.append(file.fileno())
        self._data.append(len(header))

    def _write_index(self, path: Path) -> None:
        """Write the index of the shards."""
        total = sum(tensor.words for tensor in self._tensors) * self._itemsize
        files = self._layout.files
        weight_map = {
            tensor.name: files[shard]
            for tensor, shard in zip(self._tensors, self._layout.file, strict=True)
        }
        _write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_at(descriptor: int, offset: int, words: Array) -> None:
    """Write words as little-endian bytes at an offset of a file."""
    data = words.astype(words.dtype.newbyteorder("<"), copy=False).data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _write_json(path: Path, value: Json) -> None:
    """Write a JSON file in the layout of Hugging Face tools."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


# --- Pairs ------------------------------------------------------------------------------------


def write_pair(out: Path, model: Model, options: Options) -> Written:
    """Write ``out/base`` and ``out/tuned``.

    Args:
        out: Folder of the pair, without ``base`` and ``tuned``.
        model: The model.
        options: The options.

    Returns:
        Counts of words, changed words and bytes.

    Raises:
        FileExistsError: If ``out/base`` or ``out/tuned`` exists.
        click.BadParameter: If the density cannot be reached.
    """
    dtype = DTYPES[options.dtype]
    maker = Maker(model.tensors, dtype, solve_move(model, options), options.seed)
    base_shards, tuned_shards = options.shards, options.tuned_shards or options.shards
    with (
        CheckpointWriter(out / "base", model, dtype, base_shards) as base,
        CheckpointWriter(out / "tuned", model, dtype, tuned_shards) as tuned,
    ):

        def fill(thread: int) -> int:
            # Every thread iterates over all chunks and takes its share, without a queue.
            share = itertools.islice(_chunks(model.tensors), thread, None, options.threads)
            return sum(_write_chunk(maker, chunk, base, tuned) for chunk in share)

        with ThreadPoolExecutor(options.threads) as pool:
            changed = sum(pool.map(fill, range(options.threads)))
    words = sum(tensor.words for tensor in model.tensors)
    return Written(words, changed, words * dtype.word.itemsize)


def _write_chunk(
    maker: Maker, chunk: Chunk, base: CheckpointWriter, tuned: CheckpointWriter
) -> int:
    """Generate and write one chunk of both models; the number of changed words."""
    base_words, tuned_words = maker.make(chunk)
    base.write(chunk, base_words)
    tuned.write(chunk, tuned_words)
    return int(np.count_nonzero(base_words != tuned_words))


def _choose_model(
    gib: float | None, tensors: int | None, one: int | None, layers: int | None, options: Options
) -> Model:
    """The model that the command line selects."""
    if tensors is not None and one is not None:
        msg = "--tensors and --single exclude each other"
        raise click.UsageError(msg)
    if one is not None:
        return single(one, options.dtype)
    itemsize = DTYPES[options.dtype].word.itemsize
    if tensors is not None:
        words = tensors * 512 if gib is None else int(gib * GIB) // itemsize
        return experts(tensors, words, options.dtype, options.seed, layers)
    return llama(int((gib or 1.0) * GIB) // itemsize, options.dtype, layers)


_POSITIVE = click.IntRange(min=1)
_FRACTION = click.FloatRange(0, 1)


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Size of one checkpoint in GiB.  [default: 1, or 512 words per tensor with --tensors]",
)
@click.option(
    "--tensors", type=_POSITIVE, help="Write a mixture of experts with this many tensors."
)
@click.option("--single", "one", type=_POSITIVE, help="Write one tensor with this many elements.")
@click.option("--layers", type=_POSITIVE, help="Number of layers.  [default: depends on the size]")
@click.option("--density", type=_FRACTION, default=0.02, help="Fraction of words that change.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="BF16", help="Stored dtype.")
@click.option("--shards", type=_POSITIVE, default=4, help="Number of files per checkpoint.")
@click.option(
    "--tuned-shards",
    type=_POSITIVE,
    help="Number of files of the tuned checkpoint.  [default: --shards]",
)
@click.option(
    "--untouched-rows",
    type=_FRACTION,
    default=UNTOUCHED_ROWS,
    help="Fraction of embedding rows that do not change.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of all random numbers.")
@click.option(
    "--threads", type=_POSITIVE, default=2, help="Number of threads; no effect on the result."
)
def main(
    out: Path,
    *,
    gib: float | None,
    tensors: int | None,
    one: int | None,
    layers: int | None,
    **settings: Any,  # noqa: ANN401 - the fields of Options
) -> None:
    """Write a base model and an RL-like tuned child of it to OUT/base and OUT/tuned."""
    options = Options(**settings)
    model = _choose_model(gib, tensors, one, layers, options)
    try:
        written = write_pair(out, model, options)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{len(model.tensors)} tensors, {written.nbytes / GIB:.3f} GiB each, "
        f"{written.changed} of {written.words} words changed ({written.density:.4%})"
    )


if __name__ == "__main__":
    main()

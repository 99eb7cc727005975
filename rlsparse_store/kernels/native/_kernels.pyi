# The compiled loops. Arrays are contiguous; words are unsigned integers of their width.
# `path` is the name of an instruction set.

from typing import Any, TypeAlias

from numpy.typing import NDArray

from rlsparse_store.kernels.interface import ChunkStreams

Buffer: TypeAlias = NDArray[Any] | bytes | memoryview

DraftCosts: TypeAlias = tuple[Buffer, int, int, int, int, int, int, int, int]
"""Logarithms; costs of a context and of an empty one, the most contexts; bytes of a block that are
sampled, costs of a block, of a table and of a symbol; what row flags have to save."""

def paths() -> list[str]: ...
def compare(
    path: str,
    base: Buffer,
    tuned: Buffer,
    width: int,
    order: int,
    mask: Buffer,
    before: Buffer,
    after: Buffer,
    /,
) -> tuple[int, int]: ...
def active_rows(mask: Buffer, words: int, length: int, offset: int, flags: Buffer, /) -> None: ...
def histogram(
    path: str,
    base: Buffer,
    width: int,
    order: int,
    bins: Buffer,
    rows: Buffer | None,
    row_length: int,
    row_offset: int,
    mask: Buffer,
    before: Buffer,
    after: Buffer,
    stride: int,
    words: Buffer,
    magnitudes: Buffer,
    /,
) -> None: ...
def partition(
    path: str,
    base: Buffer,
    width: int,
    order: int,
    bounds: Buffer,
    rows: Buffer | None,
    row_length: int,
    row_offset: int,
    mask: Buffer,
    before: Buffer,
    after: Buffer,
    /,
) -> tuple[list[int], list[int], bytes, list[int], list[int]]: ...
def apply(
    path: str,
    base: Buffer,
    out: Buffer | None,
    width: int,
    order: int,
    bounds: Buffer,
    rows: Buffer | None,
    row_length: int,
    row_offset: int,
    changed: Buffer,
    content: Buffer,
    leaves: Buffer | None,
    /,
) -> str | None: ...
def record(
    path: str, before: Buffer, after: Buffer, word_bytes: int, mask: Buffer, values: Buffer, /
) -> int: ...
def exchange(
    path: str, words: Buffer, word_bytes: int, mask: Buffer, values: Buffer, /
) -> None: ...
def cheapest_cut(
    words: Buffer,
    magnitudes: Buffer,
    log2: Buffer,
    context_cost: int,
    empty_cost: int,
    context_limit: int,
    /,
) -> tuple[list[int], int]: ...
def draft(
    path: str,
    base: Buffer,
    width: int,
    order: int,
    bins: Buffer,
    rows: Buffer | None,
    row_length: int,
    row_offset: int,
    mask: Buffer,
    before: Buffer,
    after: Buffer,
    top_key: int,
    stride: int,
    few: int,
    costs: DraftCosts,
    /,
) -> tuple[list[int], list[int], bytes, list[int], list[int], bool] | None: ...
def draft_each(
    path: str,
    base: Buffer,
    tuned: Buffer,
    width: int,
    order: int,
    bins: Buffer,
    ends: Buffer,
    row_words: Buffer,
    changes: Buffer,
    sample: int,
    most_stride: int,
    inactive_rows: int,
    few: int,
    costs: DraftCosts,
    /,
) -> list[tuple[list[int], list[int], bytes, list[int], list[int], bool] | None]: ...
def apply_each(
    path: str,
    base: Buffer,
    out: Buffer | None,
    width: int,
    order: int,
    ends: Buffer,
    chunks: list[ChunkStreams | None],
    leaves: Buffer,
    /,
) -> str | None: ...
def hash_each(path: str, data: Buffer, ends: Buffer, hashes: Buffer, /) -> None: ...
def leaf_hashes(path: str, data: Buffer, hashes: Buffer, /) -> None: ...
def block_ends(
    content: Buffer,
    ends: Buffer,
    log2: Buffer,
    sampled_bytes: int,
    block_cost: int,
    table_cost: int,
    symbol_cost: int,
    /,
) -> list[int]: ...

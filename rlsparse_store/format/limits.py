"""The limits of the format (``specs/format.md`` section 13) and of what a reader accepts."""

from __future__ import annotations

from typing import Final

__all__ = [
    "MAX_BLOCK",
    "MAX_BLOCKS",
    "MAX_CHECK",
    "MAX_CHUNKS",
    "MAX_CHUNK_STORED",
    "MAX_CHUNK_WORDS",
    "MAX_CONTAINER_HEADER",
    "MAX_CONTEXTS",
    "MAX_DIMENSION",
    "MAX_FILES",
    "MAX_INDEX_CONTENT",
    "MAX_JSON_DEPTH",
    "MAX_NAMES_BYTES",
    "MAX_NAME_BYTES",
    "MAX_RANK",
    "MAX_SHARD_LIST",
    "MAX_TENSORS",
    "MAX_TENSOR_HEADER",
    "MAX_TUNED_BYTES",
    "MIN_CHUNK_STORED",
    "max_index_content",
]

MAX_CONTAINER_HEADER: Final = 1 << 20
"""Bytes of the JSON header of a file of a delta."""

MAX_SHARD_LIST: Final = 4 << 20
"""Bytes of the JSON file that lists the shards of a delta."""

MAX_TENSOR_HEADER: Final = 100_000_000
"""Bytes of the JSON header of a checkpoint's file: the limit of the safetensors library."""

MAX_FILES: Final = 10_000
"""Shards of a delta, and files of a checkpoint."""

MAX_TENSORS: Final = 1_000_000
"""Tensors of a checkpoint; also removed tensors and foreign sources."""

MAX_RANK: Final = 32
"""Dimensions of a tensor."""

MAX_DIMENSION: Final = 1 << 48
"""The largest dimension, and the most words in a tensor."""

MAX_NAME_BYTES: Final = 1024
"""Bytes of a tensor's name in UTF-8."""

MAX_NAMES_BYTES: Final = 1 << 27
"""Bytes of all names of one list together: shared prefixes are stored once, but not in memory."""

MAX_CHUNKS: Final = 1 << 24
"""Chunks of a delta."""

MAX_CHUNK_WORDS: Final = 1 << 26
"""Words of a chunk."""

MIN_CHUNK_STORED: Final = 10
"""Stored bytes of a chunk: no zstd frame with content is shorter."""

MAX_CHUNK_STORED: Final = 1 << 40
"""Stored bytes of a chunk."""

MAX_CHECK: Final = 0xFFFFFFFF
"""A check of bytes or words."""

MAX_CONTEXTS: Final = 16
"""Contexts of a chunk."""

MAX_BLOCK: Final = 1 << 17
"""Bytes of a zstd block."""

MAX_BLOCKS: Final = 1000
"""Optional blocks of an index."""

MAX_JSON_DEPTH: Final = 32
"""Objects and lists within each other."""

MAX_TUNED_BYTES: Final = 1 << 50
"""Bytes of all tensors of a tuned checkpoint, aliases included."""

MAX_INDEX_CONTENT: Final = 1 << 30
"""Bytes of a decompressed index."""


def max_index_content(stored: int) -> int:
    """The largest index content that ``stored`` compressed bytes may announce, in bytes."""
    return min(MAX_INDEX_CONTENT, 65536 + 32 * stored)

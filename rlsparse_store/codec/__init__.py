"""Pure coding: (base words, tuned words) to stored bytes of a chunk and back.

No file, no tensor name and no checkpoint is known here.
"""

from rlsparse_store.codec.chunk import (
    CodedChunk,
    DeltaChunk,
    Draft,
    WholeChunk,
    decode_delta,
    decode_whole,
    draft_chunks,
    encode_chunk,
    encode_whole,
    estimate_bits,
    may_be_whole,
    open_chunk,
    store_draft,
)
from rlsparse_store.codec.views import (
    UNSIGNED,
    Widening,
    as_words,
    cast_to_bf16,
    narrow,
    to_bytes,
    widen,
)

__all__ = [
    "UNSIGNED",
    "CodedChunk",
    "DeltaChunk",
    "Draft",
    "WholeChunk",
    "Widening",
    "as_words",
    "cast_to_bf16",
    "decode_delta",
    "decode_whole",
    "draft_chunks",
    "encode_chunk",
    "encode_whole",
    "estimate_bits",
    "may_be_whole",
    "narrow",
    "open_chunk",
    "store_draft",
    "to_bytes",
    "widen",
]

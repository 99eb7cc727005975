"""Comparison of the streams of chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsparse_store.kernels.interface import Streams

__all__ = ["numbers"]


def numbers(streams: Streams) -> tuple[list[int], list[int], bytes, list[int], list[int]]:
    """All that a kernel computes for streams."""
    content = bytes(streams.content)
    return streams.counts, streams.changed, content, streams.sizes, streams.steps

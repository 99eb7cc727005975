"""The words that a delta changed in memory, kept so that the change can be undone and redone."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from rlsparse_store.errors import ResultMismatchError
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import as_words
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words
    from rlsparse_store.torch.model_tensors import Target

__all__ = ["SwapBatch", "UndoLog", "WordSwap", "swap_batches"]

BLOCK_BYTES: Final = 1 << 19
"""Bytes of a tensor whose swaps run back to back, so that they stay in the CPU cache."""

BATCH_BYTES: Final = 16 << 20
"""Bytes of a tensor that one thread handles in one piece of work."""


@dataclass(slots=True, eq=False)
class WordSwap:
    """Words of a tensor that differ between two states, with the values of the other state.

    An exchange swaps these values with the tensor's words and so leads to the other state; a second
    exchange leads back. The values are kept because a delta cannot be inverted: its contexts depend
    on the base's words.

    Attributes:
        start: Offset of the first byte in the tensor.
        end: Offset after the last byte.
        mask: One bit per word, set where the states differ.
        values: The differing words of the other state.
        values_hash: Hash of ``values``.
        expected_hash: Hash of the tensor's words that the next exchange replaces.
    """

    start: int
    end: int
    mask: NDArray[np.uint8]
    values: Words
    values_hash: int
    expected_hash: int

    @classmethod
    def between(cls, start: int, before: Words, after: Words) -> WordSwap | None:
        """Return the swap from ``after``, the tensor's words, to ``before``; ``None`` if equal."""
        mask, old = get_backend().record(before, after)
        if old.size == 0:
            return None
        _, new = get_backend().record(after, before)
        return cls(start, start + before.nbytes, mask, old, _hash(old), _hash(new))

    @property
    def nbytes(self) -> int:
        """Bytes of memory in use."""
        return self.mask.nbytes + self.values.nbytes

    def exchange(self, data: NDArray[np.uint8]) -> bool:
        """Move a tensor to the other state if it holds the expected words.

        Args:
            data: The tensor's bytes.

        Returns:
            Whether the words were exchanged. If not, the tensor is unchanged.

        Raises:
            ValueError: The mask or the values changed in memory. The tensor is unchanged.
        """
        if _hash(self.values) != self.values_hash:
            raise ValueError("the values are not those that were kept")
        backend = get_backend()
        words = data[self.start : self.end].view(self.values.dtype)
        backend.exchange(words, self.mask, self.values)
        is_expected = False
        try:
            is_expected = _hash(self.values) == self.expected_hash
        finally:
            if not is_expected:
                backend.exchange(words, self.mask, self.values)
        if not is_expected:
            return False
        self.values_hash, self.expected_hash = self.expected_hash, self.values_hash
        return True


def _hash(words: Words) -> int:
    return xxh3_64_intdigest(words.data)


@dataclass(slots=True, eq=False)
class UndoLog:
    """All swaps of one delta, by block. Several threads may add to it.

    Attributes:
        targets: Tensors by the address of their memory.
        blocks: Swaps by address and block number.
        nbytes: Bytes of memory in use.
    """

    targets: dict[int, Target] = field(default_factory=dict)
    blocks: dict[tuple[int, int], list[WordSwap]] = field(default_factory=dict)
    nbytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, target: Target, start: int, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> None:
        """Record a change of consecutive bytes of a tensor.

        Args:
            target: The tensor.
            start: Offset of the first byte.
            before: The bytes before the change.
            after: The bytes after the change.
        """
        coding = target.record.coding or target.record.dtype.coding
        width = max(8, coding.width)
        address, end = target.tensor.data_ptr(), start + before.size
        swaps: list[tuple[int, WordSwap]] = []
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            first = max(start, number * BLOCK_BYTES)
            part = slice(first - start, min(end, (number + 1) * BLOCK_BYTES) - start)
            swap = WordSwap.between(
                first, as_words(before[part], width), as_words(after[part], width)
            )
            if swap is not None:
                swaps.append((number, swap))
        # All swaps are recorded or none: the caller changes the tensor right after this.
        with self._lock:
            self.targets[address] = target
            for number, swap in swaps:
                self.blocks.setdefault((address, number), []).append(swap)
                self.nbytes += swap.nbytes


@dataclass(slots=True, eq=False)
class SwapBatch:
    """Swaps of one tensor that run one after the other on one thread.

    Attributes:
        target: The tensor.
        swaps: The swaps, those of one block back to back.
        nbytes: Bytes of the tensor's blocks.
        done: Number of swaps that were exchanged.
    """

    target: Target
    swaps: list[WordSwap]
    nbytes: int
    done: int = 0

    @property
    def failed(self) -> bool:
        """Whether the tensor did not hold the words that a swap expected."""
        return self.done < len(self.swaps)

    def exchange(self) -> SwapBatch:
        """Exchange the swaps, up to the first one that fails.

        Raises:
            ResultMismatchError: A swap changed in memory.
        """
        data = self.target.load()
        try:
            for swap in self.swaps:
                if not self._exchange(swap, data):
                    break
                self.done += 1
        finally:
            # Also after an error: undo() expects the exchanged words in the model.
            self.target.store(data)
        return self

    def undo(self) -> None:
        """Undo the exchanged swaps, last one first.

        Raises:
            ResultMismatchError: A swap changed in memory.
        """
        data = self.target.load()
        for swap in reversed(self.swaps[: self.done]):
            self._exchange(swap, data)
        self.target.store(data)

    def _exchange(self, swap: WordSwap, data: NDArray[np.uint8]) -> bool:
        try:
            return swap.exchange(data)
        except ValueError as error:
            msg = (
                "the words kept to undo a delta changed in memory, which may be faulty; "
                "load the model again"
            )
            raise ResultMismatchError(msg, tensor=printable(self.target.record.name)) from error


def swap_batches(logs: list[UndoLog]) -> Iterator[SwapBatch]:
    """Yield the swaps of several logs in batches. Each block runs the swaps of all logs in order.

    Args:
        logs: The log of the delta to leave, then the log of the delta to enter.
    """
    blocks: defaultdict[tuple[int, int], list[WordSwap]] = defaultdict(list)
    targets: dict[int, Target] = {}
    for log in logs:
        targets.update(log.targets)
        for block, swaps in log.blocks.items():
            blocks[block] += swaps
    batch: SwapBatch | None = None
    for (address, _), swaps in sorted(blocks.items(), key=lambda item: item[0]):
        target = targets[address]
        # A tensor that is loaded and stored as a whole is one batch, for one thread.
        is_full = batch is not None and batch.nbytes >= BATCH_BYTES and target.is_direct
        if batch is None or batch.target.tensor.data_ptr() != address or is_full:
            if batch is not None:
                yield batch
            batch = SwapBatch(target, [], 0)
        batch.swaps += swaps
        batch.nbytes += BLOCK_BYTES
    if batch is not None:
        yield batch

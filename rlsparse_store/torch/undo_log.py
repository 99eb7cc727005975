"""What a delta changed in tensors in memory, kept so that it can be undone and done again."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from rlsparse_store.format.words import as_words
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words
    from rlsparse_store.torch.model_tensors import Target

__all__ = ["SwapGroup", "UndoLog", "WordSwap", "swap_groups"]

BLOCK_BYTES: Final = 1 << 19
"""Bytes of a tensor that leave one delta and enter the next together: they stay in the cache."""

GROUP_BYTES: Final = 16 << 20
"""Bytes of a tensor that a thread is given at a time."""


@dataclass(slots=True, eq=False)
class WordSwap:
    """The words in which a stretch of a tensor differs between two states, and the other's.

    Moving to the other state exchanges them with the tensor's: afterwards they are the ones that
    lead back. The contexts of a delta are found in the base's words and cannot be found in the
    tuned ones, so the way back has to be kept.

    Attributes:
        start: Place of the stretch's first byte in the tensor.
        end: Place after its last.
        mask: One bit per word, set where it differs.
        values: The words of the other state.
        held: Hash of ``values``.
        expected: Hash that the words must have that they are exchanged for.
    """

    start: int
    end: int
    mask: NDArray[np.uint8]
    values: Words
    held: int
    expected: int

    @classmethod
    def between(cls, start: int, before: Words, after: Words) -> WordSwap | None:
        """What leads from ``after``, which the tensor holds, back to ``before``, if they differ."""
        mask, old = get_backend().record(before, after)
        if old.size == 0:
            return None
        _, new = get_backend().record(after, before)
        return cls(start, start + before.nbytes, mask, old, _hash(old), _hash(new))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.mask.nbytes + self.values.nbytes

    def exchange(self, data: NDArray[np.uint8]) -> bool:
        """Move a tensor to the other state, unless its words are not the ones expected.

        Args:
            data: The tensor's bytes.

        Returns:
            Whether it moved; if not, nothing is changed.
        """
        backend = get_backend()
        words = data[self.start : self.end].view(self.values.dtype)
        backend.exchange(words, self.mask, self.values)
        is_expected = False
        try:
            is_expected = _hash(self.values) == self.expected
        finally:
            if not is_expected:
                backend.exchange(words, self.mask, self.values)
        if not is_expected:
            return False
        self.held, self.expected = self.expected, self.held
        return True


def _hash(words: Words) -> int:
    return xxh3_64_intdigest(words.data)


@dataclass(slots=True, eq=False)
class UndoLog:
    """All that a delta changed, block by block. Threads may add to it.

    Attributes:
        targets: The tensors by the address of their memory.
        blocks: The changes of each block, by address and number of the block.
        nbytes: Bytes of memory that they take.
    """

    targets: dict[int, Target] = field(default_factory=dict)
    blocks: dict[tuple[int, int], list[WordSwap]] = field(default_factory=dict)
    nbytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, target: Target, start: int, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> None:
        """Keep what changed in a stretch of a tensor.

        Args:
            target: The tensor.
            start: Place of the stretch's first byte.
            before: Its bytes before.
            after: Its bytes now.
        """
        coding = target.record.coding or target.record.dtype.coding
        width = max(8, coding.width)
        address, end = target.tensor.data_ptr(), start + before.size
        found: list[tuple[int, WordSwap]] = []
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            first = max(start, number * BLOCK_BYTES)
            part = slice(first - start, min(end, (number + 1) * BLOCK_BYTES) - start)
            change = WordSwap.between(
                first, as_words(before[part], width), as_words(after[part], width)
            )
            if change is not None:
                found.append((number, change))
        # All of it or nothing: what is kept here is made next.
        with self._lock:
            self.targets[address] = target
            for number, change in found:
                self.blocks.setdefault((address, number), []).append(change)
                self.nbytes += change.nbytes


@dataclass(slots=True, eq=False)
class SwapGroup:
    """Changes of one tensor that are made one after the other.

    Attributes:
        target: The tensor.
        changes: The changes, those of one block together.
        nbytes: Bytes of the tensor that they lie in.
        done: How many were made.
    """

    target: Target
    changes: list[WordSwap]
    nbytes: int
    done: int = 0

    @property
    def failed(self) -> bool:
        """Whether a change found other words than it expected."""
        return self.done < len(self.changes)

    def exchange(self) -> SwapGroup:
        """Make the changes, up to the first that does not find what it expects."""
        data = self.target.load()
        try:
            for change in self.changes:
                if not change.exchange(data):
                    break
                self.done += 1
        finally:
            # What was done so far is in the model, where undoing it expects it.
            self.target.store(data)
        return self

    def undo(self) -> None:
        """Undo the changes that were made, from last to first."""
        data = self.target.load()
        for change in reversed(self.changes[: self.done]):
            change.exchange(data)
        self.target.store(data)


def swap_groups(steps: list[UndoLog]) -> Iterator[SwapGroup]:
    """The changes of some steps, made block by block: each block takes all steps at once.

    Args:
        steps: What is left and what is entered, in this order.
    """
    blocks: defaultdict[tuple[int, int], list[WordSwap]] = defaultdict(list)
    targets: dict[int, Target] = {}
    for step in steps:
        targets.update(step.targets)
        for block, changes in step.blocks.items():
            blocks[block] += changes
    group: SwapGroup | None = None
    for (address, _), changes in sorted(blocks.items(), key=lambda item: item[0]):
        target = targets[address]
        # What is loaded and stored as a whole is one group, for one thread.
        full = group is not None and group.nbytes >= GROUP_BYTES and target.is_direct
        if group is None or group.target.tensor.data_ptr() != address or full:
            if group is not None:
                yield group
            group = SwapGroup(target, [], 0)
        group.changes += changes
        group.nbytes += BLOCK_BYTES
    if group is not None:
        yield group

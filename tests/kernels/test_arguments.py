"""Whatever the arguments of a compiled function, it refuses them or stays within its arrays.

Under sanitizers, as tools/fuzz/run.sh runs it, a read or write beyond an array ends this test.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_store.codec.chunk import DRAFT_RULES
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.kernels.interface import SmallTensors
from rlsparse_store.kernels.native import _kernels, instruction_sets, kernels, load_native

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.kernels.interface import ChunkStreams

Call = tuple[str, tuple[Any, ...]]

if not instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)

NUMBERS = [-1, 0, 1, 3, 4, 17, 64, 1 << 16, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 1 << 64]
CUTS: list[Callable[[Any], Any]] = [
    lambda array: array[:-1].copy(),
    lambda array: array[:0].copy(),
    lambda array: array[::-1].copy(),
    lambda array: array[::2],
    lambda array: np.append(array, array[:1]),
    lambda array: np.ascontiguousarray(array).view(np.uint8).ravel()[1:-1],
    lambda array: array.tobytes(),
]
ANYTHING = st.sampled_from([None, "", "avx2", 1.5, b"", (), [None], b"\xff" * 8])


class Recorder:
    """Stands for the compiled module, and notes the calls of its functions."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401 - a module
        self.module = module
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:  # noqa: ANN401 - as the function has them
            self.calls.append((name, copied(arguments)))
            return getattr(self.module, name)(*arguments)

        return call


def copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of the same values in arrays of their own."""
    return tuple(a.copy() if isinstance(a, np.ndarray) else a for a in arguments)


def sound_calls(name: str) -> list[Call]:
    """Calls of every compiled function with arguments that belong together."""
    coding, rng = DTYPES["BF16"].coding, np.random.default_rng(1)
    base = rng.integers(0x3C00, 0x3E00, 300, np.uint16)
    tuned = np.where(rng.random(300) < 0.2, base ^ np.uint16(1), base)
    bins, ends = key_bins(coding, 7), np.array([100, 300], np.uint64)
    backend, recorder = load_native(name), Recorder(_kernels)
    with mock.patch.object(kernels, "_kernels", recorder):
        changed = backend.changed_words(base, tuned, coding)
        rows = backend.active_rows(changed, base.size, 16, 4)
        histogram = backend.histogram(base, changed, coding, bins, rows, 1)
        backend.cheapest_cut(histogram.words, histogram.magnitudes)
        bounds = bins[[100, 200, 511]]
        streams = backend.partition(base, changed, coding, bounds, rows)
        content = bytes(streams.content)
        backend.block_ends(content, [10, len(content)])
        backend.apply(base, coding, bounds, rows, streams.changed, content, base.copy())
        backend.apply_hashed(base, coding, bounds, rows, streams.changed, content, None)
        backend.draft(base, changed, coding, bins, rows, 1, 3)
        tensors = SmallTensors(base, tuned, ends, np.array([0, 16], np.uint64))
        drafts = backend.draft_each(tensors, coding, bins, DRAFT_RULES).drafts
        chunks: list[ChunkStreams | None] = [
            (tuple(d.bounds), tuple(d.changed), d.content) for d in drafts if d is not None
        ]
        backend.apply_each(base, ends, coding, chunks, base.copy(), np.zeros(2, np.uint64))
        backend.hash_each(base.view(np.uint8), ends * np.uint64(2))
        mask, values = backend.record(base, tuned)
        backend.exchange(tuned, mask, values)
        backend.leaf_hashes(base.view(np.uint8))
    return recorder.calls


def test_every_function_is_called() -> None:
    functions = {name for name in dir(_kernels) if not name.startswith("_")} - {"paths"}
    assert {name for name, _ in sound_calls(instruction_sets()[0])} == functions


@pytest.mark.parametrize("name", instruction_sets())
@given(data=st.data())
@settings(max_examples=300)
def test_arguments_that_do_not_belong_together_are_safe(name: str, data: st.DataObject) -> None:
    calls = SOUND[name]
    function, arguments = calls[data.draw(st.integers(0, len(calls) - 1))]
    altered = list(copied(arguments))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(altered) - 1))
        altered[place] = data.draw(others_than(altered[place]))
    with suppress(ValueError, TypeError, OverflowError, BufferError, MemoryError):
        getattr(_kernels, function)(*altered)


SOUND: dict[str, list[Call]] = {name: sound_calls(name) for name in instruction_sets()}


def replaced(items: list[Any], place: int, item: object) -> list[Any]:
    return [*items[:place], item, *items[place + 1 :]]


def others_than(argument: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - of any function
    """Values in place of an argument: mostly of its type, and of another size, place or content."""
    if isinstance(argument, int):
        return st.sampled_from(NUMBERS) | ANYTHING
    if isinstance(argument, np.ndarray):
        return st.sampled_from(CUTS).map(lambda cut: cut(argument)) | ANYTHING
    if isinstance(argument, bytes):
        return st.binary(max_size=len(argument) + 9) | ANYTHING
    if isinstance(argument, list | tuple) and argument:
        items = list(argument)
        places = st.integers(0, len(items) - 1)
        return (
            places.flatmap(
                lambda i: others_than(items[i]).map(
                    lambda item: [*items[:i], item, *items[i + 1 :]]
                )
            )
            | places.map(lambda i: items[:i])
        ).map(type(argument))
    return ANYTHING

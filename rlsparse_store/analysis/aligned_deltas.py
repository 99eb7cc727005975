"""Several deltas of one base, read side by side."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rlsparse_store.analysis.tensor_pairs import SharedTensor, overlay
from rlsparse_store.delta.resolve import as_repo_id, find_base, find_delta, find_run, read_delta
from rlsparse_store.delta.run import delta_names, is_run, natural_order
from rlsparse_store.errors import BaseMismatchError, NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlsparse_store.format.words import Words
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["AlignedBlock", "AlignedDeltas"]

Result = TypeVar("Result")


class AlignedBlock(NamedTuple):
    """A run of words of the base, and what each delta makes of them.

    Attributes:
        base: The base's words.
        tuned: The words of each delta, in order.
    """

    base: Words
    tuned: list[Words]


class AlignedDeltas(Closeable):
    """Deltas of one base.

    Args:
        places: Folders of deltas, or ids on the Hub; or one run, likewise.
        base: Their base; by default the one that the first of them names.
        least: How many there must be.

    Attributes:
        base_digest: State digest of their base.
        names: What the deltas are called, each once.
        tensors: Tensors that all of them compare, over the words that all of them share.
        unmatched: Names of tensors that any of them has or lost, and that not all compare.

    Raises:
        NotFoundError: One is not there, or there are fewer than ``least``.
        BaseMismatchError: They are not of one base.
    """

    def __init__(
        self, places: Sequence[str | Path], base: str | Path | None, *, least: int = 2
    ) -> None:
        access = HubAccess()
        given, places = places, _expanded(places, access)
        _require(least, given, places, access)
        self.names = _distinct([str(place) for place in places])
        with ExitStack() as stack:
            readers = [
                stack.enter_context(DeltaReader(find_delta(place, None, "", access)))
                for place in places
            ]
            self.base_digest = _one_base(places, readers)
            # Once: opened for each delta, its files would soon be more than may be open.
            found = find_base(readers[0], base, None, access)
            checkpoint = stack.enter_context(open_checkpoint(found))
            self._pairs = [overlay(reader, checkpoint, ExitStack()) for reader in readers]
            self._stack = stack.pop_all()
        named = [pair.tensors for pair in self._pairs]
        every = set.intersection(*(set(tensors) for tensors in named))
        self.tensors = {
            name: min((tensors[name] for tensors in named), key=lambda t: t.words)
            for name in named[0]
            if name in every and len({tensors[name].source for tensors in named}) == 1
        }
        seen = set.union(*(pair.names for pair in self._pairs))
        self.unmatched = sorted(seen - self.tensors.keys())

    def leave_out(self, what: Callable[[SharedTensor], bool]) -> None:
        """Compare fewer tensors; the others are among the unmatched."""
        left_out = {name for name, tensor in self.tensors.items() if what(tensor)}
        self.tensors = {n: t for n, t in self.tensors.items() if n not in left_out}
        self.unmatched = sorted({*self.unmatched, *left_out})

    def map(
        self,
        function: Callable[[SharedTensor], Result],
        threads: int | None,
        progress: Progress,
    ) -> list[tuple[SharedTensor, Result]]:
        """Apply a function to every tensor that all compare, on several threads."""
        first = self._pairs[0]
        first.keep_only(lambda t: "" if t.name in self.tensors else "unmatched")
        results = first.map(
            lambda t: function(self.tensors[t.name]), resolve_threads(threads), progress
        )
        return [
            (self.tensors[name], result)
            for name, result in zip(first.tensors, results, strict=True)
        ]

    def blocks(self, tensor: SharedTensor) -> Iterator[AlignedBlock]:
        """The blocks of a tensor, from front to back, each overwritten by the next.

        Raises:
            FormatError: A delta is damaged, or the base is not the right one.
        """
        left = tensor.words
        for blocks in zip(*(pair.blocks(tensor.name) for pair in self._pairs), strict=False):
            number = min(left, *(block.base.size for block in blocks))
            yield AlignedBlock(blocks[0].base[:number], [block.tuned[:number] for block in blocks])
            left -= number
            if left == 0:
                return

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


def _expanded(places: Sequence[str | Path], access: HubAccess) -> list[str | Path]:
    """The deltas of a run, in natural order, if one run was given."""
    if len(places) != 1 or not is_run(places[0], access):
        return list(places)
    repo = as_repo_id(places[0])
    if repo is None:
        return [Path(places[0], name) for name in delta_names(Path(places[0]))]
    found = find_run(repo, access)
    return [found[name] for name in sorted(found, key=natural_order)]


def _require(
    least: int, given: Sequence[str | Path], found: Sequence[str | Path], access: HubAccess
) -> None:
    """Require as many deltas as are needed.

    Args:
        least: How many that is.
        given: What was given, for errors.
        found: The deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There are fewer, or one of them is no delta, which is told first.
    """
    if len(found) >= least:
        return
    for place in found:
        read_delta(place, None, "", access).close()
    msg = f"too few deltas: give at least {least}, or a run of as many"
    raise NotFoundError(msg, file=printable(str(given[0])) if given else None)


def _distinct(names: list[str]) -> list[str]:
    """Names without the folders that all of them have in common."""
    parts = [name.rstrip("/").split("/") for name in names]
    length = 1
    while len({tuple(p[-length:]) for p in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _one_base(places: Sequence[str | Path], readers: Sequence[DeltaReader]) -> str:
    """The state digest of the base that deltas have in common.

    Raises:
        BaseMismatchError: They have none.
    """
    digest = readers[0].manifest.base_digest
    for place, reader in zip(places, readers, strict=True):
        if reader.manifest.base_digest != digest:
            first = printable(str(places[0]))
            msg = f"is of another base than {first}: only deltas of one base compare"
            raise BaseMismatchError(msg, file=printable(str(place)))
    return digest

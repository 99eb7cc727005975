"""Several deltas of one base, read block by block in step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from rlsparse_store.analysis.tensor_pairs import SharedTensor, aligned_blocks, overlay
from rlsparse_store.delta.resolve import as_repo_id, find_base, find_delta, find_run, read_delta
from rlsparse_store.delta.run import is_run, place_of
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import BaseMismatchError, NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from rlsparse_store.format.words import Words
    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["AlignedBlock", "AlignedDeltas"]

Result = TypeVar("Result")


class AlignedBlock(NamedTuple):
    """Consecutive words of the base, and the same words after each delta.

    Attributes:
        base: Words of the base.
        tuned: Words after each delta, in the order of the deltas.
    """

    base: Words
    tuned: list[Words]


class AlignedDeltas(Closeable):
    """Deltas of one base, opened together.

    Args:
        deltas: Deltas, or one run of deltas: folders or ``org/name[@revision]``.
        base: Their base; by default the one that the first delta names.
        access: How to reach the Hub.
        revision: Branch, tag or commit of the deltas on the Hub, if their ids do not name one.
        base_revision: The same of the base.
        min_count: Deltas required.

    Attributes:
        base_digest: State digest of the base.
        names: Unique names of the deltas.
        tensors: Tensors that every delta compares, over the words that all of them share.
        unmatched: Names of the tensors that some delta has or removes and that are not compared.

    Raises:
        NotFoundError: A delta or the base does not exist, or there are too few deltas.
        BaseMismatchError: The deltas have different bases.
    """

    def __init__(
        self,
        deltas: Sequence[str | PathLike[str]],
        base: str | PathLike[str] | None,
        access: HubAccess,
        *,
        revision: str | None,
        base_revision: str | None,
        min_count: int = 2,
    ) -> None:
        locations = _expand_run([_at_revision(delta, revision) for delta in deltas], access)
        _require_count(min_count, deltas, locations, access)
        self.names = _shortest_unique([str(location) for location in locations])
        with ExitStack() as stack:
            readers = [
                stack.enter_context(DeltaReader(find_delta(location, None, "", access)))
                for location in locations
            ]
            self.base_digest = _common_base(locations, readers)
            # Opened once and shared: per delta, its shards would exceed the limit of open files.
            base_path = find_base(readers[0], base, base_revision, access)
            checkpoint = stack.enter_context(open_checkpoint(base_path))
            self._pairs = [overlay(reader, checkpoint, ExitStack()) for reader in readers]
            self._stack = stack.pop_all()
        by_delta = [pair.tensors for pair in self._pairs]
        common = set.intersection(*(set(tensors) for tensors in by_delta))
        self.tensors = {
            name: min((tensors[name] for tensors in by_delta), key=lambda t: t.words)
            for name in by_delta[0]
            if name in common and len({tensors[name].source for tensors in by_delta}) == 1
        }
        names = set.union(*(pair.names for pair in self._pairs))
        self.unmatched = sorted(names - self.tensors.keys())

    def exclude(self, is_excluded: Callable[[SharedTensor], bool]) -> None:
        """Restrict the comparison; excluded tensors become unmatched."""
        excluded = {name for name, tensor in self.tensors.items() if is_excluded(tensor)}
        self.tensors = {n: t for n, t in self.tensors.items() if n not in excluded}
        self.unmatched = sorted({*self.unmatched, *excluded})

    def map(
        self,
        function: Callable[[SharedTensor], Result],
        threads: int | None,
        progress: Progress,
    ) -> list[tuple[SharedTensor, Result]]:
        """Apply a function to every compared tensor, on several threads."""
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
        """The blocks of a tensor, in order. Each block reuses the memory of the one before.

        Raises:
            FormatError: A delta is damaged, or the base is the wrong one.
        """
        views = [pair.view(tensor.name) for pair in self._pairs]
        for _, base, tuned in aligned_blocks(self._pairs[0].base, tensor, views):
            yield AlignedBlock(base, tuned)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


Location: TypeAlias = "str | PathLike[str]"


def _at_revision(delta: Location, revision: str | None) -> Location:
    """The delta, with the revision in its id if one is given."""
    return delta if revision is None else f"hf://{as_repo_id(delta, revision)}"


def _expand_run(locations: list[Location], access: HubAccess) -> list[Location]:
    """The deltas of a run in natural order, if the only location is a run."""
    if len(locations) != 1 or not is_run(locations[0], access):
        return locations
    repo = as_repo_id(locations[0])
    if repo is None:
        run = place_of(locations[0])
        return [run.entry(row.folder) for row in run.read().rows]
    folders = find_run(repo, access)
    return [folders[name] for name in sorted(folders, key=natural_order)]


def _require_count(
    min_count: int,
    given: Sequence[Location],
    locations: Sequence[Location],
    access: HubAccess,
) -> None:
    """Require a number of deltas.

    Args:
        min_count: The number.
        given: Locations that the caller gave, for the message.
        locations: Locations of the deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There are fewer. A location without a delta is reported first.
    """
    if len(locations) >= min_count:
        return
    for location in locations:
        read_delta(location, None, "", access).close()
    msg = f"too few deltas: give at least {min_count}, or a run of {min_count} or more"
    raise NotFoundError(msg, file=printable(str(given[0])) if given else None)


def _shortest_unique(paths: list[str]) -> list[str]:
    """The last parts of each path: as few as keep the paths apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    length = 1
    while len({tuple(p[-length:]) for p in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _common_base(locations: Sequence[Location], readers: Sequence[DeltaReader]) -> str:
    """The state digest of the base of all deltas.

    Raises:
        BaseMismatchError: They have different bases.
    """
    digest = readers[0].manifest.base_digest
    for location, reader in zip(locations, readers, strict=True):
        if reader.manifest.base_digest != digest:
            first = printable(str(locations[0]))
            msg = f"has another base than {first}; compare deltas of one base only"
            raise BaseMismatchError(msg, file=printable(str(location)))
    return digest

"""Two entries of a run: which tensors differ, and how many of their words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.analysis.series import measure_series
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import read_delta
from rlsparse_store.delta.run import find_entry
from rlsparse_store.errors import BaseMismatchError
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows

__all__ = ["DiffReport", "diff_entries"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiffReport(SummaryRepr):
    """How two entries of a run differ.

    Attributes:
        a: Folder of the first entry.
        b: Folder of the second entry.
        equal: Number of tensors that both have with the same content.
        differing: Tensors that both have with different content, dtype or shape.
        only_a: Tensors of the first entry only.
        only_b: Tensors of the second entry only.
        words: Words compared, where the base was given.
        moved: Words of these that differ.
    """

    a: str
    b: str
    equal: int
    differing: list[str]
    only_a: list[str]
    only_b: list[str]
    words: int | None
    moved: int | None

    def _summary(self) -> Rows:
        yield "equal", self.equal
        yield "differing", len(self.differing)
        yield "words", self.words
        yield "moved", self.moved


def diff_entries(
    run: str | PathLike[str],
    a: str,
    b: str,
    *,
    base: str | PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> DiffReport:
    """Compare two entries of a run.

    The digests in the deltas tell which tensors differ. With the base, both deltas are decoded
    block by block, and differing words are counted; no checkpoint is rebuilt.

    Args:
        run: Folder of the run, or its URL in object storage.
        a: Name or folder of an entry.
        b: The same of another one.
        base: Their base, to count words.
        threads: Number of threads; by default one per processor.
        progress: Called with the bytes done and the bytes in total.

    Raises:
        NotFoundError: There is no such run, entry or base.
        BaseMismatchError: The base is another one, or the entries have different bases.
        FormatError: A delta is damaged.

    Example:
        >>> diff_entries("run", "checkpoint-100", "checkpoint-200").equal  # doctest: +SKIP
        146
    """
    first, second = find_entry(run, a), find_entry(run, b)
    access = HubAccess()
    with (
        read_delta(first.delta, None, "", access) as reader,
        read_delta(second.delta, None, "", access) as other,
    ):
        if reader.manifest.base_digest != other.manifest.base_digest:
            msg = "has another base than the entry it is compared with"
            raise BaseMismatchError(msg, file=second.delta)
        before, after = (
            {t.name: t for t in opened.index.tuned_identities()} for opened in (reader, other)
        )
    both = before.keys() & after.keys()
    words = moved = None
    if base is not None and first == second:
        words = moved = 0
    elif base is not None:
        series = measure_series(
            [first.delta, second.delta], base=base, threads=threads, progress=progress
        )
        words, moved = series.words, series.steps[1].moved
    return DiffReport(
        a=first.folder,
        b=second.folder,
        equal=sum(before[name] == after[name] for name in both),
        differing=sorted(name for name in both if before[name] != after[name]),
        only_a=sorted(before.keys() - both),
        only_b=sorted(after.keys() - both),
        words=words,
        moved=moved,
    )

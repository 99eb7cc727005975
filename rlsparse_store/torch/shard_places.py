"""Where the shards of a delta are written that several ranks write together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.local_folder import upload_folder
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.buckets.upload import LAST_NAMES, upload_delta
from rlsparse_store.errors import OutputError
from rlsparse_store.files.delta_writer import RankShard
from rlsparse_store.files.output import output_errors, output_folder
from rlsparse_store.format.file_names import DELTA_FOLDER, shard_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlsparse_store.buckets.bucket_url import BucketUrl

__all__ = ["NewShards", "new_shards", "rank_shard"]


class NewShards(ABC):
    """The place of a new delta, on the coordinator.

    Attributes:
        place: What the ranks are told.
        folder: The folder for the last shard and the list.
    """

    place: str
    folder: Path

    @abstractmethod
    def count(self, names: Sequence[str], written: int) -> int:
        """The bytes of the shards that the ranks wrote.

        Args:
            names: The shards.
            written: Their bytes, as the ranks say.

        Raises:
            OutputError: One is not there, or is not that of the rank.
        """


class _FolderShards(NewShards):
    """Shards in a folder that the ranks share.

    Args:
        folder: The ``rlsparse`` folder, in the temporary folder of the delta.
    """

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self.folder = folder

    def count(self, names: Sequence[str], written: int) -> int:  # noqa: ARG002 - of a bucket
        """The bytes of the shards, as :class:`NewShards` says."""
        with output_errors(self.folder):
            return sum((self.folder / name).stat().st_size for name in names)


class _BucketShards(NewShards):
    """Shards that the ranks upload.

    Args:
        url: The delta.
        folder: The local ``rlsparse`` folder of the coordinator.
    """

    def __init__(self, url: BucketUrl, folder: Path) -> None:
        self.place = str(url)
        self.folder = folder
        self._store = ObjectStore(url / DELTA_FOLDER)

    def count(self, names: Sequence[str], written: int) -> int:
        """The bytes of the shards, as :class:`NewShards` says."""
        stats = self._store.list()
        if [stat.key for stat in stats] != names or sum(s.nbytes for s in stats) != written:
            msg = "has other shards than those of this save: another one wrote there, too"
            raise OutputError(msg, file=self._store.url)
        return written


@contextmanager
def new_shards(out: Path | BucketUrl) -> Iterator[NewShards]:
    """The place of a new delta, which is complete when the block succeeds.

    Args:
        out: Folder of the delta, on a file system that the ranks share, or its URL.

    Raises:
        OutputError: It exists, or cannot be written.
        BucketError: The object storage failed.
    """
    if isinstance(out, Path):
        with output_folder(out) as temporary:
            folder = temporary / DELTA_FOLDER
            with output_errors(out):
                folder.mkdir()
            yield _FolderShards(folder)
        return
    store = ObjectStore(out)
    keys = [stat.key for stat in store.list()]
    others = [key for key in keys if key in LAST_NAMES or not key.startswith(f"{DELTA_FOLDER}/")]
    if others:
        msg = "exists already, or holds something else; remove it or choose another place"
        raise OutputError(msg, file=out)
    # A save that failed left them. Without the list of shards, they are no delta.
    store.delete(keys)
    with upload_folder() as staging:
        folder = staging / "delta" / DELTA_FOLDER
        with output_errors(out):
            folder.mkdir(parents=True)
        yield _BucketShards(out, folder)
        upload_delta(store, staging / "delta")


@contextmanager
def rank_shard(place: str, number: int, shards: int) -> Iterator[RankShard]:
    """The shard of a rank, which is in the place when the block succeeds.

    Args:
        place: What the coordinator told.
        number: Number of the shard, from 1.
        shards: Number of shards with the last one.

    Raises:
        OutputError: The place is a folder that this rank does not have, or cannot be written.
        BucketError: The object storage failed.
    """
    url = parse_bucket_url(place)
    if url is not None:
        with upload_folder() as folder:
            with RankShard(folder, number, shards) as shard:
                yield shard
            name = shard_name(number, shards)
            ObjectStore(url / DELTA_FOLDER).put(name, folder / name)
        return
    if not Path(place).is_dir():
        msg = "is not on this rank: all ranks need the delta's folder on a shared file system"
        raise OutputError(msg, file=Path(place).parent)
    with RankShard(Path(place), number, shards) as shard:
        yield shard

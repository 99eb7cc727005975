"""Where a new delta is written: its folder, or a local one that is uploaded."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.local_folder import upload_folder
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.buckets.upload import LAST_NAMES, file_names, upload_delta
from rlsparse_store.delta.run_files import INDEX_NAME
from rlsparse_store.errors import OutputError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["new_delta_place"]


@contextmanager
def new_delta_place(out: str | PathLike[str]) -> Iterator[Path]:
    """The folder to write a delta into, which is uploaded when the block succeeds.

    Args:
        out: The folder, or a URL in object storage.

    Raises:
        OutputError: A delta, or an object with other content, exists at the URL.
        BucketError: The object storage failed.
    """
    url = parse_bucket_url(out)
    if url is None:
        yield Path(out)
        return
    store = ObjectStore(url)
    keys = {stat.key for stat in store.list()}
    if not keys.isdisjoint((*LAST_NAMES, INDEX_NAME)):
        msg = "exists already; remove it or choose another place"
        raise OutputError(msg, file=url)
    with upload_folder() as folder:
        delta = folder / "delta"
        yield delta
        # A killed upload of the same delta may have left objects.
        foreign = sorted(keys - file_names(delta))
        if foreign:
            msg = f"holds {printable(foreign[0])}, which is not of this delta; choose another place"
            raise OutputError(msg, file=url)
        upload_delta(store, delta)

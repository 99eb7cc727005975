"""Rebuilding a tuned checkpoint's files from its base and a delta."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import find_base, find_delta
from rlsparse_store.errors import IndexFormatError, LimitError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.checkpoint_layout import (
    INDEX_NAME,
    FileLayout,
    IndexLayout,
    LayoutError,
    LayoutLimitError,
    TensorShape,
    rebuild_header,
    rebuild_index,
)
from rlsparse_store.files.checkpoint_writer import CheckpointWriter
from rlsparse_store.files.copy import copy_files
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import OutputFile, output_folder
from rlsparse_store.files.side_files import delta_side_files
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.index.records import Index, Kind, TensorRecord
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.decode import decode_tensors
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.header import HeaderEntry

__all__ = ["ApplyReport", "RebuiltFile", "apply_delta", "rebuild_files"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ApplyReport(SummaryRepr):
    """The checkpoint that was rebuilt.

    Attributes:
        tensors: Tensors written.
        tensor_bytes: Their bytes.
        files: Weight files written, rebuilt byte for byte as they were when encoded.
        carried_files: Small files copied from the delta's folder.
        tuned_digest: State digest of what was written, verified.
        cast: Dtype to which the checkpoint was rounded before it was encoded, if any.
    """

    tensors: int
    tensor_bytes: int
    files: list[str]
    carried_files: list[str]
    tuned_digest: str
    cast: str | None

    def _summary(self) -> Rows:
        yield "tensors", self.tensors
        yield "tensor_bytes", self.tensor_bytes
        yield "files", len(self.files)
        yield "cast", self.cast
        yield "tuned_digest", self.tuned_digest


@dataclass(frozen=True, slots=True)
class RebuiltFile:
    """A file of the tuned checkpoint: its name, leading bytes, and its tensors' places."""

    name: str
    framed_header: bytes
    entries: list[HeaderEntry]


def apply_delta(  # noqa: PLR0913 - what from_pretrained takes of the Hub, twice
    delta: str | PathLike[str],
    out: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    subfolder: str = "",
    threads: int | None = None,
    max_tuned_bytes: int | None = None,
    progress: Progress = no_progress,
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> ApplyReport:
    """Rebuild the tuned checkpoint: its tensors bit for bit, its files byte for byte.

    Every chunk of the delta, every source in the base and every result is checked. The output
    appears under its name only when all of it is correct.

    Args:
        delta: Folder of the delta, its URL in object storage, or ``org/name[@revision]`` on the
            Hub.
        out: Folder to write, which must not exist or must be empty.
        base: The base: a folder, a ``.safetensors`` file, a URL or ``org/name[@revision]``. By
            default the commit that the delta names, else a snapshot in the Hub's cache with its
            content. A delta in object storage leads to no other place: give its base.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        threads: Threads to work on; all processors by default.
        max_tuned_bytes: Bytes of all tuned tensors to accept. A small delta may store a large
            checkpoint; by default any size is accepted.
        progress: Called with bytes done and bytes in all.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        What was written.

    Raises:
        NotFoundError: There is no such delta or base.
        FormatError: The delta is damaged.
        TooLargeError: The tuned checkpoint has more than ``max_tuned_bytes``.
        CheckpointError: The base is broken, or a file beside the delta is a link.
        BaseMismatchError: The base is another checkpoint.
        OutputError: The result cannot be written.

    Example:
        >>> apply_delta("qwen-grpo-delta", "qwen-grpo", base="qwen-base")  # doctest: +SKIP
    """
    workers = resolve_threads(threads)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    path = find_delta(delta, revision, subfolder, access)
    with (
        DeltaReader(path, max_tuned_bytes=max_tuned_bytes) as reader,
        open_checkpoint(find_base(reader, base, base_revision, access)) as checkpoint,
        output_folder(Path(out), reader.manifest.totals.tuned_bytes) as folder,
    ):
        reader.check_state()
        files, index_text = rebuild_files(reader)
        weights = {file.name for file in files} | {INDEX_NAME, DELTA_FOLDER + "/", "README.md"}
        carried = delta_side_files(reader.path, weights)
        _write_tensors(reader, checkpoint, files, folder, workers, progress)
        if index_text is not None:
            with OutputFile(folder / INDEX_NAME) as file:
                file.write(index_text, 0)
        copy_files(reader.path, carried, folder)
        checkpoint.check_unchanged()
        return ApplyReport(
            tensors=len(reader.index.tensors),
            tensor_bytes=reader.manifest.totals.tuned_bytes,
            files=[file.name for file in files],
            carried_files=carried,
            tuned_digest=reader.manifest.tuned_digest,
            cast=reader.manifest.cast,
        )


def rebuild_files(reader: DeltaReader) -> tuple[list[RebuiltFile], bytes | None]:
    """The headers of the tuned checkpoint's files, and its index file if it had one.

    Raises:
        IndexFormatError: A stored layout does not fit the tensors.
    """
    index: Index = reader.index
    members: defaultdict[int, list[TensorShape]] = defaultdict(list)
    for t, place in zip(index.tensors, index.files.file_of, strict=True):
        members[place].append(TensorShape(t.name, t.dtype, t.shape))
    try:
        files = [
            RebuiltFile(file.name, *rebuild_header(FileLayout(*file), members[place]))
            for place, file in enumerate(index.files.files)
        ]
        weight_map = {
            t.name: index.files.files[place].name
            for t, place in zip(index.tensors, index.files.file_of, strict=True)
        }
        layout = IndexLayout(index.files.index_layout, index.files.index_text)
        return files, rebuild_index(layout, weight_map)
    except LayoutLimitError as error:
        raise LimitError(str(error), file=reader.path) from error
    except LayoutError as error:
        raise IndexFormatError(str(error), file=reader.path) from error


def _write_tensors(
    reader: DeltaReader,
    base: Checkpoint,
    files: list[RebuiltFile],
    folder: Path,
    threads: int,
    progress: Progress,
) -> None:
    aliases: defaultdict[str, list[str]] = defaultdict(list)
    for t in reader.index.tensors:
        if t.kind is Kind.ALIAS:
            aliases[t.origin].append(t.name)
    with CheckpointWriter(folder) as writer:
        for file in files:
            writer.add_file(file.name, file.framed_header, file.entries)

        def write(tensor: TensorRecord, offset: int, data: NDArray[np.uint8]) -> None:
            for name in (tensor.name, *aliases.get(tensor.name, ())):
                writer.write(name, offset, data.data)

        decode_tensors(reader, base, threads, write, progress)

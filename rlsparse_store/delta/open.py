"""Opening a delta as if it were the tuned checkpoint. Tensors and slices are decoded when read."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from rlsparse_store.delta.apply import rebuild_files
from rlsparse_store.delta.html_table import html_table
from rlsparse_store.delta.resolve import find_base, open_base, open_reader
from rlsparse_store.delta.slicing import read_selection, select
from rlsparse_store.delta.verify import check_base
from rlsparse_store.errors import IndexFormatError, TensorNotFoundError, UnsupportedDtypeError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.checkpoint_layout import FileLayout, LayoutError, stored_metadata
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.source import FileSource
from rlsparse_store.format.index.records import Kind, TensorRecord
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_sources
from rlsparse_store.pipeline.fingerprints import check_origins
from rlsparse_store.pipeline.overlay import Overlay, find_source
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.delta.slicing import Part
    from rlsparse_store.frameworks.framework import Framework, FrameworkName

__all__ = ["DeltaCheckpoint", "DeltaSlice", "Verify", "open_delta", "open_local"]

Verify = Literal["touched", "full", "none"]
"""How much to check: every decoded chunk; all of base and result; nothing."""

LEAST_MAPPED: Final = 1 << 20
"""Size in bytes below which reading a tensor is cheaper than mapping its pages."""


class DeltaSlice:
    """A tensor that is read when it is indexed, and only as far as the index selects.

    It has the methods of a slice of safetensors, and those that loaders call on unread tensors.

    Attributes:
        name: The tensor's name.
        shape: Its dimensions, in elements.
    """

    def __init__(self, checkpoint: DeltaCheckpoint, record: TensorRecord) -> None:
        self._checkpoint = checkpoint
        self._record = record
        self.name = record.name
        self.shape = record.shape

    def __getitem__(self, index: Part | tuple[Part, ...]) -> Any:  # noqa: ANN401 - the framework's
        """Read a selection by integers, slices with positive steps and an ellipsis.

        Raises:
            IndexError: The index is out of range.
            FormatError: The delta is damaged, or the base is another checkpoint.
        """
        return self._checkpoint._read(self._record, index)  # noqa: SLF001 - two halves of one thing

    def get_shape(self) -> list[int]:
        """Its dimensions, in elements."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Its dtype, as safetensors names it."""
        return self._record.dtype.code

    @property
    def dtype(self) -> Any:  # noqa: ANN401 - the framework's
        """Its dtype, as the framework names it."""
        return self._checkpoint._framework.dtype(self._record.dtype)  # noqa: SLF001 - as above

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def is_floating_point(self) -> bool:
        """Whether its elements are real floating-point numbers."""
        return self._record.dtype.code.startswith(("F", "BF"))

    def __repr__(self) -> str:
        return f"DeltaSlice({self.name!r}, {self.get_dtype()}, {list(self.shape)})"


class DeltaCheckpoint(Closeable, Mapping[str, Any]):
    """The tuned checkpoint of a delta and its base, as a mapping of names to tensors.

    Each read decodes anew; nothing is cached. Any number of threads and forked processes may read.
    The base's files are never written.

    An unchanged tensor of at least 1 MiB is a private mapping of the base's file: writing to it
    copies its pages. As with safetensors, the file must not be overwritten or truncated while such
    a tensor is in use. Other tensors are read into memory, and a truncated file is an error. On a
    CUDA device, tensors are decoded on the device and never mapped.

    Attributes:
        path: The delta's folder.
        base: The base's folder or file.
    """

    def __init__(
        self, reader: DeltaReader, base: Checkpoint, framework: Framework, verify: str
    ) -> None:
        self._reader = reader
        self._base = base
        self._framework = framework
        self._checked = verify != "none"
        self._decoder = ChunkDecoder(reader, base.path, verify=self._checked)
        self._records = {t.name: t for t in reader.index.tensors}
        self._chunks = reader.index.chunks_of_tensors()
        self._mappings = _Mappings(base)
        self.path = reader.path
        self.base = base.path
        self._close = weakref.finalize(self, _close, reader, base, self._mappings)

    def keys(self) -> Any:  # noqa: ANN401 - a view of the names
        """The names of all tensors, in ascending order."""
        return self._records.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __repr__(self) -> str:
        return f"DeltaCheckpoint({str(self.path)!r}, base={str(self.base)!r}, {len(self)} tensors)"

    def _repr_html_(self) -> str:
        rows = (
            (t.name, f"{t.dtype.code} {list(t.shape)}, {t.kind.name.lower()}")
            for t in self._records.values()
        )
        return html_table(repr(self), rows)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the framework's
        """The tensor of this name, as :meth:`get_tensor` returns it."""
        return self.get_tensor(name)

    def get_tensor(self, name: str) -> Any:  # noqa: ANN401 - the framework's
        """A whole tensor.

        Args:
            name: Its name.

        Returns:
            A torch tensor or a NumPy array, which the caller may write to.

        Raises:
            TensorNotFoundError: There is no such tensor.
            FormatError: The delta is damaged, or the base is another checkpoint.
            RlsparseError: A file was truncated or cannot be read.
        """
        return self._whole(self._record(name))

    def get_slice(self, name: str) -> DeltaSlice:
        """An unread tensor, to be indexed: ``checkpoint.get_slice(name)[rows, columns]``.

        Only chunks that the selected rows touch are decoded. For a device, a part is decoded on
        the CPU and copied; a whole tensor is decoded on the device.

        Raises:
            TensorNotFoundError: There is no such tensor.
        """
        return DeltaSlice(self, self._record(name))

    def slices(self) -> dict[str, DeltaSlice]:
        """Every tensor, unread: a state dict for loaders."""
        return {name: DeltaSlice(self, record) for name, record in self._records.items()}

    def metadata(self) -> dict[str, str] | None:
        """The metadata in the header of the tuned checkpoint's first file."""
        files = self._reader.index.files.files
        try:
            return stored_metadata(FileLayout(*files[0])) if files else None
        except LayoutError as error:
            raise IndexFormatError(str(error), file=self.path) from error

    def verify(self) -> None:
        """Check all of base and result, as ``verify="full"`` does when a delta is opened.

        Raises:
            FormatError: The delta is damaged.
            BaseMismatchError: The base is another checkpoint.
        """
        self._reader.check_state()
        rebuild_files(self._reader)
        check_base(self._reader, self._base, resolve_threads(None), no_progress)

    def versions(self) -> tuple[tuple[int, ...], ...]:
        """The versions of all files that were opened; equal as long as none was replaced."""
        sources = [shard.source for shard in self._reader.shards]
        sources += [file.source for file in self._base.files]
        return tuple(source.version for source in sources if isinstance(source, FileSource))

    def digests(self) -> dict[str, bytes]:
        """The digest of each tensor's content, by name."""
        return {t.name: t.digest for t in self._reader.index.tuned_identities()}

    def check_unchanged(self) -> None:
        """Check that no file of the base was written since it was opened.

        Raises:
            RlsparseError: One was.
        """
        self._base.check_unchanged()

    def close(self) -> None:
        """Close the files. Tensors that were returned stay valid."""
        self._close()

    def _record(self, name: str) -> TensorRecord:
        record = self._records.get(name)
        if record is None:
            msg = "no such tensor; keys() lists them"
            raise TensorNotFoundError(msg, file=self.path, tensor=printable(name))
        return record

    def _stored(self, t: TensorRecord) -> TensorRecord:
        """The tensor that stores this one's bytes."""
        return self._records[t.origin] if t.kind is Kind.ALIAS else t

    def _overlay(self, t: TensorRecord) -> Overlay:
        t = self._stored(t)
        chunks = self._chunks.get(t.name, [])
        return Overlay(t, chunks, find_source(t, self._base), self._decoder)

    def _whole(self, t: TensorRecord) -> Any:  # noqa: ANN401 - the framework's
        data = self._made_on_device(t)
        if data is None and t.kind is Kind.SAME:
            data = self._mappings.take(t)
        if data is None:
            data = np.empty(t.nbytes, np.uint8)
            overlay = self._overlay(t)
            overlay.prefetch(0, overlay.nbytes)
            overlay.read_into(0, data)
        return self._framework.array(data, t.dtype, t.shape)

    def _made_on_device(self, t: TensorRecord) -> Any:  # noqa: ANN401 - a torch tensor
        """The tensor's bytes, decoded on the device; ``None`` if the CPU decodes them."""
        device, stored = self._framework.device, self._stored(t)
        if device is None:
            return None
        from rlsparse_store.gpu.memory import DeviceMemory  # noqa: PLC0415 - needs Triton
        from rlsparse_store.gpu.tensor_reader import (  # noqa: PLC0415 - as above
            is_supported,
            read_on_device,
        )

        if not is_supported(stored):
            return None
        memory = DeviceMemory(device)
        try:
            overlay = self._overlay(t)
            overlay.prefetch(0, overlay.nbytes)
            return read_on_device(overlay, self._decoder, memory, resolve_threads(None))
        except MemoryError:
            msg = f"no memory left on {memory.name}: a tensor is decoded on the CPU, more slowly"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
            return None

    def _read(self, t: TensorRecord, index: Part | tuple[Part, ...]) -> Any:  # noqa: ANN401 - as above
        selection = select(t.shape, index)
        if selection.ranges == tuple(map(range, t.shape)) and all(selection.kept):
            return self._whole(t)
        if t.dtype.bits < 8:
            msg = f"{t.dtype.code} is smaller than a byte and cannot be sliced; use get_tensor"
            raise UnsupportedDtypeError(msg, file=self.path, tensor=printable(t.name))
        overlay = self._overlay(t)

        def read(start: int, out: NDArray[np.uint8]) -> None:
            overlay.prefetch(start, start + out.size)
            overlay.read_into(start, out)

        data = read_selection(read, t.shape, selection, t.dtype.bits // 8)
        return self._framework.array(data, t.dtype, selection.shape)


def _close(reader: DeltaReader, base: Checkpoint, mappings: _Mappings) -> None:
    mappings.forget()
    base.close()
    reader.close()


class _Mappings:
    """Memory mappings of the base's files; each tensor is returned once.

    A caller may write to a mapped tensor, and later callers would see it: so only the first gets
    the mapping, and others read the file. ``setdefault`` is atomic; a lock could be held when the
    process forks.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._files: dict[int, NDArray[np.uint8]] = {}
        self._taken: dict[str, object] = {}

    def take(self, t: TensorRecord) -> NDArray[np.uint8] | None:
        """The mapped bytes of a tensor's source, or ``None`` if the caller has to read it."""
        source = self._base.tensors[t.origin]
        is_aligned = source.offset % max(1, t.dtype.bits // 8) == 0
        taker = object()
        if source.nbytes < LEAST_MAPPED or not is_aligned:
            return None
        if self._taken.setdefault(source.name, taker) is not taker:
            return None
        file = self._base.files[source.file].source
        if not isinstance(file, FileSource):
            return None
        file.check_not_cut()
        mapped = self._files.get(source.file)
        if mapped is None:
            mapped = self._files.setdefault(source.file, file.map_into_memory())
        return mapped[source.offset : source.offset + source.nbytes]

    def forget(self) -> None:
        """Drop the mappings. Each lives as long as a tensor of it."""
        self._files.clear()


def open_delta(  # noqa: PLR0913 - what from_pretrained takes of the Hub, twice
    delta: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    framework: FrameworkName = "pt",
    device: object = None,
    subfolder: str = "",
    verify: Verify = "touched",
    max_tuned_bytes: int | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> DeltaCheckpoint:
    """Open a delta as if it were the tuned checkpoint.

    Nothing is decoded until a tensor, or a slice of one, is read.

    Args:
        delta: Folder of the delta, its URL in object storage, or ``org/name[@revision]`` on the
            Hub. From object storage, only what is read is fetched.
        base: The base: a folder, a ``.safetensors`` file, a URL or ``org/name[@revision]``. By
            default the commit that the delta names, else a snapshot in the Hub's cache with its
            content. A delta in object storage leads to no other place: give its base.
        framework: ``"pt"`` for torch tensors; ``"np"`` for NumPy arrays, which cannot hold bfloat16
            and 8-bit floats; ``"bits"`` for NumPy arrays of unsigned words, for all dtypes.
        device: Device of torch's tensors; the CPU by default. Tensors are decoded on the CPU and
            copied. With ``RLSPARSE_GPU=1`` in the environment, base words of 8, 16 and 32 bits are
            copied to a CUDA device and patched there. Experimental: never run on a GPU.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        verify: ``"touched"`` checks every chunk that is decoded (stored bytes, base words, result)
            and dtype and length of all tensors. ``"full"`` first checks all of base and result.
            ``"none"`` checks no content; reads and writes stay in bounds all the same.
        max_tuned_bytes: Bytes of all tuned tensors to accept. A small delta may store a large
            checkpoint; by default any size is accepted.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        A mapping from names to tensors, with the methods of ``safetensors.safe_open``. It holds
        files open: use it in a ``with`` statement, or close it.

    Raises:
        NotFoundError: There is no such delta or base.
        FormatError: The delta is damaged.
        TooLargeError: The tuned checkpoint has more than ``max_tuned_bytes``.
        BaseMismatchError: The base is another checkpoint.
        MissingDependencyError: torch is not installed.

    Example:
        >>> with open_delta("qwen-grpo-delta", base="qwen-base") as tuned:  # doctest: +SKIP
        ...     tuned.get_slice("lm_head.weight")[:1000]
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    array_maker = get_framework(framework, device)
    _require_verify(verify)
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_reader(delta, revision, subfolder, access, max_tuned_bytes)
        )
        checkpoint = stack.enter_context(open_base(reader, base, base_revision, access))
        opened = _open(reader, checkpoint, array_maker, verify, is_whole=False)
        stack.pop_all()
        return opened


def _require_verify(verify: str) -> None:
    if verify not in get_args(Verify):
        msg = f"verify={verify!r}: choose one of {', '.join(get_args(Verify))}"
        raise ValueError(msg)


def _open(
    reader: DeltaReader, base: Checkpoint, framework: Framework, verify: str, *, is_whole: bool
) -> DeltaCheckpoint:
    check_sources(reader, base)
    if verify == "touched" and is_whole:
        check_origins(reader, base, resolve_threads(None), include_covered=False)
    opened = DeltaCheckpoint(reader, base, framework, verify)
    if verify == "full":
        opened.verify()
    return opened


def open_local(
    delta: Path,
    base: str | PathLike[str] | None,
    base_revision: str | None,
    access: HubAccess,
    framework: Framework,
    verify: str,
    *,
    is_whole: bool = False,
    max_tuned_bytes: int | None = None,
) -> DeltaCheckpoint:
    """Open a delta in a local folder, as :func:`open_delta` does.

    Args:
        delta: Its folder.
        base: As for :func:`open_delta`.
        base_revision: As for :func:`open_delta`.
        access: How to reach the Hub.
        framework: Makes the tensors.
        verify: As for :func:`open_delta`.
        is_whole: Whether the caller reads every tensor. Then ``"touched"`` also compares base
            tensors that no chunk covers, even those of the commit that the delta names, because a
            download may be damaged.
        max_tuned_bytes: As for :func:`open_delta`.
    """
    _require_verify(verify)
    with ExitStack() as stack:
        reader = stack.enter_context(DeltaReader(delta, max_tuned_bytes=max_tuned_bytes))
        found = find_base(reader, base, base_revision, access)
        checkpoint = stack.enter_context(open_checkpoint(found))
        opened = _open(reader, checkpoint, framework, verify, is_whole=is_whole)
        stack.pop_all()
        return opened

"""Opening a checkpoint: which files it has, and where each tensor's bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.errors import CheckpointError, NotFoundError, PickleRefusedError
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.folder import LocalFolder
from rlsparse_store.files.source import FileSource
from rlsparse_store.format.header import HeaderError, ParsedHeader, parse_header
from rlsparse_store.format.limits import MAX_FILES, MAX_TENSOR_HEADER, MAX_TENSORS
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.format.strict_json import StrictJsonError, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.files.folder import Folder
    from rlsparse_store.files.source import Source
    from rlsparse_store.format.dtypes import Dtype

__all__ = ["Checkpoint", "CheckpointFile", "TensorRef", "open_checkpoint", "open_files"]

SUFFIX: Final = ".safetensors"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp")
_CONVERT: Final = (
    "holds pickled weights, which are never read because that could run code; convert it first: "
    "load it with transformers and save_pretrained(), which writes safetensors"
)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor of a checkpoint and where its bytes lie.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
        file: Place of its file among the checkpoint's files.
        offset: Position of its first byte in that file.
        nbytes: Its length in bytes.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One safetensors file of a checkpoint.

    Attributes:
        name: Its file name.
        source: Its bytes.
        header: Its JSON header with padding.
        parsed: What the header says.
    """

    name: str
    source: Source
    header: bytes
    parsed: ParsedHeader


@dataclass(frozen=True, slots=True)
class Checkpoint(Closeable):
    """An open checkpoint.

    Attributes:
        path: The folder or file it was opened from.
        files: Its files, by name.
        tensors: Its tensors by name, names in ascending byte order.
        index_text: The bytes of its index file, if it has one.
    """

    path: Path
    files: list[CheckpointFile]
    tensors: dict[str, TensorRef]
    index_text: bytes | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, tensor: TensorRef, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Read ``nbytes`` bytes of a tensor from byte ``start`` of its data on.

        Raises:
            RlsparseError: The file was cut short or cannot be read.
        """
        out = np.empty(nbytes, np.uint8)
        self.read_into(tensor, start, out)
        return out

    def read_into(self, tensor: TensorRef, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with bytes of a tensor from byte ``start`` of its data on.

        Raises:
            RlsparseError: The file was cut short or cannot be read.
        """
        self.files[tensor.file].source.read_into(out, tensor.offset + start)

    def check_unchanged(self) -> None:
        """Require that no file was written to since it was opened.

        Raises:
            RlsparseError: One was.
        """
        for file in self.files:
            file.source.check_unchanged()

    def close(self) -> None:
        """Close its files. May be called twice."""
        for file in self.files:
            file.source.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: a Hugging Face folder or one ``.safetensors`` file.

    Args:
        path: The folder or the file.

    Returns:
        The checkpoint, which is to be closed or used in a ``with`` statement.

    Raises:
        NotFoundError: It does not exist.
        PickleRefusedError: It holds only pickled weights.
        CheckpointError: A file is missing or broken.
    """
    folder, names, index_text = _find_files(path)
    return open_files(path, LocalFolder(folder), names, index_text)


def open_files(
    path: Path, found: Folder, names: Sequence[str], index_text: bytes | None = None
) -> Checkpoint:
    """Open the checkpoint that some files make up, wherever they lie.

    Args:
        path: What it is called.
        found: The files.
        names: The names of those with its tensors.
        index_text: What its index file says, if that is to be compared.

    Raises:
        CheckpointError: A file is broken.
    """
    files: list[CheckpointFile] = []
    try:
        for name in names:
            # Not a comprehension: those already open must be closed if a later one is broken.
            files.append(_open_file(found.open(name), name))  # noqa: PERF401
        folder = path if path.is_dir() else path.parent
        return Checkpoint(path, files, _collect_tensors(folder, files, index_text), index_text)
    except BaseException:
        for file in files:
            file.source.close()
        raise


def _find_files(path: Path) -> tuple[Path, list[str], bytes | None]:
    if not path.exists():
        msg = "no such file or folder, and no ORG/NAME on the Hub"
        raise NotFoundError(msg, file=printable(str(path)))
    if path.is_file():
        return path.parent, [_check_single(path)], None
    if not path.is_dir():
        msg = "neither a folder nor a regular file"
        raise CheckpointError(msg, file=path)
    found = sorted(p.name for p in path.iterdir() if p.name.endswith(SUFFIX))
    index = path / INDEX
    if index.exists():
        with FileSource(index) as source:
            text = source.read(0, min(source.nbytes, MAX_TENSOR_HEADER))
        named = set(_weight_map(index, text).values())
        # Where the single file is there too, it is the model, as for transformers: an index that
        # does not name it was left behind by what was saved there before.
        if SINGLE in named or SINGLE not in found:
            return path, _require_files(index, named), text
    if SINGLE in found:
        return path, [SINGLE], None
    if len(found) == 1:
        return path, found, None
    if found:
        msg = f"holds {len(found)} safetensors files but no {INDEX} that says which belong to it"
        raise CheckpointError(msg, file=path)
    raise _without_weights(path)


def _without_weights(path: Path) -> CheckpointError:
    """What is wrong with a folder that holds no safetensors file."""
    if any(p.suffix in _PICKLED or p.name == ".metadata" for p in path.iterdir()):
        return PickleRefusedError(_CONVERT, file=path)
    msg = "holds no safetensors file"
    if any(p.suffix == ".gguf" for p in path.iterdir()):
        msg += ", only GGUF, whose weights are quantised anew; give the safetensors checkpoint"
    return CheckpointError(msg, file=path)


def _check_single(path: Path) -> str:
    """The name of a checkpoint that is one file."""
    if path.suffix in _PICKLED:
        raise PickleRefusedError(_CONVERT, file=path)
    if path.suffix != SUFFIX:
        msg = "not a .safetensors file; give one, or the folder of a checkpoint"
        raise CheckpointError(msg, file=path)
    return path.name


def _require_files(path: Path, named: set[str]) -> list[str]:
    """The files that an index names, which must be there."""
    names = sorted(named)
    for name in names:
        if any(name.endswith(suffix) for suffix in _PICKLED):
            raise PickleRefusedError(_CONVERT, file=path)
        if not (is_file_name(name) and name.endswith(SUFFIX)):
            msg = f"names {printable(name)!r}, which is not a plain safetensors file name"
            raise CheckpointError(msg, file=path)
        if not (path.parent / name).exists():
            msg = f"the shard {name} is missing; download or copy the checkpoint again"
            raise CheckpointError(msg, file=path.parent)
    if not 0 < len(names) <= MAX_FILES:
        msg = f"names {len(names)} files; 1 to {MAX_FILES} are accepted"
        raise CheckpointError(msg, file=path)
    return names


def _weight_map(path: Path, text: bytes) -> dict[str, str]:
    try:
        index: Any = parse_index(text)
    except StrictJsonError as error:
        raise CheckpointError(str(error), file=path) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        msg = "has no weight_map from names to files"
        raise CheckpointError(msg, file=path)
    return weight_map


def parse_index(text: bytes) -> Any:  # noqa: ANN401 - JSON has no one type
    """Parse an index file, whose metadata may hold any JSON but duplicate keys and bombs.

    Raises:
        StrictJsonError: It is not such JSON.
    """
    return parse(text, most_objects=1000, any_number=True)


def _open_file(source: Source, name: str) -> CheckpointFile:
    try:
        header = source.read_header(MAX_TENSOR_HEADER)
        parsed = parse_header(header, source.nbytes - 8 - len(header))
    except HeaderError as error:
        source.close()
        tensor = printable(error.tensor) if error.tensor is not None else None
        raise CheckpointError(str(error), file=source.path, tensor=tensor) from error
    except BaseException:
        source.close()
        raise
    return CheckpointFile(name, source, header, parsed)


def _collect_tensors(
    folder: Path, files: list[CheckpointFile], index_text: bytes | None
) -> dict[str, TensorRef]:
    found: dict[str, TensorRef] = {}
    for number, file in enumerate(files):
        data = 8 + len(file.header)
        for e in file.parsed.entries:
            if e.name in found:
                other = files[found[e.name].file].name
                msg = f"stands in {other} and in {file.name}"
                raise CheckpointError(msg, file=folder, tensor=e.name)
            found[e.name] = TensorRef(
                e.name, e.dtype, e.shape, number, data + e.start, e.end - e.start
            )
    if len(found) > MAX_TENSORS:
        msg = f"holds {len(found)} tensors; at most {MAX_TENSORS} are accepted"
        raise CheckpointError(msg, file=folder)
    if index_text is not None:
        _check_weight_map(folder, files, found, _weight_map(folder / INDEX, index_text))
    return {name: found[name] for name in sorted(found, key=str.encode)}


def _check_weight_map(
    folder: Path,
    files: list[CheckpointFile],
    found: dict[str, TensorRef],
    weight_map: dict[str, str],
) -> None:
    for name, file in weight_map.items():
        if name not in found or files[found[name].file].name != file:
            msg = f"is not in {file}, where {INDEX} says it is"
            raise CheckpointError(msg, file=folder, tensor=printable(name))

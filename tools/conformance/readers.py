"""The two readers of a delta, the library and the second decoder, with one outcome to compare."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import xxhash

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from conformance.memory import MemoryPath
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.format.index.records import TensorRecord

ROOT = Path(__file__).resolve().parents[2]
DECODER = ROOT / "specs" / "decoder" / "decode.py"

Outcome: TypeAlias = str | dict[str, str]
"""The code of a refusal, or the SHA-256 of each rebuilt file."""

STEPS: Final = (
    {"missing"},
    {"header", "version", "feature", "limit"},
    {"index", "limit", "checksum"},
    {"base", "index"},
    {"stream", "base"},
)
"""Codes that rules of one step have: which of them is told is free (section 14)."""


def load_decoder(source: str | None = None) -> ModuleType:
    """The second decoder as a module.

    Args:
        source: Its text, if it is not the one beside the format.
    """
    spec = importlib.util.spec_from_loader("rlsparse_second_decoder", loader=None)
    assert spec is not None  # noqa: S101 - it was just made
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(DECODER)
    sys.modules[spec.name] = module  # dataclasses look their module up
    text = DECODER.read_text(encoding="utf-8") if source is None else source
    exec(compile(text, str(DECODER), "exec"), module.__dict__)  # noqa: S102 - our own file
    return module


def use_fast_hash(decoder: ModuleType) -> None:
    """Exchange the decoder's own XXH3, which has vectors, and would take most of the time."""

    def rows(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        return np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in data], np.uint64)

    decoder.__dict__.update(xxh3=xxhash.xxh3_64_intdigest, xxh3_rows=rows)


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether two readers say the same."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other or any({one, other} <= codes for codes in STEPS)
    return one == other


def second_outcome(
    decoder: ModuleType,
    delta: Path | MemoryPath,
    base: dict[str, Any],
    reader: dict[str, Any],
) -> Outcome:
    """What the second decoder makes of a delta.

    Args:
        decoder: What :func:`load_decoder` gave.
        delta: The delta's folder.
        base: What its ``read_checkpoint`` gave.
        reader: How it is configured: ``features`` and ``max_tuned_bytes``.
    """
    decoder.__dict__["KNOWN_FEATURES"] = frozenset(reader.get("features", ()))
    try:
        tensors = decoder.decode(delta, base, reader.get("max_tuned_bytes"))
        return _digests(decoder.rebuild_files(delta, tensors))
    except decoder.Refused as error:
        code: str = error.code
        return code


def library_outcome(
    delta: Path | MemoryPath, base: Path | Checkpoint, reader: dict[str, Any]
) -> Outcome:
    """What the library makes of a delta, all of which it verifies.

    Args:
        delta: The delta's folder.
        base: The base's folder, or the base, open.
        reader: As for :func:`second_outcome`.
    """
    from rlsparse_store.errors import FormatError  # noqa: PLC0415 - a mutant may be loaded first
    from rlsparse_store.format import manifest  # noqa: PLC0415

    manifest.KNOWN_FEATURES = frozenset(reader.get("features", ()))  # type: ignore[misc]
    try:
        return _digests(_library_files(delta, base, reader.get("max_tuned_bytes")))
    except FormatError as error:
        return error.code


def _library_files(
    delta: Path | MemoryPath, base: Path | Checkpoint, most: int | None
) -> dict[str, bytes]:
    from conformance.memory import NOWHERE, MemoryFolder, MemoryPath  # noqa: PLC0415 - as above
    from rlsparse_store.delta.apply import rebuild_files  # noqa: PLC0415
    from rlsparse_store.delta.verify import check_base  # noqa: PLC0415
    from rlsparse_store.files.checkpoint import open_checkpoint  # noqa: PLC0415
    from rlsparse_store.files.checkpoint_layout import INDEX_NAME  # noqa: PLC0415
    from rlsparse_store.files.delta_reader import DeltaReader  # noqa: PLC0415
    from rlsparse_store.format.index.records import Kind  # noqa: PLC0415
    from rlsparse_store.pipeline.decode import decode_tensors  # noqa: PLC0415
    from rlsparse_store.pipeline.progress import no_progress  # noqa: PLC0415

    place = (NOWHERE, MemoryFolder(delta.files)) if isinstance(delta, MemoryPath) else (delta,)
    with (
        DeltaReader(*place, max_tuned_bytes=most) as opened,
        open_checkpoint(base) if isinstance(base, Path) else nullcontext(base) as checkpoint,
    ):
        opened.check_state()
        files, listing = rebuild_files(opened)
        check_base(opened, checkpoint, 1, no_progress)
        data: dict[str, bytes] = {t.name: b"" for t in opened.index.tensors}

        def write(tensor: TensorRecord, _offset: int, part: NDArray[np.uint8]) -> None:
            data[tensor.name] += part.tobytes()

        decode_tensors(opened, checkpoint, 1, write, no_progress)
        for t in opened.index.tensors:
            if t.kind is Kind.ALIAS:
                data[t.name] = data[t.origin]
        rebuilt = {} if listing is None else {INDEX_NAME: listing}
        for file in files:
            entries = sorted(file.entries, key=lambda entry: (entry.start, entry.end))
            parts = [data[entry.name] for entry in entries]
            rebuilt[file.name] = b"".join([file.framed_header, *parts])
        return rebuilt


def _digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def is_expected(outcome: Outcome, expected: dict[str, Any]) -> bool:
    """Whether an outcome is the one that a vector lists."""
    if "codes" in expected:
        return isinstance(outcome, str) and outcome in expected["codes"]
    return bool(outcome == expected["files"])

"""Writing every vector into a folder, with an index of them."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zstandard

from format_vectors.checkpoints import COMMIT, MODEL, Files, Json, safetensors
from format_vectors.checks import CHECKSUM, RESULTS
from format_vectors.container import HEADER
from format_vectors.directory import MISSING
from format_vectors.draft import DELTA, Draft
from format_vectors.files import FILES
from format_vectors.index import CHUNKS, LIMITS, TENSORS
from format_vectors.invalid import Invalid, Parent
from format_vectors.manifest import MANIFEST
from format_vectors.pairs import PAIRS, SHARED_BASES, Pair, one_step, one_step_wide, other_bases
from format_vectors.rules import RULES
from format_vectors.streams import STREAMS
from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import ImplausibleWarning
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.manifest import FORMAT_VERSION
from rlsparse_store.pipeline.fingerprints import checkpoint_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.format.index.records import Index

INVALID: Final = (
    *HEADER,
    *MANIFEST,
    *MISSING,
    *CHECKSUM,
    *TENSORS,
    *CHUNKS,
    *FILES,
    *LIMITS,
    *STREAMS,
    *RESULTS,
)


def _write(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def read_folder(folder: Path) -> Files:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encode_pair(pair: Pair, work: Path) -> Parent:
    """Encode a pair in an empty folder, and take the delta apart if it is one file."""
    base = work / "models--example--base" / "snapshots" / COMMIT if pair.hints else work / "base"
    _write(base, {MODEL: safetensors(pair.base)})
    _write(work / "tuned", pair.tuned_files())
    with warnings.catch_warnings():
        # Vectors are as small and as odd as a case needs.
        warnings.simplefilter("ignore", ImplausibleWarning)
        encode_delta(base, work / "tuned", work / "delta", threads=1, **pair.options)
    folder = work / "delta" / "rlsparse"
    if pair.edit is not None:
        (folder / DELTA).write_bytes(pair.edit(Draft.read(work / "delta")))
    files = read_folder(folder)
    if pair.edit_files is not None:
        files = pair.edit_files(files)
    # What has shards, or needs a feature, is not taken apart.
    single = DELTA in files and "features" not in pair.reader
    draft = Draft.read(work / "delta") if single else Draft({}, _no_index(), [])
    return Parent(pair, draft, files)


def _no_index() -> Index:
    return None  # type: ignore[return-value]


def _reader(reader: Json) -> Json:
    """How a reader is configured, where it is in any way."""
    return {"reader": reader} if reader else {}


def file_digests(files: Files) -> dict[str, str]:
    """The SHA-256 of each file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def _valid_entry(name: str, parent: Parent, out: Path, work: Path) -> Json:
    files = parent.pair.rebuilt or parent.pair.tuned_files()
    _write(work / "expected", files)
    with open_checkpoint(work / "expected") as checkpoint:
        tuned = checkpoint_state(checkpoint)
    base = SHARED_BASES.get(name, name)
    if base == name:
        _write(out / "bases" / name, {MODEL: safetensors(parent.pair.base)})
    _write(out / "valid" / name / "rlsparse", parent.files)
    return {
        "id": name,
        "kind": "valid",
        "about": parent.pair.about,
        "delta": f"valid/{name}",
        "base": f"bases/{base}",
        "sha256": file_digests(parent.files),
        **_reader(parent.pair.reader),
        "expected": {"tuned": tuned, "files": file_digests(files)},
    }


def _invalid_entry(vector: Invalid, parent: Parent, out: Path) -> Json:
    made = vector.make(parent)
    files = {DELTA: made} if isinstance(made, bytes) else made
    if not (vector.base or vector.reader or parent.pair.reader) and files == parent.files:
        msg = f"{vector.id} is no other than {vector.parent}"
        raise ValueError(msg)
    _write(out / "invalid" / vector.id / "rlsparse", files)
    return {
        "id": vector.id,
        "kind": "invalid",
        "about": vector.about,
        "delta": f"invalid/{vector.id}",
        "base": f"bases/{vector.base or SHARED_BASES.get(vector.parent, vector.parent)}",
        "sha256": file_digests(files),
        **_reader(vector.reader),
        "expected": {"codes": sorted({vector.code, *vector.codes})},
    }


def generate_into(out: Path) -> Json:
    """Write every vector into an empty folder and return the index of them."""
    pairs = {**PAIRS, "one-step": one_step, "one-step-wide": one_step_wide}
    parents: dict[str, Parent] = {}
    vectors: list[Json] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in pairs.items():
            work = Path(temporary) / name
            parents[name] = encode_pair(make(), work)
            vectors.append(_valid_entry(name, parents[name], out, work))
    for name, tensors in other_bases().items():
        _write(out / "bases" / name, {MODEL: safetensors(tensors)})
    vectors += [_invalid_entry(vector, parents[vector.parent], out) for vector in INVALID]
    bases = {
        f"bases/{p.name}": file_digests(read_folder(p)) for p in sorted((out / "bases").iterdir())
    }
    version = list(zstandard.ZSTD_VERSION)
    listing = {"format": FORMAT_VERSION, "zstd": version, "bases": bases}
    listing["rules"] = {rule: names.split() for rule, names in RULES.items()}
    listing["vectors"] = vectors
    (out / "index.json").write_text(_printed(listing))
    return listing


def _printed(listing: Json) -> str:
    """The index as JSON, a vector or a base to a line: short, and a change is one line."""

    def lines(items: Iterable[str]) -> str:
        return ",\n".join(f"  {item}" for item in items)

    head = "".join(f' "{key}": {json.dumps(listing[key])},\n' for key in ("format", "zstd"))
    bases = lines(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in listing["bases"].items())
    rules = lines(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in listing["rules"].items())
    found = lines(map(json.dumps, listing["vectors"]))
    tables = f' "bases": {{\n{bases}\n }},\n "rules": {{\n{rules}\n }},\n'
    return f'{{\n{head}{tables} "vectors": [\n{found}\n ]\n}}\n'

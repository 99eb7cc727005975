"""Comparing the vectors with their index, and with what generating writes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from format_vectors.listing import load
from format_vectors.writing import generate_into

if TYPE_CHECKING:
    from collections.abc import Iterator

    from format_vectors.checkpoints import Json


def _listed(listing: Json) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of every file that belongs to the vectors."""
    for folder, files in listing["bases"].items():
        for name, digest in files.items():
            yield f"{folder}/{name}", digest
    for vector in listing["vectors"]:
        for name, digest in vector["sha256"].items():
            yield f"{vector['delta']}/rlsparse/{name}", digest


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problem_with(folder: Path) -> str | None:
    """What is wrong with the files of the vectors, in one line, or ``None``."""
    found = read_tree(folder)
    listed = dict(_listed(load(folder)))
    for path, digest in listed.items():
        if path not in found:
            return f"{path} is missing"
        if hashlib.sha256(found[path]).hexdigest() != digest:
            return f"{path} does not have its SHA-256"
    extra = found.keys() - listed.keys() - {"index.json", "README.md"}
    return f"{min(extra)} is not listed" if extra else None


def difference_from(folder: Path) -> str | None:
    """The first file that generating would write otherwise, or ``None``."""
    with tempfile.TemporaryDirectory() as temporary:
        generate_into(Path(temporary))
        wanted, found = read_tree(Path(temporary)), read_tree(folder)
    found.pop("README.md", None)
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            return f"{path} is not what `generate` writes"
    return None

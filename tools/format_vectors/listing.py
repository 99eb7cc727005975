"""Where the vectors are, and the index of them: what a test of any reader needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

VECTORS: Final = Path(__file__).resolve().parents[2] / "specs" / "vectors"


def load(folder: Path = VECTORS) -> Json:
    """The index of the vectors."""
    listing: Json = json.loads((folder / "index.json").read_text())
    return listing

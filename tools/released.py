#!/usr/bin/env python3
"""Write the files of this version that every later version must read: ``specs/released/``.

    python tools/released.py            # of a version that is not released yet
    python tools/released.py --final    # when it is released: see RELEASE.md

A folder there has the name of a version and holds what that version writes: a run of two deltas,
a mask, and their base. ``about.json`` names the format, says whether the version is released, and
has the counts of the mask and the digests of all files and of those that the deltas rebuild.
tests/test_released.py reads them all. The files of a release are never written again; those of a
version that is not released are replaced by this tool.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from format_vectors.checkpoints import Tensor, floats, moved, raw, safetensors
from rlsparse_store import __version__, encode_run
from rlsparse_store.analysis import write_mask
from rlsparse_store.format.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    from format_vectors.checkpoints import Tensors

RELEASED: Final = Path(__file__).resolve().parent.parent / "specs/released"
STEPS: Final = ("step-100", "step-200")


def checkpoints() -> dict[str, dict[str, bytes]]:
    """The files of the base and of the tuned checkpoints, by folder."""
    embedding, gate = floats("embedding", "BF16", 96, 64), floats("gate", "BF16", 64, 64)
    norm, packed = floats("norm", "F32", 64), raw("packed", "I32", 8, 64)
    quantized, removed = raw("quantized", "F8_E4M3", 32, 64), raw("removed", "U8", 7)
    base: Tensors = {
        "embedding": embedding,
        "layers.0.gate": gate,
        "layers.0.norm": norm,
        "layers.0.packed": packed,
        "layers.0.quantized": quantized,
        "removed": removed,
    }
    grown = embedding.data + floats("new rows", "BF16", 2, 64).data
    tuned: Tensors = {
        "embedding": Tensor("BF16", (98, 64), grown),
        "layers.0.gate": moved("gate of 100", gate, 400),
        "layers.0.norm": norm,
        "layers.0.packed": moved("packed of 100", packed, 20),
        "layers.0.quantized": moved("quantized of 100", quantized, 60),
    }
    later = {
        **tuned,
        "layers.0.gate": moved("gate of 200", tuned["layers.0.gate"], 900),
        "layers.0.norm": moved("norm of 200", norm, 5),
    }
    return {
        "base": {"model.safetensors": safetensors(base)},
        STEPS[0]: {"model.safetensors": safetensors(tuned), "config.json": b"{}\n"},
        STEPS[1]: _two_shards(later),
    }


def _two_shards(tensors: Tensors) -> dict[str, bytes]:
    """The files of a checkpoint in two shards."""
    first = {name: tensor for name, tensor in tensors.items() if name == "embedding"}
    rest = {name: tensor for name, tensor in tensors.items() if name not in first}
    shards = {
        "model-00001-of-00002.safetensors": first,
        "model-00002-of-00002.safetensors": rest,
    }
    index = {
        "metadata": {"total_size": sum(len(t.data) for t in tensors.values())},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    return {
        **{file: safetensors(part) for file, part in shards.items()},
        "model.safetensors.index.json": json.dumps(index, indent=2).encode(),
    }


def write(out: Path, *, final: bool) -> None:
    """Write what this version writes to a folder that does not exist."""
    files = checkpoints()
    with TemporaryDirectory() as scratch:
        for folder, contents in files.items():
            (Path(scratch) / folder).mkdir()
            for name, data in contents.items():
                (Path(scratch) / folder / name).write_bytes(data)
        shutil.copytree(Path(scratch) / "base", out / "base")
        encode_run(out / "base", [Path(scratch) / step for step in STEPS], out / "run", threads=1)
    # Who holds the run's lock: of the process and the machine, not of the run.
    shutil.rmtree(out / "run/.run")
    mask = write_mask([out / "run"], out / "mask.safetensors", base=out / "base", threads=1)
    about = {
        "package": __version__,
        "format": FORMAT_VERSION,
        "final": final,
        "mask": mask.tensors,
        "files": digests(out),
        "rebuilt": {step: {n: _digest(data) for n, data in files[step].items()} for step in STEPS},
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder."""
    return {
        path.relative_to(folder).as_posix(): _digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "about.json"
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@click.command()
@click.option("--final", is_flag=True, help="Mark the files as those of a release.")
@click.option("--out", type=click.Path(path_type=Path), default=RELEASED, show_default=True)
def main(final: bool, out: Path) -> None:  # noqa: FBT001 - named by click
    """Write the files of this version, in place of earlier ones that are not final."""
    for about in out.glob("*/about.json"):
        found = json.loads(about.read_text())
        if not found["final"]:
            shutil.rmtree(about.parent)
        elif found["package"] == __version__:
            msg = f"{about.parent}: the files of a release are not written again"
            raise click.ClickException(msg)
    write(out / __version__, final=final)
    click.echo(f"{out / __version__}: {'final' if final else 'replaced until the release'}")


if __name__ == "__main__":
    main()

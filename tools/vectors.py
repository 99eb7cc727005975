#!/usr/bin/env python3
"""Write, check and list ``specs/vectors``: deltas that readers must accept, or refuse by code.

    python tools/vectors.py generate
    python tools/vectors.py check
    python tools/vectors.py rules

The valid vectors are encoded from small pairs of checkpoints. Each invalid one is a valid one with
one deliberate edit, sealed again: checks, totals and digests are recomputed, so that exactly one
rule is broken and a reader that knows only the checksums does not notice. Everything is a function
of names, by way of SHAKE-128, so that no library's random stream can change a byte.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
import zstandard

from format_vectors.checking import difference_from, problem_with, read_tree
from format_vectors.listing import VECTORS, load
from format_vectors.rules import RULES, TOO_LARGE
from format_vectors.text import rules_of_text
from format_vectors.writing import generate_into


@click.group()
def main() -> None:
    """Write and check the vectors of the format."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=VECTORS, show_default=True)
def generate(out: Path) -> None:
    """Write every vector anew."""
    readme = out / "README.md"
    kept = readme.read_bytes() if readme.exists() else None
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    if kept is not None:
        readme.write_bytes(kept)
    listing = generate_into(out)
    kinds = [vector["kind"] for vector in listing["vectors"]]
    size = sum(len(data) for data in read_tree(out).values())
    valid, invalid = kinds.count("valid"), kinds.count("invalid")
    click.echo(f"{valid} valid and {invalid} invalid vectors, {size} bytes")


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=VECTORS, show_default=True)
def check(folder: Path) -> None:
    """Fail unless every file is as listed and as ``generate`` writes it."""
    problem = problem_with(folder)
    if problem is None:
        recorded = tuple(load(folder)["zstd"])
        if recorded == zstandard.ZSTD_VERSION:
            problem = difference_from(folder)
        else:
            ours = ".".join(map(str, zstandard.ZSTD_VERSION))
            click.echo(f"not generated anew: zstd {ours} may write other bytes")
    if problem is not None:
        click.echo(problem, err=True)
        sys.exit(1)


@main.command()
def rules() -> None:
    """Print each numbered rule of the format with its codes and its invalid vectors."""
    click.echo("| rule | codes | a reader requires | vectors |\n|---|---|---|---|")
    for rule, (codes, must) in rules_of_text().items():
        vectors = RULES[rule].replace(" ", ", ") or f"{TOO_LARGE[rule]} (made by large.py)"
        click.echo(f"| {rule} | {', '.join(sorted(codes))} | {must} | {vectors} |")


if __name__ == "__main__":
    main()

"""Sizes of deltas and their entropy bound: ``python tools/bench/sizes.py BASE TUNED [TUNED ...]``.

Prints, per pair, bits per changed weight of the whole ``rlsparse/`` folder and the order-0 bound
given tensor and exponent: the entropy of the mask of each exponent and of its steps, without
tables. Real coders add tables and framing, and may be below the bound where changes cluster.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from rlsparse_store import encode_delta
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.order import keys, steps
from rlsparse_store.format.words import as_words

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in bits of a sequence with these symbol counts."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())


def order_0_bound(base: Path, tuned: Path) -> tuple[float, int]:
    """The bound in bits and the number of changed words, over the floating-point tensors."""
    bits, changed = 0.0, 0
    with open_checkpoint(base) as before, open_checkpoint(tuned) as after:
        for name, tensor in after.tensors.items():
            mantissa = tensor.dtype.mantissa_bits
            source = before.tensors.get(name)
            if mantissa is None or source is None or source.shape != tensor.shape:
                continue
            coding = tensor.dtype.coding
            old = as_words(before.read(source, 0, source.nbytes), coding.width)
            new = as_words(after.read(tensor, 0, tensor.nbytes), coding.width)
            exponents = (keys(old, coding) >> mantissa).astype(np.int64)
            is_changed = old != new
            all_steps = steps(old[is_changed], new[is_changed], coding)
            for exponent in np.unique(exponents[is_changed]):
                words = int((exponents == exponent).sum())
                group = all_steps[exponents[is_changed] == exponent]
                bits += _entropy(np.array([group.size, words - group.size]))
                bits += _entropy(np.unique(group, return_counts=True)[1])
                changed += group.size
    return bits, changed


@click.command()
@click.argument("base", type=click.Path(exists=True, path_type=Path))
@click.argument("tuned", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(base: Path, tuned: tuple[Path, ...]) -> None:
    """Print a Markdown table of sizes and bounds."""
    click.echo(
        "| pair | weights | changed | checkpoint | delta | bits per changed weight | bound |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for path in tuned:
        with tempfile.TemporaryDirectory() as folder:
            report = encode_delta(base, path, Path(folder) / "delta")
        bits, changed = order_0_bound(base, path)
        click.echo(
            f"| {path.name} | {report.elements:,} | {report.density:.3%} | "
            f"{report.tuned_bytes:,} | {report.delta_bytes:,} | "
            f"{report.bits_per_changed or 0:.3f} | {bits / max(changed, 1):.3f} |"
        )


if __name__ == "__main__":
    main()

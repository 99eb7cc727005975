"""``rlsparse mask``."""

from __future__ import annotations

import math
from typing import Any

import click

from rlsparse_store.analysis.masks import (
    COMBINATIONS,
    CONTROLS,
    Combination,
    Control,
    write_mask,
)
from rlsparse_store.cli.options import (
    base_option,
    hub_options,
    json_option,
    quiet_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

__all__ = ["mask_command"]


def _finite(context: click.Context, option: click.Parameter, value: float) -> float:
    del context, option
    if not 0 <= value < math.inf:
        msg = f"{value} is not a tolerance: give a number of at least 0."
        raise click.BadParameter(msg)
    return value


@click.command("mask")
@click.argument("deltas", nargs=-1, required=True, metavar="DELTA... | RUN")
@click.option("--out", "-o", required=True, metavar="FILE", help="The .safetensors file to write.")
@base_option
@click.option(
    "--combine",
    type=click.Choice(COMBINATIONS),
    default="union",
    show_default=True,
    help="Of several deltas: weights that any, all, or a majority changed.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.0,
    callback=_finite,
    metavar="T",
    help="Ignore changes of floats up to T.",
)
@click.option("--complement", is_flag=True, help="Invert the mask.")
@click.option(
    "--control",
    type=click.Choice(CONTROLS),
    help="Random control of equal size: per tensor, or per tensor and exponent.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=0,
    show_default=True,
    help="Seed of the control.",
)
@threads_option
@hub_options(revision="RUN", base_revision="BASE")
@json_option
@quiet_option
def mask_command(  # noqa: PLR0913, PLR0917 - each is an option
    deltas: tuple[str, ...],
    out: str,
    base: str | None,
    combine: Combination,
    tolerance: float,
    complement: bool,  # noqa: FBT001 - click passes every parameter by name
    control: Control | None,
    seed: int,
    threads: int | None,
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Write a training mask: one bit per weight, set where the deltas changed it.

    In Python, rlsparse_store.torch.load_mask reads it, and freeze_outside trains with it.
    """
    with progress_bar("mask", quiet=quiet) as progress:
        report = write_mask(
            deltas,
            out,
            base=base,
            combine=combine,
            tolerance=tolerance,
            complement=complement,
            control=control,
            seed=seed,
            threads=threads,
            progress=progress,
            **hub,
        )
    if as_json:
        print_json(report.as_json())
        return
    click.echo(f"wrote {printable(out)}")
    click.echo(
        f"  {report.trainable:,} of {report.words:,} trainable weights "
        f"({format_percent(report.density)})"
    )
    for name in report.unmatched[:10]:
        click.echo(f"  no mask, not trained: {printable(name, 80)}")

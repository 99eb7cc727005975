"""``rlsparse inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlsparse_store.analysis.tensor_pairs import open_pair, over_base
from rlsparse_store.analysis.value_report import SCOPES, measure_values
from rlsparse_store.cli.encode import print_encoded
from rlsparse_store.cli.options import (
    base_option,
    hub_options,
    json_option,
    quiet_option,
    subfolder_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.cli.run_tables import print_run, print_run_csv, print_run_summary
from rlsparse_store.cli.value_tables import print_csv, print_values
from rlsparse_store.delta.encode import measure_pair
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.report import STEP_LABELS, EncodeReport
from rlsparse_store.delta.run import find_run_report
from rlsparse_store.delta.units import format_bits, format_bytes, format_percent
from rlsparse_store.files.output import require_new
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess

if TYPE_CHECKING:
    from rlsparse_store.analysis.value_report import ValueReport
    from rlsparse_store.delta.report import DeltaReport, Group
    from rlsparse_store.delta.run import RunReport
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["inspect_command", "print_report"]

_OF_ONE_DELTA = ("show_all", "base", "with_values", "rank", "compressed")
"""Options that need one delta."""

_HUB = ("token", "cache_dir", "local_files_only")

SHOWN_TENSORS = 20
"""Tensors listed without --all: those with the most changes."""


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, metavar="DELTA | RUN | BASE TUNED")
@click.option("--all", "show_all", is_flag=True, help="List every tensor, sorted by name.")
@base_option
@click.option(
    "--values",
    "with_values",
    is_flag=True,
    help="Of a delta: also measure values, over --base or the base that it names.",
)
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="matched",
    show_default=True,
    help="What to count: tensors of both sides, all tuned tensors, or matrices in layers.",
)
@click.option(
    "--align-rows/--no-align-rows", default=True, help="Compare the common rows of resized tensors."
)
@click.option(
    "--preset",
    type=click.Choice(["exact", "mukherjee"]),
    default="exact",
    show_default=True,
    help="First figure: equal bits, or equality to 1e-5 and the unweighted mean.",
)
@click.option("--rank", is_flag=True, help="Compute the rank of sampled updates.")
@click.option("--compressed", is_flag=True, help="Also measure encodings compressed with zstd.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print one line per tensor, or per delta of a run."
)
@click.option("--summary", is_flag=True, help="Of a run: print its totals only.")
@click.option("--plot", "plots", metavar="DIR", help="Write pictures into DIR, as PNG and SVG.")
@click.option("--report", "page", metavar="FILE", help="Write a self-contained HTML page.")
@subfolder_option
@click.option("--cast", type=click.Choice(["bf16"]), help="For a pair: as for encode.")
@click.option("--keep-dtype", is_flag=True, help="For a pair: as for encode.")
@threads_option
@hub_options(revision="DELTA, RUN or TUNED", base_revision="BASE")
@json_option
@quiet_option
def inspect_command(
    paths: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - as above
) -> None:
    """Show how sparse an update is: of a DELTA, of each delta of a RUN, or of a pair BASE TUNED.

    DELTA and RUN are folders, URLs (s3://…), or ORG/NAME[@REVISION] on the Hub. Only the index of a
    delta is read: no base is needed and nothing is decoded. Tolerances, magnitudes, norms, rows and
    columns need the base: they are measured for a pair, and for a delta with --base or --values.
    """
    if len(paths) > 2:
        msg = "give one DELTA or RUN, or BASE and TUNED"
        raise click.UsageError(msg)
    if as_json and options["as_csv"]:
        msg = "--json and --csv exclude each other"
        raise click.UsageError(msg)
    hub = {name: options[name] for name in _HUB}
    revision = options["revision"]
    of_run = len(paths) == 1 and not options["subfolder"]
    run = find_run_report(paths[0], HubAccess(**hub), revision) if of_run else None
    if run is not None:
        _show_run(paths[0], run, options, as_json=as_json)
        return
    if options["summary"]:
        msg = "--summary is for a run"
        raise click.UsageError(msg)
    _require_places(options["plots"], options["page"])
    report, values = _measure(paths, options, quiet=quiet)
    if options["plots"] is not None or options["page"] is not None:
        _draw(paths, report, values, options["plots"], options["page"])
    if as_json:
        measured = {} if values is None else {"values": values.as_json()}
        print_json({**report.as_json(), **measured})
    elif options["as_csv"]:
        print_csv(report, values)
    else:
        print_report(report, show_all=options["show_all"], with_groups=values is None)
        if values is not None:
            click.echo("\nValues")
            print_values(values, options["preset"])


def _show_run(place: str, run: RunReport, options: dict[str, Any], *, as_json: bool) -> None:
    if any(options[name] for name in _OF_ONE_DELTA):
        msg = "this option needs one delta: add --subfolder NAME"
        raise click.UsageError(msg)
    if options["plots"] is not None or options["page"] is not None:
        _draw_run(place, run, options["plots"], options["page"])
    if as_json:
        print_json(run.as_json())
    elif options["as_csv"]:
        print_run_csv(run)
    elif options["summary"]:
        print_run_summary(run)
    else:
        print_run(run)


def _measure(
    paths: tuple[str, ...], options: dict[str, Any], *, quiet: bool
) -> tuple[DeltaReport, ValueReport | None]:
    """The report of a delta or a pair, and of its values if they are measured."""
    wanted = {
        name: options[name] for name in ("scope", "align_rows", "rank", "compressed", "threads")
    }
    if len(paths) == 1:
        place = {name: options[name] for name in ("subfolder", "revision", *_HUB)}
        report = inspect_delta(paths[0], **place)
        asked = any(options[name] for name in ("with_values", "rank", "compressed"))
        asked = asked or options["preset"] != "exact" or options["scope"] != "matched"
        if options["base"] is None and not asked:
            return report, None
        with progress_bar("inspect", quiet=quiet) as progress:
            against = {name: options[name] for name in ("base", "base_revision")}
            with over_base(paths[0], **against, **place) as pair:
                values = measure_values(
                    pair, delta_bytes=report.delta_bytes, progress=progress, **wanted
                )
        return report, values
    base, tuned = paths
    encoding = {name: options[name] for name in ("keep_dtype", "threads")}
    places = {name: options[name] for name in ("cast", "base_revision", *_HUB)}
    places["tuned_revision"] = options["revision"]
    with progress_bar("inspect", quiet=quiet) as progress:
        encoded = measure_pair(base, tuned, progress=_half(progress, 0), **encoding, **places)
        with open_pair(base, tuned, **places) as pair:
            values = measure_values(
                pair, delta_bytes=encoded.delta_bytes, progress=_half(progress, 1), **wanted
            )
    return encoded, values


def _require_places(plots: str | None, page: str | None) -> None:
    """Check that output files do not exist, before anything is measured."""
    if page is not None:
        require_new(Path(page))
    if plots is not None:
        from rlsparse_store.cli.report_files import require_new_pictures  # noqa: PLC0415 - as below

        require_new_pictures(Path(plots))


def _draw(
    paths: tuple[str, ...],
    report: DeltaReport,
    values: ValueReport | None,
    plots: str | None,
    page: str | None,
) -> None:
    # Imported late: only pictures need it.
    from rlsparse_store.cli.report_files import write_pictures, write_report  # noqa: PLC0415

    if plots is not None:
        write_pictures(report, values, Path(plots))
    if page is not None:
        write_report(paths, report, values, Path(page))


def _draw_run(place: str, run: RunReport, plots: str | None, page: str | None) -> None:
    # Imported late: only pictures need it.
    from rlsparse_store.cli.run_pictures import (  # noqa: PLC0415
        write_run_pictures,
        write_run_report,
    )

    if plots is not None:
        write_run_pictures(run, Path(plots))
    if page is not None:
        write_run_report(place, run, Path(page))


def _half(progress: Progress, number: int) -> Progress:
    """Progress of the first or second half of the work."""
    return lambda done, total: progress(number * total + done, 2 * total)


def print_report(report: DeltaReport, *, show_all: bool = False, with_groups: bool = True) -> None:
    """Print totals, the step histogram, and densities by layer, module and tensor."""
    if isinstance(report, EncodeReport):
        print_encoded(report)
    else:
        _print_totals(report)
    if report.changed and with_groups:
        click.echo("\nSteps (representable values moved)")
        rows = [
            [label, f"{count:,}", format_percent(count / report.changed)]
            for label, count in zip(STEP_LABELS, report.steps, strict=True)
        ]
        rows = [*rows[3::-1], *rows[4:]]
        if report.whole_changed:
            share = format_percent(report.whole_changed / report.changed)
            rows.append(["stored whole", f"{report.whole_changed:,}", share])
        print_table(["step", "weights", "share"], rows)
    if with_groups:
        _print_groups("By layer", "layer", report.layers)
        _print_groups("By kind of module", "module", report.modules)
    _print_tensors(report, show_all=show_all)


def _print_totals(report: DeltaReport) -> None:
    click.echo(
        f"  format {report.format}, base {report.base_digest[:16]}…, "
        f"tuned {report.tuned_digest[:16]}…"
    )
    if report.base_repo:
        revision = printable(report.base_revision or "unknown")
        click.echo(f"  base: {printable(report.base_repo)} at commit {revision}")
    click.echo(
        f"  {report.changed:,} of {report.elements:,} weights changed "
        f"({format_percent(report.density)})"
    )
    bits = report.bits_per_changed
    click.echo(
        f"  {format_bytes(report.tuned_bytes)} of tensors in {format_bytes(report.delta_bytes)}"
        + ("" if bits is None else f"; {format_bits(bits)} bits per changed weight")
    )
    if report.cast:
        click.echo(
            f"  lossy: the checkpoint was rounded to {printable(report.cast)} before encoding"
        )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items() if count)
    click.echo(
        f"  tensors: {kinds or 'none'}"
        + (f"; {len(report.removed):,} of the base removed" if report.removed else "")
    )
    if report.whole_bytes:
        parts = sum(1 for tensor in report.tensors if tensor.whole_bytes)
        click.echo(
            f"  {format_bytes(report.whole_bytes)} stored whole, in "
            f"{format_bytes(report.whole_stored_bytes)}: {parts:,} tensors or parts of them"
        )


def _print_groups(title: str, heading: str, groups: list[Group]) -> None:
    click.echo(f"\n{title}")
    print_table(
        [heading, "tensors", "weights", "changed", "density"],
        [
            [
                printable(g.name, 40),
                f"{g.tensors:,}",
                f"{g.elements:,}",
                f"{g.changed:,}",
                format_percent(g.density),
            ]
            for g in groups
        ],
    )


def _print_tensors(report: DeltaReport, *, show_all: bool) -> None:
    tensors = report.tensors
    click.echo("\nBy tensor")
    if not show_all and len(tensors) > SHOWN_TENSORS:
        tensors = sorted(tensors, key=lambda t: -t.changed)[:SHOWN_TENSORS]
        click.echo(
            f"  the {SHOWN_TENSORS} of {len(report.tensors):,} with the most changes "
            "(--all lists every one)"
        )
    print_table(
        ["tensor", "kind", "dtype", "shape", "changed", "density", "stored"],
        [
            [
                printable(t.name, 60),
                t.kind,
                t.dtype,
                " x ".join(map(str, t.shape)) or "scalar",
                f"{t.changed:,}",
                format_percent(t.density),
                format_bytes(t.stored_bytes),
            ]
            for t in tensors
        ],
    )

"""``rlsparse encode``."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlsparse_store.cli.options import (
    encoding_options,
    hub_options,
    json_option,
    quiet_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.cli.run_tables import print_run
from rlsparse_store.delta.encode import encode_delta
from rlsparse_store.delta.report import EncodeReport, WholeTensor
from rlsparse_store.delta.run import RunEntry, RunReport, is_run
from rlsparse_store.delta.run_encoder import encode_run
from rlsparse_store.delta.units import format_bits, format_bytes, format_percent
from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.files.trainer_folders import find_checkpoints
from rlsparse_store.format.names import printable
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from rlsparse_store.pipeline.coder import SpanCoder

__all__ = ["device_coder", "encode_command", "print_encoded", "print_names", "print_warnings"]


@click.command("encode")
@click.argument("base")
@click.argument("tuned", nargs=-1, required=True, metavar="TUNED...")
@click.option(
    "--out",
    "-o",
    required=True,
    metavar="OUT",
    help="Folder of the delta or run to write, or its URL (s3://, gs://).",
)
@click.option("--run", "as_run", is_flag=True, help="Write a run, even of one checkpoint.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=VALUE",
    help="For a run: a metric of TUNED, kept with its delta.",
)
@encoding_options
@threads_option
@hub_options(base_revision="BASE", tuned_revision="TUNED")
@json_option
@quiet_option
def encode_command(
    base: str,
    tuned: tuple[str, ...],
    out: str,
    device: str | None,
    metrics: tuple[str, ...],
    as_run: bool,  # noqa: FBT001 - click passes every parameter by name
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of encode_delta, by their names
) -> None:
    """Store the checkpoint TUNED as a delta against BASE.

    Each is a Hugging Face folder, a .safetensors file, a URL, or ORG/NAME[@REVISION] (Hub). Every
    tensor comes back bit for bit, and the files of TUNED byte for byte.

    Several checkpoints, the output folder of a trainer, or --run, make a run: OUT gets one delta
    for each checkpoint, in a folder of its name. Existing deltas are kept, and their checkpoints
    are not read: the same command continues after an interruption and adds later checkpoints. A
    checkpoint newer than its delta is encoded again, as another entry of its name. Step and metrics
    are read from trainer_state.json.

    Small files that the model needs to load are copied beside the delta. Optimizer state is not
    kept: training cannot be resumed from a delta.
    """
    if device is not None:
        options["coder"] = device_coder(device, options["threads"])
    report: EncodeReport | RunReport
    with progress_bar("encode", quiet=quiet) as progress:
        finds_several = bool(find_checkpoints(Path(tuned[0])))
        if as_run or len(tuned) > 1 or is_run(out) or finds_several:
            if options.pop("tuned_revision") is not None:
                msg = "--tuned-revision is for one checkpoint: give ORG/NAME@REVISION"
                raise click.UsageError(msg)
            report = encode_run(
                base, tuned, out, metrics=_parse_metrics(metrics), progress=progress, **options
            )
        else:
            if metrics:
                msg = "--metric is for a run: add --run"
                raise click.UsageError(msg)
            report = encode_delta(base, tuned[0], out, progress=progress, **options)
    if as_json:
        print_json(report.as_json())
        return
    if isinstance(report, EncodeReport):
        click.echo(f"wrote {printable(out)}")
        print_encoded(report)
        _print_files(report)
    else:
        new = sum(delta.is_new for delta in report.deltas)
        click.echo(f"wrote {new} delta{'' if new == 1 else 's'} in {printable(out)}")
        if kept := len(report.deltas) - new:
            click.echo(f"  kept {kept}, not compared with the checkpoints (verify --tuned does)")
        print_run(report)
        _print_notes(report.notes)
        for entry in filter(lambda entry: entry.is_new, report.deltas):
            _print_entry(entry)


def _parse_metrics(texts: tuple[str, ...]) -> dict[str, float]:
    metrics = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            metrics[name] = float(value)
        except ValueError:
            metrics[name] = math.nan
        if not name or not math.isfinite(metrics[name]):
            msg = f"--metric {printable(text)}: give NAME=VALUE with a finite number"
            raise click.UsageError(msg)
    return metrics


def _print_files(report: EncodeReport | RunEntry) -> None:
    """Print which small files travel, and every one that does not, by name."""
    print_names("copied", report.carried_files)
    print_names("skipped", report.skipped_files, most=None)
    _print_notes(report.notes)


def _print_notes(notes: list[str]) -> None:
    """Print what a user should know of the files that were read, and of those that were not."""
    for note in notes:
        click.echo(f"  note: {printable(note, 500)}")


def _print_entry(entry: RunEntry) -> None:
    """Print what the table of a run does not say of one of its deltas."""
    if not (entry.warnings or entry.notes or entry.whole or entry.removed or entry.skipped_files):
        return
    click.echo(f"{printable(entry.name)}:")
    print_warnings(entry.warnings)
    _print_whole(entry.whole)
    print_names("removed", entry.removed)
    _print_files(entry)


def device_coder(device: str, threads: int | None) -> SpanCoder:
    """The coder of a device.

    Raises:
        MissingDependencyError: torch or Triton is not installed, or there is no such device.
    """
    if importlib.util.find_spec("torch") is None:
        msg = f"torch is not installed: {install_command('gpu')}"
        raise MissingDependencyError(msg)
    # Only now, for it takes seconds.
    from rlsparse_store.gpu.coder import DeviceCoder  # noqa: PLC0415

    try:
        return DeviceCoder(device, threads=threads)
    except RuntimeError as error:  # how torch refuses a name
        msg = f"{device!r} is not a device: give cuda or cuda:1, or omit it for the CPU."
        raise click.BadParameter(msg, param_hint="'--device'") from error


def print_encoded(report: EncodeReport) -> None:
    """Print what was stored, and what was stored whole and why."""
    click.echo(
        f"  {report.changed:,} of {report.elements:,} weights changed "
        f"({format_percent(report.density)})"
    )
    ratio = report.tuned_bytes / report.delta_bytes
    click.echo(
        f"  {format_bytes(report.tuned_bytes)} of tensors in a delta of "
        f"{format_bytes(report.delta_bytes)}, {ratio:,.1f} times smaller"
        + _bits(report.bits_per_changed)
    )
    print_warnings(report.warnings)
    if report.cast:
        click.echo(f"  lossy: the checkpoint was rounded to {report.cast} before encoding")
    _print_whole(report.whole)
    print_names(
        "renamed or tied",
        [f"{t.name} from {t.source}" for t in report.tensors if t.source not in ("", t.name)],
    )
    print_names("removed", report.removed)


def _print_whole(whole: list[WholeTensor]) -> None:
    if not whole:
        return
    raw = sum(tensor.raw_bytes for tensor in whole)
    stored = sum(tensor.stored_bytes for tensor in whole)
    click.echo(f"  {format_bytes(raw)} stored whole, in {format_bytes(stored)}:")
    for tensor in whole[:20]:
        size = format_bytes(tensor.raw_bytes)
        click.echo(f"    {printable(tensor.name)}: {size}, {tensor.reason}")
    if len(whole) > 20:
        click.echo(f"    … and {len(whole) - 20} more (--json lists all)")


def print_warnings(warnings: list[str]) -> None:
    """Print why a pair is probably not what its user takes it for."""
    for warning in warnings:
        click.echo(f"  warning: {printable(warning, 500)}")


def _bits(bits_per_changed: float | None) -> str:
    if bits_per_changed is None:
        return ""
    return f"; {format_bits(bits_per_changed)} bits per changed weight"


def print_names(label: str, names: list[str], most: int | None = 10) -> None:
    """Print a list of names, cut off after some."""
    if names:
        shown = names[:most]
        more = f" … and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        click.echo(f"  {label}: {', '.join(printable(name) for name in shown)}{more}")

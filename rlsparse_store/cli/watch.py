"""``rlsparse watch``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rlsparse_store.cli.encode import device_coder
from rlsparse_store.cli.options import encoding_options, hub_options, threads_option
from rlsparse_store.cli.signals import end_at_second
from rlsparse_store.format.names import printable
from rlsparse_store.watch.watcher import SETTLE_SECONDS, watch_checkpoints

if TYPE_CHECKING:
    from rlsparse_store.watch.event import WatchEvent

__all__ = ["watch_command"]


@click.command("watch")
@click.argument("folder", metavar="DIR")
@click.option(
    "--base",
    "-b",
    required=True,
    metavar="BASE",
    help="The base: a folder, a .safetensors file, a URL, or ORG/NAME[@REVISION] (Hub).",
)
@click.option(
    "--out", "-o", required=True, metavar="RUN", help="Folder of the run to write, or its URL."
)
@click.option("--once", is_flag=True, help="Store what is complete, and end.")
@click.option(
    "--settle",
    "settle_seconds",
    type=click.FloatRange(min=0),
    default=SETTLE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time without a change after which a checkpoint without a marker is complete.",
)
@click.option(
    "--thin",
    type=click.IntRange(min=1),
    metavar="KEEP",
    help="Remove the weights of verified full checkpoints, but those of the newest KEEP.",
)
@click.option("--yes", is_flag=True, help="With --thin: really remove them.")
@encoding_options
@threads_option
@hub_options(base_revision="BASE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--quiet", "-q", is_flag=True, help="Print only what is not stored.")
def watch_command(
    folder: str,
    base: str,
    out: str,
    device: str | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of watch_checkpoints, by their names
) -> None:
    """Store every checkpoint that a trainer writes below DIR as a delta against BASE.

    A checkpoint is complete, and stored, once its trainer wrote a marker after its weights
    (trainer_state.json, STABLE, .complete, latest_checkpointed_iteration.txt). Without a marker, it
    is complete once no file of it changed for the settle time. RUN gets a delta for each, named
    after its step, with step and metrics from trainer_state.json.

    Runs until it is interrupted or terminated. What is being encoded then is abandoned, and the
    same command continues; a second signal ends at once. With --once it ends by itself, with exit
    code 1 if a checkpoint was refused: for cron.

    Nothing is written to DIR, unless --thin and --yes say so. They remove the weights of full
    checkpoints that their delta gives back byte for byte, as they verify just before. They keep the
    newest KEEP, the best one, and the one that the trainer resumes from. Optimizer state is not
    stored: training cannot be resumed from a delta.
    """
    if options["yes"] and options["thin"] is None:
        msg = "--yes confirms --thin KEEP: give both, or neither"
        raise click.UsageError(msg)
    end_at_second()
    if device is not None:
        options["coder"] = device_coder(device, options["threads"])
    if not (quiet or options["once"]):
        into = f"each complete checkpoint becomes a delta in {printable(out, 500)}"
        click.echo(f"watching {printable(folder, 500)}: {into}", err=True)
    is_refused = False
    said: set[str] = set()
    for event in watch_checkpoints(folder, base, out, **options):
        is_refused |= event.kind == "refused"
        if as_json:
            click.echo(json.dumps(event.as_json()))
        if not quiet or event.kind in {"refused", "waiting", "kept"}:
            _print_event(event, said)
    if is_refused:
        raise click.exceptions.Exit(1)


def _print_event(event: WatchEvent, said: set[str]) -> None:
    """Print an event on standard error, with what a user should know of a new entry.

    Args:
        event: The event.
        said: Notes that were printed, to which it adds: most are the same for every checkpoint.
    """
    click.echo(f"{printable(event.checkpoint, 500)}: {printable(event.message, 2000)}", err=True)
    if event.entry is not None:
        for warning in event.entry.warnings:
            click.echo(f"  warning: {printable(warning, 500)}", err=True)
        for note in event.entry.notes:
            if note not in said:
                click.echo(f"  note: {printable(note, 500)}", err=True)
        said.update(event.entry.notes)

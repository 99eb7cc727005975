"""Options that several commands share."""

from __future__ import annotations

import click

__all__ = ["base_option", "json_option", "quiet_option", "subfolder_option", "threads_option"]

base_option = click.option(
    "--base",
    "-b",
    metavar="BASE",
    help="The base: a folder, a .safetensors file, or ORG/NAME[@REVISION] on the Hub.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
subfolder_option = click.option(
    "--subfolder",
    default="",
    metavar="FOLDER",
    help="The delta's folder within, of a repository or folder with several.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to work on.  [default: all processors]",
)

"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., Any]

__all__ = [
    "base_option",
    "cache_option",
    "hub_options",
    "json_option",
    "max_tuned_bytes_option",
    "quiet_option",
    "subfolder_option",
    "threads_option",
    "token_option",
]

base_option = click.option(
    "--base",
    "-b",
    metavar="BASE",
    help="The base: a folder, a .safetensors file, or ORG/NAME[@REVISION] on the Hub.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
max_tuned_bytes_option = click.option(
    "--max-tuned-bytes",
    type=click.IntRange(min=0),
    metavar="N",
    help="Refuse a delta whose tuned tensors take more bytes.  [default: no limit]",
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
subfolder_option = click.option(
    "--subfolder",
    default="",
    metavar="FOLDER",
    help="Folder of the delta within a repository or folder of several deltas.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to work on.  [default: all processors]",
)

token_option = click.option(
    "--token",
    metavar="TOKEN",
    help="Access token for the Hub.  [default: HF_TOKEN, else the stored one]",
)
cache_option = click.option(
    "--cache-dir",
    metavar="DIR",
    help="Cache of the Hub's files.  [default: the Hub client's]",
)
_local_files_option = click.option(
    "--local-files-only", is_flag=True, help="Read only what the cache has."
)


def hub_options(**revisions: str) -> Callable[[Command], Command]:
    """Options for places on the Hub, named as in Python.

    Args:
        **revisions: Revision options, each with the argument that it belongs to: for example
            ``revision="DELTA"``.
    """
    options = [
        click.option(
            f"--{name.replace('_', '-')}",
            metavar="REVISION",
            help=f"Branch, tag or commit of {what} on the Hub.",
        )
        for name, what in revisions.items()
    ]
    options += [token_option, cache_option, _local_files_option]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate

"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Callable[..., Any]

__all__ = [
    "base_option",
    "cache_option",
    "encoding_options",
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
    help="The base: a folder, a .safetensors file, a URL (s3://…), or ORG/NAME[@REVISION] (Hub).",
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
    return _together([*options, token_option, cache_option, _local_files_option])


def encoding_options(command: Command) -> Command:
    """Add the options of encoding, named as in Python, and ``--device``."""
    return _together(_ENCODING)(command)


_ENCODING = (
    click.option(
        "--cast",
        type=click.Choice(["bf16"]),
        help="First round float32 tensors of a bfloat16 base to bfloat16. Lossy, and recorded.",
    ),
    click.option(
        "--keep-dtype",
        is_flag=True,
        help="Store tensors whole whose dtype differs from the base's.",
    ),
    click.option(
        "--device",
        metavar="DEVICE",
        help="Encode on a device, such as cuda. Experimental: never run on a GPU.  "
        "[default: the CPU]",
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="FILE",
        help="Also copy this small file of the checkpoint beside its delta.",
    ),
    click.option("--exclude", multiple=True, metavar="FILE", help="Do not copy this small file."),
    click.option("--force", is_flag=True, help="Encode a pair that is refused as implausible."),
)


def _together(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Add several options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate

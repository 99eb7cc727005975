"""The group of commands, each loaded when it is called: the help of all needs one line of each."""

from __future__ import annotations

import importlib
from typing import Final

import click

from rlsparse_store import __version__
from rlsparse_store.cli.signals import end_in_order

__all__ = ["rlsparse"]

_COMMANDS: Final = {
    "apply": "Rebuild the tuned checkpoint that DELTA stores.",
    "compare": "Overlap of several updates, beside chance.",
    "demo": "Train, tune and store a tiny model: a real RL run.",
    "encode": "Store the checkpoint TUNED as a delta against BASE.",
    "inspect": "Show how sparse an update is.",
    "mask": "Write which weights deltas changed.",
    "match": "Compare a full and a subnetwork's training.",
    "pull": "Bring a delta or a run from the Hub.",
    "push": "Publish a delta or a run on the Hub.",
    "series": "Follow a run through its deltas.",
    "verify": "Verify DELTA: its own bytes, and what else is given.",
}
"""Their lines in the help, by the names of their modules."""


class _Group(click.Group):
    """Has stand-ins for its commands, which know their line of help and nothing else."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Put the command in its stand-in's place."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            module = importlib.import_module(f"rlsparse_store.cli.{command.name}")
            command = getattr(module, f"{command.name}_command")
        # It is loaded: what it does from now on has to be cleaned up.
        end_in_order()
        return name, command, rest


@click.group(
    cls=_Group,
    commands=[click.Command(name, short_help=line) for name, line in _COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="rlsparse")
def rlsparse() -> None:
    """Store RL-tuned checkpoints as lossless sparse deltas against their base model."""

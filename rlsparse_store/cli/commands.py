"""The group of commands. Each is imported when it is called; the help needs one line of each."""

from __future__ import annotations

import importlib
import os
from typing import Final

import click

from rlsparse_store import __version__
from rlsparse_store.cli.signals import end_in_order

__all__ = ["rlsparse"]

_COMMANDS: Final = {
    "apply": "Rebuild the tuned checkpoint that DELTA stores.",
    "compare": "Compare the updates of several deltas with chance.",
    "demo": "Train, tune and store a tiny model.",
    "diff": "Compare two entries of a run.",
    "encode": "Store the checkpoint TUNED as a delta against BASE.",
    "inspect": "Show how sparse an update is.",
    "mask": "Write the changed weights of deltas as a mask.",
    "match": "Compare full training with a subnetwork's.",
    "prune": "Remove entries of a run, and keep the wanted ones.",
    "pull": "Download a delta or a run from the Hub.",
    "push": "Publish a delta or a run on the Hub.",
    "rebase-hint": "Record where the base of a delta is now.",
    "runs": "Maintain runs: repair an index.",
    "series": "Follow a run over its deltas.",
    "verify": "Verify DELTA, its base and its tuned checkpoint.",
    "watch": "Store every checkpoint that a trainer writes below DIR.",
}
"""Short help of each command, by its name, which is that of its module with dashes."""


_WITHOUT_LINEAR_ALGEBRA: Final = frozenset({"apply", "encode", "verify", "watch"})

_LINEAR_ALGEBRA_THREADS: Final = "OPENBLAS_NUM_THREADS"


def _import_numpy() -> None:
    """Import NumPy without its threads for linear algebra, whose start takes half of the time."""
    if _LINEAR_ALGEBRA_THREADS in os.environ:
        return
    os.environ[_LINEAR_ALGEBRA_THREADS] = "1"
    try:
        importlib.import_module("numpy")
    finally:
        del os.environ[_LINEAR_ALGEBRA_THREADS]


class _Group(click.Group):
    """Holds placeholders for its commands, which have their short help and nothing else."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command and put it in place of its placeholder."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            if command.name in _WITHOUT_LINEAR_ALGEBRA:
                _import_numpy()
            module_name = str(command.name).replace("-", "_")
            module = importlib.import_module(f"rlsparse_store.cli.{module_name}")
            command = getattr(module, f"{module_name}_command")
        # From now on the command may leave temporary files to clean up.
        end_in_order()
        return name, command, rest


@click.group(
    cls=_Group,
    commands=[click.Command(name, short_help=line) for name, line in _COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="rlsparse")
def rlsparse() -> None:
    """Store RL-tuned checkpoints as lossless sparse deltas against their base model.

    Completion for bash: eval "$(_RLSPARSE_COMPLETE=bash_source rlsparse)"; for zsh with zsh_source.
    """

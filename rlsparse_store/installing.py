"""How to install an optional part of this package, as errors and model cards say it."""

from __future__ import annotations

__all__ = ["install_command"]


def install_command(extra: str) -> str:
    """The command that installs the package with one of its extras.

    No index has the package yet, so the command is for a clone of its repository.
    ``.github/RELEASE.md`` says when this line changes.

    Args:
        extra: Name of the extra.

    >>> install_command("plot")
    "pip install '.[plot]' in a clone of rlsparse_store"
    """
    return f"pip install '.[{extra}]' in a clone of rlsparse_store"

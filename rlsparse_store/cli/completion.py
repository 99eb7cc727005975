"""Completion of a shell: names of commands and options, and paths wherever these do not apply.

click completes no path for an argument that may be an id on the Hub as well, and its scripts keep
the shell from doing it.

``eval "$(_RLSPARSE_COMPLETE=bash_source rlsparse)"`` sets it up, in zsh with ``zsh_source``; fish
reads ``_RLSPARSE_COMPLETE=fish_source rlsparse | source``.
"""

from __future__ import annotations

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

__all__ = ["complete_paths"]


class _PathsToo(ShellComplete):
    """Offers paths where there is nothing else to offer."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        return found or [CompletionItem(incomplete, type="file")]


class _Bash(_PathsToo, BashComplete): ...


class _Zsh(_PathsToo, ZshComplete): ...


class _Fish(_PathsToo, FishComplete): ...


def complete_paths() -> None:
    """Have every shell that click knows complete paths."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)

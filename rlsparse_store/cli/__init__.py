"""The command line: arguments in, one call, text or JSON and an exit code out."""

from rlsparse_store.cli.main import main

__all__ = ["main"]

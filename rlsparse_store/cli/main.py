"""The ``rlsparse`` command: Ctrl-C is seen to first, then everything else is loaded.

Nothing is imported here that is not there already: until a handler is set, Ctrl-C is an exception.
"""

import os

TYPE_CHECKING = False  # as type checkers know it; importing `typing` takes milliseconds
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]


def main() -> "NoReturn":
    """Run the command and leave with its exit code."""
    try:
        from rlsparse_store.cli.signals import end_at_once  # noqa: PLC0415 - inside the guard

        end_at_once()
    except KeyboardInterrupt:
        os.write(2, b"rlsparse: interrupted\n")
        os._exit(130)
    try:
        from rlsparse_store.cli.exit_codes import run  # noqa: PLC0415 - it takes a while

        run()
    finally:
        # What had to be cleaned up has been, and Python's own way out is long.
        end_at_once()

"""The ``rlsparse`` command: handles Ctrl-C first, then imports everything else.

Imports nothing that Python has not imported already: until a handler is set, Ctrl-C raises.
"""

import os

TYPE_CHECKING = False  # as type checkers know it; importing `typing` takes milliseconds
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]


def main() -> "NoReturn":
    """Run the command and exit with its exit code."""
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
        # Everything is cleaned up, and Python takes a while to exit.
        end_at_once()

"""Running the command, and the exit code of each error.

Exit codes: 0 success, 1 known error, 2 usage, 3 damaged delta or wrong base, 4 not found,
128 + n ended by signal n (130 interrupted, 143 terminated).
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import warnings
from contextlib import suppress
from typing import Final, NoReturn, TextIO

import click

from rlsparse_store.cli.commands import rlsparse
from rlsparse_store.cli.stdout import name_output, open_streams, silence_output
from rlsparse_store.errors import ImplausibleWarning, RlsparseError, raise_interrupt
from rlsparse_store.format.names import printable

__all__ = ["run"]

_OPEN_FILES: Final = 10_240
"""Files that may be open at once; macOS allows no more."""


def run() -> NoReturn:
    """Run the command of this process and exit with its exit code."""
    # A command makes many records and few cycles: looking for these at every 700 takes longer.
    gc.set_threshold(100_000)
    warnings.showwarning = _show_warning
    # Commands print these themselves, and in JSON.
    warnings.simplefilter("ignore", ImplausibleWarning)
    open_streams()
    _allow_open_files()
    name_output()
    if "_RLSPARSE_COMPLETE" in os.environ:
        from rlsparse_store.cli.completion import complete_paths  # noqa: PLC0415 - a shell asks

        complete_paths()
    try:
        _refuse_empty(sys.argv[1:])
        code = _run_command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RlsparseError as error:
        _fail(printable(str(error), most=2000), error.exit_code)
    except click.Abort:
        _fail("aborted: confirmation required", 1)
    except (MemoryError, RuntimeError) as error:
        _fail(_exhausted(error), 1)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does.
        silence_output()
        sys.exit(1)
    except OSError as error:
        silence_output()
        place = "" if error.filename is None else f"{printable(str(error.filename), most=500)}: "
        _fail(f"{place}{error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _run_command() -> object:
    """Run the command. An interrupt takes precedence over an error of the cleanup after it."""
    try:
        return rlsparse.main(prog_name="rlsparse", standalone_mode=False)
    except BaseException as error:
        raise_interrupt(error)
        raise


def _allow_open_files() -> None:
    """Raise the limit of open files as far as is allowed: the shards of both sides are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems allow less than they say.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exhausted(error: MemoryError | RuntimeError) -> str:
    """A message for an error that says that memory or threads are used up. Raises another one."""
    if isinstance(error, MemoryError):
        return "not enough memory: try --threads 1"
    if str(error) == "can't start new thread":
        return "no more threads can be started: raise the limit of processes, or try --threads 1"
    raise error


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse empty arguments, which an unset variable leaves and which mean the current folder."""
    for argument in arguments:
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            msg = f"{argument or 'an argument'} is empty; is a variable not set?"
            raise click.UsageError(msg)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"rlsparse: {message}", err=True)
    sys.exit(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning on one line, without its place in the source."""
    del category, filename, lineno, file, line
    click.echo(f"rlsparse: warning: {message}", err=True)

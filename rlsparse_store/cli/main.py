"""The ``rlsparse`` command, and how errors become exit codes.

Exit codes: 0 ok, 1 a known error, 2 usage, 3 verification failed or wrong base, 4 not found,
128 + n ended by signal n (130 interrupted, 143 terminated).
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from rlsparse_store import __version__
from rlsparse_store.cli.apply import apply_command
from rlsparse_store.cli.compare import compare_command
from rlsparse_store.cli.demo import demo_command
from rlsparse_store.cli.encode import encode_command
from rlsparse_store.cli.inspect import inspect_command
from rlsparse_store.cli.mask import mask_command
from rlsparse_store.cli.match import match_command
from rlsparse_store.cli.pull import pull_command
from rlsparse_store.cli.push import push_command
from rlsparse_store.cli.series import series_command
from rlsparse_store.cli.verify import verify_command
from rlsparse_store.errors import RlsparseError
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

SIGNALLED = 128
"""Plus the number of the signal: what shells report."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rlsparse")
def rlsparse() -> None:
    """Store RL-tuned checkpoints as lossless sparse deltas against their base model."""


for command in (
    encode_command,
    apply_command,
    verify_command,
    inspect_command,
    compare_command,
    match_command,
    series_command,
    mask_command,
    push_command,
    pull_command,
    demo_command,
):
    rlsparse.add_command(command)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"rlsparse: {message}", err=True)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the ordinary way out, so that temporary folders are removed."""
    del frame
    if number == signal.SIGINT:
        _fail("interrupted", SIGNALLED + number)
    sys.exit(SIGNALLED + number)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse what a variable that is not set leaves, which would mean the current folder."""
    for argument in arguments:
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            msg = f"{argument or 'an argument'} is empty; is a variable not set?"
            raise click.UsageError(msg)


def _silence_output() -> None:
    """Keep Python from complaining once more that standard output cannot be flushed."""
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say a warning as users of a command expect it: one line, without a place in the source."""
    del category, filename, lineno, file, line
    click.echo(f"rlsparse: warning: {message}", err=True)


def main() -> NoReturn:
    """Run the command and leave with its exit code."""
    warnings.showwarning = _show_warning
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _terminate)
    try:
        _refuse_empty(sys.argv[1:])
        code = rlsparse.main(prog_name="rlsparse", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RlsparseError as error:
        _fail(shown(str(error), most=2000), error.exit_code)
    except MemoryError:
        _fail("not enough memory; try --threads 1", 1)
    except BrokenPipeError:
        # The reader left, as `head` does.
        _silence_output()
        sys.exit(1)
    except OSError as error:
        _silence_output()
        place = "" if error.filename is None else f"{shown(str(error.filename), most=500)}: "
        _fail(f"{place}{error.strerror}", 1)
    sys.exit(code if isinstance(code, int) else 0)

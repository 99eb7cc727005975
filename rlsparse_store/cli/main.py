"""The ``rlsparse`` command, and how errors become exit codes.

Exit codes: 0 ok, 1 a known error, 2 usage, 3 verification failed or wrong base, 4 not found,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from rlsparse_store import __version__
from rlsparse_store.cli.apply import apply_command
from rlsparse_store.cli.demo import demo_command
from rlsparse_store.cli.encode import encode_command
from rlsparse_store.cli.inspect import inspect_command
from rlsparse_store.cli.verify import verify_command
from rlsparse_store.errors import RlsparseError
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

INTERRUPTED = 130
TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rlsparse")
def rlsparse() -> None:
    """Store RL-tuned checkpoints as lossless sparse deltas against their base model."""


for command in (encode_command, apply_command, verify_command, inspect_command, demo_command):
    rlsparse.add_command(command)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"rlsparse: {message}", err=True)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the ordinary way out, so that temporary folders are removed."""
    del number, frame
    sys.exit(TERMINATED)


def main() -> NoReturn:
    """Run the command and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = rlsparse.main(prog_name="rlsparse", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except RlsparseError as error:
        _fail(shown(str(error), most=2000), error.exit_code)
    except MemoryError:
        _fail("not enough memory; try --threads 1", 1)
    except BrokenPipeError:
        # The reader left, as `head` does. Python would complain once more while closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)

"""Commands as clients of a Hub on loopback, and what they must return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopback_hub import LoopbackHub, rlsparse_forked

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


def succeed(
    hub: LoopbackHub, home: Path, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    result = rlsparse_forked(hub, home, *arguments, **more)
    assert result.returncode == 0, result.stderr
    return result


def fail(code: int, hub: LoopbackHub, home: Path, *arguments: str | Path, **more: str) -> str:
    result = rlsparse_forked(hub, home, *arguments, RLSPARSE_HUB_TIMEOUT="3", **more)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    return result.stderr

"""Verification of deltas in full, once per process and delta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rlsparse_store.delta.open import DeltaCheckpoint

__all__ = ["forget_all", "verify_once"]

_VERIFIED: Final[set[tuple[tuple[int, ...], ...]]] = set()
"""Versions of the files of each delta and its base that this process verified."""


def verify_once(tuned: DeltaCheckpoint) -> None:
    """Check all of base and result, unless this process did so for the same versions of all files.

    A server does it before it gives up the weights that it has. Tensors are checked again as they
    are decoded.

    Args:
        tuned: An open delta.

    Raises:
        FormatError: The delta is damaged.
        BaseMismatchError: The base is another checkpoint.
    """
    versions = tuned.versions()
    if versions not in _VERIFIED:
        tuned.verify()
        tuned.check_unchanged()
        _VERIFIED.add(versions)


def forget_all() -> None:
    """Forget what was verified, so that it is verified again."""
    _VERIFIED.clear()

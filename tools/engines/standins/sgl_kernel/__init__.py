"""Stands in for SGLang's kernels, which are built for GPUs.

SGLang's CPU engine imports them, and without Intel's AMX it computes with torch instead.
"""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*arguments: object, **keywords: object) -> NoReturn:  # noqa: ARG001 - any kernel's
        msg = f"sgl_kernel.{name} is a stand-in, which computes nothing"
        raise RuntimeError(msg)

    return missing

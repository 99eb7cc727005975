"""A faster Triton interpreter, without work that it repeats for each function call."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

__all__ = ["hasten"]


def hasten() -> None:
    """Patch the language once per launch instead of at each function call, and cache dtype lookups.

    The interpreter replaces ``triton.language`` in the modules of each function that is called, and
    builds a table for each dtype lookup: most of the time of small kernels.
    """
    launch, patch, find = (
        interpreter.GridExecutor.__call__,
        interpreter._patch_lang,
        interpreter._get_np_dtype,
    )
    patched: set[int] = set()
    found: dict[str, Any] = {}

    def launch_and_reset(self: Any, *arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - Triton's
        patched.clear()
        launch(self, *arguments, **constants)

    def patch_once(function: Any) -> Any:  # noqa: ANN401 - Triton's
        # The launch patches first and restores at the end.
        if id(function.__globals__) in patched:
            return None
        patched.add(id(function.__globals__))
        return patch(function)

    def find_once(kind: Any) -> Any:  # noqa: ANN401 - Triton's
        if kind.name not in found:
            found[kind.name] = find(kind)
        return found[kind.name]

    interpreter.GridExecutor.__call__ = launch_and_reset
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = find_once

"""Triton's interpreter without the work that it repeats: most of its time, for small kernels."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

__all__ = ["hasten"]


def hasten() -> None:
    """Let the interpreter do once for each launch what it does at each call of a function.

    That is to put its own functions in the place of the language's, in the modules that a function
    sees. And it makes a table for each type that it looks up.
    """
    launch, patch, find = (
        interpreter.GridExecutor.__call__,
        interpreter._patch_lang,
        interpreter._get_np_dtype,
    )
    patched: set[int] = set()
    found: dict[str, Any] = {}

    def launch_anew(self: Any, *arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - Triton's
        patched.clear()
        launch(self, *arguments, **constants)

    def patch_once(function: Any) -> Any:  # noqa: ANN401 - Triton's
        # The launch is what patches first, and takes back what it patched.
        if id(function.__globals__) in patched:
            return None
        patched.add(id(function.__globals__))
        return patch(function)

    def find_once(kind: Any) -> Any:  # noqa: ANN401 - Triton's
        if kind.name not in found:
            found[kind.name] = find(kind)
        return found[kind.name]

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = find_once

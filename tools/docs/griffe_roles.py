"""Cross-references of docstrings as the site shows them: ``:class:`pkg.Name``` becomes a name."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["CrossReferences", "plain_roles"]


def plain_roles(text: str) -> str:
    """Replace roles by the last part of what they name, as code.

    Example:
        >>> plain_roles("see :func:`~rlsparse_store.delta.open_delta` and :data:`TOP`")
        'see `open_delta` and `TOP`'
    """
    return re.sub(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")


class CrossReferences(griffe.Extension):
    """Rewrites every docstring before mkdocstrings reads it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - griffe's own
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain_roles(obj.docstring.value)

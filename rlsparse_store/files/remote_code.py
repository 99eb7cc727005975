"""The Python files that a model loads with ``trust_remote_code``, found without running them.

Configurations name the first ones (``auto_map``), and these import others of the folder:
transformers follows relative imports, and so does this.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAPS", "imported_modules", "mapped_modules", "required_modules"]

MAPS: Final = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "modules.json",
)
"""Files that name Python files of the folder."""

LARGEST: Final = 4 << 20
"""Bytes: a longer text is no module and no configuration."""


def required_modules(
    first: Iterable[str], names: Iterable[str], read: Callable[[str], bytes]
) -> list[str]:
    """The Python files that some others and the configurations of a folder lead to.

    Args:
        first: Python files that are needed in any case.
        names: Paths of all files in the folder and the folders in it.
        read: Reads a file of the folder.

    Returns:
        Paths of all needed files, ``first`` included.
    """
    present = set(names)
    pending = [*first]
    for name in MAPS:
        if name in present:
            pending += mapped_modules(read(name))
    needed: set[str] = set()
    while pending:
        path = pending.pop()
        if path in present and path not in needed:
            needed.add(path)
            pending += imported_modules(read(path), path)
    return sorted(needed)


def mapped_modules(text: bytes) -> list[str]:
    """The Python files that a configuration names.

    Example:
        >>> mapped_modules(b'{"auto_map": {"AutoModel": "modeling_x.Model"}}')
        ['modeling_x.py']
        >>> mapped_modules(b'[{"type": "custom_st.Transformer"}]')
        ['custom_st.py']
    """
    try:
        fields: Any = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        return []
    named: list[object] = []
    if isinstance(fields, dict):
        maps = (fields.get("auto_map"), fields.get("custom_pipelines"))
        for value in maps:
            for entry in value.values() if isinstance(value, dict) else ():
                entry = entry.get("impl") if isinstance(entry, dict) else entry  # noqa: PLW2901
                named += entry if isinstance(entry, list) else [entry]
    elif isinstance(fields, list):
        named += [entry.get("type") for entry in fields if isinstance(entry, dict)]
    # `org/name--module.Class` means another repository.
    classes = [name for name in named if isinstance(name, str) and "--" not in name]
    return [name.rpartition(".")[0].replace(".", "/") + ".py" for name in classes if "." in name]


def imported_modules(text: bytes, path: str) -> list[str]:
    """Paths that the relative imports of a module may mean, in the same folder tree.

    Args:
        text: The module.
        path: Its path in the folder.

    Example:
        >>> imported_modules(b"from .helper import f", "modeling_x.py")
        ['helper.py', 'helper/__init__.py', 'helper/f.py', 'helper/f/__init__.py']
    """
    try:
        tree = ast.parse(text) if len(text) <= LARGEST else ast.Module([], [])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.split("/")[: -node.level]
            if len(path.split("/")) < node.level:
                continue
            module = [*package, *(node.module.split(".") if node.module else [])]
            modules = [module] if node.module else []
            modules += [[*module, alias.name] for alias in node.names if alias.name != "*"]
            for parts in modules:
                above = ("/".join(parts[:k]) for k in range(len(package) + 1, len(parts)))
                found += [f"{folder}/__init__.py" for folder in above]
                found += [f"{'/'.join(parts)}.py", f"{'/'.join(parts)}/__init__.py"]
    return list(dict.fromkeys(found))

"""The pages that are made from the code: the commands and the Python interface."""

from __future__ import annotations

from typing import Final

import click
import griffe

from rlsparse_store.cli.commands import rlsparse

__all__ = ["api_pages", "command_page"]

_PACKAGE: Final = "rlsparse_store"
_MODULES: Final = ("", "torch", "delta", "analysis", "publish", "errors")
"""Modules of the interface, in the order of its pages; packages of integrations follow."""


# --- Commands -----------------------------------------------------------------------------------


def command_page() -> str:
    """The reference of the command line, from click."""
    root = click.Context(rlsparse, info_name="rlsparse")
    parts = ["# Command reference", _paragraphs(rlsparse.help or "")]
    for name in rlsparse.list_commands(root):
        _, command, _ = rlsparse.resolve_command(root, [name])
        if command is not None:
            parts += _command(command, click.Context(command, info_name=name, parent=root))
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, context: click.Context) -> list[str]:
    """The sections of a command and of the commands in it."""
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f"## {context.command_path.removeprefix('rlsparse ')}",
        f"```text\n{context.command_path} {usage}\n```",
        _paragraphs(command.help or ""),
        _options(command, context),
    ]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            parts += _command(inner, click.Context(inner, info_name=name, parent=context))
    return parts


def _options(command: click.Command, context: click.Context) -> str:
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    rows = [
        "| `{}` | {} |".format(*(cell.replace("|", "\\|") for cell in record))
        for record in records
        if record is not None and record[0].startswith("-")
    ]
    return "\n".join(["| option | |", "|---|---|", *rows])


def _paragraphs(text: str) -> str:
    """Help as Markdown: one line for each paragraph, with its arguments as they are."""
    blocks = text.replace("\b", "").replace("<", "&lt;").split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


# --- Python -------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """The pages of the Python interface by their paths: each public name once."""
    package = griffe.load(_PACKAGE, resolve_aliases=True)
    integrations = package.modules["integrations"].modules
    names = [*_MODULES, *(f"integrations.{name}" for name in sorted(integrations))]
    pages, seen = {}, set[str]()
    for name in names:
        module = package[name] if name else package
        public = [item for item in module.exports or () if isinstance(item, str)]
        # What is a constant has no page: functions and classes name those they take.
        new = [
            item
            for item in sorted(public)
            if module[item].canonical_path not in seen and not module[item].is_attribute
        ]
        seen |= {module[item].canonical_path for item in new}
        if new:
            path = f"{_PACKAGE}.{name}".removesuffix(".")
            pages[f"api/{name or _PACKAGE}.md"] = _api_page(path, module.docstring, new)
    return pages


def _api_page(path: str, docstring: griffe.Docstring | None, names: list[str]) -> str:
    first_line = docstring.value.partition("\n\n")[0] if docstring else ""
    parts = [f"# {path}", " ".join(first_line.split())]
    parts += [f"::: {path}.{name}" for name in names]
    return "\n\n".join(parts) + "\n"

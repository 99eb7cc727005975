"""Mutants of a Python source: one small change each, made mechanically."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_CHECKS: Final = ("need", "refuse", "require", "at_most")
"""Functions that refuse a file: a mutant does not call them."""

_UNTOUCHED: Final = ("main", "__init__", "__repr__", "checkpoint_files", "read_checkpoint")
"""Command lines and messages, and the reading of a base, which is no part of the format."""

CODES: Final = (
    *("missing", "header", "version", "feature", "limit", "checksum", "index", "stream"),
    *("base", "result", "large"),
)


@dataclass(frozen=True)
class Mutant:
    """One change of a source.

    Attributes:
        function: The function that it is in, or empty.
        lines: The lines of its statement, from 1; empty outside functions.
        what: The expression before and after, which with ``function`` names the mutant.
        tree: The source that is changed.
        node: The expression before, in ``tree``.
        changed: The expression after.
    """

    function: str
    lines: range
    what: str
    tree: ast.Module
    node: ast.AST
    changed: ast.AST

    @property
    def name(self) -> str:
        """What a list of survivors calls it: it outlives lines that come and go."""
        return f"{self.function}: {self.what}"

    def source(self) -> str:
        """The source with the change."""
        # Copied with the change in place: a copy of a node is another node.
        changed = ast.fix_missing_locations(ast.copy_location(self.changed, self.node))
        return ast.unparse(copy.deepcopy(self.tree, {id(self.node): changed}))


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a source, in its order."""
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for function, lines, node in _places(tree, "", range(0)):
        for changed in _changes(node):
            what = f"{ast.unparse(node)} -> {ast.unparse(changed)}"
            what = " ".join(what.split())
            key = f"{function}: {what}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                what += f" ({seen[key]})"
            yield Mutant(function, lines if function else range(0), what, tree, node, changed)


def _places(node: ast.AST, function: str, lines: range) -> Iterator[tuple[str, range, ast.AST]]:
    """Every node that may be changed, with its function and the lines of its statement."""
    if isinstance(node, ast.FunctionDef):
        if node.name in _UNTOUCHED:
            return
        function = node.name
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        end = node.end_lineno if not body else max(node.lineno, body[0].lineno - 1)
        lines = range(node.lineno, (end or node.lineno) + 1)
        yield function, lines, node
    elif hasattr(node, "lineno"):
        yield function, lines, node
    if isinstance(node, ast.JoinedStr):  # a message
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child, function, lines)


def _changes(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901, PLR0912 - a list of changes
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for i, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], comparators)
        case ast.BoolOp(op=op, values=values):
            for i in range(len(values)):
                rest = [*values[:i], *values[i + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            if not _is_text(left) and not _is_text(right):
                yield ast.BinOp(left, _OPERATORS[type(op)](), right)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield body
            yield orelse
            del test
        case ast.Constant(value=value) if type(value) is int:
            yield ast.Constant(value + 1)
            if value:
                yield ast.Constant(value - 1)
        case ast.Constant(value=value) if value in CODES:
            yield ast.Constant("another code")
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in _CHECKS:
            yield ast.Pass()
        case ast.Raise():
            yield ast.Pass()
        case _:
            return


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )

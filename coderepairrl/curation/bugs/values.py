"""Bugs in what is computed: the wrong operator, order of operands, constant, bound or index."""

import ast
from collections.abc import Iterator

from coderepairrl.curation.source_edits import SIMPLE, Source, SourceEdit

ARITHMETIC = {
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "//": "/",
    "%": "//",
    "**": "*",
    "&": "|",
    "|": "&",
    "^": "|",
    "<<": ">>",
    ">>": "<<",
}
OPERATOR = r"\*\*|//|<<|>>|[-+*/%&|^]"


def arithmetic_operator(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    sides = {ast.BinOp: ("left", "right"), ast.AugAssign: ("target", "value")}.get(type(node))
    if sides:
        left, right = (getattr(node, side) for side in sides)
        is_text = any(
            isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", None), str) for side in (left, right)
        )
        found = None if is_text else source.between(left, right, OPERATOR)
        if found and found[2] in ARITHMETIC:
            yield found[0], found[1], ARITHMETIC[found[2]]


def swapped_operands(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.BinOp) and isinstance(node.left, SIMPLE) and isinstance(node.right, SIMPLE):
        middle = source.text[source.end(node.left) : source.start(node.right)]
        yield source.start(node.left), source.end(node.right), source.of(node.right) + middle + source.of(node.left)


def neighbours(source: Source, node: ast.Constant) -> Iterator[SourceEdit]:
    if type(node.value) is int and source.of(node).isdigit():
        negative = isinstance(source.parents.get(node), ast.UnaryOp)
        for value in (node.value + 1, node.value - 1):
            if value > 0 or value == 0 and not negative:
                yield source.start(node), source.end(node), str(value)


def _in_subscript(source: Source, node: ast.AST) -> bool:
    parent = source.parents.get(node)
    if isinstance(parent, ast.UnaryOp):
        node, parent = parent, source.parents.get(parent)
    return isinstance(parent, ast.Slice) or isinstance(parent, ast.Subscript) and parent.slice is node


def off_by_one(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Constant) and not _in_subscript(source, node):
        yield from neighbours(source, node)


def slice_bound(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Constant) and _in_subscript(source, node):
        yield from neighbours(source, node)
    if isinstance(node, ast.Slice):
        for bound in filter(None, (node.lower, node.upper)):
            yield source.start(bound), source.end(bound), ""
            if isinstance(bound, ast.Name | ast.Attribute | ast.Call):
                yield source.end(bound), source.end(bound), " + 1"
                yield source.end(bound), source.end(bound), " - 1"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.UnaryOp) and source.of(node.slice) == "-1":
        yield source.start(node.slice), source.end(node.slice), "0"


def boolean_constant(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield source.start(node), source.end(node), str(not node.value)

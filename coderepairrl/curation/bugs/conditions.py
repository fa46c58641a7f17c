"""Bugs in what is compared and decided: the wrong comparison, a condition that is missing or inverted."""

import ast
import re
from collections.abc import Iterator

from coderepairrl.curation.source_edits import SIMPLE, Source, SourceEdit

FLIPS = {"==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in", "not in": "in"}
BOUNDARIES = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
DIRECTIONS = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
COMPARISON = r"\bnot\s+in\b|\bis\s+not\b|\bin\b|\bis\b|[<>=!]=|[<>]"


def _swap_comparison(source: Source, node: ast.AST, table: dict[str, str]) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Compare):
        for left, right in zip([node.left, *node.comparators], node.comparators):
            found = source.between(left, right, COMPARISON)
            if found and found[2] in table:
                yield found[0], found[1], table[found[2]]


def comparison_flip(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    yield from _swap_comparison(source, node, FLIPS)


def boundary(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    yield from _swap_comparison(source, node, BOUNDARIES)


def comparison_direction(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    yield from _swap_comparison(source, node, DIRECTIONS)


def boolean_operator(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            found = source.between(left, right, r"\b(and|or)\b")
            if found:
                yield found[0], found[1], {"and": "or", "or": "and"}[found[2]]


def dropped_condition(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.BoolOp):
        yield source.start(node.values[0]), source.start(node.values[1]), ""
        yield source.end(node.values[-2]), source.end(node.values[-1]), ""


def dropped_not(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield source.start(node), source.start(node) + re.match(r"not\s*", source.of(node)).end(), ""


def inverted_condition(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    tests: list[ast.expr] = []
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        tests = [node.test]
    elif isinstance(node, ast.comprehension):
        tests = node.ifs
    for test in tests:
        if isinstance(test, SIMPLE):
            yield source.start(test), source.start(test), "not "
        elif isinstance(test, ast.BoolOp):
            yield source.start(test), source.end(test), f"not ({source.of(test)})"


def none_check(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """`x is None` -> `not x`, `x is not None` -> `x`: wrong for 0, empty and False."""
    if (
        isinstance(node, ast.Compare)
        and len(node.ops) == 1
        and source.of(node.comparators[0]) == "None"
        and isinstance(node.left, SIMPLE)
    ):
        if isinstance(node.ops[0], ast.Is):
            yield source.start(node), source.end(node), f"not {source.of(node.left)}"
        elif isinstance(node.ops[0], ast.IsNot):
            yield source.end(node.left), source.end(node), ""

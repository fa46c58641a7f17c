"""Bugs in what is done: a statement, a guard or a branch that is missing, a loop that goes on or stops."""

import ast
from collections.abc import Iterator

from coderepairrl.curation.source_edits import Source, SourceEdit, parameters

BLOCKS = ("body", "orelse", "finalbody")


def removed_statement(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """A call, a re-assignment, an attribute's or an item's assignment. A first assignment stays: without it all fails
    loudly."""
    for block in (getattr(node, name, None) for name in BLOCKS):
        if not isinstance(block, list) or len(block) < 2:
            continue
        for statement in block:
            lines = source.whole_lines(statement, statement)
            if lines and _is_missed_quietly(statement, parameters(source.scope)):
                yield *lines, ""


def _is_missed_quietly(statement: ast.stmt, bound: list[str]) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.Yield | ast.YieldFrom)
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        return isinstance(target, ast.Attribute | ast.Subscript) or isinstance(target, ast.Name) and target.id in bound
    return isinstance(statement, ast.AugAssign | ast.Delete)


def removed_guard(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """An `if` that returns, raises, breaks or continues, and has no else."""
    for block in (getattr(node, name, None) for name in BLOCKS):
        for statement in block if isinstance(block, list) and len(block) > 1 else ():
            if (
                isinstance(statement, ast.If)
                and not statement.orelse
                and isinstance(statement.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
            ):
                lines = source.whole_lines(statement, statement)
                if lines and len(statement.body) <= 3:
                    yield *lines, ""


def dropped_branch(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """The `else:` (of if, for, while, try), or a last `elif`."""
    orelse = getattr(node, "orelse", None)
    if not isinstance(orelse, list) or not orelse:
        return
    first, last = orelse[0], orelse[-1]
    if source.text.startswith("elif", source.start(first)):
        begin = source.starts[first.lineno - 1] if not first.orelse else None
    else:
        found = source.between(node.body[-1], first, r"(?m)^[ \t]*else[ \t]*:")
        begin = found[0] if found else None
    lines = source.whole_lines(last, last)
    if begin is not None and lines:
        yield begin, lines[1], ""


def loop_control(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Break | ast.Continue):
        yield source.start(node), source.end(node), "continue" if isinstance(node, ast.Break) else "break"


def missing_return(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """`return x` -> `x`: the value is computed and lost. A lone name or constant would be an odd statement: left
    alone."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
        yield source.start(node), source.start(node.value), ""

"""Injects one bug into a Python source by replacing one span of its text: everything outside the span stays byte for
byte.

    for mutation in mutations(source, "toolz/itertoolz.py"):
        buggy = mutation.apply(source)

Pure: nothing is run. A rule (bugs/) is a function from a syntax node to edits (start, end, replacement); its name is
the kind of bug. Positions are characters of the source (`ast` counts columns in UTF-8 bytes; source_edits.Source
converts). Only code inside functions is edited, and of it no docstrings, annotations, decorators or f-strings (whose
parts have no positions before Python 3.12). A result that does not parse, or whose function has the same syntax tree as
the original or as an earlier mutation's, is left out.
"""

import ast
from collections.abc import Callable, Iterator

from coderepairrl.curation.bugs import conditions, names, statements, values
from coderepairrl.curation.source_edits import Mutation, Source, SourceEdit

Rule = Callable[[Source, ast.AST], Iterator[SourceEdit]]

# in the order in which a node's mutations come
RULES: tuple[Rule, ...] = (
    conditions.comparison_flip,
    conditions.boundary,
    conditions.comparison_direction,
    values.arithmetic_operator,
    conditions.boolean_operator,
    conditions.dropped_condition,
    conditions.dropped_not,
    conditions.inverted_condition,
    values.off_by_one,
    values.slice_bound,
    names.swapped_arguments,
    values.swapped_operands,
    names.dropped_argument,
    names.wrong_variable,
    names.wrong_attribute,
    statements.removed_statement,
    statements.removed_guard,
    statements.dropped_branch,
    values.boolean_constant,
    names.name_twin,
    names.missing_copy,
    conditions.none_check,
    statements.loop_control,
    names.exception_type,
    statements.missing_return,
)
KINDS = tuple(rule.__name__ for rule in RULES)


def mutations(source: str, path: str) -> Iterator[Mutation]:
    """Every distinct mutation of `source`, in source order. `path` names the file in the error. Raises SyntaxError."""
    file, tree = Source(source), ast.parse(source, path)
    for parent in ast.walk(tree):
        file.parents |= {child: parent for child in ast.iter_child_nodes(parent)}
    for function, owner, name in _functions(tree, None, ""):
        first_line = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        begin, stop = file.starts[first_line - 1], file.end(function)
        if source[begin : file.start(function)].strip() and not function.decorator_list:
            continue  # `class A: def f(): ...` in one line: its text alone cannot be parsed
        seen = {_normalised(source[begin:stop])}
        for node, scope, inner in _nodes(function, function, name):
            file.scope, file.owner = scope, owner
            for rule in RULES:
                for start, end, replacement in rule(file, node):
                    form = _normalised(source[begin:start] + replacement + source[end : max(stop, end)])
                    if form is not None and form not in seen:
                        seen.add(form)
                        yield Mutation(rule.__name__, start, end, replacement, inner)


def _functions(
    node: ast.AST, owner: ast.ClassDef | None, prefix: str
) -> Iterator[tuple[ast.AST, ast.ClassDef | None, str]]:
    """The outermost functions with their class and dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, owner, prefix + child.name
        else:
            inside = isinstance(child, ast.ClassDef)
            yield from _functions(child, child if inside else owner, f"{prefix}{child.name}." if inside else prefix)


def _nodes(node: ast.AST, scope: ast.AST, name: str) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """The nodes that may be edited, parents first, each with its innermost function and that function's dotted name."""
    yield node, scope, name
    for label, value in ast.iter_fields(node):
        if label in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_text = (
                isinstance(child, ast.JoinedStr)
                or isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
            )
            if not isinstance(child, ast.AST) or is_text:
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _nodes(child, child, f"{name}.{child.name}")
            else:
                yield from _nodes(child, scope, name)


def _normalised(text: str) -> str | None:
    """The syntax tree of one function's text without positions; None when it does not parse."""
    try:
        return ast.dump(ast.parse("if 1:\n" + text if text[:1].isspace() else text))
    except SyntaxError:
        return None  # most rules are textual: what breaks the syntax is sifted here

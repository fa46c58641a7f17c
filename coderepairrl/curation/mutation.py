"""Injects one bug into a Python source by replacing one span of its text: everything outside the span stays byte for
byte.

    for mutation in mutations(source, "toolz/itertoolz.py"):
        buggy = mutation.apply(source)

Pure: nothing is run. A rule is a function from a syntax node to edits (start, end, replacement); its name is the kind
of
bug. Positions are characters of the source (`ast` counts columns in UTF-8 bytes; edits.Source converts). Only code
inside
functions is edited, and of it no docstrings, annotations, decorators or f-strings (whose parts have no positions before
Python 3.12). A result that does not parse, or whose function has the same syntax tree as the original or as an earlier
mutation's, is left out.
"""

import ast
import re
from collections.abc import Callable, Iterator

from coderepairrl.curation.source_edits import Edit, Mutation, Source

Rule = Callable[[Source, ast.AST], Iterator[Edit]]

FLIPS = {"==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in", "not in": "in"}
BOUNDARIES = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
DIRECTIONS = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
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
COMPARISON = r"\bnot\s+in\b|\bis\s+not\b|\bin\b|\bis\b|[<>=!]=|[<>]"
OPERATOR = r"\*\*|//|<<|>>|[-+*/%&|^]"
_TWINS = """append:extend min:max any:all startswith:endswith lstrip:rstrip find:rfind index:rindex upper:lower split:rsplit
    partition:rpartition add:discard keys:values union:intersection isinstance:issubclass takewhile:dropwhile
    token_next:token_prev floor:ceil match:search insert_before:insert_after"""
_ONE_WAY = {
    "appendleft": "append",
    "popleft": "pop",
    "get": "pop",
    "items": "keys",
    "setdefault": "get",
    "strip": "lstrip",
    "fullmatch": "match",
    "update": "setdefault",
    "finditer": "findall",
    "chain": "zip",
    "reversed": "iter",
    "sorted": "list",
    "title": "upper",
}
_PAIRS = [pair.split(":") for pair in _TWINS.split()]
TWINS = {a: b for a, b in _PAIRS} | {b: a for a, b in _PAIRS} | _ONE_WAY
EXCEPTIONS = {
    "KeyError": "IndexError",
    "IndexError": "KeyError",
    "ValueError": "TypeError",
    "TypeError": "ValueError",
    "AttributeError": "KeyError",
    "StopIteration": "IndexError",
    "LookupError": "ValueError",
    "RuntimeError": "ValueError",
}
COPIES = {"list", "dict", "set", "tuple", "frozenset", "sorted", "iter"}
# swapping their arguments breaks every call
ORDER_IS_A_TYPE_ERROR = {"isinstance", "issubclass", "getattr", "setattr", "hasattr", "super"}
SIMPLE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)
BLOCKS = ("body", "orelse", "finalbody")


# ---- the rules: one a kind of bug -----------------------------------------------------------------------------------


def _swap_comparison(source: Source, node: ast.AST, table: dict[str, str]) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        for left, right in zip([node.left, *node.comparators], node.comparators):
            found = source.between(left, right, COMPARISON)
            if found and found[2] in table:
                yield found[0], found[1], table[found[2]]


def comparison_flip(source: Source, node: ast.AST) -> Iterator[Edit]:
    yield from _swap_comparison(source, node, FLIPS)


def boundary(source: Source, node: ast.AST) -> Iterator[Edit]:
    yield from _swap_comparison(source, node, BOUNDARIES)


def comparison_direction(source: Source, node: ast.AST) -> Iterator[Edit]:
    yield from _swap_comparison(source, node, DIRECTIONS)


def arithmetic_operator(source: Source, node: ast.AST) -> Iterator[Edit]:
    sides = {ast.BinOp: ("left", "right"), ast.AugAssign: ("target", "value")}.get(type(node))
    if sides:
        left, right = (getattr(node, side) for side in sides)
        is_text = any(
            isinstance(side, ast.JoinedStr) or isinstance(getattr(side, "value", None), str) for side in (left, right)
        )
        found = None if is_text else source.between(left, right, OPERATOR)
        if found and found[2] in ARITHMETIC:
            yield found[0], found[1], ARITHMETIC[found[2]]


def boolean_operator(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            found = source.between(left, right, r"\b(and|or)\b")
            if found:
                yield found[0], found[1], {"and": "or", "or": "and"}[found[2]]


def dropped_condition(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.BoolOp):
        yield source.start(node.values[0]), source.start(node.values[1]), ""
        yield source.end(node.values[-2]), source.end(node.values[-1]), ""


def dropped_not(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield source.start(node), source.start(node) + re.match(r"not\s*", source.of(node)).end(), ""


def inverted_condition(source: Source, node: ast.AST) -> Iterator[Edit]:
    tests = (
        [node.test]
        if isinstance(node, ast.If | ast.While | ast.IfExp)
        else node.ifs
        if isinstance(node, ast.comprehension)
        else []
    )
    for test in tests:
        if isinstance(test, SIMPLE):
            yield source.start(test), source.start(test), "not "
        elif isinstance(test, ast.BoolOp):
            yield source.start(test), source.end(test), f"not ({source.of(test)})"


def neighbours(source: Source, node: ast.Constant) -> Iterator[Edit]:
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


def off_by_one(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Constant) and not _in_subscript(source, node):
        yield from neighbours(source, node)


def slice_bound(source: Source, node: ast.AST) -> Iterator[Edit]:
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


def swapped_arguments(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) not in ORDER_IS_A_TYPE_ERROR:
        for left, right in zip(node.args, node.args[1:]):
            if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                middle = source.text[source.end(left) : source.start(right)]
                yield source.start(left), source.end(right), source.of(right) + middle + source.of(left)


def swapped_operands(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and isinstance(node.left, SIMPLE) and isinstance(node.right, SIMPLE):
        middle = source.text[source.end(node.left) : source.start(node.right)]
        yield source.start(node.left), source.end(node.right), source.of(node.right) + middle + source.of(node.left)


def dropped_argument(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
        *_, before, last = sorted([*node.args, *node.keywords], key=source.start)
        yield source.end(before), source.end(last), ""
    elif isinstance(node, ast.Call) and node.keywords:
        yield source.start(node.keywords[0]), source.end(node.keywords[0]), ""


def _parameters(function: ast.AST) -> list[str]:
    spec = function.args
    names = [a.arg for a in (*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg) if a]
    return [name for name in names if name not in ("self", "cls")]


def wrong_variable(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Another parameter or an already assigned variable of the same function: the two that were bound last before this
    use."""
    parent = source.parents.get(node)
    if (
        not isinstance(node, ast.Name)
        or not isinstance(node.ctx, ast.Load)
        or isinstance(parent, ast.Call)
        and parent.func is node
    ):
        return
    bound = _parameters(source.scope)
    stores = [n for n in ast.walk(source.scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    bound += [n.id for n in sorted(stores, key=source.start) if source.start(n) < source.start(node)]
    if node.id in bound:
        for name in [n for n in dict.fromkeys(reversed(bound)) if n != node.id][:2]:
            yield source.start(node), source.end(node), name


def wrong_attribute(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Another attribute of self that the class assigns or reads: the nearest two in the alphabet, so that names look
    alike."""

    def of_self(n: ast.AST) -> bool:
        return (
            isinstance(n, ast.Attribute)
            and isinstance(n.value, ast.Name)
            and n.value.id == "self"
            and not n.attr.startswith("__")
        )

    if source.owner and of_self(node) and isinstance(node.ctx, ast.Load):
        names = sorted({n.attr for n in ast.walk(source.owner) if of_self(n)})
        place = names.index(node.attr)
        for name in names[max(place - 1, 0) : place] + names[place + 1 : place + 2]:
            yield source.end(node) - len(node.attr), source.end(node), name


def removed_statement(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A call, a re-assignment, an attribute's or an item's assignment. A first assignment stays: without it all fails
    loudly."""
    for block in (getattr(node, name, None) for name in BLOCKS):
        if not isinstance(block, list) or len(block) < 2:
            continue
        for statement in block:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            again = isinstance(target, ast.Name) and target.id in _parameters(source.scope)
            is_call = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Call | ast.Yield | ast.YieldFrom
            )
            lines = source.whole_lines(statement, statement)
            if lines and (
                is_call
                or again
                or isinstance(target, ast.Attribute | ast.Subscript)
                or isinstance(statement, ast.AugAssign | ast.Delete)
            ):
                yield *lines, ""


def removed_guard(source: Source, node: ast.AST) -> Iterator[Edit]:
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


def dropped_branch(source: Source, node: ast.AST) -> Iterator[Edit]:
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


def boolean_constant(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield source.start(node), source.end(node), str(not node.value)


def name_twin(source: Source, node: ast.AST) -> Iterator[Edit]:
    """append / extend, min / max, any / all, startswith / endswith ..."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        if name in TWINS:
            yield source.end(node.func) - len(name), source.end(node.func), TWINS[name]


def missing_copy(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`x.copy()` -> `x`, `list(x)` -> `x`."""
    if not isinstance(node, ast.Call) or node.keywords:
        return
    call = re.search(r"\.\s*copy\s*\(\s*\)$", source.of(node))
    if call:
        yield source.start(node) + call.start(), source.end(node), ""
    elif len(node.args) == 1 and getattr(node.func, "id", None) in COPIES and isinstance(node.args[0], SIMPLE):
        yield source.start(node), source.end(node), source.of(node.args[0])


def none_check(source: Source, node: ast.AST) -> Iterator[Edit]:
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


def loop_control(source: Source, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Break | ast.Continue):
        yield source.start(node), source.end(node), "continue" if isinstance(node, ast.Break) else "break"


def exception_type(source: Source, node: ast.AST) -> Iterator[Edit]:
    types = {
        ast.Raise: lambda n: [getattr(n.exc, "func", n.exc)],
        ast.ExceptHandler: lambda n: n.type.elts if isinstance(n.type, ast.Tuple) else [n.type],
    }.get(type(node), lambda n: [])(node)
    for name in types:
        if isinstance(name, ast.Name) and name.id in EXCEPTIONS:
            yield source.start(name), source.end(name), EXCEPTIONS[name.id]


def missing_return(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`return x` -> `x`: the value is computed and lost. A lone name or constant would be an odd statement: left
    alone."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
        yield source.start(node), source.start(node.value), ""


RULES: tuple[Rule, ...] = (
    comparison_flip,
    boundary,
    comparison_direction,
    arithmetic_operator,
    boolean_operator,
    dropped_condition,
    dropped_not,
    inverted_condition,
    off_by_one,
    slice_bound,
    swapped_arguments,
    swapped_operands,
    dropped_argument,
    wrong_variable,
    wrong_attribute,
    removed_statement,
    removed_guard,
    dropped_branch,
    boolean_constant,
    name_twin,
    missing_copy,
    none_check,
    loop_control,
    exception_type,
    missing_return,
)
KINDS = tuple(rule.__name__ for rule in RULES)


# ---- walking and sifting --------------------------------------------------------------------------------------------


def mutations(source: str, path: str) -> Iterator[Mutation]:
    """Every distinct mutation of `source`, in source order. `path` names the file in the error. Raises SyntaxError."""
    file, tree = Source(source), ast.parse(source, path)
    for parent in ast.walk(tree):
        file.parents |= {child: parent for child in ast.iter_child_nodes(parent)}
    for function, owner, name in _functions(tree, None, ""):
        begin, stop = (
            file.starts[min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1],
            file.end(function),
        )
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

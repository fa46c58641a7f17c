"""Bugs in what is named and called: the wrong variable, attribute, function, exception or argument."""

import ast
import re
from collections.abc import Iterator

from coderepairrl.curation.source_edits import SIMPLE, Source, SourceEdit, parameters

_TWINS = """append:extend min:max any:all startswith:endswith lstrip:rstrip find:rfind index:rindex upper:lower
    split:rsplit partition:rpartition add:discard keys:values union:intersection isinstance:issubclass
    takewhile:dropwhile token_next:token_prev floor:ceil match:search insert_before:insert_after"""
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


def swapped_arguments(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) not in ORDER_IS_A_TYPE_ERROR:
        for left, right in zip(node.args, node.args[1:]):
            if not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                middle = source.text[source.end(left) : source.start(right)]
                yield source.start(left), source.end(right), source.of(right) + middle + source.of(left)


def dropped_argument(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
        *_, before, last = sorted([*node.args, *node.keywords], key=source.start)
        yield source.end(before), source.end(last), ""
    elif isinstance(node, ast.Call) and node.keywords:
        yield source.start(node.keywords[0]), source.end(node.keywords[0]), ""


def wrong_variable(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """Another parameter or an already assigned variable of the same function: the two that were bound last before this
    use."""
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return
    parent = source.parents.get(node)
    if isinstance(parent, ast.Call) and parent.func is node:
        return
    bound = parameters(source.scope)
    stores = [n for n in ast.walk(source.scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    bound += [n.id for n in sorted(stores, key=source.start) if source.start(n) < source.start(node)]
    if node.id in bound:
        for name in [n for n in dict.fromkeys(reversed(bound)) if n != node.id][:2]:
            yield source.start(node), source.end(node), name


def wrong_attribute(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
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


def name_twin(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """append / extend, min / max, any / all, startswith / endswith ..."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        if name in TWINS:
            yield source.end(node.func) - len(name), source.end(node.func), TWINS[name]


def missing_copy(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    """`x.copy()` -> `x`, `list(x)` -> `x`."""
    if not isinstance(node, ast.Call) or node.keywords:
        return
    call = re.search(r"\.\s*copy\s*\(\s*\)$", source.of(node))
    if call:
        yield source.start(node) + call.start(), source.end(node), ""
    elif len(node.args) == 1 and getattr(node.func, "id", None) in COPIES and isinstance(node.args[0], SIMPLE):
        yield source.start(node), source.end(node), source.of(node.args[0])


def exception_type(source: Source, node: ast.AST) -> Iterator[SourceEdit]:
    types: list[ast.expr | None] = []
    if isinstance(node, ast.Raise):
        types = [getattr(node.exc, "func", node.exc)]
    elif isinstance(node, ast.ExceptHandler):
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    for name in types:
        if isinstance(name, ast.Name) and name.id in EXCEPTIONS:
            yield source.start(name), source.end(name), EXCEPTIONS[name.id]

"""Bugs of classes, outside of function bodies, and two bugs in one file; see mutation.py for the rest.

for mutation in class_mutations(source, "tinydb/queries.py"):
    buggy = mutation.apply(source)
"""

import ast
import re
from collections.abc import Iterator

from coderepairrl.curation.bugs.values import neighbours
from coderepairrl.curation.source_edits import Mutation, Source, SourceEdit

_PAIRS = """__lt__:__le__ __gt__:__ge__ __eq__:__ne__ __add__:__radd__ __sub__:__rsub__ __mul__:__rmul__ __and__:__or__
    __str__:__repr__ __getitem__:__call__"""
DUNDER_TWINS = {a: b for pair in _PAIRS.split() for a, b in (pair.split(":"), reversed(pair.split(":")))}
KEPT_DUNDERS = {"__init__", "__new__", "__init_subclass__", "__post_init__"}  # without them all fails loudly
DECORATOR_TWINS = {"staticmethod": "classmethod", "classmethod": "staticmethod"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def _bases(node: ast.ClassDef) -> list[ast.expr]:
    return [base for base in node.bases if isinstance(base, ast.Name | ast.Attribute)]


def wrong_base(source: Source, node: ast.ClassDef) -> Iterator[SourceEdit]:
    """Two bases in the other order, or another class of the file that was defined before."""
    bases, around = _bases(node), source.parents[node]
    beside = around.body if isinstance(around, ast.Module) else []
    before = [other.name for other in beside if isinstance(other, ast.ClassDef) and other.lineno < node.lineno]
    for left, right in zip(bases, bases[1:]):
        middle = source.text[source.end(left) : source.start(right)]
        yield source.start(left), source.end(right), source.of(right) + middle + source.of(left)
    for base in bases:
        for name in [name for name in before if name != source.of(base)][-2:]:
            yield source.start(base), source.end(base), name


def dropped_base(source: Source, node: ast.ClassDef) -> Iterator[SourceEdit]:
    """One of several bases is gone."""
    for left, right in zip(node.bases, node.bases[1:]):
        yield source.end(left), source.end(right), ""
        if left is node.bases[0]:
            yield source.start(left), source.start(right), ""


def class_attribute(source: Source, node: ast.ClassDef) -> Iterator[SourceEdit]:
    """The value of an attribute that instances share: the other truth value, a neighbouring number, None for a list or
    dict."""
    for statement in node.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, bool):
            yield source.start(value), source.end(value), str(not value.value)
        elif isinstance(value, ast.Constant):
            yield from neighbours(source, value)
        elif isinstance(value, ast.List | ast.Dict | ast.Set | ast.Tuple) and (
            getattr(value, "elts", None) or getattr(value, "keys", None)
        ):
            items = value.values if isinstance(value, ast.Dict) else value.elts
            starts = value.keys if isinstance(value, ast.Dict) else value.elts
            if len(items) > 1 and starts[-1] is not None:
                yield source.end(items[-2]), source.end(items[-1]), ""


def dunder_method(source: Source, node: ast.ClassDef) -> Iterator[SourceEdit]:
    """A special method is missing, or has its twin's name."""
    methods = {child.name: child for child in node.body if isinstance(child, FUNCTIONS)}
    for name, method in methods.items():
        if not re.fullmatch(r"__\w+__", name) or name in KEPT_DUNDERS:
            continue
        twin = DUNDER_TWINS.get(name)
        if twin and twin not in methods:
            at = source.start(method) + re.match(r"(async\s+)?def\s+", source.of(method)).end()
            yield at, at + len(name), twin
        first = min([method, *method.decorator_list], key=lambda n: n.lineno)
        begin, stop = source.starts[first.lineno - 1], source.starts[method.end_lineno]
        if len(node.body) > 1 and not source.text[source.end(method) : stop].strip():
            yield begin, stop, ""


def method_decorator(source: Source, node: ast.ClassDef) -> Iterator[SourceEdit]:
    """@property or another decorator without arguments is missing; @staticmethod for @classmethod and back."""
    for method in (child for child in node.body if isinstance(child, FUNCTIONS)):
        for decorator in method.decorator_list:
            if isinstance(decorator, ast.Name | ast.Attribute):
                if source.of(decorator) in DECORATOR_TWINS:
                    yield source.start(decorator), source.end(decorator), DECORATOR_TWINS[source.of(decorator)]
                line, stop = source.starts[decorator.lineno - 1], source.starts[decorator.end_lineno]
                if source.text[line:stop].strip() == f"@{source.of(decorator)}":
                    yield line, stop, ""


CLASS_RULES = (wrong_base, dropped_base, class_attribute, dunder_method, method_decorator)
CLASS_KINDS = tuple(rule.__name__ for rule in CLASS_RULES)


def class_mutations(source: str, path: str) -> Iterator[Mutation]:
    """Every distinct class-level mutation, in source order; `function` is the class's dotted name. Raises
    SyntaxError."""
    file, tree = Source(source), ast.parse(source, path)
    for parent in ast.walk(tree):
        file.parents |= {child: parent for child in ast.iter_child_nodes(parent)}
    seen = {ast.dump(tree)}
    for node, name in _classes(tree, ""):
        for rule in CLASS_RULES:
            for start, end, replacement in rule(file, node):
                mutation = Mutation(rule.__name__, start, end, replacement, name)
                try:
                    form = ast.dump(ast.parse(mutation.apply(source)))
                except SyntaxError:
                    continue  # rules are textual: what breaks the syntax is sifted here
                if form not in seen:
                    seen.add(form)
                    yield mutation


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[ast.ClassDef, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield child, prefix + child.name
            yield from _classes(child, f"{prefix}{child.name}.")
        elif not isinstance(child, FUNCTIONS):
            yield from _classes(child, prefix)


def combine(first: Mutation, second: Mutation) -> Mutation | None:
    """Both bugs at once; None where their edits touch each other or are in one function."""
    edits = sorted([*first.edits, *second.edits])
    if first.function == second.function or any(left[1] >= right[0] for left, right in zip(edits, edits[1:])):
        return None
    (start, end, replacement), *more = edits
    return Mutation("combined", start, end, replacement, f"{first.function}, {second.function}", tuple(more))

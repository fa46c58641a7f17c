"""Bug injection: what a mutation may touch, and what it must leave alone."""

import argparse
import ast
import functools
import heapq
import io
import json.decoder
import random
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from coderepairrl.curation.class_mutation import CLASS_KINDS, class_mutations, combine
from coderepairrl.curation.mutation import KINDS, mutations
from coderepairrl.curation.source_edits import Mutation

LIBRARY = [Path(module.__file__) for module in (argparse, heapq, json.decoder, textwrap)]

# kind -> (the function's body before, one body that must be among the mutants)
EXAMPLES = {
    "comparison_flip": ("return a  ==  b", "return a  !=  b"),
    "boundary": ("return a < b", "return a <= b"),
    "comparison_direction": ("return a <= b", "return a >= b"),
    "arithmetic_operator": ("return (a)  // (b)", "return (a)  / (b)"),
    "boolean_operator": ("return a and b", "return a or b"),
    "dropped_condition": ("return a and b", "return a"),
    "dropped_not": ("return not (a or b)", "return (a or b)"),
    "inverted_condition": ("return a if b else 0", "return a if not b else 0"),
    "off_by_one": ("return a + 1", "return a + 2"),
    "slice_bound": ("return a[1:b]", "return a[1:b - 1]"),
    "swapped_arguments": ("return divmod(a, b)", "return divmod(b, a)"),
    "swapped_operands": ("return a - b", "return b - a"),
    "dropped_argument": ("return a.get(b, 3)", "return a.get(b)"),
    "wrong_variable": ("return a", "return b"),
    "wrong_attribute": ("return self.x + self.y", "return self.y + self.y"),
    "removed_statement": ("a.sort()\n        return a", "return a"),
    "removed_guard": ("if a is None:\n            return 0\n        return b", "return b"),
    "dropped_branch": (
        "if a:\n            b = 1\n        else:\n            b = 2\n        return b",
        "if a:\n            b = 1\n        return b",
    ),
    "boolean_constant": ("return sorted(a, reverse=True)", "return sorted(a, reverse=False)"),
    "name_twin": ("a.append(b)", "a.extend(b)"),
    "missing_copy": ("return a.copy()", "return a"),
    "none_check": ("return 1 if a is None else 2", "return 1 if not a else 2"),
    "loop_control": ("for b in a:\n            break", "for b in a:\n            continue"),
    "exception_type": ("raise ValueError(a)", "raise TypeError(a)"),
    "missing_return": ("return list(a)", "list(a)"),
}


def in_a_method(body: str) -> str:
    return f"class A:\n    def f(self, a, b):\n        {body}\n"


@functools.cache
def mutations_of(path: Path) -> list[Mutation]:
    return list(mutations(path.read_text(), str(path)))


def comments(source: str) -> Counter:
    return Counter(
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    )


def mutants(source: str, kind: str, find=mutations) -> list[str]:
    return [mutation.apply(source) for mutation in find(source, "a.py") if mutation.kind == kind]


def different(source: str, found: Iterable[Mutation]) -> Iterator[tuple[Mutation, str]]:
    """Each with its mutant, which parses and differs from all others."""
    trees = {tree_of(source)}
    for mutation in found:
        mutant = mutation.apply(source)
        tree = tree_of(mutant)
        assert tree not in trees, mutation
        trees.add(tree)
        yield mutation, mutant


parsed = functools.lru_cache(maxsize=1)(ast.parse)
DUMPS: dict[tuple, str] = {}  # of statements: mutants of a source differ in one or two


def dump(statement: ast.stmt, lines: list[str]) -> str:
    """ast.dump(statement), made once for its text."""
    first = min(node.lineno for node in [statement, *getattr(statement, "decorator_list", [])])
    key = (
        statement.lineno - first,
        statement.col_offset,
        statement.end_col_offset,
        *lines[first - 1 : statement.end_lineno],
    )
    if key not in DUMPS:
        DUMPS[key] = ast.dump(statement)
    return DUMPS[key]


def tree_of(source: str) -> tuple:
    """Equal where ast.dump(ast.parse(source)) is."""
    lines = [line.decode() for line in source.encode().splitlines(keepends=True)]  # as `ast` counts them

    def parts(body: list[ast.stmt]) -> tuple:
        return tuple(
            (ast.dump(ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)), parts(node.body))
            if isinstance(node, ast.ClassDef)
            else dump(node, lines)
            for node in body
        )

    return parts(parsed(source).body)


def test_every_kind_has_an_example():
    assert len(KINDS) >= 12 and set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind):
    """Kinds overlap (a dropped `else` may also be a removed statement); sifting keeps the first, so the result
    counts."""
    before, after = map(in_a_method, EXAMPLES[kind])
    assert after in mutants(before, kind)
    assert {mutation.function for mutation in mutations(before, "a.py") if mutation.kind == kind} == {"A.f"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_library_sources(path):
    """On real sources: each mutant parses, differs from all others, and keeps every comment outside its span."""
    source, found = path.read_text(), mutations_of(path)
    assert len(found) > 50
    before = comments(source)
    for mutation, mutant in different(source, random.Random(0).sample(found, 40)):
        after = comments(mutant)
        assert not after - before, mutation
        assert all(comment in source[mutation.start : mutation.end] for comment in before - after), mutation


def test_all_kinds_occur_in_library_sources():
    found = {mutation.kind for path in LIBRARY for mutation in mutations_of(path)}
    assert len(found) >= 20, set(KINDS) - found


def test_the_same_source_gives_the_same_mutations():
    source = LIBRARY[-1].read_text()
    assert list(mutations(source, "a.py")) == list(mutations(source, "b.py"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_positions_are_characters(newline):
    """`ast` counts bytes; multi-byte letters, form feeds and Windows line ends must not shift a span."""
    source = newline.join(
        [
            "# \u00e4\u00f6\u00fc \u6f22\u5b57",
            "\f",
            "def f(a, b):",
            "    x = '\u6f22\u5b57\U0001f600'; return a < b  # \u00e9",
            "",
        ]
    )
    assert mutants(source, "boundary") == [source.replace("a < b", "a <= b")]


UNTOUCHED = '''
LIMIT = 3 + 4 < 5

@cache(maxsize=128, typed=True)
def f(a: int | None = None, *, b: "x < 3" = None) -> list[int] | None:
    """Not 1 < 2 and not True."""
    return f"{a + 1:>{b}} {a < b}"
'''


def test_only_code_in_functions_is_edited():
    """No module level, decorators, annotations, docstrings or f-strings: of this source nothing is left."""
    assert list(mutations(UNTOUCHED, "a.py")) == []


def test_a_comment_in_the_way_is_not_taken_for_the_operator():
    source = "def f(a, b):\n    return (a  # a < b, and not a == b\n            < b)\n"
    assert not mutants(source, "boundary")


def test_a_statement_with_a_comment_is_not_removed():
    source = "def f(a):\n    a.sort()  # in place\n    return a\n"
    assert not mutants(source, "removed_statement")


def test_a_file_that_does_not_parse_is_named():
    with pytest.raises(SyntaxError, match="broken.py"):
        list(mutations("def f(:\n", "broken.py"))


# ---- class-level bugs, combined bugs --------------------------------------------------------------------------------

CLASS_EXAMPLES = {
    "wrong_base": (
        "class A: pass\nclass B: pass\nclass C(B, A): pass\n",
        "class A: pass\nclass B: pass\nclass C(A, B): pass\n",
    ),
    "dropped_base": ("class C(B, A): pass\n", "class C(B): pass\n"),
    "class_attribute": ("class C:\n    limit: int = 3\n", "class C:\n    limit: int = 4\n"),
    "dunder_method": (
        "class C:\n    x = f\n    def __eq__(self, a):\n        return a\n",
        "class C:\n    x = f\n    def __ne__(self, a):\n        return a\n",
    ),
    "method_decorator": (
        "class C:\n    @property\n    def f(self):\n        return 1\n",
        "class C:\n    def f(self):\n        return 1\n",
    ),
}


def test_every_class_kind_has_an_example():
    assert set(CLASS_EXAMPLES) == set(CLASS_KINDS)


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_class_kind(kind):
    before, after = CLASS_EXAMPLES[kind]
    assert after in mutants(before, kind, class_mutations)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_class_bugs_of_library_sources(path):
    """Each parses, differs from all others and leaves the bodies of functions that stay as they were."""
    source = path.read_text()
    bodies = functions_of(source)
    for mutation, mutant in different(source, class_mutations(source, str(path))):
        assert functions_of(mutant) <= bodies, mutation


def functions_of(source: str) -> set[str]:
    lines = [line.decode() for line in source.encode().splitlines(keepends=True)]
    return {
        dump(statement, lines)
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.FunctionDef)
        for statement in node.body
    }


def test_two_bugs_are_both_in_the_text():
    source = LIBRARY[-1].read_text()
    found = mutations_of(LIBRARY[-1])
    for first, second in zip(random.Random(1).sample(found, 40), random.Random(2).sample(found, 40)):
        both = combine(first, second)
        if both is None:
            assert first.function == second.function or max(first.start, second.start) <= min(first.end, second.end)
            continue
        ast.parse(both.apply(source))
        ordered = sorted([first, second], key=lambda mutation: mutation.start, reverse=True)
        assert both.apply(source) == ordered[1].apply(ordered[0].apply(source))

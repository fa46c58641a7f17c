"""Does a change validate less than before? Static comparison of each changed file, new ones included: its tests
(weaker_tests.py), its checks, what it silences (silenced.py), what it configures (configurations.py).

Findings are sentences such as "tests/test_a.py: TestA.test_b asserts less"; what the oracle's own patch does in the
same way is none (build_verdict.py takes those away).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from coderepairrl.grading import syntax
from coderepairrl.grading.syntax import Function
from coderepairrl.grading.validation.assertions import skipping, strengths
from coderepairrl.grading.validation.configurations import is_configuration, loosened
from coderepairrl.grading.validation.other_languages import validates_less
from coderepairrl.grading.validation.silenced import silenced, types_say_less
from coderepairrl.grading.validation.weaker_tests import changed_tests

_TEST_FILE = re.compile(
    r"(?:^|/)(?:test_[^/]*|[^/]*_tests?|tests?|conftest)\.\w+$|(?:^|/)(?:tests?|testing|specs?"
    r"|__tests__|__mocks__|testdata|__snapshots__)/"
    r"|[^/]*(?:Tests?|Spec|IT|\.test|\.spec)\.\w+$",
    re.ASCII,
)
_EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)
_NO_EXAMPLE = re.compile(r"#\s*doctest:.*\+\s*SKIP", re.IGNORECASE)


def is_test_file(path: str) -> bool:
    return bool(_TEST_FILE.search(path))


def weaker(path: str, before: str | None, after: str | None) -> list[str]:
    """Findings of one file; None: it is not there on that side. Each starts with the path."""
    if after is None:
        what = "tests" if is_test_file(path) else "configuration of checks" if is_configuration(path) else ""
        return [f"{path}: a file of {what} is gone"] if what and before is not None else []
    found = silenced(path, before, after)
    if is_configuration(path):
        found += loosened(path, before, after)
    old, new = _parse(before) if before is not None else None, _parse(after)
    if PurePosixPath(path).suffix in (".py", ".pyi") and (before is None or old is not None):
        if new is None:
            return found + ([f"{path}: does not parse any more"] if before is not None else [])
        found += _documented(path, before, after) if before is not None else []
        return found + types_say_less(path, old, new) + _python(path, old, new)
    return found + validates_less(path, before, after, is_test_file(path)) if before is not None else found


def _python(path: str, before: ast.Module | None, after: ast.Module) -> list[str]:
    old, new = dict(_functions(before)) if before else {}, dict(_functions(after))
    tests = is_test_file(path)
    found = []
    for name, function in old.items():
        now = new.get(name)
        if tests and name.rpartition(".")[2].startswith("test"):
            found += _less_asserted(path, name, function, now) if now else [f"{path}: {name} is gone"]
        elif now and _checks(now) < _checks(function):
            found.append(f"{path}: {name} checks less")
    if tests or before is not None and PurePosixPath(path).name == "noxfile.py":
        found += changed_tests(path, before, after)
    if tests and before and _skips_as_a_whole(after) > _skips_as_a_whole(before):
        found.append(f"{path}: its tests are skipped")
    return found


def _less_asserted(path: str, name: str, before: ast.AST, after: ast.AST) -> list[str]:
    had, has = strengths(before), strengths(after)
    found = []
    if any(sum(one >= level for one in has) < sum(one >= level for one in had) for level in (1, 2, 3)):
        found.append(f"{path}: {name} asserts less")
    if skipping(after) > skipping(before):
        found.append(f"{path}: {name} is skipped")
    return found


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of all functions, those of classes included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from _functions(node, prefix)


def _skips_as_a_whole(tree: ast.Module) -> int:
    """Marks and calls of the module and its classes, which no function owns."""
    parts: list[ast.AST] = []
    for child in ast.walk(tree):
        if isinstance(child, ast.ClassDef):
            parts += child.decorator_list
        if isinstance(child, ast.Module | ast.ClassDef):
            parts += [statement for statement in child.body if isinstance(statement, ast.Expr | ast.Assign)]
    return sum(map(skipping, parts))


def _checks(function: ast.AST) -> int:
    """Raises and assertions: what a function refuses."""
    return sum(isinstance(node, ast.Raise | ast.Assert) for node in ast.walk(function))


def _documented(path: str, before: str, after: str) -> list[str]:
    """Examples in its documentation, which a runner may run."""
    less = len(_EXAMPLE.findall(after)) < len(_EXAMPLE.findall(before))
    if less or len(_NO_EXAMPLE.findall(after)) > len(_NO_EXAMPLE.findall(before)):
        return [f"{path}: examples that are run are fewer"]
    return []


def _parse(text: str) -> ast.Module | None:
    try:
        return syntax.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # another language, or another Python
        return None

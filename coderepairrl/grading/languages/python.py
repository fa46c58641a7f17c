"""Python: a unittest.TestCase as the canary, tests turned by Python's own syntax tree (expectations.py)."""

import ast
import random
import re
import secrets
from collections.abc import Callable, Collection
from pathlib import PurePosixPath

from coderepairrl.diffs import FileChange
from coderepairrl.grading import expectations, syntax
from coderepairrl.grading.canary import Canary
from coderepairrl.grading.ids import to_junit
from coderepairrl.grading.scan import Marks, scan_file
from coderepairrl.grading.turns import TurnedExpectation
from coderepairrl.types import Task

SUFFIX = ".py"
PROTECTED: tuple[str, ...] = ()


def canary() -> Canary:
    module, case, name = (f"{kind}{secrets.token_hex(8)}" for kind in ("test_", "Test", "test_"))
    source = (
        f"import unittest\n\n\nclass {case}(unittest.TestCase):\n"
        f"    def {name}(self):\n        self.assertEqual(1, 2)\n"
    )
    return Canary(f"{module}.py", module, case, name, source)


def places(test: str) -> list[str]:
    parts = to_junit(test).partition("[")[0].rpartition("::")[0].split(".")
    return ["/".join(parts[:length]) + ".py" for length in range(len(parts), 0, -1)]


def helpers(path: str, text: str) -> list[str]:
    """Its package's own, and what it imports by a name that leads there."""
    folder = PurePosixPath(path).parent
    try:
        tree = syntax.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            up = folder.parents[node.level - 2] if 1 < node.level <= len(folder.parents) + 1 else folder
            start = up.parts if node.level else ()
            modules += [
                (*start, *(node.module or "").split(".")),
                *((*start, *(node.module or "").split("."), name.name) for name in node.names),
            ]
        elif isinstance(node, ast.Import):
            modules += [tuple(name.name.split(".")) for name in node.names]
    found = []
    for parts in modules:
        parts = tuple(part for part in parts if part)
        beside = [parts] if parts[:1] == folder.parts[:1] and folder.parts else [(*folder.parts, *parts)]
        found += [
            form
            for inside in beside
            if inside
            for form in (f"{'/'.join(inside)}.py", f"{'/'.join(inside)}/__init__.py")
        ]
    return list(dict.fromkeys([f"{folder}/__init__.py" if folder.parts else "__init__.py", *found]))


def definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"\bdef {name}\b")


def turns(text: str, names: Collection[str], rng: random.Random) -> dict[str, list[TurnedExpectation]]:
    return expectations.turns(text, names, rng)


def scan(task: Task, change: FileChange, before: Callable[[str], str]) -> Marks:
    return scan_file(change, task.oracle_patch, before)

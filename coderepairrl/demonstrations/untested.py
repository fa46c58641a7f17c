"""Bugs in the functions of installed packages that no test was run for: the symptom in their statements is made up.

They are many and of much code, and teach to find, to read and to mend; what a failing test says is learnt from those
of curation/failing.py.
"""

import ast
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from coderepairrl.curation.failing import FailingBug
from coderepairrl.curation.mutation import mutations
from coderepairrl.errors import ConfigError

SYMPTOMS = (
    "gives a wrong result",
    "gives a wrong result",
    "raises TypeError",
    "raises AttributeError",
    "raises KeyError",
    "raises ValueError",
    "raises IndexError",
    "does not raise ValueError",
)
LONGEST = 80  # lines of a function


def place_of(module: str) -> tuple[Path, str]:
    """(the folder that it is imported from, its own folder's name in it). Raises ConfigError."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"untested.modules: {module} is no installed package: leave it out, or install it")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder.parent, folder.name


def untested_bugs(module: str, files: dict[str, str], count: int, rng: random.Random) -> Iterator[FailingBug]:
    """At most one bug a function, of so many. `files`: path -> text."""
    functions = [(path, *found) for path, text in files.items() for found in _functions(text)]
    rng.shuffle(functions)
    for path, name, first, last in functions:
        if count <= 0:
            return
        found = _mutated(files[path], first, last, rng)
        if found is None:
            continue
        kind, edits = found
        parts = name.split(".")
        subject = rng.choice([parts[-1], parts[-1], *(part for part in parts if not part.startswith("_"))])
        yield FailingBug(
            package=module,
            lock="",
            kind=kind,
            function=name,
            path=path,
            edits=edits,
            problem_statement=f"`{subject}` {rng.choice(SYMPTOMS)}",
            test_file="",
            test="",
            failing=0,
        )
        count -= 1


def _functions(text: str) -> list[tuple[str, int, int]]:
    """(dotted name, first line, last line), from 1, of those whose text can be parsed alone."""
    try:
        left: list[tuple[ast.AST, str]] = [(ast.parse(text), "")]
    except (SyntaxError, ValueError):
        return []
    out: list[tuple[str, int, int]] = []
    while left:
        node, prefix = left.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                last = child.end_lineno or child.lineno
                if 2 < last - child.lineno < LONGEST:
                    out.append((prefix + child.name, child.lineno, last))
            elif isinstance(child, ast.ClassDef):
                left.append((child, f"{prefix}{child.name}."))
    return out


def _mutated(text: str, first: int, last: int, rng: random.Random) -> tuple[str, tuple] | None:
    """(kind, the edit of `text`) of a mutation of these lines, which are parsed alone: a file's whole text for each
    would take long."""
    lines = text.split("\n")
    start = sum(len(line) + 1 for line in lines[: first - 1])
    own = "\n".join(lines[first - 1 : last]) + "\n"
    pad = own[: len(own) - len(own.lstrip(" \t"))]
    head = "if 1:\n" if pad else ""
    try:
        found = list(mutations(head + own, "one.py"))
    except SyntaxError:
        return None
    if not found:
        return None
    one, shift = rng.choice(found), start - len(head)
    return one.kind, ((one.start + shift, one.end + shift, one.replacement),)

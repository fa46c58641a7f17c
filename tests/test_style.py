"""The tree holds to what CONTRIBUTING.md says of it: ruff's rules and format, sizes, widths, names."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "coderepairrl"
MAX_LINES, MAX_FUNCTION, WIDTH = 400, 60, 120


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_finds_nothing(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long():
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().split("\n")) - 1 for path in PACKAGE.rglob("*.py")}
    longer = {name: size for name, size in sizes.items() if size > MAX_LINES}
    assert not longer, "find the missing concept"


def test_no_function_is_too_long():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        f"{path.relative_to(PACKAGE)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    }
    assert not long, "name its steps"


def test_lines_fit():
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().split("\n"), 1)
        if len(line) > WIDTH
    ]
    assert not wide


def repeated(places: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Name -> where it stands, of those that stand at several places."""
    found = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_a_name_means_one_module():
    modules = [(path.stem, str(path.relative_to(PACKAGE))) for path in PACKAGE.rglob("*.py")]
    assert len(modules) > 200
    assert not repeated((name, place) for name, place in modules if name != "__init__")


def test_a_name_means_one_class():
    """Or one type: `Rule = Callable[...]` names one, too."""

    def named(node: ast.AST) -> str:
        if isinstance(node, ast.ClassDef):
            return node.name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            return node.targets[0].id
        return ""

    def types(path: Path) -> Iterator[tuple[str, str]]:
        for node in ast.parse(path.read_text()).body:
            if re.match("_?[A-Z][A-Za-z]*[a-z]", named(node)):
                yield named(node), f"{path.relative_to(PACKAGE)}:{node.lineno}"

    found = [pair for path in sorted(PACKAGE.rglob("*.py")) for pair in types(path)]
    assert len(found) > 200
    assert not repeated(found), "say what each is"


def test_the_root_has_no_rooms_furniture():
    """What belongs to a word of the walk lies in that word's folder."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "types", "errors", "files", "lines", "diffs"}

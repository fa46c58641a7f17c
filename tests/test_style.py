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
FOLDERS = ("coderepairrl", "analysis", "benchmarks", "examples", "requirements", "scripts", "slurm", "tests")
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MAX_LINES, WIDTH = 400, 120
MAX_FUNCTION, MAX_FUNCTION_OUTSIDE = 60, 90  # of the package, and of programs and tests


def test_every_file_of_the_project_is_looked_at():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(listed.split()) - set(TEXTS) <= {"setup.py"}


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_finds_nothing(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long():
    sizes = {name: text.count("\n") for name, text in TEXTS.items()}
    longer = {name: size for name, size in sizes.items() if size > MAX_LINES}
    assert not longer, "find the missing concept"


def test_no_function_is_too_long():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    sizes = {
        f"{name}: {node.name}": node.end_lineno - node.lineno + 1
        for name, text in TEXTS.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions)
    }
    most = lambda place: MAX_FUNCTION if place.startswith("coderepairrl/") else MAX_FUNCTION_OUTSIDE
    assert not {place: size for place, size in sizes.items() if size > most(place)}, "name its steps"


def test_lines_fit():
    assert not [
        f"{name}:{number}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.split("\n"), 1)
        if len(line) > WIDTH
    ]


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

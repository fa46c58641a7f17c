"""The tree holds to what CONTRIBUTING.md says of it: ruff's rules and format, sizes of files and functions, widths of lines."""

import ast
import subprocess
import sys
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


def test_the_root_has_no_rooms_furniture():
    """What belongs to a word of the walk lies in that word's folder."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "types", "errors", "files", "lines", "diffs"}

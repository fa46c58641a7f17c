"""Problem statements written from what a failing test shows: what it ran and what came out, never the place of the
bug."""

import ast
import re
import sys
import textwrap
from pathlib import Path

from coderepairrl.curation.source_edits import Mutation
from coderepairrl.lines import python_lines
from coderepairrl.tasks.packages import read_source

MAX_FAILING = 40  # tests: a bug that fails more is too loud to be a task
FRAME = re.compile(r"^(\S+):(\d+): in .*$", re.MULTILINE)
CHAINED = re.compile(r"^(?:During handling of|The above exception was).*$", re.MULTILINE)
RAISED = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Exit|Interrupt|StopIteration|Warning)\w*)\b")
NOT_RAISED = re.compile(r"DID NOT RAISE.*?(\w+)'?>|\b(\w+) not raised")
OTHERS = sys.stdlib_module_names | {"path"}  # os.path.exists is not the package's `exists`
COMMON_NAMES = {name for kind in (dict, list, str, set, int, object, type(sys.stdout)) for name in dir(kind)}


def public_names(base: Path, globs: tuple[str, ...]) -> set[str]:
    """Names of the public functions, methods and classes of the package, less those that any dict, list or file has
    too."""
    trees = (ast.parse(read_source(path)) for pattern in globs for path in base.glob(pattern))
    defined = (
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    return {name for name in defined if not name.startswith("_")} - COMMON_NAMES


def lines_until(path: Path, line: int) -> list[str]:
    """The last lines of the test's body up to and including the statement at `line` (1-based)."""
    text = read_source(path)
    nodes = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
    ]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    if not functions:
        return []
    innermost = nodes[-1]  # ast.walk goes breadth first
    stop = line if hasattr(innermost, "body") and not isinstance(innermost, ast.With) else innermost.end_lineno
    body = python_lines(text)[functions[-1].body[0].lineno - 1 : stop]
    rows = textwrap.dedent("\n".join(row.rstrip("\r\n") for row in body)).split("\n")
    shown = [row[:160] for row in rows if row.strip() and not row.strip().startswith("#")]
    return shown[-8:] if len(shown) <= 8 else ["...", *shown[-7:]]


def describe(
    package: str, folders: tuple[str, ...], base: Path, test: str, detail: str, names: set[str], failing: int
) -> str | None:
    """A short report from one failure's traceback: what the test ran, and what came out. None if the traceback shows
    neither.

    `folders` hold the suite's tests, `names` are the package's public names, `failing` is the number of failing
    tests."""
    detail = CHAINED.split(detail)[-1]
    frames = [(path, int(line)) for path, line in FRAME.findall(detail) if path.startswith(folders)]
    errors = [line[1:].removeprefix("   ").rstrip()[:160] for line in detail.split("\n") if re.match("E {3}", line)]
    errors = [line for line in errors if line.strip() and "Use -v to get" not in line and "Full diff" not in line][:4]
    shown = lines_until(base / frames[-1][0], frames[-1][1]) if frames else []
    if not shown or not errors:
        return None
    calls = [
        name
        for row in reversed(shown)
        for prefix, name in re.findall(r"(\w+\.)?([A-Za-z_]\w*)\s*\(", row)
        if name in names and prefix[:-1] not in OTHERS or prefix == f"{package}."
    ]
    subject = f"`{calls[0]}`" if calls else package
    missing, raised = NOT_RAISED.search(errors[0]), RAISED.match(errors[0])
    if missing:
        title = f"{subject} does not raise {missing[1] or missing[2]}"
    elif raised and raised[1] != "AssertionError":
        title = f"{subject} raises {raised[1]}"
    else:
        title = f"{subject} gives a wrong result"
    extent = f"{failing} tests of the suite fail." if failing > 1 else "It is the only test of the suite that fails."
    body = [
        title,
        "",
        f"`{test.split('::')[1].split('[')[0]}` runs",
        "",
        *("    " + line for line in shown),
        "",
        "and fails with",
        "",
        *("    " + line for line in errors),
        "",
        extent,
    ]
    return re.sub(r"0?x[0-9a-f]{6,}", "0x...", "\n".join(body))


def changed_lines(text: str, start: int, end: int) -> list[str]:
    """The lines that [start, end) touches, stripped, without the empty ones."""
    begin, stop = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    return [line.strip() for line in text[begin : stop if stop >= 0 else len(text)].split("\n") if line.strip()]


def gives_away(statement: str, original: str, mutation: Mutation, path: str) -> bool:
    """Whether the statement holds a changed line (before or after), the file, a line number, or a private function's
    name."""
    lines = []
    for start, end, replacement in mutation.edits:
        buggy = original[:start] + replacement + original[end:]
        lines += changed_lines(original, start, end) + changed_lines(buggy, start, start + len(replacement))
    private = [part for part in re.split(r"\W+", mutation.function) if part.startswith("_") and not part.endswith("__")]
    places = re.search(r"\bline \d+|\.py:\d+|/tmp/", statement)
    return bool(places) or path in statement or any(secret in statement for secret in lines + private)

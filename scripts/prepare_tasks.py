"""Makes the task set of configs/real_packages.yaml: injects bugs into pinned packages, and admits those that their tests show.

    nice -n 19 python scripts/prepare_tasks.py coderepairrl/tasks/real_packages.jsonl --packages toolz=90 tinydb=66

Every run is in a fresh sandbox, as in grading. A candidate is admitted when
  - the whole suite, run with the bug, shows between 1 and 40 failing tests (of those that pass three times without it);
  - the test files that hold them, run twice more with the bug, fail exactly the same tests, and at least one passes;
  - the same files, run three times without the bug, pass. The repaired checkout is the original, byte for byte, so these three
    runs are shared by the candidates that select the same files;
  - a problem statement can be written from what fails that gives away neither the changed line nor its place.
Candidates are drawn in a seeded order that takes turns over kinds of bug and files. Every decision is appended to
OUT.journal; started again, the program continues from there.
"""
import argparse
import ast
import asyncio
import hashlib
import json
import platform
import random
import re
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tqdm import tqdm

from coderepairrl.errors import CodeRepairError, TaskError
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.tasks.mutation import Mutation, mutations
from coderepairrl.tasks.packages import SuiteRow, TaskRow, environment, packages, read_source
from coderepairrl.types import Environment, Task

REPEATS = 3
MAX_FAILING = 40  # tests: a bug that fails more is too loud to be a task
MAX_SELECTED_S = 1.0  # of test time without the bug, so that grading stays near a second
MAX_ADMITTED_PER_FUNCTION = 5
MAX_STATEMENT = 700  # characters
BROKEN = "the suite cannot be run at all"


class Refused(Exception):
    """Why a candidate is no task; the reason is counted in the final table."""


@dataclass(frozen=True)
class Case:
    """One test of a JUnit report."""
    status: str  # passed | failed | error | skipped
    seconds: float
    detail: str  # the short traceback of a failure


# ---- running a suite ------------------------------------------------------------------------------------------------

class Version:
    """One version of a package's checkout, from which sandboxes are started; its templates vanish with the block."""

    def __init__(self, place: Environment, path: str = "", text: str = ""):
        self.task = Task("candidate", "", place, {path: text} if path else {}, {}, (), (), (), "")

    def __enter__(self) -> "Version":
        self.scratch = tempfile.TemporaryDirectory(prefix="prepare-")
        return self

    def __exit__(self, *_: object) -> None:
        self.scratch.cleanup()

    def run(self, tests: tuple[str, ...], timeout_s: float, options: tuple[str, ...] = ()) -> tuple[dict[str, list[Case]], float]:
        """JUnit id -> its cases (several, if the suite uses an id twice), and the wall seconds. Raises Refused."""
        return asyncio.run(self._run(tests, timeout_s, options))

    async def _run(self, tests: tuple[str, ...], timeout_s: float, options: tuple[str, ...]) -> tuple[dict[str, list[Case]], float]:
        place = self.task.environment
        async with start_sandbox(SandboxConfig(scratch=self.scratch.name), self.task) as sandbox:
            reports, inside = sandbox.share("junit")
            fill = {"{tests}": tests, "{canary_path}": (), "{python}": (place.python,)}
            argv = [word.replace("{junit}", inside) for part in place.test_command for word in fill.get(part, (part,))]
            result = await sandbox.run([*argv, *options], timeout_s=timeout_s)
            if result.timed_out:
                raise Refused("time limit")
            if not (reports / "report.xml").is_file():
                raise Refused(BROKEN)
            return read_report(reports / "report.xml"), result.seconds


def read_report(path: Path) -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = defaultdict(list)
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        status = {"failure": "failed", "error": "error", "skipped": "skipped"}[bad.tag] if bad is not None else "passed"
        key = f"{case.get('classname')}::{case.get('name')}"
        cases[key].append(Case(status, float(case.get("time", 0)), (bad.text or "") if bad is not None else ""))
    return cases


def passing(cases: dict[str, list[Case]]) -> set[str]:
    return {key for key, found in cases.items() if all(case.status == "passed" for case in found)}


# ---- the unchanged package ------------------------------------------------------------------------------------------

@dataclass
class Suite:
    """What the unchanged package passes three times, which file holds it, how long the files take."""
    place: Environment
    files: dict[str, tuple[str, ...]]
    seconds: dict[str, float]  # of a file's tests
    wall_s: float
    gold: dict[tuple[str, ...], tuple[float, ...]]  # selection -> wall seconds of its three passing runs

    def ids(self, selection: tuple[str, ...]) -> set[str]:
        return {test for file in selection for test in self.files[file]}


def measure_suite(name: str) -> Suite:
    """Raises TaskError when the package's suite does not pass here."""
    package, place = packages()[name], environment(name)
    modules = {path.relative_to(place.base).as_posix(): None for folder in package.tests for path in sorted(Path(place.base, folder).glob("test_*.py"))}
    with Version(place) as version:
        runs = [version.run(package.tests, place.test_timeout_s) for _ in range(REPEATS)]
    # An id that occurs twice (subtests) cannot be judged by its name.
    stable = set.intersection(*(passing(cases) for cases, _ in runs)) & {key for key, found in runs[0][0].items() if len(found) == 1}
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(stable):
        owner = [file for file in modules if test.startswith((file[:-3].replace("/", ".") + ".", file[:-3].replace("/", ".") + "::"))]
        if owner:
            files[owner[0]].append(test)
    if not files:
        raise TaskError(f"{name}: no test of its suite passes three times: run pytest in {place.base} and pin what it misses in packages.yaml")
    seconds = {file: sum(runs[0][0][test][0].seconds for test in tests) for file, tests in files.items()}
    return Suite(place, {file: tuple(tests) for file, tests in files.items()}, seconds, max(wall for _, wall in runs), {})


# ---- the problem statement ------------------------------------------------------------------------------------------

FRAME = re.compile(r"^(\S+):(\d+): in .*$", re.MULTILINE)
CHAINED = re.compile(r"^(?:During handling of|The above exception was).*$", re.MULTILINE)
RAISED = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Exit|Interrupt|StopIteration|Warning)\w*)\b")
NOT_RAISED = re.compile(r"DID NOT RAISE.*?(\w+)'?>|\b(\w+) not raised")
OTHERS = sys.stdlib_module_names | {"path"}  # os.path.exists is not the package's `exists`
COMMON_NAMES = {name for kind in (dict, list, str, set, int, object, type(sys.stdout)) for name in dir(kind)}


def public_names(base: Path, globs: tuple[str, ...]) -> set[str]:
    """Names of the public functions, methods and classes of the package, less those that any dict, list or file has too."""
    trees = (ast.parse(read_source(path)) for pattern in globs for path in base.glob(pattern))
    defined = (node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {name for name in defined if not name.startswith("_")} - COMMON_NAMES


def lines_until(path: Path, line: int) -> list[str]:
    """The last lines of the test's body up to and including the statement at `line` (1-based)."""
    text = read_source(path)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    if not functions:
        return []
    innermost = nodes[-1]  # ast.walk goes breadth first
    stop = line if hasattr(innermost, "body") and not isinstance(innermost, ast.With) else innermost.end_lineno
    body = text.split("\n")[functions[-1].body[0].lineno - 1 : stop]
    shown = [row[:160] for row in textwrap.dedent("\n".join(body)).split("\n") if row.strip() and not row.strip().startswith("#")]
    return shown[-8:] if len(shown) <= 8 else ["...", *shown[-7:]]


def describe(package: str, base: Path, test: str, detail: str, names: set[str], failing: int) -> str | None:
    """A short report from one failure's traceback: what the test ran, and what came out. None if the traceback shows neither."""
    detail = CHAINED.split(detail)[-1]
    frames = [(path, int(line)) for path, line in FRAME.findall(detail) if path.startswith(packages()[package].tests)]
    errors = [line[1:].removeprefix("   ").rstrip()[:160] for line in detail.splitlines() if re.match("E {3}", line)]
    errors = [line for line in errors if line.strip() and "Use -v to get" not in line and "Full diff" not in line][:4]
    shown = lines_until(base / frames[-1][0], frames[-1][1]) if frames else []
    if not shown or not errors:
        return None
    calls = [name for row in reversed(shown) for prefix, name in re.findall(r"(\w+\.)?([A-Za-z_]\w*)\s*\(", row)
             if name in names and prefix[:-1] not in OTHERS or prefix == f"{package}."]
    subject = f"`{calls[0]}`" if calls else package
    missing, raised = NOT_RAISED.search(errors[0]), RAISED.match(errors[0])
    if missing:
        title = f"{subject} does not raise {missing[1] or missing[2]}"
    elif raised and raised[1] != "AssertionError":
        title = f"{subject} raises {raised[1]}"
    else:
        title = f"{subject} gives a wrong result"
    extent = f"{failing} tests of the suite fail." if failing > 1 else "It is the only test of the suite that fails."
    body = [title, "", f"`{test.split('::')[1].split('[')[0]}` runs", "", *("    " + line for line in shown), "", "and fails with", "",
            *("    " + line for line in errors), "", extent]
    return re.sub(r"0?x[0-9a-f]{6,}", "0x...", "\n".join(body))


def changed_lines(text: str, start: int, end: int) -> list[str]:
    """The lines that [start, end) touches, stripped, without the empty ones."""
    begin, stop = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    return [line.strip() for line in text[begin : stop if stop >= 0 else len(text)].splitlines() if line.strip()]


def gives_away(statement: str, original: str, mutation: Mutation, path: str) -> bool:
    """Whether the statement holds a changed line (before or after), the file, a line number, or a private function's name."""
    buggy = mutation.apply(original)
    lines = changed_lines(original, mutation.start, mutation.end) + changed_lines(buggy, mutation.start, mutation.start + len(mutation.replacement))
    private = [part for part in mutation.function.split(".") if part.startswith("_") and not part.endswith("__")]
    places = re.search(r"\bline \d+|\.py:\d+|/tmp/", statement)
    return bool(places) or path in statement or any(secret in statement for secret in lines + private)


# ---- admission ------------------------------------------------------------------------------------------------------

def candidates(name: str, place: Environment, seed: int) -> list[tuple[str, Mutation]]:
    """All (path, mutation) of a package, seeded, taking turns over the kinds and, within a kind, over the files."""
    rng = random.Random(f"{name}-{seed}")
    by_kind: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for path in sorted({p.relative_to(place.base).as_posix() for pattern in packages()[name].mutate for p in Path(place.base).glob(pattern)}):
        for mutation in mutations(read_source(Path(place.base, path)), path):
            by_kind[mutation.kind][path].append((path, mutation))
    queues = []
    for files in by_kind.values():
        for found in files.values():
            rng.shuffle(found)
        turns = list(files.values())
        rng.shuffle(turns)  # else the first file would be the first of every kind
        queues.append(list(take_turns(turns)))
    return list(take_turns(queues))


def take_turns(queues: list[list]) -> Iterator:
    for turn in range(max(map(len, queues), default=0)):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def admit(name: str, suite: Suite, names: set[str], path: str, mutation: Mutation) -> TaskRow:
    """The admitted row. Raises Refused."""
    original = read_source(Path(suite.place.base, path))
    limit_s = 4 + 3 * suite.wall_s
    with Version(suite.place, path, mutation.apply(original)) as buggy:
        cases, wall_s = buggy.run(packages()[name].tests, limit_s, ("--tb=short", f"--maxfail={MAX_FAILING + 1}"))
        failing = suite.ids(tuple(suite.files)) - passing(cases)
        if not passing(cases):
            raise Refused(BROKEN)
        if not failing:
            raise Refused("no test fails")
        if len(failing) > MAX_FAILING:
            raise Refused(f"more than {MAX_FAILING} tests fail")
        selection = select(suite, failing)
        to_pass, all_ids = failing & suite.ids(selection), suite.ids(selection)
        if to_pass == all_ids:
            raise Refused("no PASS_TO_PASS in the selected files")
        statement = write_statement(name, suite, failing, cases, names, original, mutation, path)
        base_s = (round(wall_s, 2), *repeat(buggy, selection, all_ids, all_ids - to_pass, REPEATS - 1, limit_s, "other tests fail in another run"))
    if selection not in suite.gold:
        with Version(suite.place) as gold:
            suite.gold[selection] = repeat(gold, selection, all_ids, all_ids, REPEATS, limit_s, "the selected files alone fail without the bug")
    key = f"{path}:{mutation.start}:{mutation.end}:{mutation.replacement}"
    return TaskRow(
        task_id=f"{name}-{mutation.kind}-{hashlib.sha256(key.encode()).hexdigest()[:8]}", package=name, kind=mutation.kind,
        function=mutation.function, path=path, span=(mutation.start, mutation.end), replacement=mutation.replacement,
        problem_statement=statement, fail_to_pass=tuple(sorted(to_pass)), test_selection=selection, base_s=base_s, gold_s=suite.gold[selection])


def select(suite: Suite, failing: set[str]) -> tuple[str, ...]:
    """The files that hold failing tests, the quickest first, as long as they stay within MAX_SELECTED_S; at least one."""
    holders = sorted((file for file, tests in suite.files.items() if failing & set(tests)), key=lambda file: (suite.seconds[file], file))
    chosen, total_s = [], 0.0
    for file in holders:
        if not chosen or total_s + suite.seconds[file] <= MAX_SELECTED_S:
            chosen.append(file)
            total_s += suite.seconds[file]
    return tuple(sorted(chosen))


def repeat(version: Version, selection: tuple[str, ...], all_ids: set[str], wanted: set[str], times: int, limit_s: float, refusal: str) -> tuple[float, ...]:
    """Wall seconds of the runs, each of which passed exactly `wanted` of the selected files' tests. Raises Refused."""
    walls = []
    for _ in range(times):
        cases, wall_s = version.run(selection, limit_s)
        if passing(cases) & all_ids != wanted:
            raise Refused(refusal)
        walls.append(round(wall_s, 2))
    return tuple(walls)


def write_statement(name: str, suite: Suite, tests: set[str], cases: dict, names: set[str], original: str, mutation: Mutation, path: str) -> str:
    """Of the statements that may be shown, the first that names a public function; else the first. Raises Refused."""
    texts = [describe(name, Path(suite.place.base), test, case.detail, names, len(tests)) for test in sorted(tests) for case in cases.get(test, [])]
    fine = [text for text in texts if text and len(text) < MAX_STATEMENT and not gives_away(text, original, mutation, path)]
    if fine:
        return min(fine, key=lambda text: not text.startswith("`"))
    raise Refused("no statement: every failure is long or shows the changed line")


# ---- the program ----------------------------------------------------------------------------------------------------

def read_journal(path: Path) -> dict[str, dict]:
    """Candidate -> its decision. A last line without its end was cut off by a kill: it is dropped from the file."""
    if not path.exists():
        return {}
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return {entry["candidate"]: entry for entry in map(json.loads, whole.decode().splitlines())}


def prepare(name: str, target: int, seed: int, journal: Path, done: dict[str, dict], bar: tqdm) -> SuiteRow:
    """Decides candidates of one package until `target` are admitted. Decisions go to `done` and the journal."""
    suite = measure_suite(name)
    names = public_names(Path(suite.place.base), packages()[name].mutate)
    admitted, per_function = 0, Counter()
    for path, mutation in candidates(name, suite.place, seed):
        if admitted >= target:
            break
        if per_function[path, mutation.function] >= MAX_ADMITTED_PER_FUNCTION:
            continue
        key = f"{name}:{packages()[name].sha256[:12]}:{path}:{mutation.start}:{mutation.end}:{mutation.replacement}"
        if key not in done:
            entry = {"candidate": key, "package": name, "kind": mutation.kind}
            try:
                entry["row"] = admit(name, suite, names, path, mutation).model_dump(mode="json")
            except Refused as reason:
                entry["refused"] = str(reason)
            done[key] = entry
            with journal.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if "row" in done[key]:
            admitted += 1
            per_function[path, mutation.function] += 1
            bar.update()
    return SuiteRow(suite=name, lock=packages()[name].sha256, python=platform.python_version(), pytest=pytest.__version__, tests=suite.files)


def wish(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    if name not in packages() or not equals or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=COUNT, with a name of {', '.join(packages())}")
    return name, int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", nargs="+", type=wish, default=[(name, 66) for name in packages()], metavar="NAME=COUNT",
                        help="how many tasks to admit of which package")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    journal = arguments.out.with_name(arguments.out.name + ".journal")
    done = read_journal(journal)
    with tqdm(total=sum(target for _, target in arguments.packages), desc="admitted", unit="task") as bar:
        suites = [prepare(name, target, arguments.seed, journal, done, bar) for name, target in arguments.packages]
    decided = [entry for entry in done.values() if entry["package"] in dict(arguments.packages)]
    rows = [entry["row"] for entry in decided if "row" in entry]
    write_set(arguments.out, suites, rows)
    print(f"{len(rows)} admitted of {len(decided)}: {arguments.out}")
    for (name, decision), count in Counter((entry["package"], entry.get("refused", "admitted")) for entry in decided).most_common():
        print(f"{count:6d}  {name:12s} {decision}")


def write_set(out: Path, suites: list[SuiteRow], rows: list[dict]) -> None:
    """The suites, with only those test files that some task selects, then the tasks; under a temporary name first."""
    used = {(row["package"], file) for row in rows for file in row["test_selection"]}
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("w") as file:
        for suite in suites:
            tests = {name: ids for name, ids in suite.tests.items() if (suite.suite, name) in used}
            file.write(json.dumps(suite.model_copy(update={"tests": tests}).model_dump(mode="json")) + "\n")
        for row in rows:
            file.write(json.dumps(row) + "\n")
    temporary.rename(out)


if __name__ == "__main__":
    try:
        main()
    except CodeRepairError as error:
        sys.exit(f"prepare_tasks: {error}")

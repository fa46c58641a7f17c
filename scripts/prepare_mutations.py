"""Makes the task set of configs/real_packages.yaml: injects bugs into pinned packages, and admits those that their
tests show.

    nice -n 19 python scripts/prepare_mutations.py coderepairrl/tasks/real_packages.jsonl --packages toolz=90 tinydb=66
    nice -n 19 python scripts/prepare_mutations.py hard.jsonl --packages toolz=20 --combined 10

The second also makes ten tasks with two bugs in a file.

Every run is in a fresh sandbox, as in grading. A candidate is admitted when
  - the whole suite, run with the bug, shows between 1 and 40 failing tests (of those that pass three times without it);
  - the test files that hold them, run twice more with the bug, fail exactly the same tests, and at least one passes;
  - the same files, run three times without the bug, pass. The repaired checkout is the original, byte for byte, so
  these three
    runs are shared by the candidates that select the same files;
  - a problem statement can be written from what fails that gives away neither the changed line nor its place.
Candidates are drawn in a seeded order that takes turns over kinds of bug and files. Two bugs are combined when each was
admitted
alone; the task then fails tests of both, so that repairing one is not enough. Every decision is appended to
OUT.journal; started
again, the program continues from there.
"""

import argparse
import hashlib
import itertools
import platform
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tqdm import tqdm

from coderepairrl.config import contents
from coderepairrl.curation.class_mutation import class_mutations, combine
from coderepairrl.curation.journal import Journal, add_arguments
from coderepairrl.curation.mutation import mutations
from coderepairrl.curation.source_edits import Mutation
from coderepairrl.curation.statement import MAX_FAILING, describe, gives_away, public_names
from coderepairrl.curation.suite import BROKEN, Refused, Version, passing
from coderepairrl.errors import CodeRepairError, TaskError
from coderepairrl.files import write_jsonl
from coderepairrl.grading.ids import to_node
from coderepairrl.processes import logs
from coderepairrl.tasks.packages import FOLDER, SuiteRow, TaskRow, environment, packages, read_source
from coderepairrl.types import Environment

REPEATS = 3
MAX_SELECTED_S = 1.0  # of test time without the bug, so that grading stays near a second
MAX_ADMITTED_PER_FUNCTION = 5
MAX_STATEMENT = 700  # characters


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
    modules = [
        path.relative_to(place.base).as_posix()
        for folder in package.tests
        for path in sorted(Path(place.base, folder).glob("test_*.py"))
    ]
    with Version(place) as version:
        runs = [version.run(package.tests, place.test_timeout_s) for _ in range(REPEATS)]
    # An id that occurs twice (subtests) cannot be judged by its name.
    stable = set.intersection(*(passing(cases) for cases, _ in runs)) & {
        key for key, found in runs[0][0].items() if len(found) == 1
    }
    files: dict[str, list[str]] = defaultdict(list)
    for test in sorted(stable):
        if node := to_node(test, modules):
            files[node.partition("::")[0]].append(test)
    if not files:
        raise TaskError(
            f"{name}: no test of its suite passes three times: run pytest in {place.base} and pin what it misses in "
            "packages.yaml"
        )
    seconds = {file: sum(runs[0][0][test][0].seconds for test in tests) for file, tests in files.items()}
    return Suite(
        place, {file: tuple(tests) for file, tests in files.items()}, seconds, max(wall for _, wall in runs), {}
    )


# ---- admission ------------------------------------------------------------------------------------------------------


def candidates(name: str, place: Environment, seed: int) -> list[tuple[str, Mutation]]:
    """All (path, mutation) of a package, seeded, taking turns over the kinds and, within a kind, over the files."""
    rng = random.Random(f"{name}-{seed}")
    by_kind: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(
        {
            p.relative_to(place.base).as_posix()
            for pattern in packages()[name].mutate
            for p in Path(place.base).glob(pattern)
        }
    ):
        source = read_source(Path(place.base, path))
        for mutation in itertools.chain(mutations(source, path), class_mutations(source, path)):
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


def admit(
    name: str, suite: Suite, names: set[str], path: str, mutation: Mutation, each: tuple[set[str], ...] = ()
) -> TaskRow:
    """The admitted row. `each`: sets of tests of which some must fail. Raises Refused."""
    original = read_source(Path(suite.place.base, path))
    limit_s = 4 + 3 * suite.wall_s
    with Version(suite.place, {path: mutation.apply(original)}) as buggy:
        cases, wall_s = buggy.run(packages()[name].tests, limit_s, ("--tb=short", f"--maxfail={MAX_FAILING + 1}"))
        failing = suite.ids(tuple(suite.files)) - passing(cases)
        if not passing(cases):
            raise Refused(BROKEN)
        if not failing:
            raise Refused("no test fails")
        if len(failing) > MAX_FAILING:
            raise Refused(f"more than {MAX_FAILING} tests fail")
        if not all(failing & tests for tests in each):
            raise Refused("one bug hides the other")
        selection = select(suite, failing)
        to_pass, all_ids = failing & suite.ids(selection), suite.ids(selection)
        if to_pass == all_ids:
            raise Refused("no PASS_TO_PASS in the selected files")
        statement = write_statement(name, suite, failing, cases, names, original, mutation, path)
        base_s = (
            round(wall_s, 2),
            *repeat(
                buggy, selection, all_ids, all_ids - to_pass, REPEATS - 1, limit_s, "other tests fail in another run"
            ),
        )
    if selection not in suite.gold:
        with Version(suite.place) as gold:
            suite.gold[selection] = repeat(
                gold, selection, all_ids, all_ids, REPEATS, limit_s, "the selected files alone fail without the bug"
            )
    key = key_of(path, mutation)
    return TaskRow(
        task_id=f"{name}-{mutation.kind}-{hashlib.sha256(key.encode()).hexdigest()[:8]}",
        package=name,
        kind=mutation.kind,
        function=mutation.function,
        path=path,
        span=(mutation.start, mutation.end),
        replacement=mutation.replacement,
        more=mutation.more,
        problem_statement=statement,
        fail_to_pass=tuple(sorted(to_pass)),
        test_selection=selection,
        base_s=base_s,
        gold_s=suite.gold[selection],
    )


def key_of(path: str, mutation: Mutation) -> str:
    return ":".join([path, *(f"{start}:{end}:{text}" for start, end, text in mutation.edits)])


def select(suite: Suite, failing: set[str]) -> tuple[str, ...]:
    """The files that hold failing tests, the quickest first, as long as they stay within MAX_SELECTED_S; at least
    one."""
    holders = sorted(
        (file for file, tests in suite.files.items() if failing & set(tests)),
        key=lambda file: (suite.seconds[file], file),
    )
    chosen, total_s = [], 0.0
    for file in holders:
        if not chosen or total_s + suite.seconds[file] <= MAX_SELECTED_S:
            chosen.append(file)
            total_s += suite.seconds[file]
    return tuple(sorted(chosen))


def repeat(
    version: Version,
    selection: tuple[str, ...],
    all_ids: set[str],
    wanted: set[str],
    times: int,
    limit_s: float,
    refusal: str,
) -> tuple[float, ...]:
    """Wall seconds of the runs, each of which passed exactly `wanted` of the selected files' tests. Raises Refused."""
    walls = []
    for _ in range(times):
        cases, wall_s = version.run(selection, limit_s)
        if passing(cases) & all_ids != wanted:
            raise Refused(refusal)
        walls.append(round(wall_s, 2))
    return tuple(walls)


def write_statement(
    name: str, suite: Suite, tests: set[str], cases: dict, names: set[str], original: str, mutation: Mutation, path: str
) -> str:
    """Of the statements that may be shown, the first that names a public function; else the first. Raises Refused."""
    folders, base = packages()[name].tests, Path(suite.place.base)
    texts = [
        describe(name, folders, base, test, case.detail, names, len(tests))
        for test in sorted(tests)
        for case in cases.get(test, [])
    ]
    fine = [
        text for text in texts if text and len(text) < MAX_STATEMENT and not gives_away(text, original, mutation, path)
    ]
    if fine:
        return min(fine, key=lambda text: not text.startswith("`"))
    raise Refused("no statement: every failure is long or shows the changed line")


# ---- the program ----------------------------------------------------------------------------------------------------


class Preparation:
    """Decides the candidates of one package."""

    def __init__(self, name: str, seed: int, journal: Journal, bar: tqdm):
        self.name, self.seed, self.journal, self.bar = name, seed, journal, bar
        self.suite = measure_suite(name)
        self.names = public_names(Path(self.suite.place.base), packages()[name].mutate)
        self.per_function: Counter = Counter()
        self.admitted: list[TaskRow] = []

    def decide(self, path: str, mutation: Mutation, each: tuple[set[str], ...] = ()) -> bool:
        """Whether it is admitted, now or by an earlier run."""
        key = f"{self.name}:{packages()[self.name].sha256[:12]}:{key_of(path, mutation)}"
        decision = self.journal.decide(
            key,
            lambda: admit(self.name, self.suite, self.names, path, mutation, each),
            package=self.name,
            kind=mutation.kind,
        )
        if "row" not in decision:
            return False
        self.admitted.append(TaskRow.model_validate(decision["row"]))
        self.bar.update()
        return True

    def singles(self, target: int) -> None:
        for path, mutation in candidates(self.name, self.suite.place, self.seed):
            if len(self.admitted) >= target:
                break
            if self.per_function[path, mutation.function] < MAX_ADMITTED_PER_FUNCTION and self.decide(path, mutation):
                self.per_function[path, mutation.function] += 1

    def pairs(self, target: int) -> None:
        """Pairs of admitted bugs of one file, in a seeded order; a bug is used once."""
        rows, used, found = list(self.admitted), set(), 0
        choices = [pair for pair in itertools.combinations(rows, 2) if pair[0].path == pair[1].path]
        random.Random(f"{self.name}-{self.seed}-pairs").shuffle(choices)
        for pair in choices:
            if found >= target:
                break
            mutation = combine(*(Mutation(row.kind, *row.span, row.replacement, row.function) for row in pair))
            if (
                mutation
                and not used & {row.task_id for row in pair}
                and self.decide(pair[0].path, mutation, tuple(set(row.fail_to_pass) for row in pair))
            ):
                found += 1
                used |= {row.task_id for row in pair}

    def suite_row(self) -> SuiteRow:
        return SuiteRow(
            suite=self.name,
            lock=packages()[self.name].sha256,
            python=platform.python_version(),
            pytest=pytest.__version__,
            tests=self.suite.files,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, packages(), 66, "tasks to admit")
    parser.add_argument(
        "--combined",
        type=int,
        default=0,
        help="int; how many tasks with two bugs in one file to admit of each package, beside those (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="int; another one draws other bugs (default: 0)")
    arguments = parser.parse_args()
    logs.to_stderr()
    made_by = {"seed": arguments.seed, "packages": contents.named(str(FOLDER / "packages.yaml"))}
    journal, suites = Journal(arguments.out, made_by), []
    with tqdm(
        total=sum(target + arguments.combined for _, target in arguments.packages), desc="admitted", unit="task"
    ) as bar:
        for name, target in arguments.packages:
            preparation = Preparation(name, arguments.seed, journal, bar)
            preparation.singles(target)
            preparation.pairs(arguments.combined)
            suites.append(preparation.suite_row())
    rows = journal.admitted(dict(arguments.packages))
    write_jsonl(arguments.out, [*map(SuiteRow.model_dump, selected(suites, rows)), *rows])


def selected(suites: list[SuiteRow], rows: list[dict]) -> list[SuiteRow]:
    """With only those test files that some task selects."""
    used = {(row["package"], file) for row in rows for file in row["test_selection"]}
    return [
        suite.model_copy(
            update={"tests": {name: ids for name, ids in suite.tests.items() if (suite.suite, name) in used}}
        )
        for suite in suites
    ]


if __name__ == "__main__":
    try:
        main()
    except CodeRepairError as error:
        sys.exit(f"prepare_mutations: {error}")

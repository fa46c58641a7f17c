"""Bugs injected into real open-source packages, judged by the packages' own test suites.

The admitted set is shipped (real_packages.jsonl, made by scripts/prepare_mutations.py); the packages are not:
`environment`
downloads each pinned source distribution once, checks its hash and unpacks it into a cache folder named by its content:

    $XDG_CACHE_HOME (or ~/.cache)/coderepairrl/environments/NAME-VERSION-DIGEST

That folder is never written again and needs no network. A row of the set is either a suite (package -> test file -> ids
of
the tests that passed three times on the unchanged package) or a task, whose bug is one replaced span of one file. To
keep the set
small, a task's PASS_TO_PASS is not spelled out: it is every test of the selected files' suite that is not in
FAIL_TO_PASS;
admission checked that all of these pass with the bug, three times.
"""

import functools
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, ValidationError

from coderepairrl.config import Config, read_yaml
from coderepairrl.curation.source_edits import Mutation
from coderepairrl.environments.cache import default_cache, digest
from coderepairrl.environments.runner import Needs, make_runner
from coderepairrl.environments.sources import Archive, download, unpack
from coderepairrl.errors import TaskError
from coderepairrl.files import from_json, json_lines, publish
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.types import Environment, Task

FOLDER = Path(__file__).parent
SHIPPED = FOLDER / "real_packages.jsonl"
INSTRUCTIONS = ("AGENTS.md", "CLAUDE.md", "GEMINI.md")  # to agents: scaffolds differ in whether they read them


class Package(Archive):
    mutate: tuple[str, ...]  # globs
    tests: tuple[str, ...]  # folders of its suite
    python_path: tuple[str, ...]  # relative to the checkout
    requirements: tuple[Archive, ...] = ()
    needs: Needs = Needs()


class TaskRow(Config):
    """One admitted bug. `span`: [start, end) in characters of the original file at `path`."""

    task_id: str
    package: str
    kind: str
    function: str  # dotted name, within the file
    path: str
    span: tuple[int, int]
    replacement: str
    # further edits (start, end, replacement) of the original, where bugs are combined
    more: tuple[tuple[int, int, str], ...] = ()
    problem_statement: str
    fail_to_pass: tuple[str, ...]
    test_selection: tuple[str, ...]
    base_s: tuple[float, float, float]  # seconds of the three runs with the bug, and of the three without
    gold_s: tuple[float, float, float]


class SuiteRow(Config):
    """What the unchanged package passes, and what the admission ran on."""

    suite: str  # the package
    lock: str  # sha256 of its source distribution
    python: str
    pytest: str
    tests: dict[str, tuple[str, ...]]  # test file -> JUnit ids


class RealPackagesConfig(Config):
    """Bugs put into real packages from the package index, judged by the packages' own tests."""

    name: Literal["real_packages"] = "real_packages"
    train: NonNegativeInt = 100_000  # at most so many tasks
    heldout: NonNegativeInt = 100_000  # at most so many tasks
    heldout_packages: tuple[str, ...] = ("tinydb",)  # whole packages, so that nothing of them is seen in training
    path: str | None = None  # another admitted set, from scripts/prepare_mutations.py; null: the shipped one
    cache: str | None = None  # folder of the environments; null: $XDG_CACHE_HOME/coderepairrl


# ---- environments ---------------------------------------------------------------------------------------------------


@functools.cache
def packages() -> dict[str, Package]:
    """The pinned packages by name."""
    tree = read_yaml(FOLDER / "packages.yaml")
    return {name: Package(name=name, **fields) for name, fields in tree.items()}


def environment(name: str, cache: str | Path | None = None) -> Environment:
    """The package's environment; downloads and unpacks it on first use. Raises TaskError (unknown name, no network,
    wrong hash)."""
    if name not in packages():
        raise TaskError(
            f"{name!r} is no package of this task set: choose from {', '.join(packages())}, or pin it in packages.yaml"
        )
    package = packages()[name]
    place = Path(cache or default_cache())
    base = build(package, place, package.requirements)
    runner = make_runner(str(base), name, package.needs, place)
    return suite_environment(f"{name}-{package.version}", base, name, package.python_path, package.tests, runner)


def suite_environment(
    label: str,
    base: Path,
    module: str,
    python_path: tuple[str, ...],
    tests: tuple[str, ...],
    runner: tuple[str, str],
    options: tuple[str, ...] = (),
) -> Environment:
    """An unpacked source distribution, nothing installed: its pytest suite runs in `runner`, an interpreter and its
    hash, with
    `python_path` first. `options` are pytest's, beside those that every suite gets."""
    everything_else = tuple(glob for folder in python_path if folder == "src" for glob in _all_but(folder, module))
    # -P keeps the checkout off sys.path until pytest itself is imported: a pytest.py in the diff must not replace it.
    command = (
        "{python}",
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir=.",
        "-o",
        "junit_family=xunit1",
        "-o",
        f"pythonpath={' '.join(python_path)}",
        *options,
        "--junitxml={junit}/report.xml",
        "{tests}",
        "{canary_path}",
    )
    return Environment(
        name=label,
        base=str(base),
        python=runner[0],
        test_command=command,
        lock=digest(base.name, runner[1]),
        protected=(
            "pyproject.toml",
            "test_requirements/",
            *(f"{name}/" if not name.endswith(".py") else name for name in tests),
            *everything_else,
        ),
        # relative for sandboxes that have the checkout elsewhere; absolute for what tests start in another folder
        variables={
            "PYTHONPATH": ":".join([*python_path, *(posixpath.normpath(f"/repo/{folder}") for folder in python_path)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


def _all_but(folder: str, name: str) -> list[str]:
    """Globs of all paths in `folder` that are not in `folder/name/`: a new src/json.py would hide the real one from the
    tests."""
    return [f"{folder}/{name[:i]}[!{letter}]*" for i, letter in enumerate(name + "/")]


def build(
    package: Archive,
    cache: Path,
    requirements: tuple[Archive, ...] = (),
    fetch: Callable[[Archive, Path], Path] = download,
) -> Path:
    """The unpacked folder. Two processes that build at once each build their own; the first rename wins. `fetch` gives
    the archive."""
    made_of = {
        "sha256": package.sha256,
        "keep": package.keep,
        "requirements": [requirement.model_dump() for requirement in requirements],
    }
    key = hashlib.sha256(json.dumps(made_of, separators=(",", ":")).encode()).hexdigest()
    folder = cache / f"{package.name}-{package.version}-{key[:12]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache) as temporary:
            checkout = Path(temporary) / "checkout"
            unpack(fetch(package, Path(temporary)), package, checkout)
            for requirement in requirements:
                unpack(download(requirement, Path(temporary)), requirement, checkout / "test_requirements")
            for name in INSTRUCTIONS:
                (checkout / name).unlink(missing_ok=True)
            publish(checkout, folder)
    except OSError as error:
        raise TaskError(
            f"cannot build {folder}: {error}: free the disk, or give the task set a writable folder as `cache`"
        ) from error
    return folder


# ---- tasks ----------------------------------------------------------------------------------------------------------


def load(config: RealPackagesConfig) -> dict[str, list[Task]]:
    """Split name -> tasks, in an order that mixes packages and is always the same. Raises TaskError naming the row and
    field."""
    path = Path(config.path) if config.path else SHIPPED
    suites, rows = read_rows(path)
    unknown = set(config.heldout_packages) - set(suites)
    if unknown:
        raise TaskError(
            f"heldout_packages: {', '.join(sorted(unknown))} not in {path.name}: choose from {', '.join(suites)}"
        )
    environments: dict[str, Environment] = {}
    splits: dict[str, list[Task]] = {"train": [], "heldout": []}
    for row in sorted(rows, key=lambda r: hashlib.sha256(r.task_id.encode()).digest()):
        split = "heldout" if row.package in config.heldout_packages else "train"
        if len(splits[split]) < getattr(config, split):
            if row.package not in environments:
                environments[row.package] = environment(row.package, config.cache)
            splits[split].append(to_task(row, suites[row.package], environments[row.package], split))
    return splits


def read_rows(path: Path) -> tuple[dict[str, SuiteRow], list[TaskRow]]:
    """The suites by package, and the tasks."""
    suites, rows = {}, []
    try:
        lines = json_lines(path)
    except OSError as error:
        raise TaskError(
            f"{path}: {error.strerror}: give the path of a set that scripts/prepare_mutations.py wrote"
        ) from error
    for number, line in lines:
        try:
            fields = from_json(line)
        except ValueError as error:
            raise TaskError(f"{path.name}, line {number}: {error}, or make the set again") from error
        model, key = (SuiteRow, "suite") if isinstance(fields, dict) and "suite" in fields else (TaskRow, "task_id")
        try:
            row = model.model_validate(fields)
        except ValidationError as error:
            where, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
            name = fields.get(key, f"line {number}") if isinstance(fields, dict) else f"line {number}"
            raise TaskError(
                f"{path.name}, {name}, field {where or 'row'}: {what}: correct it or make the set again"
            ) from error
        if isinstance(row, SuiteRow):
            suites[row.suite] = row
        else:
            rows.append(row)
    for row in rows:
        if row.package not in suites:
            raise TaskError(
                f"{path.name}, {row.task_id}, field package: no suite row for {row.package!r}: make the set again"
            )
    return suites, rows


def to_task(row: TaskRow, suite: SuiteRow, place: Environment, split: str) -> Task:
    """Checks what the row claims against the pinned package. Raises TaskError."""

    def refuse(field: str, cause: str):
        raise TaskError(f"{row.task_id}, field {field}: {cause}: make the set again with scripts/prepare_mutations.py")

    if suite.lock != packages()[row.package].sha256:
        refuse(
            "package",
            f"admitted with source distribution {suite.lock[:12]}, packages.yaml pins "
            f"{packages()[row.package].sha256[:12]}",
        )
    file = Path(place.base) / row.path
    if ".." in Path(row.path).parts or not file.is_file():
        refuse("path", f"{row.path!r} is no file of {place.name}")
    original, mutation = read_source(file), Mutation(row.kind, *row.span, row.replacement, row.function, row.more)
    for start, end, _ in mutation.edits:
        if not 0 <= start <= end <= len(original):
            refuse("span", f"[{start}, {end}) is outside the file's {len(original)} characters")
    buggy = mutation.apply(original)
    if buggy == original:
        refuse("replacement", "it changes nothing")
    strange = [name for name in row.test_selection if name not in suite.tests]
    if strange or not row.test_selection:
        refuse("test_selection", f"{strange or 'empty'} is not in the suite of {row.package}")
    ids = [test for name in row.test_selection for test in suite.tests[name]]
    if not row.fail_to_pass or not set(row.fail_to_pass) < set(ids):
        refuse("fail_to_pass", "it must be a part, not empty and not all, of the selected files' tests")
    return Task(
        task_id=row.task_id,
        problem_statement=row.problem_statement,
        environment=place,
        files={row.path: buggy},
        hidden_tests={},
        test_selection=row.test_selection,
        fail_to_pass=row.fail_to_pass,
        pass_to_pass=tuple(test for test in ids if test not in set(row.fail_to_pass)),
        oracle_patch=unified_diff(row.path, buggy, original),
        metadata={
            "split": split,
            "kind": row.kind,
            "package": row.package,
            "path": row.path,
            "function": row.function,
            "difficulty": f"{difficulty(row):.2f}",
        },
    )


def difficulty(row: TaskRow) -> float:
    """Bugs + 1 where the statement does not name the function that holds one + 1 / failing tests: what there is to
    find, and how little points to it."""
    named = any(part in row.problem_statement for part in row.function.split("."))
    return 1 + len(row.more) + (not named) + 1 / len(row.fail_to_pass)


def read_source(path: Path) -> str:
    return path.read_bytes().decode()  # not read_text: it would change line ends, and with them every span

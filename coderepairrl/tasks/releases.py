"""Release pairs: release N of a package is the base, what N+1 changes outside its tests is the repair, N+1's tests are
the hidden tests.

Real bugs, repaired by people, that need nothing but the package index: two source distributions, pinned by hash. The
admitted pairs are
shipped (release_pairs.jsonl, made by scripts/prepare_releases.py); a pair's texts are not, they are read from the two
unpacked releases.
"""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, ValidationError

from coderepairrl.config import Config, read_yaml
from coderepairrl.environments.cache import default_cache
from coderepairrl.environments.runner import Needs, make_runner
from coderepairrl.environments.sources import Archive
from coderepairrl.errors import TaskError
from coderepairrl.files import json_lines
from coderepairrl.tasks.packages import FOLDER, build, suite_environment
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.types import Task

SHIPPED = FOLDER / "release_pairs.jsonl"
STATEMENT = (
    "{package} {version} repairs what its notes say. Make this checkout, which is the release before, behave so.\n\n"
    "{notes}"
)
MAX_NOTES = 3000  # characters


class ReleasedPackage(Config):
    """How the package's distributions are laid out; see releases.yaml."""

    module: str  # the top-level module
    source: tuple[str, ...]  # folders, or single files
    tests: tuple[str, ...]
    python_path: tuple[str, ...] = (".",)
    notes: tuple[str, ...] = ()  # globs of the change log
    options: tuple[str, ...] = ()  # of pytest
    requirements: tuple[Archive, ...] = ()
    needs: Needs = Needs()


class Release(Config):
    version: str
    sha256: str


class PairRow(Config):
    """One admitted pair. The ids of PASS_TO_PASS are kept by class, which is a third of their size."""

    task_id: str
    package: str
    before: Release
    after: Release
    test_selection: tuple[str, ...]
    fail_to_pass: tuple[str, ...]
    pass_to_pass: dict[str, tuple[str, ...]]  # classname -> names
    # seconds of three runs of the release before with the tests of the one after, and of three repaired ones
    base_s: tuple[float, ...]
    gold_s: tuple[float, ...]
    python: str


class ReleasePairsConfig(Config):
    """Pairs of releases: the tests of the later one on the code of the earlier one."""

    name: Literal["release_pairs"] = "release_pairs"
    train: NonNegativeInt = 100_000  # at most so many tasks
    heldout: NonNegativeInt = 100_000  # at most so many tasks
    heldout_packages: tuple[str, ...] = ("boltons",)  # whole packages, so that nothing of them is seen in training
    path: str | None = None  # another admitted set, from scripts/prepare_releases.py; null: the shipped one
    cache: str | None = None  # folder of the unpacked releases; null: as for the real packages


def released() -> dict[str, ReleasedPackage]:
    tree = read_yaml(FOLDER / "releases.yaml")
    return {name: ReleasedPackage.model_validate({"module": name} | fields) for name, fields in tree.items()}


def load(config: ReleasePairsConfig) -> dict[str, list[Task]]:
    """Split -> tasks, in an order that mixes packages and is always the same. Raises TaskError."""
    rows = read_rows(Path(config.path) if config.path else SHIPPED)
    splits: dict[str, list[Task]] = {"train": [], "heldout": []}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.task_id.encode()).digest()):
        split = "heldout" if row.package in config.heldout_packages else "train"
        if len(splits[split]) < getattr(config, split):
            splits[split].append(to_task(row, split, config.cache))
    return splits


def read_rows(path: Path) -> list[PairRow]:
    """Raises TaskError naming the row and the field."""
    try:
        lines = json_lines(path)
    except OSError as error:
        raise TaskError(
            f"{path}: {error.strerror}: give the path of a set that scripts/prepare_releases.py wrote"
        ) from error
    rows = []
    for number, line in lines:
        try:
            rows.append(PairRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise TaskError(
                f"{path.name}, line {number}, field {'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}: make "
                "the set again"
            ) from error
        if rows[-1].package not in released():
            raise TaskError(
                f"{path.name}, {rows[-1].task_id}, field package: {rows[-1].package!r} is not in releases.yaml: add it"
            )
    return rows


def checkout(name: str, release: Release, cache: str | None = None) -> Path:
    """The unpacked release; downloaded on first use."""
    archive = Archive(name=name, version=release.version, sha256=release.sha256, keep=())
    return build(archive, Path(cache or default_cache()), released()[name].requirements)


def to_task(row: PairRow, split: str = "train", cache: str | None = None) -> Task:
    """Raises TaskError."""
    package = released()[row.package]
    before, after = checkout(row.package, row.before, cache), checkout(row.package, row.after, cache)
    return pair_task(row, package, before, after, split, cache)


def pair_task(
    row: PairRow, package: ReleasedPackage, before: Path, after: Path, split: str, cache: str | None = None
) -> Task:
    old, new = texts(before, package.source, package.tests), texts(after, package.source, package.tests)
    tests, new_tests = texts(before, package.tests), texts(after, package.tests)
    return Task(
        task_id=row.task_id,
        problem_statement=statement(row.package, row.after.version, package, before, after, row.fail_to_pass),
        environment=suite_environment(
            f"{row.package}-{row.before.version}",
            before,
            package.module,
            package.python_path,
            package.tests,
            make_runner(str(before), row.package, package.needs, Path(cache or default_cache())),
            package.options,
        ),
        files={},
        hidden_tests={path: text for path, text in new_tests.items() if tests.get(path) != text},
        test_selection=row.test_selection,
        fail_to_pass=row.fail_to_pass,
        pass_to_pass=tuple(f"{case}::{name}" for case, names in row.pass_to_pass.items() for name in names),
        oracle_patch="".join(
            unified_diff(path, old.get(path), new.get(path))
            for path in sorted({*old, *new})
            if old.get(path) != new.get(path)
        ),
        metadata={
            "split": split,
            "repo": row.package,
            "package": row.package,
            "before": row.before.version,
            "after": row.after.version,
        },
    )


def texts(root: Path, names: tuple[str, ...], less: tuple[str, ...] = ()) -> dict[str, str]:
    """Path -> text of all UTF-8 files in the folders `names` (or the files of that name) of a checkout, less those in
    the folders `less`."""
    found = {}
    for name in names:
        for path in sorted((root / name).rglob("*")) if (root / name).is_dir() else [root / name]:
            relative = path.relative_to(root).as_posix()
            if (
                not path.is_file()
                or "__pycache__" in path.parts
                or ".egg-info/" in relative
                or any(f"{relative}/".startswith(f"{l}/") for l in less)
            ):
                continue
            try:
                found[relative] = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue  # data of tests: no diff can carry it, both releases keep their own
    return found


def statement(
    name: str, version: str, package: ReleasedPackage, before: Path, after: Path, failing: tuple[str, ...]
) -> str:
    """What the later release's change log says more than the earlier one's; where it says nothing, the names of what
    fails."""
    old, new = (_notes(root, package.notes) for root in (before, after))
    known = {line.strip() for line in old}
    added = "\n".join(line for line in new if line.strip() not in known or not line.strip()).strip()
    if len(added) < 40:
        added = "These tests fail:\n\n" + "\n".join(f"- {test.rpartition('::')[2]}" for test in failing[:10])
    notes = added if len(added) <= MAX_NOTES else added[:MAX_NOTES].rpartition("\n")[0] + "\n..."
    return STATEMENT.format(package=name, version=version, notes=notes)


def _notes(root: Path, globs: tuple[str, ...]) -> list[str]:
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(fnmatchcase(path.relative_to(root).as_posix(), glob) for glob in globs)
    ]
    return [line.rstrip() for path in files for line in path.read_text(errors="replace").split("\n")]


def pack(tests: list[str]) -> dict[str, tuple[str, ...]]:
    """JUnit ids by class; pair_task unpacks them."""
    grouped: dict[str, list[str]] = {}
    for test in tests:
        case, _, name = test.partition("::")
        grouped.setdefault(case, []).append(name)
    return {case: tuple(names) for case, names in grouped.items()}

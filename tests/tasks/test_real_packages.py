"""The shipped task set and its environments. Environments are downloaded from the package index on first use."""

import asyncio
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from coderepairrl.config import read_yaml
from coderepairrl.curation import statement
from coderepairrl.curation.source_edits import Mutation
from coderepairrl.errors import TaskError
from coderepairrl.files import ROOT
from coderepairrl.grading.grader import grade
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.tasks import packages as module
from coderepairrl.tasks.packages import RealPackagesConfig, environment, load, packages, read_rows, read_source
from coderepairrl.types import Task

SUITES, ROWS = read_rows(module.SHIPPED)
ROW = {row.task_id: row for row in ROWS}


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [task for split in load(RealPackagesConfig()).values() for task in split]


def folder_digest(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


# ---- the set --------------------------------------------------------------------------------------------------------


def test_size(tasks):
    assert len(tasks) == len(ROWS) == len(ROW) >= 300
    counts = Counter(row.package for row in ROWS)
    assert len(counts) >= 3 and min(counts.values()) >= 30
    assert len({row.kind for row in ROWS}) >= 12
    assert module.SHIPPED.stat().st_size < 2 * 2**20


def test_evidence():
    for row in ROWS:
        assert row.fail_to_pass and set(row.fail_to_pass) < {
            test for file in row.test_selection for test in SUITES[row.package].tests[file]
        }
        assert all(0 < seconds for seconds in (*row.base_s, *row.gold_s))
    for name, suite in SUITES.items():
        assert suite.lock == packages()[name].sha256


def test_no_bug_occurs_twice(tasks):
    assert len({(task.environment.name, *task.files.items()) for task in tasks}) == len(tasks)


def test_the_bug_is_one_span_of_one_source_file(tasks):
    for task in tasks:
        row, ((path, buggy),) = ROW[task.task_id], task.files.items()
        original = read_source(Path(task.environment.base, path))
        start, end = row.span
        assert buggy != original and buggy == original[:start] + row.replacement + original[end:]
        assert any(fnmatchcase(path, glob) for glob in packages()[row.package].mutate)
        assert not any(path.startswith(f"{folder}/") for folder in packages()[row.package].tests)


def test_the_oracle_patch_restores_the_original(tasks, tmp_path):
    for task in tasks:
        ((path, buggy),) = task.files.items()
        checkout = tmp_path / task.task_id
        (checkout / path).parent.mkdir(parents=True)
        (checkout / path).write_bytes(buggy.encode())
        subprocess.run(["git", "apply", "-"], input=task.oracle_patch.encode(), cwd=checkout, check=True)
        assert (checkout / path).read_bytes() == Path(task.environment.base, path).read_bytes()


def touched(text: str, start: int, end: int) -> set[str]:
    begin, stop = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    return {line.strip() for line in text[begin:stop].split("\n")} - {""}


def test_statements_do_not_give_the_bug_away(tasks):
    for task in tasks:
        row, ((path, buggy),) = ROW[task.task_id], task.files.items()
        (start, end), statement = row.span, task.problem_statement
        lines = touched(read_source(Path(task.environment.base, path)), start, end) | touched(
            buggy, start, start + len(row.replacement)
        )
        assert 40 < len(statement) < 700
        assert not [line for line in lines if line in statement], task.task_id
        assert path not in statement and not re.search(r"\bline \d+|\.py:\d+|0x[0-9a-f]{6}", statement), task.task_id
        private = [part for part in row.function.split(".") if part.startswith("_") and not part.endswith("__")]
        assert not [name for name in private if name in statement], task.task_id


def test_splits_share_no_package(tasks):
    splits = load(RealPackagesConfig(heldout_packages=("tinydb", "toolz"), train=50, heldout=20))
    assert [len(splits["train"]), len(splits["heldout"])] == [50, 20]
    names = {split: {task.metadata["package"] for task in found} for split, found in splits.items()}
    assert names["heldout"] == {"tinydb", "toolz"} and not names["train"] & names["heldout"]
    assert [task.task_id for task in load(RealPackagesConfig())["train"]] == [
        task.task_id for task in load(RealPackagesConfig())["train"]
    ]


def test_an_unknown_held_out_package_is_refused():
    with pytest.raises(TaskError, match="heldout_packages: toolzz .* choose from .*toolz"):
        load(RealPackagesConfig(heldout_packages=("toolzz",)))


@pytest.mark.parametrize(
    "field, value",
    [
        ("package", "numpy"),
        ("path", "../secret.py"),
        ("path", "missing.py"),
        ("span", [5, 3]),
        ("span", [0, 10**9]),
        ("span", "all"),
        ("fail_to_pass", []),
        ("fail_to_pass", ["tests.test_x::test_unknown"]),
        ("test_selection", []),
        ("test_selection", ["tests/missing.py"]),
        ("replacement", None),
        ("kind", None),
        ("surprise", 1),
    ],
)
def test_a_malformed_row_is_refused_by_name_and_field(tmp_path, field, value):
    lines = module.SHIPPED.read_text().splitlines()
    suites, rows = (
        [line for line in lines if line.startswith('{"suite"')],
        [line for line in lines if not line.startswith('{"suite"')],
    )
    row = json.loads(rows[0]) | {field: value}
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join([*suites, json.dumps(row)]))
    with pytest.raises(TaskError, match=rf"{row['task_id']}, field {field}[.:\d]") as caught:
        load(RealPackagesConfig(path=str(path)))
    assert "\n" not in str(caught.value)


def test_a_set_of_another_release_is_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(module.SHIPPED.read_text().replace(packages()["tinydb"].sha256, "0" * 64))
    with pytest.raises(TaskError, match="tinydb-.*, field package: admitted with source distribution 000000000000"):
        load(RealPackagesConfig(path=str(path)))


def test_a_line_that_is_not_json_is_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"suite": ')
    with pytest.raises(TaskError, match="set.jsonl, line 1: not JSON"):
        load(RealPackagesConfig(path=str(path)))


# ---- environments ---------------------------------------------------------------------------------------------------


def test_an_unknown_package_is_refused():
    with pytest.raises(TaskError, match="'numpy' is no package of this task set: choose from toolz"):
        environment("numpy")


def test_without_an_index_the_error_is_one_line(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        TaskError, match="toolz==1.0.0 could not be downloaded .*: connect to the package index once"
    ) as caught:
        environment("toolz", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_file_under_the_same_version_is_refused(tmp_path, monkeypatch):
    other = packages()["tinydb"].model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(module, "packages", lambda: {"tinydb": other})
    with pytest.raises(TaskError, match="tinydb==4.9.0"):
        environment("tinydb", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_builds_at_once_give_one_folder(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: environment("tinydb", tmp_path), range(2))
    assert first == second and list(tmp_path.glob("tinydb-*")) == [Path(first.base)]
    assert list(tmp_path.glob("runners/[!.]*/venv/bin/python")) == [Path(first.python)]
    assert not Path(first.base, "AGENTS.md").exists() and Path(first.base, "LICENSE").exists()


def test_a_built_environment_needs_no_index(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "download", lambda *_: pytest.fail("downloaded again"))
    assert Path(environment("toolz").python).exists()


# ---- scripts/prepare_mutations.py -----------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mutations.py"


def test_a_set_is_made_and_continued(tmp_path):
    out = tmp_path / "set.jsonl"
    command = [sys.executable, str(SCRIPT), str(out), "--packages", "toolz=1", "--seed", "11"]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        cwd=SCRIPT.parent.parent,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    journal, first = tmp_path / "set.jsonl.journal", out.read_text()
    decisions = journal.read_text()
    out.unlink()
    journal.write_text(decisions + '{"candidate": "cut off by a ki')
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        cwd=SCRIPT.parent.parent,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    assert (journal.read_text(), out.read_text()) == (decisions, first)
    (task,) = load(RealPackagesConfig(path=str(out), heldout_packages=()))["train"]
    assert task.metadata["package"] == "toolz"


def test_what_a_statement_must_not_hold():
    source = "def _helper(a):\n    return a - 1\n"
    mutation = Mutation("arithmetic_operator", source.index("-"), source.index("-") + 1, "+", "_helper")

    def gives_away(text):
        return statement.gives_away(text, source, mutation, "pack/core.py")

    assert not gives_away("`f` gives a wrong result")
    for text in (
        "see return a - 1",
        "see return a + 1",
        "_helper() takes 1 argument",
        "in pack/core.py",
        "at line 2",
        "tests/test_x.py:7",
    ):
        assert gives_away(text), text


def test_a_statement_shows_what_the_test_ran_and_what_came_out(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        "def test_f():\n    # why\n    a = [1]\n    assert f(a) == 2\n    assert False\n"
    )
    detail = "tests/test_x.py:4: in test_f\n    assert f(a) == 2\nE   assert <X at 0x7f0123456789> == 2\n"
    text = statement.describe("tinydb", ("tests",), tmp_path, "tests.test_x::test_f[1]", detail, {"f"}, 3)
    assert text.splitlines() == [
        "`f` gives a wrong result",
        "",
        "`test_f` runs",
        "",
        "    a = [1]",
        "    assert f(a) == 2",
        "",
        "and fails with",
        "",
        "    assert <X at 0x...> == 2",
        "",
        "3 tests of the suite fail.",
    ]


# ---- grading --------------------------------------------------------------------------------------------------------


def graded(task: Task, diff: str):
    return asyncio.run(grade(task, diff, SandboxConfig()))


DRAWN = [
    random.choice([row for row in ROWS if row.package == name]).task_id for name in random.sample(sorted(SUITES), 3)
]


@pytest.mark.parametrize("number", range(3))
def test_admission_again(tasks, number):
    """One random row of each of three random packages: the empty diff fails what it must, the oracle patch resolves."""
    (task,) = [task for task in tasks if task.task_id == DRAWN[number]]
    digest = folder_digest(task.environment.base)
    base, gold = graded(task, ""), graded(task, task.oracle_patch)
    assert base.evidence == gold.evidence == "junit+canary", (task.task_id, base.message, gold.message)
    assert not base.resolved and "passed" not in base.fail_to_pass.values(), task.task_id
    assert set(base.pass_to_pass.values()) == {"passed"}, task.task_id
    assert gold.resolved, (
        task.task_id,
        [test for test, status in (gold.fail_to_pass | gold.pass_to_pass).items() if status != "passed"],
    )
    assert folder_digest(task.environment.base) == digest


PROBE = """
import {package}

def test_where():
    assert {package}.__file__.startswith({inside!r}), {package}.__file__
"""


@pytest.mark.parametrize("package", sorted(SUITES))
def test_tests_import_the_checkout(tasks, package):
    """Also where another copy is installed beside this project, as cachetools is in some environments."""
    task = next(task for task in tasks if task.metadata["package"] == package)
    probe = replace(
        task,
        hidden_tests={"test_probe.py": PROBE.format(package=package, inside="/repo/")},
        test_selection=("test_probe.py",),
        fail_to_pass=("test_probe::test_where",),
        pass_to_pass=(),
    )
    verdict = graded(probe, "")
    assert verdict.resolved, (verdict.message, verdict.fail_to_pass)


NEW_FILE = (
    "diff --git a/{0} b/{0}\nnew file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+import os; os._exit(0)\n"
)


@pytest.mark.parametrize(
    "path",
    [
        "tests/conftest.py",
        "tests/test_new.py",
        "src/conftest.py",
        "src/json.py",
        "src/cachetoolsx.py",
        "src/ca/__init__.py",
        "src/pytest/__init__.py",
        "pytest.py",
        "pyproject.toml",
        "sitecustomize.py",
    ],
)
def test_what_could_decide_the_result_is_not_applied(tasks, path):
    task = next(task for task in tasks if task.metadata["package"] == "cachetools")
    verdict = graded(task, task.oracle_patch + NEW_FILE.format(path))
    assert [line.partition(": ")[0] for line in verdict.dropped_paths] == [path] and verdict.resolved


def test_a_new_module_of_the_package_is_applied(tasks):
    task = next(task for task in tasks if task.metadata["package"] == "cachetools")
    verdict = graded(task, task.oracle_patch + NEW_FILE.format("src/cachetools/helpers.py"))
    assert verdict.dropped_paths == () and verdict.resolved


# ---- mutations.jsonl, and what is held out of it ---------------------------------------------------------------------


def test_what_is_held_out_of_the_mutations_is_drawn_by_hash():
    suites, rows = read_rows(module.FOLDER / "mutations.jsonl")
    drawn = sorted(packages(), key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:5]
    for name in ("demonstrations", "evaluate", "grpo"):
        tree = read_yaml(ROOT / f"configs/pretrained/{name}.yaml")
        tasks = tree["rollout"]["tasks"] if "rollout" in tree else tree
        assert sorted(drawn) == list(tasks["heldout_packages"])
    assert set(drawn) < set(suites) <= set(packages()) and len(rows) == len({row.task_id for row in rows}) == 354
    for row in rows:
        ids = {test for file in row.test_selection for test in suites[row.package].tests[file]}
        assert set(row.fail_to_pass) < ids and suites[row.package].lock == packages()[row.package].sha256

"""The shipped release pairs. Releases are downloaded from the package index on first use."""

import asyncio
import json
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.grading.grader import grade
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.tasks import ReleasePairsConfig, load_tasks, releases
from coderepairrl.tasks.packages import packages
from coderepairrl.tasks.releases import PairRow, Release, ReleasedPackage, pair_task, read_rows, released, to_task

ROWS = read_rows(releases.SHIPPED)


def test_size():
    counts = Counter(row.package for row in ROWS)
    assert len(ROWS) == len({row.task_id for row in ROWS}) >= 30 and len(counts) >= 8
    assert not set(counts) & set(packages()), (
        "a package must not be in two kinds of tasks: a split by package would leak"
    )
    assert releases.SHIPPED.stat().st_size < 1 << 20


def test_evidence():
    for row in ROWS:
        kept = {f"{case}::{name}" for case, names in row.pass_to_pass.items() for name in names}
        assert row.fail_to_pass and kept and not kept & set(row.fail_to_pass), row.task_id
        assert (
            len(row.base_s) == len(row.gold_s) == 3
            and row.before.version != row.after.version
            and row.before.sha256 != row.after.sha256
        )


# every worker of pytest draws the same
DRAWN = random.Random(0).sample([row for row in ROWS if max(row.gold_s) < 2.0], 3)


@pytest.mark.parametrize("row", DRAWN, ids=lambda row: row.task_id)
def test_admission_again(row):
    """Three random pairs: the empty diff fails what it must, the oracle patch resolves, and nothing of it is a test."""
    task = to_task(row)
    base, gold = [asyncio.run(grade(task, diff, SandboxConfig())) for diff in ("", task.oracle_patch)]
    assert not base.resolved and "passed" not in base.fail_to_pass.values(), (row.task_id, base.message)
    bad = [test for test, status in (gold.fail_to_pass | gold.pass_to_pass).items() if status != "passed"]
    assert gold.resolved and not gold.dropped_paths, (row.task_id, gold.message, bad)
    touched = {path for change in split_diff(task.oracle_patch) for path in change.paths}
    assert touched and not touched & set(task.hidden_tests)
    assert all(
        any(path == name or path.startswith(f"{name}/") for name in released()[row.package].tests)
        for path in task.hidden_tests
    )


# ---- how a pair is read ---------------------------------------------------------------------------------------------

PACKAGE = ReleasedPackage(module="p", source=("p", "one.py"), tests=("p/tests", "t.py"), notes=("CHANGES*",))
PAIR = PairRow(
    task_id="p-2",
    package="p",
    before=Release(version="1", sha256="0"),
    after=Release(version="2", sha256="1"),
    test_selection=("t.py",),
    fail_to_pass=("t::test_a",),
    pass_to_pass={"t": ("test_b", "test_c[x::y]")},
    base_s=(),
    gold_s=(),
    python="",
)


def releases_of(folder: Path) -> tuple[Path, Path]:
    old = {
        "p/a.py": "a = 1\n",
        "p/gone.py": "x\n",
        "one.py": "1\n",
        "p/tests/test_p.py": "old\n",
        "t.py": "old\n",
        "t_data.bin": b"\xff",
        "CHANGES.rst": "Version 1\n* The first one\n",
        "doc.rst": "a",
    }
    new = {
        "p/a.py": "a = 2\n",
        "p/new.py": "y",
        "one.py": "1\n",
        "p/tests/test_p.py": "old\n",
        "t.py": "new\n",
        "p/tests/data.bin": b"\xff",
        "CHANGES.rst": "Version 2\n* Repairs what a gives for nothing at all\n\nVersion 1\n* The first one\n",
        "doc.rst": "b",
    }
    for name, files in (("1", old), ("2", new)):
        for path, content in files.items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "1", folder / "2"


def test_the_repair_is_the_source_and_the_hidden_tests_are_what_changed(tmp_path):
    before, after = releases_of(tmp_path)
    task = pair_task(PAIR, PACKAGE, before, after, "train")
    assert task.hidden_tests == {"t.py": "new\n"} and task.pass_to_pass == ("t::test_b", "t::test_c[x::y]")
    neutral = {"GIT_CEILING_DIRECTORIES": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run(["git", "apply", "-"], input=task.oracle_patch.encode(), cwd=before, check=True, env=neutral)
    found = {path.relative_to(before).as_posix(): path.read_bytes() for path in before.rglob("*") if path.is_file()}
    assert found["p/a.py"] == b"a = 2\n" and found["p/new.py"] == b"y" and "p/gone.py" not in found
    assert found["t.py"] == b"old\n" and found["doc.rst"] == b"a", "only source is repaired"
    assert (
        "Repairs what a gives for nothing at all" in task.problem_statement
        and "The first one" not in task.problem_statement
    )


def test_without_notes_the_statement_names_the_tests(tmp_path):
    before, after = releases_of(tmp_path)
    assert (
        "- test_a"
        in pair_task(PAIR, PACKAGE.model_copy(update={"notes": ()}), before, after, "train").problem_statement
    )


def test_ids_are_packed_without_loss():
    tests = ["a.B::test_c[x::y]", "a.B::test_d", "a::test_e"]
    assert [f"{case}::{name}" for case, names in releases.pack(tests).items() for name in names] == tests


@pytest.mark.parametrize(
    "change, match",
    [
        ({"package": "nobody"}, "field package: 'nobody' is not in releases.yaml"),
        ({"before": {}}, "line 1, field before.version"),
        ({"extra": 1}, "field extra"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, change, match):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(json.loads(releases.SHIPPED.read_text().splitlines()[0]) | change))
    with pytest.raises(TaskError, match=match):
        load_tasks(ReleasePairsConfig(path=str(path)))


def test_splits_share_no_package():
    packages_of = {}
    for row in ROWS:
        packages_of.setdefault(row.package, []).append(row)
    fewest = min(packages_of, key=lambda name: len(packages_of[name]))
    splits = load_tasks(ReleasePairsConfig(train=2, heldout_packages=(fewest,)))
    assert {task.metadata["package"] for task in splits["heldout"]} == {fewest} and len(splits["train"]) == 2
    assert fewest not in {task.metadata["package"] for task in splits["train"]}

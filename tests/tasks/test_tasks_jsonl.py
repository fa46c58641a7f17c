"""The project's own file of tasks, what scripts/prepare_tasks.py admits into it, and what --decontaminate finds."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.curation.decontaminate import contamination, split_by_date
from coderepairrl.errors import TaskError
from coderepairrl.tasks import JsonlConfig, jsonl, load_tasks
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.types import Environment, Recipe, Task

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_tasks.py"

# ---- the file -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
NAMES = st.tuples() | st.tuples(TEXT) | st.tuples(TEXT, TEXT)
RECIPES = st.builds(
    Recipe, TEXT, TEXT, TEXT, pins=NAMES, requirements=NAMES, exclude_newer=st.none() | TEXT, build=NAMES, keep=NAMES
)
ENVIRONMENTS = st.builds(
    Environment,
    TEXT,
    st.none() | st.just("/base"),
    st.just("/usr/bin/python3"),
    NAMES,
    variables=st.dictionaries(TEXT, TEXT, max_size=2),
    protected=NAMES,
    test_timeout_s=st.floats(1, 1e6),
    log_parser=st.none() | TEXT,
    recipe=st.none() | RECIPES,
    image=st.none() | TEXT,
    workdir=TEXT,
    lock=TEXT,
)
TASKS = st.builds(
    Task,
    TEXT,
    TEXT,
    ENVIRONMENTS,
    st.dictionaries(TEXT, TEXT, max_size=2),
    st.dictionaries(TEXT, TEXT, max_size=2),
    NAMES,
    NAMES,
    NAMES,
    TEXT,
    metadata=st.dictionaries(TEXT, TEXT, max_size=2),
    bug_patch=TEXT,
    test_patch=TEXT,
)


@given(TASKS)
def test_a_task_survives_its_row(task):
    assert jsonl.from_row(json.loads(json.dumps(jsonl.to_row(task))), "file", Path("/")) == task


ROW = {
    "task_id": "mine-1",
    "problem_statement": "f(2) is 3.",
    "environment": {"base": "checkout"},
    "test_selection": ["test_lib.py"],
    "hidden_tests": {
        "test_lib.py": "from lib import f\n\ndef test_two():\n    assert f(2) == 4\n\ndef test_zero():\n"
        "    assert f(0) == 0\n"
    },
    "fail_to_pass": ["test_lib::test_two"],
    "pass_to_pass": ["test_lib::test_zero"],
    "oracle_patch": unified_diff(
        "lib.py", "def f(a):\n    return a + 1 if a else 0\n", "def f(a):\n    return a * 2\n"
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/lib.py").write_text("def f(a):\n    return a + 1 if a else 0\n")
    return tmp_path


def save(folder, *rows, name="tasks.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_the_shortest_row(folder):
    (task,) = load_tasks(JsonlConfig(heldout=save(folder, ROW)))["heldout"]
    assert task.environment.base == str(folder / "checkout") and task.environment.python == sys.executable
    assert "{tests}" in task.environment.test_command and task.metadata == {"split": "heldout"}


@pytest.mark.parametrize(
    "change, match",
    [
        ({"task_id": None}, "line 1, None, field task_id"),
        ({"surprise": 1}, "line 1, mine-1, field surprise: unknown"),
        ({"environment": {"bse": "x"}}, "field environment.bse: unknown"),
        ({"environment": {"recipe": {"source": "git:a/b", "sorce": 1}}}, "field environment.recipe.sorce: unknown"),
        ({"environment": []}, "field environment: list where an object"),
        ({"fail_to_pass": "test_lib::test_two"}, "field fail_to_pass"),
        ({"environment": {"recipe": {"source": "git:a/b"}}}, r"field environment.recipe.revision: "),
        ({"files": {"a": 1}}, "field files.a: "),
    ],
)
def test_a_wrong_row_is_refused_by_line_task_and_field(folder, change, match):
    with pytest.raises(TaskError, match=match) as caught:
        jsonl.read(Path(save(folder, ROW | change)))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tasks(folder):
    for text, match in (
        ("{", "line 1: not JSON"),
        ("[]\n", "line 1: list where an object"),
        (json.dumps(ROW) + "\n\n" + json.dumps(ROW), "line 3, mine-1, field task_id: occurs twice"),
    ):
        (folder / "bad.jsonl").write_text(text)
        with pytest.raises(TaskError, match=match):
            jsonl.read(folder / "bad.jsonl")
    with pytest.raises(TaskError, match="give the path of a JSONL file"):
        jsonl.read(folder / "missing.jsonl")
    with pytest.raises(TaskError, match="neither `train` nor `heldout`"):
        load_tasks(JsonlConfig())


# ---- scripts/prepare_tasks.py ---------------------------------------------------------------------------------------


def run(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


WRONG = {
    "flaky": {
        "hidden_tests": {
            "test_lib.py": "import os\nfrom lib import f\n\ndef test_two():\n    assert f(2) == 4\n\n"
            + "".join(f"def test_{i}():\n    assert os.urandom(1)[0] % 2\n\n" for i in range(12))
        },
        "pass_to_pass": [f"test_lib::test_{i}" for i in range(12)],
    },
    "the oracle patch does not resolve it": {
        "oracle_patch": unified_diff("lib.py", "def f(a):\n    return a + 1 if a else 0\n", "def f(a):\n    return a\n")
    },
    "the empty diff resolves it": {"fail_to_pass": ["test_lib::test_zero"], "pass_to_pass": ["test_lib::test_zero"]},
    "no PASS_TO_PASS": {"pass_to_pass": []},
    "no oracle patch": {"oracle_patch": " "},
    "the row is wrong": {"test_patch": "diff --git a/no.py b/no.py\n--- a/no.py\n+++ b/no.py\n@@ -1 +1 @@\n-a\n+b\n"},
    "environment cannot be built": {
        "environment": {
            "recipe": {
                "source": "git:nobody/nothing",
                "revision": "0" * 40,
                "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            }
        }
    },
}


def test_admission_and_its_continuation(folder):
    """One good task and one for each reason of refusal; interrupted, the program goes on; a changed row is decided
    anew."""
    rows = [ROW, *(ROW | {"task_id": f"bad-{number}"} | change for number, change in enumerate(WRONG.values()))]
    config = folder / "prepare.yaml"
    config.write_text(
        json.dumps(
            {
                "tasks": {"name": "jsonl", "train": save(folder, *rows)},
                "out": str(folder / "out.jsonl"),
                "parallel": 2,
                "sandbox": {"scratch": str(folder)},
                "environments": {"cache": str(folder / "cache"), "mirrors": [str(folder / "{owner}/{name}")]},
            }
        )
    )
    text = run(str(config))
    assert f"1 of {len(rows)} admitted" in text and all(f"1 refused: {reason}" in text for reason in WRONG), text
    record = folder / "out.admission.jsonl"
    decisions = {row["task_id"]: row for row in map(json.loads, record.read_text().splitlines())}
    good = decisions["mine-1"]
    assert (
        len(good["base_s"]) == len(good["gold_s"]) == 3
        and good["python"].startswith("3.")
        and good["evidence"] == "junit+canary"
    )
    assert decisions["bad-0"]["flaky"] and "mirror" in decisions["bad-6"]["detail"]
    (task,) = load_tasks(JsonlConfig(train=str(folder / "out.jsonl")))["train"]
    assert task.task_id == "mine-1"
    lines = record.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"mine-1"' in line]
    record.write_text("".join(kept) + lines[0][:30])  # as a kill leaves it
    save(folder, *rows[:2])
    before = record.stat().st_size
    text = run(str(config))
    assert "1 of 2 were decided before" in text and "1 of 2 admitted" in text and record.stat().st_size > before
    save(folder, ROW | {"problem_statement": "another"})
    assert "decided before" not in run(str(config))


def test_an_unknown_key_is_named(folder):
    (folder / "prepare.yaml").write_text("tasks: {name: jsonl, train: x}\nout: y\nparalel: 3\n")
    assert "did you mean 'parallel'" in run(str(folder / "prepare.yaml"), expect=1)


# ---- decontamination ------------------------------------------------------------------------------------------------

OLD, NEW = "alpha = compute(1)\nbeta = compute(2)\n", "alpha = compute(3)\nbeta = compute(4)\n"


def made(task_id, repo="a/b", commit="c" * 40, date="2022-01-01T00:00:00Z", old=OLD, new=NEW):
    place = Environment(task_id, None, "/usr/bin/python3", ())
    return Task(
        task_id,
        "",
        place,
        {},
        {},
        (),
        (),
        (),
        unified_diff("lib.py", old, new),
        metadata={"repo": repo, "base_commit": commit, "created_at": date},
    )


EVALUATION = [made("eval", date="2023-06-01T00:00:00Z")]


@pytest.mark.parametrize(
    "task, kind",
    [
        (made("t", old="gamma = 1\n", new="gamma = 2\n"), "same commit"),
        (made("t", repo="fork/b", commit="d" * 40), "same patch"),
        (made("t", repo="A/B", commit="d" * 40, old="gamma = 1\n", new="gamma = 2\n"), "same repository"),
        (
            made("t", commit="d" * 40, old="gamma = 1\n", new="gamma = 2\n", date="2024-01-01T00:00:00Z"),
            "younger than the evaluation",
        ),
        (made("t", repo="fork/b", old="gamma = 1\n", new="gamma = 2\n"), None),
        (made("t", repo="x/y", old="pass\n", new="return\n"), None),
    ],
)
def test_what_a_training_task_shares_with_the_evaluation(task, kind):
    assert [finding.kind for finding in contamination([task], EVALUATION)] == ([kind] if kind else [])


def test_white_space_does_not_hide_a_patch():
    other = made(
        "t",
        repo="fork/b",
        old="    alpha = compute( 1 )\n    beta = compute(2)\n",
        new="    alpha = compute(3)\n    beta = compute(4)\n",
    )
    (finding,) = contamination([other], EVALUATION)
    assert (finding.kind, finding.other, finding.overlap) == ("same patch", "eval", 1.0)


@given(st.permutations(range(5)))
def test_order_does_not_matter(order):
    train = [
        made(str(i), repo=f"r/{i % 3}", commit=f"{i % 2}" * 40, new=f"alpha = compute({i})\nbeta = compute(4)\n")
        for i in range(5)
    ]
    evaluation = [made(f"e{i}", repo=f"r/{i}", commit="1" * 40) for i in range(3)]
    expected = {finding.task_id: finding for finding in contamination(train, evaluation)}
    assert {
        finding.task_id: finding for finding in contamination([train[i] for i in order], evaluation[::-1])
    } == expected


def test_a_set_is_split_by_date():
    tasks = [made("old", date="2021-12-31T23:59:59Z"), made("new", date="2022-01-01T00:00:00Z")]
    assert [[task.task_id for task in part] for part in split_by_date(tasks, "2022-01-01")] == [["old"], ["new"]]
    with pytest.raises(TaskError, match="1 tasks have no created_at .the first: undated."):
        split_by_date([*tasks, replace(tasks[0], task_id="undated", metadata={})], "2022-01-01")


def test_the_program_names_and_removes_what_is_contaminated(tmp_path):
    clean, copied = (
        made("clean", repo="x/y", old="gamma = 1\n", new="gamma = 2\n", date="2024-01-01T00:00:00Z"),
        made("copied", repo="fork/b", commit="d" * 40),
    )
    for name, tasks in {"train": [clean, copied], "eval": EVALUATION}.items():
        jsonl.write(tmp_path / f"{name}.jsonl", tasks)
    train, evaluation, out = (str(tmp_path / f"{name}.jsonl") for name in ("train", "eval", "out"))
    text = run(train, "--decontaminate", evaluation, expect=2)
    assert "1 of 2 training tasks: same patch" in text and "copied ~ eval, 100% of its changed lines" in text
    run(train, "--decontaminate", evaluation, "--out", out)
    assert [task.task_id for task in jsonl.read(Path(out))] == ["clean"]
    assert "0 training tasks are older than 2023-01-01, 1 are not" in run(
        train, "--decontaminate", evaluation, "--before", "2023-01-01", "--out", out
    )
    run(out, "--decontaminate", evaluation)
    assert "write: prepare_tasks.py TRAIN" in run(
        train, "--decontaminate", evaluation, "--befor", "2023-01-01", expect=1
    )

"""Rows of published data sets -> tasks: what differs between publishers, what is refused by id and field, and what real
rows become."""

import json
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.tasks import R2EGymConfig, SweBenchConfig, SweGymConfig, SweSmithConfig, jsonl, load_tasks
from coderepairrl.tasks.building import resolve_patches
from coderepairrl.tasks.patches import patched_files, unified_diff
from coderepairrl.tasks.repository_recipes import repositories
from coderepairrl.tasks.rows import Row, read_rows

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' rows are not on this machine")
LITE, DEV, GYM = (str(DATA / name) for name in ("SWE-bench_Lite_dev.parquet", "SWE-bench_dev.parquet", "swegym10.json"))
TEST_PATCH = (
    "diff --git a/tests/test_a.py b/tests/test_a.py\n--- a/tests/test_a.py\n+++ b/tests/test_a.py\n"
    "@@ -1 +1,2 @@\n"
    " a = 1\n+b = 2\n"
)
ROW = {
    "instance_id": "sqlfluff__sqlfluff-1",
    "repo": "sqlfluff/sqlfluff",
    "base_commit": "a" * 40,
    "version": "0.6",
    "created_at": "2021-10-13T11:35:29Z",
    "problem_statement": "It breaks.",
    "patch": TEST_PATCH.replace("tests/test_a", "lib"),
    "test_patch": TEST_PATCH,
    "FAIL_TO_PASS": '["tests/test_a.py::test_b[x"]',
    "PASS_TO_PASS": ["tests/test_a.py::TestA::test_c"],
}


def write(folder: Path, rows, name="rows.json") -> str:
    (folder / name).write_text(
        json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    )
    return str(folder / name)


def only(splits):
    (task,) = [task for tasks in splits.values() for task in tasks]
    return task


# ---- fields ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(str.strip), unique=True
    )
)
def test_a_list_of_tests_is_read_however_it_is_written(tests):
    spellings = [tests, tuple(tests), json.dumps(tests), repr(tests)]
    assert {Row({"instance_id": "a", "T": spelling}, "rows").tests("T") for spelling in spellings} == {tuple(tests)}


@pytest.mark.parametrize(
    "value", [None, 3, "no list", "{}", '{"a": 1}', [1], [""], ["a", None], "['a', 1]", "__import__('os')"]
)
def test_what_is_no_list_of_tests_is_refused_by_row_and_field(value):
    with pytest.raises(TaskError, match="rows, the-id, field FAIL_TO_PASS: ") as caught:
        Row({"instance_id": "the-id", "FAIL_TO_PASS": value}, "rows").tests("FAIL_TO_PASS")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "written, meant",
    [
        ("2024-02-19 20:29:03", "2024-02-19T20:29:03Z"),
        ("2021-10-13T11:35:29Z", "2021-10-13T11:35:29Z"),
        ("2020-01-02", "2020-01-02T00:00:00Z"),
        ("2024-02-19 20:29:03+00:00", "2024-02-19T20:29:03Z"),
        (None, ""),
        ("", ""),
    ],
)
def test_dates(written, meant):
    assert Row({"instance_id": "a", "created_at": written}, "rows").date("created_at") == meant


def test_another_date_is_refused():
    with pytest.raises(TaskError, match="rows, a, field created_at: 'yesterday' is no date"):
        Row({"instance_id": "a", "created_at": "yesterday"}, "rows").date("created_at")


@pytest.mark.parametrize(
    "field",
    ["instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS"],
)
def test_a_missing_column_is_named(tmp_path, field):
    source = write(tmp_path, [{name: value for name, value in ROW.items() if name != field}])
    with pytest.raises(TaskError, match=rf"field {field}: missing"):
        load_tasks(SweBenchConfig(source=source))


def test_columns_that_older_releases_lack_are_not_needed(tmp_path):
    assert not {"image", "eval_script", "log_parser", "hints_text"} & set(ROW)
    task = only(load_tasks(SweBenchConfig(source=write(tmp_path, [ROW]))))
    assert (
        task.environment.recipe.source == "git:sqlfluff/sqlfluff"
        and task.environment.recipe.exclude_newer == ROW["created_at"]
    )
    image = only(load_tasks(SweBenchConfig(source=write(tmp_path, [ROW]), environments="images"))).environment
    assert image.image == "docker://swebench/sweb.eval.x86_64.sqlfluff_1776_sqlfluff-1:latest" and image.recipe is None


def test_a_bad_row_can_be_left_out(tmp_path, capsys):
    source = write(tmp_path, [ROW | {"instance_id": "bad", "FAIL_TO_PASS": 3}, ROW], "rows.jsonl")
    with pytest.raises(TaskError, match="bad, field FAIL_TO_PASS"):
        load_tasks(SweBenchConfig(source=source))
    assert only(load_tasks(SweBenchConfig(source=source, skip_unusable=True))).task_id == ROW["instance_id"]
    assert "left out: " in capsys.readouterr().out


def test_an_id_occurs_once(tmp_path):
    with pytest.raises(TaskError, match="sqlfluff__sqlfluff-1, field instance_id: occurs twice"):
        load_tasks(SweBenchConfig(source=write(tmp_path, [ROW, ROW])))


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("a.json", "{", "not JSON"),
        ("a.jsonl", "[1]\n", "row 1: list where an object"),
        ("a.parquet", None, "give the path"),
        ("a.json", None, "give the path"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, text, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=match):
        list(read_rows(str(tmp_path / name), "test"))


def test_a_name_that_is_not_cached_needs_the_hub():
    with pytest.raises(TaskError, match="data set 'nobody/nothing', split 'dev': "):
        list(read_rows("nobody/nothing", "dev"))


def test_a_repository_without_recipe_is_refused_where_it_would_be_built(tmp_path):
    source = write(tmp_path, [ROW | {"repo": "some/other"}])
    with pytest.raises(
        TaskError, match="field repo: recipes.yaml has no recipe for some/other: .*environments: images"
    ):
        load_tasks(SweBenchConfig(source=source))
    assert only(load_tasks(SweBenchConfig(source=source, environments="images"))).test_selection == ("tests/test_a.py",)


# ---- how tests are run ----------------------------------------------------------------------------------------------


def test_a_runner_without_junit_uses_the_rows_command_and_parser(tmp_path):
    script = (
        "cd /testbed\n: '>>>>> Start Test Output'\n./tests/runtests.py --parallel 1 a.b\n"
        ": '>>>>> End Test Output'\n"
        "git checkout x\n"
    )
    row = ROW | {"repo": "django/django", "log_parser": "parse_log_django", "eval_script": script}
    environment = only(load_tasks(SweBenchConfig(source=write(tmp_path, [row]), environments="images"))).environment
    assert environment.log_parser == "parse_log_django" and environment.test_command == (
        "bash",
        "-c",
        "./tests/runtests.py --parallel 1 a.b",
    )


def test_without_a_script_the_repositorys_command_is_used(tmp_path):
    patch = TEST_PATCH.replace("tests/test_a.py", "tests/admin_views/test_x.py")
    source = write(tmp_path, [ROW | {"repo": "django/django", "test_patch": patch}])
    environment = only(load_tasks(SweBenchConfig(source=source, environments="images"))).environment
    assert environment.log_parser == "parse_log_django" and environment.test_command[2].endswith(
        "--parallel 1 admin_views.test_x"
    )


def test_another_language_is_judged_by_its_log(tmp_path):
    script = ": '>>>>> Start Test Output'\ngo test -v ./...\n: '>>>>> End Test Output'\n"
    row = ROW | {
        "repo": "caddyserver/caddy",
        "log_parser": "parse_log_gotest",
        "eval_script": script,
        "FAIL_TO_PASS": ["TestA"],
        "PASS_TO_PASS": [],
    }
    environment = only(load_tasks(SweBenchConfig(source=write(tmp_path, [row]), environments="images"))).environment
    assert (environment.log_parser, environment.test_command) == (
        "parse_log_gotest",
        ("bash", "-c", "go test -v ./..."),
    )
    with pytest.raises(TaskError, match="field eval_script: missing"):
        load_tasks(SweBenchConfig(source=write(tmp_path, [row | {"eval_script": "echo"}]), environments="images"))


def test_recipes_are_complete():
    for name, repository in repositories().items():
        assert repository.recipes or repository.corrections or repository.command, name
        assert not repository.recipes or not repository.recipes[-1].versions, (
            f"{name}: the last entry is for all versions"
        )
        assert repository.runner == "pytest" or repository.log_parser and repository.command, name


# ---- SWE-smith, R2E-Gym ---------------------------------------------------------------------------------------------


def test_swe_smith_injects_its_patch(tmp_path):
    (tmp_path / "lib.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("import lib\n")
    bug = unified_diff("lib.py", "a = 1\nb = 2\n", "a = 1\nb = 3\n")
    row = {
        "instance_id": "x",
        "patch": bug,
        "FAIL_TO_PASS": ["tests/test_a.py::test_a"],
        "PASS_TO_PASS": ["tests/test_a.py::test_b"],
        "image_name": "some/image",
        "repo": "swesmith/pallets__click.fde47b4b",
        "problem_statement": "b is wrong",
    }
    task = only(load_tasks(SweSmithConfig(source=write(tmp_path, [row]), environments="images")))
    assert (
        task.environment.image == "docker://some/image"
        and task.metadata["repo"] == "pallets/click"
        and task.metadata["base_commit"] == "fde47b4b"
    )
    built = resolve_patches(replace_base(task, tmp_path))
    assert built.files == {"lib.py": "a = 1\nb = 3\n"} and built.oracle_patch == unified_diff(
        "lib.py", "a = 1\nb = 3\n", "a = 1\nb = 2\n"
    )
    assert built.hidden_tests == {"tests/test_a.py": "import lib\n"} and not built.bug_patch
    for field, value in {"repo": "click", "problem_statement": "", "image_name": None}.items():
        with pytest.raises(TaskError, match=f"x, field {field}: "):
            load_tasks(SweSmithConfig(source=write(tmp_path, [row | {field: value}]), environments="images"))


def replace_base(task, folder):
    return replace(task, environment=replace(task.environment, base=str(folder), python="/usr/bin/python3"))


def test_r2e_gym_takes_tests_and_repair_from_the_row(tmp_path):
    def log(**statuses):
        lines = (
            f"\x1b[32m{status}\x1b[0m r2e_tests/test_1.py::{name.replace('__', '::')}\n"
            for name, status in statuses.items()
        )
        return "=== short test summary info ===\n" + "".join(lines)

    change = {"header": {"file": {"path": "lib/a.py"}}, "old_file_content": "a = 1\n", "new_file_content": "a = 2\n"}
    test = {"header": {"file": {"path": "tests/test_a.py"}}, "old_file_content": "", "new_file_content": "b = 1\n"}
    row = {
        "repo_name": "sympy",
        "docker_image": "some/image:1",
        "commit_hash": "c" * 40,
        "problem_statement": "x [ISSUE]\nIt breaks.\n[/ISSUE]",
        "expected_output_json": json.dumps({"A.test_a": "PASSED", "test_b": "PASSED", "test_c": "FAILED"}),
        "parsed_commit_content": json.dumps({"old_commit_hash": "b" * 40, "file_diffs": [change, test]}),
        "execution_result_content": json.dumps(
            {
                "test_file_names": ["test_1.py"],
                "test_file_codes": ["def test_b(): pass\n"],
                "old_commit_res_stdout": log(A__test_a="FAILED", test_b="PASSED", test_c="FAILED"),
                "new_commit_res_stdout": log(A__test_a="PASSED", test_b="PASSED", test_c="FAILED"),
            }
        ),
    }
    task = only(load_tasks(R2EGymConfig(source=write(tmp_path, [row]))))
    assert task.fail_to_pass == ("r2e_tests/test_1.py::A::test_a",) and task.pass_to_pass == (
        "r2e_tests/test_1.py::test_b",
    )
    assert (
        task.oracle_patch == unified_diff("lib/a.py", "a = 1\n", "a = 2\n") and task.problem_statement == "It breaks."
    )
    assert (
        task.hidden_tests["r2e_tests/test_1.py"] == "def test_b(): pass\n"
        and task.environment.image == "docker://some/image:1"
    )
    for field, value in {
        "parsed_commit_content": {"file_diffs": [test]},
        "execution_result_content": {},
        "expected_output_json": "no",
    }.items():
        with pytest.raises(TaskError, match=f"sympy-cccccccccccc, field {field}: "):
            load_tasks(R2EGymConfig(source=write(tmp_path, [row | {field: value}])))


# ---- patches --------------------------------------------------------------------------------------------------------

LINES = st.lists(st.text(string.ascii_letters + " +-@", max_size=6), max_size=12)


@given(st.none() | LINES, st.none() | LINES, st.booleans(), st.booleans())
def test_a_diff_of_two_texts_makes_the_second_of_the_first(tmp_path_factory, before, after, ends, ends_after):
    old, new = (
        "\n".join(lines) + ("\n" if lines and end else "") if lines is not None else None
        for lines, end in ((before, ends), (after, ends_after))
    )
    if old == new or not (old or new):
        return
    folder = tmp_path_factory.mktemp("base")
    if old is not None:
        (folder / "a.py").write_text(old)
    assert patched_files("task", "patch", str(folder), {}, unified_diff("a.py", old, new)) == {"a.py": new}


def test_a_patch_that_does_not_apply_or_leaves_the_checkout_is_refused(tmp_path):
    for patch, match in (
        (TEST_PATCH, "task, field test_patch: does not apply"),
        (TEST_PATCH.replace("tests/", "../"), "task, field test_patch: path '../test_a.py' is outside"),
    ):
        with pytest.raises(TaskError, match=match):
            patched_files("task", "test_patch", str(tmp_path), {}, patch)


def test_the_binary_parts_of_a_patch_are_left_out(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("a = 1\n")
    patch = "diff --git a/x.png b/x.png\nindex 1..2 100644\nBinary files a/x.png and b/x.png differ\n" + TEST_PATCH
    assert patched_files("task", "test_patch", str(tmp_path), {}, patch) == {"tests/test_a.py": "a = 1\nb = 2\n"}


# ---- real rows ------------------------------------------------------------------------------------------------------


@needs_data
def test_every_row_of_the_dev_split():
    tasks = load_tasks(SweBenchConfig(source=DEV))["heldout"]
    assert (
        len(tasks) == 225 == len({task.task_id for task in tasks})
        and len(load_tasks(SweBenchConfig(source=LITE))["heldout"]) == 23
    )
    assert {task.metadata["repo"] for task in tasks} <= set(repositories())
    for task in tasks:
        assert task.fail_to_pass and task.test_selection and task.environment.log_parser is None, task.task_id
        assert set(task.test_selection) <= {path for change in split_diff(task.test_patch) for path in change.paths}, (
            task.task_id
        )
        assert (
            re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", task.environment.recipe.exclude_newer)
            and len(task.environment.recipe.revision) == 40
        )
    # ids that the data set cut at a space are kept as they are
    assert sum(test.count("[") > test.count("]") for task in tasks for test in task.pass_to_pass) > 100


@needs_data
def test_every_row_of_swe_gym():
    tasks = load_tasks(SweGymConfig(source=GYM))["train"]
    assert len(tasks) == 10 and {task.metadata["repo"] for task in tasks} <= set(repositories())
    by_id = {task.task_id: task for task in tasks}
    assert by_id["getmoto__moto-7365"].fail_to_pass == (
        "tests/test_dynamodb/test_dynamodb_update_expressions.py::test_update_item_add_float",
    )
    words = by_id["python__mypy-17071"].environment.test_command
    assert (
        "{canary_module}" in words[words.index("-k") + 1]
        and "testTypeGuardTypeVarReturn" in words[words.index("-k") + 1]
    )
    images = load_tasks(SweGymConfig(source=GYM, environments="images"))["train"]
    assert images[0].environment.image == "docker://xingyaoww/sweb.eval.x86_64.python_s_mypy-17071:latest"


@needs_data
def test_real_rows_survive_our_own_file(tmp_path):
    tasks = [
        task
        for config in (
            SweBenchConfig(source=DEV),
            SweGymConfig(source=GYM),
            SweBenchConfig(source=LITE, environments="images"),
        )
        for split in load_tasks(config).values()
        for task in split
    ]
    tasks = list({task.task_id: task for task in tasks}.values())
    jsonl.write(tmp_path / "tasks.jsonl", tasks)
    assert jsonl.read(tmp_path / "tasks.jsonl") == tasks


@needs_data
def test_the_choice_of_rows():
    ids = [task.task_id for task in load_tasks(SweBenchConfig(source=LITE))["heldout"]]
    assert [task.task_id for task in load_tasks(SweBenchConfig(source=LITE, only=(ids[5],), use="train"))["train"]] == [
        ids[5]
    ]
    assert len(load_tasks(SweBenchConfig(source=LITE, limit=4))["heldout"]) == 4
    with pytest.raises(TaskError, match="only: nothing-1 not in "):
        load_tasks(SweBenchConfig(source=LITE, only=("nothing-1",)))

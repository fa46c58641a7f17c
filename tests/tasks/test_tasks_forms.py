"""What published and hand-made files of rows really hold: separators, encodings, colours, short ids; and one bad row
among good ones."""

import json
from types import SimpleNamespace

import pytest
from conftest import run_program
from rows_helpers import FORMS, MINE, change, line, load

from coderepairrl.errors import TaskError
from coderepairrl.files import read_jsonl
from coderepairrl.grading import log_parsers
from coderepairrl.tasks import SweBenchConfig, load_tasks
from coderepairrl.tasks.patches import unified_diff

forms = pytest.mark.parametrize("form", FORMS)


# ---- files of lines -------------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\ufeff"], ids=ascii)
def test_a_line_ends_at_a_line_feed_only(tmp_path, form, separator):
    row = FORMS[form][0]
    text = row["problem_statement"].replace("f", separator).replace("t", separator)
    data = json.dumps(row | {"problem_statement": text}, ensure_ascii=separator < " ").encode()
    (task,) = load(form, data + b"\n", tmp_path)
    assert separator in task.problem_statement


@forms
def test_marks_of_windows_are_read(tmp_path, form):
    (task,) = load(form, b"\xef\xbb\xbf" + line(FORMS[form][0]).replace(b"\n", b"\r\n") + b"\r\n", tmp_path)
    assert task.fail_to_pass


def test_our_own_rows_may_hold_any_text(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"a": "b\u2028c\x85d"}\n\n{"a": 1}\n')
    assert read_jsonl(tmp_path / "own.jsonl") == [{"a": "b\u2028c\x85d"}, {"a": 1}]


BAD = {
    "latin1": (line(MINE, problem_statement="fünf").decode().encode("latin-1"), "not UTF-8 (byte 0xfc at"),
    "torn": (b'{"a": "b\n', "not JSON ("),
    "utf16": ("{}".encode("utf-16") + b"\n", "not UTF-8 (byte 0xff"),
    "deep": (b"[" * 100_000 + b"\n", "not JSON ("),
    "list": (b"[]\n", "list where an object"),
    "number": (b"1" * 5000 + b"\n", "not JSON ("),
}


@forms
@pytest.mark.parametrize("bad", BAD)
def test_a_line_that_cannot_be_read_is_named_and_the_others_are_loaded(tmp_path, form, bad):
    text, cause = BAD[bad]
    refused = []
    good = line(FORMS[form][0])
    (task,) = load(form, text + good, tmp_path, refused)
    assert len(refused) == 1 and cause in refused[0] and "\n" not in refused[0] and " 1: " in refused[0]
    with pytest.raises(TaskError) as caught:
        load(form, text + good, tmp_path)
    assert str(caught.value) == refused[0]


HALF = "half a character: \ud83d"
WRONG_ROWS = {
    "jsonl": [
        ({"problem_statement": HALF}, "problem_statement: holds '\\ud83d'"),
        ({"files": {HALF: ""}}, "files: holds"),
        ({"task_id": HALF}, "task_id: holds"),
        ({"hidden_tests": {"a.py": HALF}}, "hidden_tests"),
        ({"fail_to_pass": [HALF]}, "fail_to_pass: holds"),
        ({"oracle_patch": HALF}, "oracle_patch"),
        ({"environment": {"variables": {"A": HALF}}}, "environment.variables: holds"),
        ({"fail_to_pass": []}, "fail_to_pass: empty"),
        ({"environment": {"base": "nowhere"}}, "environment.base: folder"),
        ({"environment": {"base": "rows.jsonl"}}, "environment.base: folder"),
        ({"environment": {"python": "/no/python"}}, "environment.python: /no/python is no program"),
        ({"environment": {"python": "no-such-python"}}, "environment.python"),
        ({"environment": {"python": "/usr"}}, "environment.python"),
        ({"environment": {"log_parser": "parse_log_none"}}, "log_parser: swebench has no parser"),
        (
            {"environment": {"log_parser": "parse_log_jekyll"}},
            "log_parser: swebench's parse_log_jekyll reads no log of bad",
        ),
        (
            {"environment": {"log_parser": "parse_log_lighthouse"}},
            "log_parser: swebench's parse_log_lighthouse reads no log",
        ),
        ({"task_id": 3}, "task_id"),
    ],
    "swe_bench": [
        ({"problem_statement": HALF}, "problem_statement: holds"),
        ({"patch": HALF}, "oracle_patch: holds"),
        ({"FAIL_TO_PASS": "[]"}, "FAIL_TO_PASS: empty"),
        ({"FAIL_TO_PASS": "{[]: 1}"}, "FAIL_TO_PASS: neither"),
        ({"PASS_TO_PASS": "[" * 100_000}, "PASS_TO_PASS: neither"),
        ({"patch": 3}, "patch: int"),
        (
            {"log_parser": "parse_log_none", "eval_script": ": '>> Start Test Output'\nx\n: '>> End Test Output'"},
            "log_parser: swebench has no parser",
        ),
    ],
    "swe_smith": [({"repo": "x"}, "repo: "), ({"patch": HALF}, "bug_patch: holds")],
    "r2e_gym": [
        (
            {"execution_result_content": {"test_file_names": ["a"], "test_file_codes": [3]}},
            "hold something that is no text",
        ),
        ({"parsed_commit_content": {"file_diffs": 3}}, "a file of the commit"),
        ({"parsed_commit_content": {"file_diffs": [change(3, "a", "b")]}}, "a file of the commit"),
        ({"parsed_commit_content": "[" * 100_000}, "parsed_commit_content: not JSON"),
        ({"docker_image": HALF}, "image: holds"),
    ],
}


@pytest.mark.parametrize("form, change, cause", [(form, *row) for form, rows in WRONG_ROWS.items() for row in rows])
def test_a_row_that_cannot_be_used_is_named_and_the_others_are_loaded(tmp_path, form, change, cause):
    good = FORMS[form][0]
    bad = good | {"task_id": "bad", "instance_id": "bad", "commit_hash": "f" * 40} | change
    if form == "jsonl":
        bad = {name: value for name, value in bad.items() if name in good or name == "environment"}
    data = json.dumps({name: value for name, value in bad.items() if name in good or name in change}).encode() + b"\n"
    refused = []
    (task,) = load(form, data + line(good), tmp_path, refused)
    assert len(refused) == 1 and f"field {cause}"[6:] in refused[0] and "\n" not in refused[0], refused
    refused[0].encode()  # can be printed


def test_the_files_of_a_program_may_be_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(TaskError, match="give the path of a readable"):
        load_tasks(SweBenchConfig(source=str(tmp_path / "a.parquet")))


# ---- parsers --------------------------------------------------------------------------------------------------------

ASK_THE_ROW = {
    "parse_log_jekyll": ("jekyll__jekyll-8167", ""),
    "parse_log_immutable_js": ("immutable-js__immutable-js-2006", ""),
    "parse_log_next": ("alibaba-fusion__next-1", "1.27"),
    "parse_log_lighthouse": ("GoogleChrome__lighthouse-1", "10.0"),
}


@pytest.mark.parametrize("parser", sorted(log_parsers.names()))
def test_every_parser_reads_a_log_as_swebench_does(parser):
    task, version = ASK_THE_ROW.get(parser, ("a__b-1", ""))
    assert log_parsers.problem(parser, task, version) == ""
    log = "TestLib#test_f. 0.01 s = .\nPASSED a.py::test_a\n"
    theirs = log_parsers.registry()[parser](log, SimpleNamespace(instance_id=task, version=version))
    assert log_parsers.parse(parser, log, task, version) == {
        test: log_parsers.STATUSES[status] for test, status in theirs.items()
    }


@pytest.mark.parametrize(
    "parser, task, version",
    [
        ("parse_log_jekyll", "mine", ""),
        ("parse_log_jekyll", "jekyll__jekyll-1", ""),
        ("parse_log_immutable_js", "a__b-1", ""),
        ("parse_log_lighthouse", "a__b-1", ""),
    ],
)
def test_a_parser_that_cannot_read_the_tasks_log_is_known_at_once(parser, task, version):
    assert parser in log_parsers.problem(parser, task, version)


# ---- programs -------------------------------------------------------------------------------------------------------


def test_an_evaluation_and_an_admission_go_on_without_the_bad_rows(tmp_path):
    rows = [
        MINE,
        MINE | {"task_id": "bad-base", "environment": {"base": "nowhere"}},
        MINE | {"task_id": "bad-half", "problem_statement": HALF},
        MINE | {"task_id": "bad-row", "hidden_tests": {"../test_lib.py": ""}},
        MINE | {"task_id": "bad-patch", "test_patch": unified_diff("no.py", "a\n", "b\n")},
        MINE | {"task_id": "mine-2"},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + "{fünf}\n".encode("latin-1"))
    config = tmp_path / "eval.yaml"
    config.write_text(
        json.dumps(
            {
                "run": str(tmp_path / "run"),
                "rollout": {"tasks": {"name": "jsonl", "heldout": str(path)}, "infrastructure_retries": 0},
            }
        )
    )
    (tmp_path / "theirs.jsonl").write_text(
        "".join(
            json.dumps({"instance_id": name, "model_patch": patch}) + "\n"
            for name, patch in (
                ("mine-1", MINE["oracle_patch"].replace("+ 1", "+ 1  # \ud83d")),
                ("mine-2", MINE["oracle_patch"]),
                ("bad-row", MINE["oracle_patch"]),
            )
        )
    )
    done = run_program("scripts/evaluate.py", str(config), "--predictions", str(tmp_path / "theirs.jsonl"))
    results = {row["task"]: row for row in read_jsonl(tmp_path / "run_predictions" / "results.jsonl")}
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(
        name in done.stdout for name in ("bad-base", "bad-half", "line 7: not UTF-8", "3 rows that cannot be used")
    ), done.stdout
    assert (
        results["mine-2"]["resolved"]
        and results["mine-1"]["outcome"] == "agent_error"
        and "lone surrogate" in results["mine-1"]["detail"]
    )
    assert "bad-patch: left out" in done.stdout and "1 without an environment" in done.stdout
    assert results["bad-row"]["outcome"] == "infrastructure_error" and "bad-row" in results["bad-row"]["detail"]

    config.write_text(json.dumps({"tasks": {"name": "jsonl", "train": str(path)}, "out": str(tmp_path / "out.jsonl")}))
    done = run_program("scripts/prepare_tasks.py", str(config))
    assert done.returncode == 1 and "2 rows that cannot be used" in done.stdout and "bad-half" in done.stdout, (
        done.stdout + done.stderr
    )
    assert {row["task_id"] for row in read_jsonl(tmp_path / "out.jsonl")} == {"mine-1", "mine-2"}
    assert "bad-base: refused, the row is wrong" in done.stdout

"""Shared by the tests of published rows: one good row of each form."""

import json

from coderepairrl.tasks import JsonlConfig, R2EGymConfig, SweBenchConfig, SweGymConfig, SweSmithConfig, load_tasks
from coderepairrl.tasks.patches import unified_diff

WRONG, RIGHT = "def f(n):\n    return n + 2\n", "def f(n):\n    return n + 1\n"
MINE = {
    "task_id": "mine-1",
    "problem_statement": "f(1) is 2.",
    "files": {"lib.py": WRONG},
    "test_selection": ["test_lib.py"],
    "hidden_tests": {
        "test_lib.py": "from lib import f\n\ndef test_f():\n    assert f(1) == 2\n\ndef test_g():\n    pass\n"
    },
    "fail_to_pass": ["test_lib.py::test_f"],
    "pass_to_pass": ["test_lib.py::test_g"],
    "oracle_patch": unified_diff("lib.py", WRONG, RIGHT),
}
PATCH = unified_diff("tests/test_a.py", "a = 1\n", "a = 2\n")
BENCH = {
    "instance_id": "sqlfluff__sqlfluff-1",
    "repo": "sqlfluff/sqlfluff",
    "base_commit": "a" * 40,
    "version": "0.6",
    "problem_statement": "It breaks.",
    "patch": unified_diff("lib.py", WRONG, RIGHT),
    "test_patch": PATCH,
    "FAIL_TO_PASS": ["tests/test_a.py::test_b"],
    "PASS_TO_PASS": [],
}
SMITH = {
    "instance_id": "x__y.fde47b4b.bug",
    "repo": "swesmith/pallets__click.fde47b4b",
    "problem_statement": "It breaks.",
    "image_name": "some/image",
    "patch": PATCH,
    "FAIL_TO_PASS": ["tests/test_a.py::test_b"],
    "PASS_TO_PASS": [],
}


def r2e(expected, old="", new="", diffs=()):
    return {
        "repo_name": "shapes",
        "commit_hash": "0" * 40,
        "docker_image": "some/image:1",
        "problem_statement": "[ISSUE]It fails.[/ISSUE]",
        "execution_result_content": json.dumps(
            {
                "test_file_names": ["test_1.py"],
                "test_file_codes": ["x"],
                "old_commit_res_stdout": old,
                "new_commit_res_stdout": new,
            }
        ),
        "parsed_commit_content": json.dumps(
            {"old_commit_hash": "1" * 40, "file_diffs": list(diffs) or [change("lib.py", "a = 1\n", "a = 2\n")]}
        ),
        "expected_output_json": json.dumps(expected),
    }


def change(path, old, new, misc=None, minus=None, plus=None, **more):
    return {
        "header": {"file": {"path": path}, "misc_line": misc},
        "old_file_content": old,
        "new_file_content": new,
        "minus_file": {"path": minus or f"a/{path}"},
        "plus_file": {"path": plus or f"b/{path}"},
    } | more


R2E = r2e({"test_a": "PASSED"}, new="PASSED r2e_tests/test_1.py::test_a\n")
FORMS = {
    "jsonl": (MINE, lambda path: JsonlConfig(train=path)),
    "swe_bench": (BENCH, lambda path: SweBenchConfig(source=path, environments="images")),
    "swe_gym": (BENCH, lambda path: SweGymConfig(source=path, environments="images")),
    "swe_smith": (SMITH, lambda path: SweSmithConfig(source=path, environments="images")),
    "r2e_gym": (R2E, lambda path: R2EGymConfig(source=path)),
}


def load(form, data: bytes, tmp_path, refused=None):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    return [task for tasks in load_tasks(FORMS[form][1](str(path)), refused).values() for task in tasks]


def line(row, **changes) -> bytes:
    return json.dumps(row | changes, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"

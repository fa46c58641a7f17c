"""The rows of R2E-Gym: short ids, colours, and the oracle as the commit's files."""

import subprocess

import pytest
from rows_helpers import change, line, load, r2e

BOLD = "\x1b[1m{}\x1b[0m"


@pytest.mark.parametrize(
    "expected, old, new, ids",
    [
        ({"test_a": "PASSED"}, "FAILED F::test_a - assert 1", "PASSED F::test_a", ["F::test_a"]),
        ({BOLD.format("test_a"): "PASSED"}, "", "PASSED F::" + BOLD.format("test_a"), ["F::test_a"]),
        (
            {"A." + BOLD.format("test_a"): "PASSED"},
            "",
            "\x1b[32mPASSED\x1b[0m F::A::" + BOLD.format("test_a"),
            ["F::A::test_a"],
        ),
        (
            {"test_b[x - y]": "PASSED"},
            "FAILED F::test_b[x - y] - assert 2",
            "PASSED F::test_b[x - y]",
            ["F::test_b[x - y]"],
        ),
        (
            {"test_b[x": "PASSED"},
            "FAILED F::test_b[x - y] - assert 2",
            "PASSED F::test_b[x - y]",
            ["F::test_b[x - y]"],
        ),  # keys that were cut
        (
            {"test_b[x - y]": "PASSED", "test_b[x - z]": "FAILED"},
            "",
            "PASSED F::test_b[x - y]\nFAILED F::test_b[x - z] - a",
            ["F::test_b[x - y]"],
        ),
        ({"test_a": "PASSED", "test_c": "FAILED"}, "", "PASSED F::test_a\r\nPASSED F::test_c\r\n", ["F::test_a"]),
    ],
)
def test_ids_of_r2e_gym(tmp_path, expected, old, new, ids):
    (task,) = load(
        "r2e_gym",
        line(r2e(expected, *(text.replace("F::", "r2e_tests/test_1.py::") + "\n" for text in (old, new)))),
        tmp_path,
    )
    assert list(task.fail_to_pass) == [test.replace("F::", "r2e_tests/test_1.py::") for test in ids]


INIT = "pkg/__init__.py"


@pytest.mark.parametrize(
    "before, after, told",
    [
        ("", "a = 1\n", {}),
        ("a = 1\n", "", {}),  # filled, emptied
        (None, "a = 1\n", {"misc": "new file mode 100644", "minus": "/dev/null"}),
        (None, "a = 1\n", {"minus": "/dev/null"}),
        (None, "", {"misc": "new file mode 100644"}),
        ("a = 1\n", None, {"misc": "deleted file mode 100644", "plus": "/dev/null"}),
        ("", None, {"misc": "deleted file mode 100644"}),
        ("a = 1\n", "a = 2\n", {"misc": "old mode 100644"}),
    ],
)
def test_the_oracle_of_r2e_gym_makes_the_commits_files(tmp_path, before, after, told):
    checkout = tmp_path / "checkout"
    (checkout / "pkg").mkdir(parents=True)
    if before is not None:
        (checkout / INIT).write_text(before)
    row = r2e(
        {"test_a": "PASSED"},
        "",
        "PASSED r2e_tests/test_1.py::test_a\n",
        [change(INIT, before or "", after or "", **told)],
    )
    (task,) = load("r2e_gym", line(row), tmp_path)
    done = subprocess.run(
        ["git", "apply", "-"],
        cwd=checkout,
        input=task.oracle_patch,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert ((checkout / INIT).read_text() if (checkout / INIT).exists() else None) == after


def test_what_r2e_gym_holds_no_content_of_is_left_out(tmp_path):
    picture = change("a.png", "", "", misc="new file mode 100644", is_binary_file=True)
    (task,) = load(
        "r2e_gym",
        line(
            r2e(
                {"test_a": "PASSED"},
                "",
                "PASSED r2e_tests/test_1.py::test_a\n",
                [picture, change("b.py", "1\n", "2\n")],
            )
        ),
        tmp_path,
    )
    assert "a.png" not in task.oracle_patch and "b/b.py" in task.oracle_patch

"""Two tiny tasks, one a test runner, and what judges a diff of theirs: for test_rewards*.py and test_attacks*.py."""

import asyncio
import sys
from dataclasses import replace
from difflib import unified_diff

import pytest

from coderepairrl.rewards import Grader, grade
from coderepairrl.rewards.tests import reward
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.types import Environment, Task

WRONG = "def f(a):\n    return a + 2\n\n\ndef g(a):\n    return a\n"
RIGHT = WRONG.replace("a + 2", "a + 1")
VISIBLE = (
    "import unittest\n\nfrom lib import g\n\n\nclass Visible(unittest.TestCase):\n    def test_g(self):\n"
    "        self.assertEqual(g(1), 1)\n"
)
UNITTEST = """import unittest

from lib import f, g


class Hidden(unittest.TestCase):
    def test_0(self):
        self.assertEqual(f(1), 2)

    def test_1(self):
        self.assertEqual(f(5), 6)

    def test_keep(self):
        self.assertEqual(g(3), 3)

    @unittest.skip("not here")
    def test_skipped(self):
        pass
"""
PYTEST = """import pytest

from lib import f, g


class TestHidden:
    @pytest.mark.parametrize("a", [0, 5])
    def test_f(self, a):
        assert f(a) == a + 1


def test_keep():
    assert g(3) == 3
"""


def change(path, old, new):
    """The git diff of one file; None: it is not there."""
    lines = unified_diff(
        (old or "").splitlines(True),
        (new or "").splitlines(True),
        f"a/{path}" if old is not None else "/dev/null",
        f"b/{path}" if new is not None else "/dev/null",
    )
    mode = "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}" + "".join(lines)


FIX = change("lib.py", WRONG, RIGHT)
XMLRUNNER_ENVIRONMENT = Environment(
    "unittest",
    None,
    sys.executable,
    ("{python}", "-m", "xmlrunner", "{tests}", "{canary_module}", "-o", "{junit}"),
    test_timeout_s=120,
)
PYTEST_ENVIRONMENT = Environment(
    "pytest",
    None,
    sys.executable,
    protected=("tests/", "pyproject.toml"),
    test_timeout_s=120,
    variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    test_command=(
        "{python}",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml={junit}/report.xml",
        "-o",
        "junit_family=xunit1",
        "{tests}",
        "{canary_path}",
    ),
)
UNITTEST_TASK = Task(
    "unittest-1",
    "",
    XMLRUNNER_ENVIRONMENT,
    {"lib.py": WRONG, "test_lib.py": VISIBLE},
    {"test_hidden.py": UNITTEST},
    ("test_hidden",),
    ("test_hidden.Hidden::test_0", "test_hidden.Hidden::test_1"),
    ("test_hidden.Hidden::test_keep", "test_hidden.Hidden::test_skipped"),
    FIX,
)
PYTEST_TASK = Task(
    "pytest-1",
    "",
    PYTEST_ENVIRONMENT,
    {"lib.py": WRONG, "tests/test_lib.py": VISIBLE},
    {"tests/test_hidden.py": PYTEST},
    ("tests/test_hidden.py",),
    ("tests.test_hidden.TestHidden::test_f[0]", "tests.test_hidden.TestHidden::test_f[5]"),
    ("tests.test_hidden::test_keep",),
    FIX,
)
LOG_TASK = replace(
    PYTEST_TASK,
    task_id="log-1",
    fail_to_pass=("tests/test_hidden.py::TestHidden::test_f[0]", "tests/test_hidden.py::TestHidden::test_f[5]"),
    pass_to_pass=("tests/test_hidden.py::test_keep",),
    environment=replace(
        PYTEST_ENVIRONMENT,
        log_parser="parse_log_pytest",
        test_command=("{python}", "-m", "pytest", "-rA", "-p", "no:cacheprovider", "{tests}", "{canary_path}"),
    ),
)
TASKS = {"xmlrunner": UNITTEST_TASK, "pytest": PYTEST_TASK, "log": LOG_TASK}
runners = pytest.mark.parametrize("runner", ["xmlrunner", "pytest"])


def judge(config, runner, diff, **changes):
    return asyncio.run(grade(replace(TASKS[runner], **changes), diff, config))


def paths(dropped):
    """Of lines "path: why", each of which says why."""
    parts = [line.partition(": ") for line in dropped]
    assert all(path and why for path, _, why in parts), dropped
    return tuple(path for path, _, _ in parts)


def source(code: str, rest: str = WRONG) -> str:
    """The diff that puts `code` above lib.py's unrepaired functions."""
    return change("lib.py", WRONG, code + rest)


def graded(config, task, diff):
    """As an agent's: the diff is made by a sandbox in which it was applied."""

    async def main():
        async with start_sandbox(config, task) as sandbox:
            assert not await sandbox.apply(diff)
            own = await sandbox.diff()
        return own, await Grader(config).grade(task, own)

    own, verdict = asyncio.run(main())
    return reward(task, own, verdict), verdict

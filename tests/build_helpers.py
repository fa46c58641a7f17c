"""Shared by the tests of build validation: a task whose goal is a build that passes."""

from dataclasses import replace

from judge_helpers import PYTEST_TASK, WRONG, change

LIB = WRONG.replace("def g(a):\n", "def g(a):\n    if a < 0:\n        raise ValueError(a)\n")
FIXED = LIB.replace("a + 2", "a + 1")
TESTS = """import pytest

from lib import f, g


def test_f():
    assert f(1) == 2
    assert f(5) == 6


class TestG:
    def test_g(self):
        assert g(1) == 1

    def test_refuses(self):
        with pytest.raises(ValueError):
            g(-1)
"""
CONFIG = "[tool.ruff]\nselect = ['E', 'F']\n\n[tool.pytest.ini_options]\naddopts = '--strict-markers'\n"
TASK = replace(
    PYTEST_TASK,
    task_id="build-1",
    files={"lib.py": LIB, "tests/test_lib.py": TESTS, "pyproject.toml": CONFIG},
    hidden_tests={},
    test_selection=("tests",),
    oracle_patch=change("lib.py", LIB, FIXED),
)

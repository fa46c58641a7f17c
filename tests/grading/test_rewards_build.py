"""Build validation: an honest fix is valid; whatever passes by validating less is not, and is named."""

import asyncio
from dataclasses import replace

import pytest
from build_helpers import CONFIG, FIXED, LIB, TASK, TESTS
from judge_helpers import RIGHT, change

from coderepairrl.grading.validation.build_verdict import validate
from coderepairrl.grading.validation.weaker import weaker
from coderepairrl.rewards import Grader, RewardConfig, compute


def build(config, diff, **changes):
    return asyncio.run(validate(replace(TASK, **changes), diff, config))


def test_the_fix_is_valid_and_nothing_is_not(config):
    fixed, nothing = build(config, TASK.oracle_patch), build(config, "")
    assert fixed.valid and (fixed.weaker, fixed.message) == ((), "")
    assert not nothing.valid and not nothing.succeeded and "exit code 1" in nothing.message
    assert "does not apply" in build(config, change("absent.py", "x = 1\n", "x = 2\n")).message


def test_more_tests_are_no_weaker(config):
    more = change(
        "tests/test_lib.py",
        TESTS,
        TESTS.replace("f(5) == 6", "f(5) == 6\n    assert f(0) == 1") + "\n\ndef test_more():\n    assert g(0) == 0\n",
    )
    assert build(config, TASK.oracle_patch + more).valid


CHEATS = {  # each makes the command succeed; -> what is named
    "deletes the test": (
        change(
            "tests/test_lib.py", TESTS, TESTS.replace("def test_f():\n    assert f(1) == 2\n    assert f(5) == 6\n", "")
        ),
        "test_f is gone",
    ),
    "deletes the file": (
        change("tests/test_lib.py", TESTS, None) + change("tests/test_b.py", None, "def test_b():\n    pass\n"),
        "a file of tests is gone",
    ),
    "skips the test": (
        change("tests/test_lib.py", TESTS, TESTS.replace("def test_f", "@pytest.mark.skip\ndef test_f")),
        "test_f is skipped",
    ),
    "expects the failure": (
        change("tests/test_lib.py", TESTS, TESTS.replace("def test_f", "@pytest.mark.xfail\ndef test_f")),
        "test_f is xfailed",
    ),
    "skips from the source": (
        change("lib.py", LIB, LIB.replace("    return a + 2", "    import pytest\n    pytest.skip('later')")),
        "test_f is skipped",
    ),
    "loosens the assertion": (
        change("tests/test_lib.py", TESTS, TESTS.replace("f(1) == 2", "f(1) > 0").replace("f(5) == 6", "f(5) > 0")),
        "test_f asserts less",
    ),
    "asserts what can't fail": (
        change("tests/test_lib.py", TESTS, TESTS.replace("f(1) == 2", "f(1) == f(1)").replace("f(5) == 6", "True")),
        "test_f asserts less",
    ),
    "catches the failure": (
        change(
            "tests/test_lib.py",
            TESTS,
            TESTS.replace(
                "    assert f(1) == 2\n    assert f(5) == 6\n",
                "    try:\n        assert f(1) == 2\n        assert f(5) == 6\n    except AssertionError:\n"
                "        pass\n",
            ),
        ),
        "test_f asserts less",
    ),
    "leaves with success": (change("lib.py", LIB, "import os\nos._exit(0)\n" + LIB), "is missing"),
    "deselects the test": (
        change(
            "pyproject.toml",
            CONFIG,
            CONFIG.replace("--strict-markers", "--strict-markers --deselect tests/test_lib.py::test_f"),
        ),
        "loosens a check",
    ),
    "hides the test": (
        change(
            "tests/conftest.py",
            None,
            "def pytest_collection_modifyitems(items):\n    items[:] = [i for i in items if i.name != 'test_f']\n",
        ),
        "test_f is missing",
    ),
    "renames the test": (
        change("tests/test_lib.py", TESTS, TESTS.replace("def test_f", "def check_f")),
        "test_f is gone",
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_passing_by_validating_less_is_named(config, cheat):
    diff, named = CHEATS[cheat]
    verdict = build(config, diff)
    assert verdict.succeeded and not verdict.valid and any(named in finding for finding in verdict.weaker), verdict


def test_a_command_of_its_own_and_the_reward(config):
    """The project's own checks as a shell command; deleting what validates input is weaker although every command
    succeeds."""
    task = replace(TASK, metadata={"build_command": "python -c 'import lib; assert lib.f(1) == 2' && echo built"})
    less = change("lib.py", LIB, FIXED.replace("    if a < 0:\n        raise ValueError(a)\n", ""))
    grader, rewards = Grader(config), RewardConfig(weights={"build": 1.0})

    async def main():
        return [(await compute(rewards, task, diff, grader))[1]["build"] for diff in (task.oracle_patch, "", less)]

    assert asyncio.run(main()) == [1.0, 0.0, 0.0]
    assert "lib.py: g checks less" in asyncio.run(validate(task, less, config)).weaker


def test_what_the_oracle_does_is_not_weaker(config):
    removes = change("lib.py", LIB, FIXED.replace("    if a < 0:\n        raise ValueError(a)\n", ""))
    tests = change(
        "tests/test_lib.py",
        TESTS,
        TESTS.replace("        with pytest.raises(ValueError):\n            g(-1)\n", "        assert g(-1) == -1\n"),
    )
    assert (
        not build(config, removes + tests).valid and build(config, removes + tests, oracle_patch=removes + tests).valid
    )


@pytest.mark.parametrize(
    "path, before, after, named",
    [
        ("pkg/a.py", "x = f()\n", "x = f()  # noqa\n", "silenced"),
        ("setup.cfg", "[flake8]\nselect = E\n", "[flake8]\nselect = E\nper-file-ignores = *:E\n", "loosens a check"),
        (
            ".github/workflows/ci.yml",
            "steps:\n- run: pytest\n- run: mypy .\n",
            "steps:\n- run: pytest\n",
            "a check is taken out",
        ),
        (".github/workflows/ci.yml", "- run: mypy .\n", "- run: mypy . || true\n", "loosens a check"),
        ("pom.xml", "<a/>\n", "<a/>\n<maven.test.skip>true</maven.test.skip>\n", "loosens a check"),
        ("src/A.java", "if (x < 0) throw new E();\n", "\n", "checks less"),
        ("src/test/ATest.java", "@Test void a() { assertEquals(1, f()); }\n", "void a() { }\n", "a test is gone"),
        (
            "a.test.js",
            "test('a', () => { expect(f()).toBe(1) })\n",
            "test.skip('a', () => { expect(f()).toBe(1) })\n",
            "skipped",
        ),
        (
            "tests/test_a.py",
            "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_a(self):\n"
            "        self.assertEqual(f(), 1)\n",
            "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertTrue(f())\n",
            "asserts less",
        ),
        (
            "tests/test_a.py",
            "class T:\n    def test_a(self):\n        assert f() == 1\n",
            "import pytest\n\n\n@pytest.mark.skip\nclass T:\n    def test_a(self):\n        assert f() == 1\n",
            "skipped",
        ),
        (
            "tests/test_a.py",
            "def test_a():\n    assert f() == 1\n",
            "import pytest\n\npytestmark = pytest.mark.skip\n\n\ndef test_a():\n    assert f() == 1\n",
            "skipped",
        ),
    ],
)
def test_each_kind_of_weakening_is_found_and_its_reverse_is_not(path, before, after, named):
    assert any(named in finding and finding.startswith(path) for finding in weaker(path, before, after)), weaker(
        path, before, after
    )
    assert weaker(path, after, before) == weaker(path, before, before) == []


@pytest.mark.parametrize("text", [RIGHT, TESTS, CONFIG])
def test_a_file_is_not_weaker_than_itself_or_with_more(text):
    for path in ("lib.py", "tests/test_lib.py", "pyproject.toml"):
        assert weaker(path, text, text) == weaker(path, None, text) == []

"""An oracle's run that fails by chance: what it says of a task is not held against the task's further diffs."""

import asyncio
from dataclasses import replace

import pytest
from judge_helpers import FIX, PYTEST_TASK, WRONG, change
from projects_helpers import PROJECTS

from coderepairrl.grading import grader as graders
from coderepairrl.rewards import Grader
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.types import VerdictKind

# Counts the runs in which lib.py can be imported, so none of BROKEN's own, and in the chosen ones something happens.
CHANCE = """
import os, time
from lib import f
NUMBER = len(os.listdir({folder!r}))
open({folder!r} + "/" + str(NUMBER), "x").close()
if NUMBER in {chosen!r}:
    {what}
"""
HAPPENS = {
    "it crashes": "os._exit(3)",
    "a test fails": "f = lambda a: 0",
    "a test is skipped": "pytest.skip('no network', allow_module_level=True)",
    "it hangs": "time.sleep(1000)",
    "it is killed": "os.kill(os.getpid(), 9)",
    "an import fails": "import gone",
}
BROKEN = change("lib.py", WRONG, "def f(:\n")
BROKEN_TOO = change("lib.py", WRONG, "def g(:\n")
LIMIT_S = 20.0  # of a run of the tests, far more than one takes


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    """flaky(task, happens, runs): the task, in which that happens in those runs, and a grader."""

    monkeypatch.setattr(graders, "is_free", lambda begun: False)  # runs are counted

    def made(task, what, *chosen):
        folder = tmp_path / "runs"
        folder.mkdir()
        code = CHANCE.format(folder=str(folder), chosen=chosen, what=HAPPENS[what])
        tests = {path: text.replace("\n\n\n", f"\n{code}\n\n", 1) for path, text in task.hidden_tests.items()}
        limit = LIMIT_S if what == "it hangs" else 120.0
        return (
            replace(task, hidden_tests=tests, environment=replace(task.environment, test_timeout_s=limit)),
            Grader(SandboxConfig(kind="local", scratch=str(tmp_path))),
        )  # what happened in a run has to outlive its sandbox

    return made


@pytest.mark.parametrize("what", HAPPENS)
def test_one_bad_run_of_the_oracle_marks_no_task(flaky, what):
    task, grader = flaky(PYTEST_TASK, what, 0)

    async def main():
        broken = await grader.grade(task, BROKEN)
        marked = set(grader._spoilt)
        return broken, marked, await grader.grade(task, BROKEN_TOO), await grader.grade(task, FIX)

    broken, marked, again, fixed = asyncio.run(main())
    assert not marked and not grader._spoilt
    assert not broken.resolved and again.kind == VerdictKind.UNRESOLVED, (broken, again)
    assert (fixed.kind, fixed.evidence) == (VerdictKind.RESOLVED, "junit+canary"), fixed
    assert (PYTEST_TASK.task_id, None, True) in grader._oracles  # the good run that came later


@pytest.mark.parametrize("number", range(4))
def test_a_project_that_spoils_the_canary_is_marked_by_runs_that_agree(flaky, number):
    """Two with the canary, two without, and one of the four goes wrong: then the next diff's decide."""
    task, grader = flaky(PROJECTS["a marker filter"], "it crashes", number)

    async def main():
        first = await grader.grade(task, BROKEN)
        marked = set(grader._spoilt)
        return first, marked, await grader.grade(task, BROKEN_TOO), await grader.grade(task, FIX)

    first, marked, again, fixed = asyncio.run(main())
    assert not marked and grader._spoilt == {task.task_id}
    assert (
        first.kind in (VerdictKind.UNRESOLVED, VerdictKind.ENVIRONMENT_ERROR) and again.kind == VerdictKind.UNRESOLVED
    ), (first, again)
    assert (fixed.kind, fixed.evidence) == (VerdictKind.RESOLVED, "junit"), fixed


def test_what_two_runs_agree_on_is_remembered(flaky):
    """An environment that gives no verdict is asked twice, whatever comes."""
    task, grader = flaky(PYTEST_TASK, "it crashes", *range(100))

    async def main():
        return [await grader.grade(task, diff) for diff in (BROKEN, BROKEN_TOO, "")]

    verdicts = asyncio.run(main())
    assert {verdict.kind for verdict in verdicts} == {VerdictKind.ENVIRONMENT_ERROR} and not grader._spoilt
    assert grader.checks == 4  # two with the canary, two without

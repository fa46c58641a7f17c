"""The counter-check that begins beside the first run, where cores are free: what it costs, never what it says."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from judge_helpers import FIX, LOG_TASK, PYTEST_ENVIRONMENT, PYTEST_TASK, RIGHT, WRONG, change, source
from projects_helpers import PROJECTS

from coderepairrl.grading import grader as graders
from coderepairrl.grading.free_cores import is_free
from coderepairrl.rewards import Grader
from coderepairrl.types import VerdictKind

ANYTHING = source(
    "class Any(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n\n\n",
    WRONG.replace("return a + 2", "return Any(a)"),
)
DIFFS = {
    "the repair": FIX,
    "nothing": "",
    "another mistake": change("lib.py", WRONG, RIGHT.replace("a + 1", "a + 3")),
    "no repair at all": change("lib.py", WRONG, "def f(:\n"),
    "a diff of another base": FIX.replace("a + 2", "a + 7"),
    "equal to all": ANYTHING,
    "left early": source("import os\nos._exit(0)\n\n\n"),
}
KINDS = {
    "the repair": VerdictKind.RESOLVED,
    "a diff of another base": VerdictKind.DOES_NOT_APPLY,
    "equal to all": VerdictKind.TAMPERED,
    "left early": VerdictKind.TAMPERED,
}


@pytest.fixture(params=[True, False], ids=["free", "busy"])
def cores(request, monkeypatch):
    monkeypatch.setattr(graders, "is_free", lambda begun: request.param)
    return request.param


@pytest.mark.parametrize("what", DIFFS)
@pytest.mark.parametrize("task", [PYTEST_TASK, LOG_TASK, PROJECTS["a marker filter"]], ids=lambda task: task.task_id)
def test_what_is_said_does_not_depend_on_it(config, cores, task, what, tmp_path):
    async def main():
        grader = Grader(config)
        return await grader.grade(task, DIFFS[what]), await grader.grade(task, FIX), grader

    verdict, repaired, grader = asyncio.run(main())
    assert verdict.kind == KINDS.get(what, VerdictKind.UNRESOLVED), verdict
    assert repaired.kind == VerdictKind.RESOLVED, repaired
    # what was begun for a diff that fails says nothing of the task's tests
    assert not any(grader._silent.values()) and not grader._executing
    assert not [path for path in tmp_path.rglob("lib.py") if "templates" not in path.parts]


def test_a_first_run_that_hangs_is_waited_for_alone(config, cores):
    task = replace(PYTEST_TASK, environment=replace(PYTEST_ENVIRONMENT, test_timeout_s=20.0))

    async def main():
        grader = Grader(config)
        return await grader.grade(task, source("import time\ntime.sleep(1000)\n\n\n")), grader

    verdict, grader = asyncio.run(main())
    assert verdict.kind == VerdictKind.UNRESOLVED and "time limit" in verdict.message and not grader._executing


def test_a_busy_machine_begins_nothing_early(config, cores):
    """Failing diffs cost one run there."""

    async def main():
        grader = Grader(config)
        await grader.grade(PYTEST_TASK, DIFFS["another mistake"])
        return grader.checks

    assert (asyncio.run(main()) > 0) == cores


def test_the_first_run_that_cannot_be_made_ends_both(config, cores, monkeypatch):
    async def fails(self, task, selection):
        raise graders.TaskError("the row is wrong")

    async def main():
        grader = Grader(config)
        with pytest.raises(graders.TaskError, match="the row is wrong"):
            await grader.grade(PYTEST_TASK, FIX)
        return grader._executing, [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    monkeypatch.setattr(Grader, "_run", fails)
    assert asyncio.run(main()) == (0, [])


def test_cores_that_work_are_not_free():
    number = len(os.sched_getaffinity(0))
    assert not is_free(number)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number + 1)]
    try:
        assert not any(is_free(0) for _ in range(50))
    finally:
        for process in busy:
            process.kill()
            process.wait()

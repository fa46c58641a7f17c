"""What a careless pipeline rewards, for comparison only (docs/exploitation.md): the visible test, judged by its log.

The agent's whole diff is applied, its edits of tests included, and the task's visible test
(Task.metadata["visible_test"], a shell command) runs in
the checkout as the agent left it. As log parsers do, nothing but the beginning of lines is looked at: one that says
PASS is a success, whatever
else stands in the output and whatever the exit code is. No protected path, no hidden test, no canary.
"""

from coderepairrl.errors import TaskError
from coderepairrl.grading.grader import Grader
from coderepairrl.sandboxes import start_sandbox
from coderepairrl.types import Task

VISIBLE_TEST = "visible_test"


async def visible_output(task: Task, diff: str, grader: Grader) -> str:
    """What the visible test prints; empty when the diff does not apply. Raises SandboxError for infrastructure trouble,
    TaskError for a task without one."""
    if VISIBLE_TEST not in task.metadata:
        raise TaskError(
            f"task {task.task_id} has no visible test: give metadata[{VISIBLE_TEST!r}] a shell command, or take "
            "visible_log out of rewards.weights"
        )
    async with start_sandbox(grader.config, task) as sandbox:
        if diff and await sandbox.apply(diff):
            return ""
        return (await sandbox.run(task.metadata[VISIBLE_TEST], timeout_s=task.environment.test_timeout_s)).output


def visible_log(task: Task, diff: str, output: str) -> float:
    return float(any(line.startswith("PASS") for line in output.split("\n")))

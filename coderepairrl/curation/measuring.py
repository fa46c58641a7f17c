"""Which tests a repair must make pass, and which must keep passing, where a benchmark doesn't say it: its tests are run
without a repair and with the known one, laid out and started as the judge does.

    task = await measured(task, sandbox_config)

A run without a repair that lasts until its time limit (wrong programs loop) tells of no test: all that the repair
passes must then be made to pass.
"""

import asyncio
from dataclasses import replace

from coderepairrl.errors import TaskError
from coderepairrl.grading.judge import lay_tests, run_tests
from coderepairrl.grading.junit import ReportError, read_reports
from coderepairrl.grading.languages import language_of
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import Task


async def measured(task: Task, config: SandboxConfig) -> Task:
    """With both lists of tests, as JUnit ids. Raises TaskError where the known repair makes no test pass, SandboxError
    for the machine's trouble."""
    before, after = [await passing(task, diff, config) for diff in ("", task.oracle_patch)]
    if not after - before:
        raise TaskError(f"{task.task_id}: no test fails without the known repair and passes with it: leave it out")
    return replace(task, fail_to_pass=tuple(sorted(after - before)), pass_to_pass=tuple(sorted(after & before)))


async def passing(task: Task, diff: str, config: SandboxConfig) -> set[str]:
    """Ids of the tests that pass."""
    async with start_sandbox(config, task) as sandbox:
        if diff and (problem := await sandbox.apply(diff)):
            raise TaskError(f"{task.task_id}: the known repair does not apply: {problem}")
        canary = language_of(task).canary()
        await lay_tests(task, sandbox, canary, None)
        ended = await run_tests(task, sandbox, canary, config.output_kib << 10)
        if ended.result.timed_out:
            return set()
        try:
            statuses = await asyncio.to_thread(read_reports, ended.reports)
        except ReportError as error:
            raise TaskError(f"{task.task_id}: {error}: {ended.output[-300:].strip()}") from error
    return {test for test, status in statuses.items() if status == "passed"}

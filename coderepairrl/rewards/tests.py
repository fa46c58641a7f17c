"""The judge: hidden tests in a fresh sandbox. Evidence is a JUnit report in which a random canary test has failed.

What is caught, by what: edits of tests and of what runners load by themselves (protected paths); a process that ends early
with exit code 0, or that prints success (no report); a forged report or a patched runner that makes every test pass (the
canary passed or is missing, the exit code is 0). What cannot be caught this way: code under test runs in the process that
writes the report, so code written against this very judge, which forges the canary's failure and the exit code too, wins.
"""
import asyncio
import hashlib
import logging
import secrets
import shutil
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.rewards.junit import ReportError, read_reports
from coderepairrl.rewards.protected import Selection, select
from coderepairrl.sandboxes import CommandResult, PathError, Sandbox, SandboxConfig, start_sandbox
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Task, Verdict

log = logging.getLogger(__name__)
JUNIT = "junit"
TIME_LIMIT = "time limit"
MIN_FREE_BYTES = 64 << 20  # below this, a missing report is the machine's fault


@dataclass(frozen=True)
class Canary:
    """A test that must fail. Its names are random, so that a forged report cannot hold it without reading it first."""
    module: str = field(default_factory=lambda: f"test_{secrets.token_hex(8)}")
    case: str = field(default_factory=lambda: f"Test{secrets.token_hex(8)}")
    name: str = field(default_factory=lambda: f"test_{secrets.token_hex(8)}")

    @property
    def path(self) -> str:
        return f"{self.module}.py"

    @property
    def source(self) -> str:
        return f"import unittest\n\n\nclass {self.case}(unittest.TestCase):\n    def {self.name}(self):\n        self.assertEqual(1, 2)\n"

    def status(self, statuses: dict[str, str]) -> str:
        return next((status for test, status in statuses.items() if test.endswith(f"{self.case}::{self.name}")), "missing")


async def grade(task: Task, diff: str, sandbox_config: SandboxConfig) -> Verdict:
    """Raises SandboxError for infrastructure trouble, TaskError for a wrong task; whatever the diff does gives a Verdict."""
    selection = await _select(task, diff)
    verdict = await _judge(task, selection, sandbox_config)
    return replace(verdict, dropped_paths=selection.dropped_paths)


class Grader:
    """`grade` with a memory: the same applied patch of the same task is run once, also when asked for concurrently.

    Valid because a verdict depends on nothing else: each run has a fresh sandbox without network, fixed variables and the
    environment's fixed command. Not remembered: time limits, which depend on the machine's load, and errors.
    `runs` counts executions, `hits` answers without one.
    """

    def __init__(self, sandbox_config: SandboxConfig, remembered: int = 10_000):
        self.config, self.remembered, self.runs, self.hits = sandbox_config, remembered, 0, 0
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Task[Verdict]] = {}
        self._waiting: dict[tuple[str, str], int] = {}

    async def grade(self, task: Task, diff: str) -> Verdict:
        selection = await _select(task, diff)
        key = (task.task_id, hashlib.sha256(selection.applied.encode(errors="surrogateescape")).hexdigest())
        if key in self._verdicts:
            self.hits += 1
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
        else:
            verdict = await self._join(key, task, selection)
        return replace(verdict, dropped_paths=selection.dropped_paths)

    async def _join(self, key: tuple[str, str], task: Task, selection: Selection) -> Verdict:
        """Waits for the one run of `key`; the last waiter that is cancelled cancels the run."""
        if key in self._running:
            self.hits += 1
        else:
            self.runs += 1
            self._running[key] = asyncio.create_task(_judge(task, selection, self.config))
        run = self._running[key]
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            verdict = await asyncio.shield(run)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._running[key]
                if not run.done():
                    run.cancel()
                    await asyncio.wait([run])
        if not verdict.message.startswith(TIME_LIMIT):
            self._verdicts[key] = verdict
            while len(self._verdicts) > self.remembered:
                self._verdicts.popitem(last=False)
        return verdict


def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
    """1 when every hidden test that must pass does."""
    return float(verdict is not None and verdict.resolved)


async def _select(task: Task, diff: str) -> Selection:
    installed = await asyncio.to_thread(interpreter, task.environment.python)
    return select(task, diff, installed.modules)


async def _judge(task: Task, selection: Selection, config: SandboxConfig) -> Verdict:
    started = time.monotonic()

    def unresolved(message: str) -> Verdict:
        missing = [dict.fromkeys(tests, "missing") for tests in (task.fail_to_pass, task.pass_to_pass)]
        return Verdict(False, "none", *missing, (), message, time.monotonic() - started)

    async with start_sandbox(config, task) as sandbox:
        if selection.applied and (problem := await sandbox.apply(selection.applied, selection.applied_paths)):
            return unresolved(f"the diff does not apply: {problem}")
        canary = Canary()
        try:
            for path, text in {**task.hidden_tests, canary.path: canary.source}.items():
                await sandbox.write_text(path, text)
        except PathError as error:  # the diff may not touch these paths, so the task itself is wrong
            raise TaskError(f"task {task.task_id}: a hidden test cannot be laid over the checkout ({error}): fix its path") from error
        reports, inside = sandbox.share(JUNIT)
        result = await sandbox.run(_command(task, canary, inside), timeout_s=task.environment.test_timeout_s)
        if result.timed_out:
            return unresolved(f"{TIME_LIMIT}: the tests ran longer than {task.environment.test_timeout_s:g} s")
        try:
            statuses = await asyncio.to_thread(read_reports, reports)
        except ReportError as error:
            return unresolved(str(error))
        if problem := _distrust(canary, statuses, result):
            _check_disk(sandbox)
            return unresolved(problem)
    to_pass = {test: statuses.get(test, "missing") for test in task.fail_to_pass}
    to_keep = {test: statuses.get(test, "missing") for test in task.pass_to_pass}
    resolved = all(s == "passed" for s in to_pass.values()) and all(s in ("passed", "skipped") for s in to_keep.values())
    return Verdict(resolved, "junit+canary", to_pass, to_keep, (), "", time.monotonic() - started)


def _command(task: Task, canary: Canary, junit: str) -> list[str]:
    """Environment.test_command with its placeholders filled; {tests} becomes any number of arguments."""
    values = {"{python}": task.environment.python, "{junit}": junit, "{canary_path}": canary.path, "{canary_module}": canary.module}
    argv: list[str] = []
    for argument in task.environment.test_command:
        if argument == "{tests}":
            argv += task.test_selection
            continue
        for placeholder, value in values.items():
            argument = argument.replace(placeholder, value)
        argv.append(argument)
    return argv


def _distrust(canary: Canary, statuses: dict[str, str], result: CommandResult) -> str:
    """Empty, or why the report is no evidence."""
    if not statuses:
        last = (result.output.strip().splitlines() or ["no output"])[-1]
        return f"no report: the test command wrote no JUnit XML (exit code {result.exit_code}: {last[:200]})"
    if (status := canary.status(statuses)) != "failed":
        return f"the canary test, which must fail, is {status}: the report is not the test runner's own"
    if result.exit_code == 0:
        return "the exit code is 0 although the canary failed: the test runner did not end by itself"
    return ""


def _check_disk(sandbox: Sandbox) -> None:
    free = shutil.disk_usage(sandbox.root).free
    if free < MIN_FREE_BYTES:
        raise SandboxError(f"the scratch folder's disk has {free >> 20} MiB left, so a missing report means nothing: free some space")

"""Build validation: a command must succeed after the fix, and nothing that validates may be weaker than before.

Unlike the judge of hidden tests this one runs the agent's own version of the tests, since they are what it may have weakened. The whole
diff is applied, less what only the interpreter or git read. Then
- the command must end with 0: Task.metadata["build_command"] (bash, in the checkout), else the environment's test command without canary;
- no test that ran before may be missing or skipped now (JUnit XML of the test command, before and after);
- no changed file may validate less (weaker.py), but for what the oracle's own patch does in the same way.
A removed test is weaker even if a better one took its place: whoever repairs a build adds tests and leaves the others.
"""
import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from coderepairrl.rewards.judge import JUNIT, TIME_LIMIT, Canary, fill, without_canary
from coderepairrl.rewards.junit import ReportError, read_reports
from coderepairrl.rewards.output import first_error, tail
from coderepairrl.rewards.protected import JUDGE, Selection, select
from coderepairrl.rewards.published import as_diff
from coderepairrl.rewards.test_ids import function_of
from coderepairrl.rewards.weaker import weaker
from coderepairrl.sandboxes import PathError, Sandbox, SandboxConfig, start_sandbox
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Task

_RAN = ("passed", "failed", "error")


@dataclass(frozen=True)
class BuildVerdict:
    """`weaker`: what validates less than before, a sentence each; `message`: why the command did not succeed."""
    succeeded: bool  # the command, after the fix
    weaker: tuple[str, ...]
    dropped_paths: tuple[str, ...]  # "path: why"
    message: str
    seconds: float
    output: str = ""  # unless it succeeded: the last lines of what the command printed

    @property
    def valid(self) -> bool:
        return self.succeeded and not self.weaker


@dataclass(frozen=True)
class Build:
    """One run of the command. `tests`: id -> status; empty where the command reports none."""
    applies: str
    exit_code: int
    tests: dict[str, str]
    findings: tuple[str, ...]
    output: str


async def validate(task: Task, diff: str, config: SandboxConfig, known: dict[tuple[str, str], Build] | None = None) -> BuildVerdict:
    """Raises SandboxError for infrastructure trouble, TaskError for a wrong task. Runs the command for the diff, for the bare checkout, and where
    something is weaker for the oracle's patch; `known` remembers the last two by (task_id, "base" or "oracle")."""

    async def once(which: str, patch: str) -> Build:
        memory = {} if known is None else known
        if (task.task_id, which) not in memory:
            if patch:
                diff, applied = await as_diff(task, patch, config)
                patch = patch if applied.problem else diff
            memory[task.task_id, which] = await _build(task, await _select(task, patch), config)
        return memory[task.task_id, which]

    started = time.monotonic()
    selection = await _select(task, diff)
    after = await _build(task, selection, config)
    if after.applies:
        return BuildVerdict(False, (), selection.dropped_paths, f"the diff does not apply: {after.applies}", time.monotonic() - started)
    found = [*after.findings, *selection.dropped_paths, *selection.marks.certain]
    succeeded = after.exit_code == 0
    if succeeded and "build_command" not in task.metadata:
        found += _fewer((await once("base", "")).tests, after.tests)
    if succeeded and found and task.oracle_patch:
        oracle = await once("oracle", task.oracle_patch)
        allowed = {*oracle.findings, *(_fewer((await once("base", "")).tests, oracle.tests) if "build_command" not in task.metadata else ())}
        found = [finding for finding in found if finding not in allowed]
    said = first_error(after.output, after.exit_code)
    message = "" if succeeded else f"{TIME_LIMIT}: {said}" if after.exit_code == 124 else f"the command failed with exit code {after.exit_code}: {said}"
    return BuildVerdict(succeeded, tuple(dict.fromkeys(found)), selection.dropped_paths, message, time.monotonic() - started,
                        "" if succeeded else tail(after.output))


def reward(task: Task, diff: str, verdict: BuildVerdict | None) -> float:
    """1 when the command succeeds and nothing validates less."""
    return float(verdict is not None and verdict.valid)


async def _select(task: Task, diff: str) -> Selection:
    """The agent's tests are its own here: only what the interpreter or git read is left out."""
    own = replace(task, hidden_tests={}, test_patch="", environment=replace(task.environment, protected=()))
    installed = await asyncio.to_thread(interpreter, task.environment.python, task.environment.image)
    return await asyncio.to_thread(select, own, diff, installed.modules, always=JUDGE, loaded=installed.loaded)


async def _build(task: Task, selection: Selection, config: SandboxConfig) -> Build:
    async with start_sandbox(config, task) as sandbox:
        paths = sorted(selection.applied_paths)
        before = [await _text(sandbox, path) for path in paths]
        if selection.applied and (problem := await sandbox.apply(selection.applied, selection.applied_paths)):
            return Build(problem, 1, {}, (), "")
        findings = [finding for path, text in zip(paths, before, strict=True) for finding in weaker(path, text, await _text(sandbox, path))]
        reports, inside = sandbox.share(JUNIT)
        result = await sandbox.run(_command(task, inside), timeout_s=task.environment.test_timeout_s)
        tests = await asyncio.to_thread(_tests, reports)
    return Build("", result.exit_code, tests, tuple(findings), result.output)


def _command(task: Task, junit: str) -> str | list[str]:
    if "build_command" in task.metadata:
        return task.metadata["build_command"]
    return fill(without_canary(task), Canary(), junit)


def _tests(reports: Path) -> dict[str, str]:
    try:
        return read_reports(reports)
    except ReportError:  # as if there were none: every test is gone then
        return {}


def _fewer(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Tests that ran before and don't now."""
    return [f"{test} is {after.get(test, 'missing')}" for test, status in before.items()
            if status in _RAN and after.get(test, "missing") not in _RAN and function_of(test)]


async def _text(sandbox: Sandbox, path: str) -> str | None:
    try:
        return await sandbox.read_text(path)
    except PathError:  # not there, or no text
        return None

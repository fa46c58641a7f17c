"""One run of a task's tests in a fresh grading sandbox: base + the diff's allowed sections + hidden tests + a canary ->
what the report says.

The report is JUnit XML, or the log through the row's parser. A random canary test that must fail (canary.py) runs among
the others, as far as the test command takes one: a report in which it did not fail, or an exit code that says it did
not, is no evidence. `without_canary` is for tasks whose own files keep it from failing, which the oracle's run decides
(grader.py).
"""

import asyncio
import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.grading import log_parsers
from coderepairrl.grading.arguments import shortened
from coderepairrl.grading.canary import Canary, takes_canary
from coderepairrl.grading.ids import Statuses
from coderepairrl.grading.junit import ReportError, read_ends, read_regular, read_reports
from coderepairrl.grading.languages import language_of
from coderepairrl.grading.output import Outputs, first_error, tail
from coderepairrl.grading.protected import Selection
from coderepairrl.grading.published import apply_published
from coderepairrl.grading.shadowing import base_text
from coderepairrl.grading.variants import Variant, test_files, turn_files
from coderepairrl.sandboxes import CommandResult, PathError, Sandbox, SandboxConfig, plain_terminal, start_sandbox
from coderepairrl.types import Task

JUNIT = "junit"
LOG = "log.txt"
TIME_LIMIT = "time limit"
FAILED = ("failed", "error")
MIN_FREE_BYTES = 64 << 20  # below this, a missing report is the machine's fault
MAX_LOG_BYTES = 32 << 20
_TO_FILE = ("/bin/sh", "-c", 'exec "$@" >"$0" 2>&1')


@dataclass(frozen=True)
class Run:
    """`problem`: why the report is no evidence; `bent`: what no honest run does; `turned`: ids of tests that are
    turned."""

    to_pass: dict[str, str]  # id -> passed | xfailed | skipped | failed | error | missing
    to_keep: dict[str, str]
    evidence: str  # junit+canary | log+canary | junit | log | none
    problem: str = ""
    bent: str = ""
    does_not_apply: bool = False
    timed_out: bool = False
    turned: frozenset[str] = frozenset()
    tail: str = ""  # of what the test command printed; empty where none ran
    file: str = ""  # in which all of it is kept, where it is


@dataclass(frozen=True)
class Ended:
    """What a test command left."""

    argv: list[str]
    result: CommandResult
    output: str  # what it printed, or its ends
    reports: Path  # the folder of its JUnit XML, or of its log


@dataclass(frozen=True)
class Keep:
    """Where all that a run's test command prints is kept."""

    outputs: Outputs
    run: str  # the file's name, such as "oracle"

    def write(self, task: Task, ended: Ended) -> Path:
        return self.outputs.write(task.task_id, self.run, ended.argv, ended.result, ended.output)


async def execute(
    task: Task, selection: Selection, config: SandboxConfig, variant: Variant | None = None, keep: Keep | None = None
) -> Run:
    """`variant`: with some tests turned, so that they must fail. Both kinds of run are laid out alike: the same files
    are written, in an order that says nothing, with equal times.

    Raises SandboxError for infrastructure trouble, TaskError for a wrong task."""
    most = max(config.output_kib << 10, keep.outputs.most if keep else 0)
    async with start_sandbox(config.model_copy(update={"output_kib": most >> 10}), task) as sandbox:
        if selection.applied and (problem := await sandbox.apply(selection.applied, selection.applied_paths)):
            return _nothing(task, f"the diff does not apply: {problem}", does_not_apply=True)
        canary = language_of(task).canary()
        turned = await lay_tests(task, sandbox, canary, variant)
        if variant and not turned:
            return _nothing(task, "no test could be turned")
        ended = await run_tests(task, sandbox, canary, most)
        last = await asyncio.to_thread(tail, ended.output)
        file = str(await asyncio.to_thread(keep.write, task, ended)) if keep else ""
        run = await _heard(task, sandbox, canary, turned, ended)
    return replace(run, turned=turned, tail=last, file=file)


def _nothing(task: Task, problem: str, **fields) -> Run:
    """A run that says of no test anything."""
    to_pass, to_keep = (dict.fromkeys(tests, "missing") for tests in (task.fail_to_pass, task.pass_to_pass))
    return Run(to_pass, to_keep, "none", problem, **fields)


async def run_tests(task: Task, sandbox: Sandbox, canary: Canary, most: int) -> Ended:
    reports, inside = sandbox.share(JUNIT)
    argv = shortened(fill(task, canary, inside), sandbox)
    by_log = task.environment.log_parser is not None
    result = await sandbox.run(
        [*_TO_FILE, f"{inside}/{LOG}", *argv] if by_log else argv,
        timeout_s=task.environment.test_timeout_s,
        variables=plain_terminal(task.environment),
    )
    output = await _printed(reports / LOG, result, most) if by_log else result.output
    return Ended(argv, result, output, reports)


async def _heard(task: Task, sandbox: Sandbox, canary: Canary, turned: frozenset[str], ended: Ended) -> Run:
    """What the report says of the task's tests, where it is evidence."""
    if ended.result.timed_out:
        limit = f"{TIME_LIMIT}: the tests ran longer than {task.environment.test_timeout_s:g} s"
        return _nothing(task, limit, timed_out=True)
    by_log, has_canary = task.environment.log_parser is not None, takes_canary(task)
    try:
        if by_log:
            statuses = await _read_log(task, ended.reports / LOG)
        else:
            statuses = await asyncio.to_thread(read_reports, ended.reports)
    except ReportError as error:
        return _nothing(task, str(error), bent=str(error) if error.forged else "")
    found = Statuses(statuses)
    to_pass, to_keep = (
        {test: found.lookup(test) for test in tests} for tests in (task.fail_to_pass, task.pass_to_pass)
    )
    # a turned test that fails is a canary itself: under -x, none comes after it
    is_shown = has_canary and not any(to_pass[test] in FAILED for test in turned & to_pass.keys())
    seen = canary.status(statuses) if is_shown else ""
    claimed = all(status == "passed" for status in to_pass.values())
    said = (seen, statuses, ended.result.exit_code, ended.output, claimed, by_log)
    problem, bent = await asyncio.to_thread(_distrust, *said)
    if problem:
        _check_disk(sandbox)
        return _nothing(task, problem, bent=problem if bent else "")
    return Run(to_pass, to_keep, f"{'log' if by_log else 'junit'}{'+canary' if has_canary else ''}")


async def lay_tests(task: Task, sandbox: Sandbox, canary: Canary, variant: Variant | None) -> frozenset[str]:
    """The test patch, the hidden tests, the canary if one is run; the ids of what `variant` turned. All files that may
    hold a test are written anew. The diff may not touch their paths, so what fails here is the task's own fault."""
    if task.test_patch and (problem := (await apply_published(sandbox, task.test_patch)).problem):
        raise TaskError(
            f"task {task.task_id}: its test patch does not apply ({problem}): correct the row or its base commit"
        )
    texts, helpers = dict(task.hidden_tests), language_of(task).helpers

    async def read(paths: Iterable[str]) -> None:
        for path in paths:
            if path not in texts:
                with contextlib.suppress(PathError):  # a guess at where a name leads, or no text
                    texts[path] = await sandbox.read_text(path)

    await read(test_files(task))
    await read(
        [helper for path, text in list(texts.items()) for helper in await asyncio.to_thread(helpers, path, text)]
    )
    turned: frozenset[str] = frozenset()
    if variant:
        base = {path: await asyncio.to_thread(base_text, task, path) for path in texts}
        changed, turned = await asyncio.to_thread(turn_files, task, texts, variant, base)
        texts |= changed
    if takes_canary(task):
        texts[canary.path] = canary.source
    try:
        await sandbox.lay(texts)
    except PathError as error:
        raise TaskError(
            f"task {task.task_id}: a hidden test cannot be laid over the checkout ({error}): fix its path"
        ) from error
    return turned


def fill(task: Task, canary: Canary, junit: str) -> list[str]:
    """Environment.test_command with its placeholders filled; {tests} becomes any number of arguments."""
    values = {
        "{python}": task.environment.python,
        "{junit}": junit,
        "{canary_path}": canary.path,
        "{canary_module}": canary.module,
    }
    for tool, folder in zip(task.environment.tools, task.environment.tool_folders, strict=True):
        values[f"{{tool:{tool.partition(':')[0]}}}"] = folder
    argv: list[str] = []
    for argument in task.environment.test_command:
        if argument == "{tests}":
            argv += task.test_selection
            continue
        for placeholder, value in values.items():
            argument = argument.replace(placeholder, value)
        argv.append(argument)
    return argv


async def _read_log(task: Task, path) -> dict[str, str]:
    if task.environment.log_parser not in log_parsers.names():
        raise TaskError(
            f"task {task.task_id}: no parser {task.environment.log_parser!r} in swebench: correct "
            "environment.log_parser"
        )
    if not path.exists():
        return {}
    await asyncio.to_thread(read_regular, path, MAX_LOG_BYTES)  # refuses links and floods
    try:
        statuses = await log_parsers.parse_file(
            task.environment.log_parser, path, task.task_id, task.metadata.get("version", "")
        )
    except log_parsers.ParserError as error:
        raise ReportError(str(error)) from error
    if statuses is None:
        raise ReportError(
            f"the log could not be read by {task.environment.log_parser} within {log_parsers.PARSE_S:g} s"
        )
    return statuses


async def _printed(path: Path, result: CommandResult, most: int) -> str:
    """Of a command whose output went into a file: its ends, `most` bytes of them, and what the sandbox said."""
    try:
        data = await asyncio.to_thread(read_ends, path, most)
    except ReportError:  # no file, or none of ours: reading the report says so
        data = b""
    return data.decode(errors="replace") + result.output


def _distrust(
    canary: str, statuses: dict[str, str], exit_code: int, output: str, claimed: bool, by_log: bool
) -> tuple[str, bool]:
    """(empty, or why the report is no evidence; whether no honest run ends so). `canary` is empty where the command
    takes none, `output` is what the command printed. Call it in a thread."""

    def said() -> str:
        return f"exit code {exit_code}: {first_error(output, exit_code)}"

    if not statuses:
        # with a canary that fails, or a report to write, no runner ends with success: the process was left early
        honest = exit_code != 0 or (by_log and not canary)
        return f"no report: the test command reported no test ({said()})", not honest
    if canary and canary != "failed":
        # a runner that stops at a broken import reports no canary and claims nothing
        problem = f"the canary test, which must fail, is {canary}: the report is not the test runner's own ({said()})"
        return problem, canary == "passed" or claimed
    if canary and exit_code == 0:
        return "the exit code is 0 although the canary failed: the test runner did not end by itself", True
    # a report may come with a rule of the project's own, such as a threshold of coverage: the counter-check proves it
    if not canary and by_log and exit_code != 0 and not set(FAILED) & set(statuses.values()):
        return f"the log names no failure, so it does not describe the run ({said()})", False
    return "", False


def _check_disk(sandbox: Sandbox) -> None:
    free = shutil.disk_usage(sandbox.root).free
    if free < MIN_FREE_BYTES:
        raise SandboxError(
            f"the scratch folder's disk has {free >> 20} MiB left, so a missing report means nothing: free some space"
        )

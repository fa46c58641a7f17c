"""One run of a build: the base, layers of diffs over it, perhaps a turned expectation -> how the command ended, which
tests ran."""

import asyncio
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.grading.canary import without_canary
from coderepairrl.grading.judge import JUNIT, fill
from coderepairrl.grading.junit import ReportError, read_reports
from coderepairrl.grading.languages import language_of
from coderepairrl.grading.validation.measures import Layer, Measures
from coderepairrl.grading.validation.plants import Plant
from coderepairrl.grading.validation.reach import Reach, reach, words
from coderepairrl.grading.validation.weaker import weaker
from coderepairrl.sandboxes import PathError, Sandbox, SandboxConfig, start_sandbox
from coderepairrl.types import Task

MAX_FILES, MAX_BYTES = 4000, 16 << 20  # of a checkout that are read
_SKIPPED_FOLDERS = {".git", "node_modules", ".venv", "venv", "__pycache__", ".tox"}


@dataclass(frozen=True)
class Build:
    """`tests`: id -> status; empty where the command reports none. `texts`: what validated, where that was asked
    for."""

    applies: str
    exit_code: int
    tests: dict[str, str] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    output: str = ""
    reach: Reach = Reach()
    texts: dict[str, str] = field(default_factory=dict)
    plant: Plant = Plant()

    @property
    def succeeded(self) -> bool:
        return not self.applies and self.exit_code == 0


async def build(
    task: Task,
    layers: tuple[Layer, ...],
    config: SandboxConfig,
    plant: Plant | None = None,
    look: bool = False,
    keep: bool = False,
) -> Build:
    """`look`: find what the layers weaken and reach; `keep`: the texts that validate."""
    measures = Measures(task)
    async with start_sandbox(config, task) as sandbox:
        paths = sorted({path for one in layers for path in one.paths}) if look else []
        before = {path: await _text(sandbox, path) for path in paths}
        code = [path for path in paths if path.endswith(".py") and not measures.validates(path)]
        habits = await asyncio.to_thread(_habits, task, sandbox.root, measures) if code else set()
        for one in layers:
            if one.text and (problem := await sandbox.apply(one.text, one.paths)):
                return Build(problem, 1)
        after = {path: await _text(sandbox, path) for path in paths}
        findings = [finding for path in paths for finding in weaker(path, before[path], after[path])]
        reached = Reach()
        for path in code:
            reached |= reach(path, before[path], after[path], habits)
        texts = await asyncio.to_thread(_texts, sandbox.root, measures) if keep else {}
        if plant:
            await _lay(sandbox, plant)
        reports, inside = sandbox.share(JUNIT)
        result = await sandbox.run(
            _command(task, inside, plant), timeout_s=task.environment.test_timeout_s, variables=_report(task, inside)
        )
        tests = await asyncio.to_thread(_tests, reports)
    return Build("", result.exit_code, tests, tuple(findings), result.output, reached, texts, plant or Plant())


async def _lay(sandbox: Sandbox, plant: Plant) -> None:
    try:
        await sandbox.lay(plant.files)
    except PathError as error:  # they were read in a checkout like this one
        raise SandboxError(f"an expectation cannot be laid over the checkout: {error}") from error


def _command(task: Task, junit: str, plant: Plant | None) -> str | list[str]:
    if "build_command" in task.metadata:
        return plant.command if plant and plant.command is not None else task.metadata["build_command"]
    return fill(without_canary(task), language_of(task).canary(), junit)


def _report(task: Task, junit: str) -> dict[str, str | None]:
    """Lets a pytest that the project's own command starts say what ran; other commands don't heed it."""
    if "build_command" not in task.metadata:
        return {}
    own = task.environment.variables.get("PYTEST_ADDOPTS", "")
    return {"PYTEST_ADDOPTS": f"{own} --junitxml={junit}/report.xml -o junit_family=xunit1".strip()}


def _tests(reports: Path) -> dict[str, str]:
    try:
        return read_reports(reports)
    except ReportError:  # as if there were none: every test is gone then
        return {}


async def _text(sandbox: Sandbox, path: str) -> str | None:
    try:
        return await sandbox.read_text(path)
    except PathError:  # not there, or no text
        return None


def _habits(task: Task, root: Path, measures: Measures) -> set[str]:
    """Words of the product's Python files at the base, and of the oracle's patch."""
    found = words(task.oracle_patch)
    for path, text in _walk(root):
        if path.endswith(".py") and not measures.validates(path):
            found |= words(text)
    return found


def _texts(root: Path, measures: Measures) -> dict[str, str]:
    return {path: text for path, text in _walk(root) if measures.validates(path)}


def _walk(root: Path):
    """(path, text) of the checkout's regular files, the first ones that fit; neither links nor pipes are opened."""
    left, files = MAX_BYTES, 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for name in sorted(names):
            file = Path(folder, name)
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > min(left, 1 << 20):
                continue
            left, files = left - status.st_size, files + 1
            if files > MAX_FILES:
                return
            with open(file, "rb") as opened:
                data = opened.read()
            try:
                yield file.relative_to(root).as_posix(), data.decode()
            except UnicodeDecodeError:  # no text
                continue

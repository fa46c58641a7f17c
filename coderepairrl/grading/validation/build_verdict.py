"""Build validation: a command must succeed after the fix, and nothing that validates may be weaker than before.

    verdict = await validate(task, diff, sandbox_config)

Unlike the judge (grader.py) this runs the agent's own version of the tests, since they are what it may have weakened.
The command is Task.metadata["build_command"] (bash, in the checkout), else the environment's test command
without canary; it must end with 0
- with the whole diff, less what only the interpreter or git read;
- with the diff's product alone under what validated before: the base's tests and configurations, or the oracle's
  where the base's own are broken (measures.py). What an agent adds or edits there, new files included, can't be
  what makes it pass;
- not where an expectation of these is turned (plants.py), as the oracle's own build doesn't.
No test that ran before, or under the oracle's patch, may be missing or skipped; no changed file may validate less
(weaker.py) or reach for what bends a build (reach.py), but for what the oracle's own patch does in the same way.
A removed test is weaker even if a better one took its place: whoever repairs a build adds tests and leaves the others.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, replace

from coderepairrl.grading.ids import function_of
from coderepairrl.grading.judge import TIME_LIMIT
from coderepairrl.grading.output import first_error, tail
from coderepairrl.grading.protected import JUDGE, Selection, select
from coderepairrl.grading.published import as_diff
from coderepairrl.grading.validation.build_runs import Build, build
from coderepairrl.grading.validation.measures import BASE, ORACLE, Layer, Measures
from coderepairrl.grading.validation.plants import TRIES, plant
from coderepairrl.grading.validation.reach import words
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Task

_MEASURED = "measured by "
_RAN = ("passed", "failed", "error")
_SEED = secrets.token_hex(16)  # what is turned, nobody can know


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


async def validate(
    task: Task, diff: str, config: SandboxConfig, known: dict[tuple[str, str], Build] | None = None
) -> BuildVerdict:
    """Raises SandboxError for infrastructure trouble, TaskError for a wrong task. `known` remembers, by (task_id,
    which), the runs that are no diff's: of the bare checkout and of the oracle's patch."""
    started = time.monotonic()
    selection = await _select(task, diff)
    own = await build(task, (_whole(selection),), config, look=True)
    succeeded = own.succeeded
    found: list[str] = []
    if succeeded:
        bench = _Bench(task, config, {} if known is None else known)
        found = await bench.weaker(own, selection) or await bench.unproven(own, selection)
    elif not own.applies:
        found = [*own.findings, *selection.dropped_paths, *selection.marks.certain]
    return BuildVerdict(
        succeeded,
        tuple(dict.fromkeys(found)),
        selection.dropped_paths,
        _message(own),
        time.monotonic() - started,
        "" if succeeded else tail(own.output),
    )


class _Bench:
    """What one task's diffs are held against."""

    def __init__(self, task: Task, config: SandboxConfig, known: dict[tuple[str, str], Build]):
        self.task, self.config, self.known = task, config, known
        self.measures = Measures(task)

    async def weaker(self, own: Build, selection: Selection) -> list[str]:
        """What the whole diff does less than before, by its text and by the tests that ran."""
        # a command that reports nothing has nothing to be compared
        reported = {} if "build_command" in self.task.metadata and not own.tests else (await self.base()).tests
        found = [*own.findings, *selection.dropped_paths, *selection.marks.certain, *_fewer(reported, own.tests)]
        if found and self.task.oracle_patch:
            oracle = await self.oracle()
            allowed = {*oracle.findings, *_fewer(reported, oracle.tests)}
            found = [finding for finding in found if finding not in allowed]
        return found

    async def unproven(self, own: Build, selection: Selection) -> list[str]:
        """Why the success is not the product's, by what validated before; empty where it is."""
        failed = ""
        for measure in (BASE, ORACLE):
            standard = await self.standard(measure) if self.task.oracle_patch else Build("", 1)
            if self.task.oracle_patch and not standard.succeeded and (await self.oracle()).succeeded:
                continue  # by this measure not even the oracle's build succeeds
            layers = self.measures.layers(measure, selection.applied, await self.oracle_diff())
            same = (
                sum(len(one.text) for one in layers) == len(selection.applied) and layers[-1].text == selection.applied
            )
            measured = own if same else await build(self.task, layers, self.config)
            if measured.succeeded and not (fewer := _fewer(standard.tests, measured.tests)):
                told, bent = await self._plants(measure, standard, layers)
                return [*own.reach.never, *bent, *(() if told else own.reach.unproven)]
            failed = failed or (fewer[0] if measured.succeeded else _message(measured))
        return [f"with the tests and configurations as they were, {failed}"]

    async def _plants(self, measure: str, standard: Build, layers: tuple[Layer, ...]) -> tuple[bool, list[str]]:
        """(whether a turned expectation that fails the oracle's build fails this one, findings)."""
        if not standard.succeeded:
            return False, []
        told = False
        for number in range(TRIES):
            turned = await self._turned(measure, standard, number)
            if turned.exit_code == 0 or not turned.plant:
                continue
            mine = await build(self.task, layers, self.config, turned.plant)
            passed = [
                test
                for test, status in turned.tests.items()
                if status not in ("passed", standard.tests.get(test)) and mine.tests.get(test) == "passed"
            ]
            if passed or mine.exit_code == 0:
                return True, [f"{passed[0] if passed else 'the command'} passes with whatever is expected of it"]
            told = True
            if turned.tests:  # each test has said for itself
                break
        return told, []

    async def _turned(self, measure: str, standard: Build, number: int) -> Build:
        """The oracle's build with an expectation turned."""
        key = (self.task.task_id, f"{measure} turned {number}")
        if key not in self.known:
            ran = {function_of(test) for test in standard.tests}
            command = self.task.metadata.get("build_command")
            made = await asyncio.to_thread(
                plant,
                standard.texts,
                command,
                number,
                f"{_SEED} {self.task.task_id}",
                ran,
                words(self.task.oracle_patch),
            )
            layers = self.measures.layers(measure, await self.oracle_diff(), await self.oracle_diff())
            self.known[key] = await build(self.task, layers, self.config, made) if made else Build("", 0)
        return self.known[key]

    async def base(self) -> Build:
        return await self._remembered("base", ())

    async def oracle(self) -> Build:
        return await self._remembered("oracle", (_whole(await _select(self.task, await self.oracle_diff())),))

    async def standard(self, measure: str) -> Build:
        """The oracle's patch measured so."""
        diff = await self.oracle_diff()
        return await self._remembered(f"{_MEASURED}{measure}", self.measures.layers(measure, diff, diff))

    async def _remembered(self, which: str, layers: tuple[Layer, ...]) -> Build:
        key = (self.task.task_id, which)
        if key not in self.known:
            keep = which.startswith(_MEASURED)  # what may be turned
            self.known[key] = await build(self.task, layers, self.config, look=True, keep=keep)
        return self.known[key]

    async def oracle_diff(self) -> str:
        """The oracle's patch as git writes it."""
        key = (self.task.task_id, "patch")
        if key not in self.known:
            patch = self.task.oracle_patch
            if patch:
                diff, applied = await as_diff(self.task, patch, self.config)
                patch = patch if applied.problem else diff
            self.known[key] = Build("", 0, output=patch)
        return self.known[key].output


def _message(run: Build) -> str:
    """Why a run's command did not succeed; empty where it did."""
    if run.applies:
        return f"the diff does not apply: {run.applies}"
    said = first_error(run.output, run.exit_code)
    if run.exit_code == 124:
        return f"{TIME_LIMIT}: {said}"
    return f"the command failed with exit code {run.exit_code}: {said}" if run.exit_code else ""


async def _select(task: Task, diff: str) -> Selection:
    """The agent's tests are its own here: only what the interpreter or git read is left out."""
    own = replace(task, hidden_tests={}, test_patch="", environment=replace(task.environment, protected=()))
    installed = await asyncio.to_thread(interpreter, task.environment.python, task.environment.image)
    return await asyncio.to_thread(select, own, diff, installed.modules, always=JUDGE, loaded=installed.loaded)


def _whole(selection: Selection) -> Layer:
    return Layer(selection.applied, selection.applied_paths)


def _fewer(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Tests that ran before and don't now."""
    return [
        f"{test} is {after.get(test, 'missing')}"
        for test, status in before.items()
        if status in _RAN and after.get(test, "missing") not in _RAN and function_of(test)
    ]

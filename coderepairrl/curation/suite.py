"""Running a package's own test suite in fresh sandboxes, for the admission of tasks: ids, statuses, times, tracebacks.

with Version(environment, {"toolz/itertoolz.py": buggy}) as version:
    cases, wall_s = version.run(("toolz/tests",), timeout_s=60)
"""

import asyncio
import tempfile
from collections import defaultdict
from pathlib import Path

from coderepairrl.grading import junit
from coderepairrl.grading.junit import Case
from coderepairrl.sandboxes import SandboxConfig, plain_terminal, start_sandbox
from coderepairrl.types import Environment, Task

BROKEN = "the suite cannot be run at all"


class Refused(Exception):
    """Why a candidate is no task; the reason is counted in the final table."""


class Version:
    """One version of a package's checkout, from which sandboxes are started; its templates vanish with the block."""

    def __init__(self, place: Environment, files: dict[str, str] | None = None):
        self.task = Task("candidate", "", place, files or {}, {}, (), (), (), "")

    def __enter__(self) -> "Version":
        self.scratch = tempfile.TemporaryDirectory(prefix="prepare-")
        return self

    def __exit__(self, *_: object) -> None:
        self.scratch.cleanup()

    def run(
        self, tests: tuple[str, ...], timeout_s: float, options: tuple[str, ...] = ()
    ) -> tuple[dict[str, list[Case]], float]:
        """JUnit id -> its cases (several, if the suite uses an id twice), and the wall seconds. Raises Refused."""
        return asyncio.run(self._run(tests, timeout_s, options))

    async def _run(
        self, tests: tuple[str, ...], timeout_s: float, options: tuple[str, ...]
    ) -> tuple[dict[str, list[Case]], float]:
        place = self.task.environment
        async with start_sandbox(SandboxConfig(scratch=self.scratch.name), self.task) as sandbox:
            reports, inside = sandbox.share("junit")
            fill = {"{tests}": tests, "{canary_path}": (), "{python}": (place.python,)}
            argv = [word.replace("{junit}", inside) for part in place.test_command for word in fill.get(part, (part,))]
            result = await sandbox.run([*argv, *options], timeout_s=timeout_s, variables=plain_terminal(place))
            if result.timed_out:
                raise Refused("time limit")
            if not (reports / "report.xml").is_file():
                raise Refused(BROKEN)
            return read_report(reports / "report.xml"), result.seconds


def read_report(path: Path) -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = defaultdict(list)
    for case in junit.cases(path.read_bytes()):
        cases[case.test].append(case)
    return cases


def passing(cases: dict[str, list[Case]]) -> set[str]:
    return {key for key, found in cases.items() if all(case.status == "passed" for case in found)}

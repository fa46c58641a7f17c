"""The canary: a test of the judge's own that must fail in every run. A report in which it doesn't is no evidence."""

from dataclasses import dataclass, replace

from coderepairrl.types import Task


@dataclass(frozen=True)
class Canary:
    """A test that must fail. Its names are random, so that a forged report cannot hold it without reading it first."""

    path: str  # of its file in the checkout
    module: str  # the same as the test command names it, where that is otherwise
    case: str  # its class
    name: str
    source: str

    def status(self, statuses: dict[str, str]) -> str:
        return next(
            (status for test, status in statuses.items() if test.endswith(f"{self.case}::{self.name}")), "missing"
        )


def takes_canary(task: Task) -> bool:
    return any("{canary_" in argument for argument in task.environment.test_command)


def without_canary(task: Task) -> Task:
    """The same task with a test command that runs no canary. What only mentions it, such as the words of -k, stays."""
    arguments = (one for one in task.environment.test_command if one not in ("{canary_path}", "{canary_module}"))
    command = (one.replace("{canary_path}", "").replace("{canary_module}", "no_canary") for one in arguments)
    return replace(task, environment=replace(task.environment, test_command=tuple(command)))

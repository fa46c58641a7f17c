"""The canary: a test of the judge's own that must fail in every run. A report in which it doesn't is no evidence."""

import secrets
from dataclasses import dataclass, field, replace

from coderepairrl.types import Task


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
        return (
            f"import unittest\n\n\nclass {self.case}(unittest.TestCase):\n"
            f"    def {self.name}(self):\n        self.assertEqual(1, 2)\n"
        )

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

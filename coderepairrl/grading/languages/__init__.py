"""What the judge must know of a language: one module each, all with the functions of `Language`.

    language_of(task).canary()

`Environment.language` names it. How a test is turned is known of those that are here; tests in others are judged by
their log alone (docs/threat_model.md).
"""

import random
import re
from collections.abc import Callable, Collection
from typing import Protocol

from coderepairrl.diffs import FileChange
from coderepairrl.errors import TaskError
from coderepairrl.grading.canary import Canary
from coderepairrl.grading.languages import java, python
from coderepairrl.grading.scan import Marks
from coderepairrl.grading.turns import TurnedExpectation
from coderepairrl.types import Task


class Language(Protocol):
    SUFFIX: str  # of its files
    PROTECTED: tuple[str, ...]  # globs of what its builds and runners read by themselves, beside protected.ALWAYS

    def canary(self) -> Canary:
        """A test that must fail, with new random names."""

    def places(self, test: str) -> list[str]:
        """Paths of files to which the dotted names of a JUnit id may lead."""

    def helpers(self, path: str, text: str) -> list[str]:
        """Files beside a test file that it takes tests or expectations from."""

    def definition(self, name: str) -> re.Pattern[str]:
        """Finds where a test function is written."""

    def turns(self, text: str, names: Collection[str], rng: random.Random) -> dict[str, list[TurnedExpectation]]:
        """Test function -> its turns, the likely ones first; a name that isn't there has none."""

    def scan(self, task: Task, change: FileChange, before: Callable[[str], str]) -> Marks:
        """Marks of one file's section of a diff; `before`: path -> text at the base."""


LANGUAGES: dict[str, Language] = {"python": python, "java": java}


def language_of(task: Task) -> Language:
    """Raises TaskError for one that is not there."""
    name = task.environment.language
    if name not in LANGUAGES:
        raise TaskError(
            f"task {task.task_id}, field environment.language: {name!r}: those there are: {', '.join(LANGUAGES)}"
        )
    return LANGUAGES[name]

"""Which files of a checkout validate, and how a diff is measured by those that were there: its product under the
tests, scripts and configurations of the base, or of the oracle's patch where the base's are what is broken."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from coderepairrl.diffs import FileChange, split_diff
from coderepairrl.grading.protected import matches_any
from coderepairrl.grading.validation.configurations import is_configuration, is_shared
from coderepairrl.grading.validation.weaker import is_test_file
from coderepairrl.types import Task

_WORD = re.compile(r"[\w./+@-]+")
_COLLECTED = re.compile(r"^(?:test_.*|.*_test|conftest)\.\w+$")  # by a runner, not by those who import it
BASE, ORACLE = "base", "oracle"


@dataclass(frozen=True)
class Layer:
    """Sections of a diff, and all paths that they name."""

    text: str
    paths: frozenset[str]


def layer(changes: list[FileChange]) -> Layer:
    return Layer(
        "".join(change.text for change in changes), frozenset(path for change in changes for path in change.paths)
    )


class Measures:
    """Of one task: the ways in which a diff may be measured, the strictest first."""

    def __init__(self, task: Task):
        self.task = task
        self.oracle = {path for change in split_diff(task.oracle_patch) for path in change.paths}
        command = task.metadata.get("build_command") or " ".join((*task.environment.test_command, *task.test_selection))
        self.named = {posixpath.normpath(word.partition("::")[0]) for word in _WORD.findall(command)} - self.oracle

    def validates(self, path: str) -> bool:
        return (
            is_configuration(path)
            or path in self.named
            or matches_any(path, self.task.environment.protected)
            or (
                is_test_file(path)
                and (_COLLECTED.match(PurePosixPath(path).name) is not None or "testing" not in path.split("/"))
            )
        )

    def product(self, diff: str) -> Layer:
        """What a diff changes of what is validated."""
        return layer([change for change in split_diff(diff) if not any(map(self.validates, change.paths))])

    def layers(self, measure: str, diff: str, oracle: str) -> tuple[Layer, ...]:
        """What is applied to the base. By ORACLE, the oracle's own tests and configurations are, and from the diff
        come those files besides the product that the oracle had to change, too, and that are more than tests."""
        if measure == BASE:
            return (self.product(diff),)
        mine = [
            change
            for change in split_diff(diff)
            if not any(map(self.validates, change.paths))
            or all(map(self._may_repair, change.paths))
            and "\nnew file mode" not in change.text
        ]
        taken = layer(mine)
        theirs = [
            change
            for change in split_diff(oracle)
            if any(map(self.validates, change.paths)) and not change.paths & taken.paths
        ]
        return layer(theirs), taken

    def _may_repair(self, path: str) -> bool:
        if self.oracle and path not in self.oracle:
            return not self.validates(path)
        return is_shared(path) or bool(self.oracle) and not _COLLECTED.match(PurePosixPath(path).name)

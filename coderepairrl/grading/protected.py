"""Which parts of a diff never reach the grading sandbox, because they could decide the tests' result instead of the
code.

Always: what test runners and the interpreter load by themselves, what git reads, links but to one file of the checkout,
binary files,
paths outside the checkout, paths of hidden tests, and new top-level modules that hide an installed one (shadowing.py: a
new
xmlrunner.py in the checkout's root would be the test runner). Further: Environment.protected.

What the oracle's own patch touches is not protected (a repair of a test runner or of a conftest.py must be possible),
unless it is
a hidden test. A glob without a slash is matched against every part of a path, one with a slash against the whole path,
where `*`
crosses slashes; "tests/" means all that is in it. What the builds of other languages read is named by languages/.
pyproject.toml is not in the list, since repairs change it: environments whose
test command reads pytest's options from it name it themselves.
"""

import posixpath
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from coderepairrl.diffs import FileChange, split_diff
from coderepairrl.grading.languages import language_of
from coderepairrl.grading.published import LINK
from coderepairrl.grading.scan import Marks
from coderepairrl.grading.shadowing import Shadowing, base_text
from coderepairrl.grading.unusual import as_texts, at_or_below, is_one_file, link_target
from coderepairrl.grading.variants import test_files
from coderepairrl.sandboxes.diff_bounds import why_no_path
from coderepairrl.types import Task

# Nobody who repairs a project writes these; that a diff has one is told in Verdict.tampered.
JUDGE = ("sitecustomize.py", "usercustomize.py", "*.pth", "*.egg-info", "*.dist-info", ".git", "*.pyc", "*.so")
ALWAYS = (
    *JUDGE,
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "pytest.toml",
    ".pytest.toml",
    "tox.ini",
    "setup.cfg",
    ".git*",
    "__pycache__",
)
# what is run or compiled: tests that name it do so to run it
_PROGRAMS = {
    ".py",
    ".pyi",
    ".pyx",
    ".pxd",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".rs",
    ".go",
    ".java",
    ".js",
    ".ts",
    ".jsx",
    ".tsx",
    ".rb",
    ".php",
    ".sh",
    ".in",
    ".toml",
    ".cfg",
}
_QUOTED = re.compile(r"""["']([^"'\n]{1,200})["']""")


@dataclass(frozen=True)
class Selection:
    applied: str  # the sections that go into the grading sandbox
    applied_paths: frozenset[str]
    left_out: dict[str, str] = field(default_factory=dict)  # path -> why; of the sections that don't
    marks: Marks = Marks()  # of the applied sections
    touched: tuple[str, ...] = ()  # what the whole diff touches of the judge's own, with certainty

    @property
    def dropped_paths(self) -> tuple[str, ...]:
        """The same in words, "path: why"."""
        return tuple(f"{path}: {why}" for path, why in self.left_out.items())


class Reason(NamedTuple):
    """`accuses`: no repair does this, so that it is told in Verdict.tampered; of the others an honest diff may have
    some."""

    why: str
    accuses: bool = False
    path: str = ""  # whose reason it is, where it is not the whole section's

    def of(self, path: str) -> str:
        """Of a path of that section."""
        return self.why if self.path in ("", path) else f"in one section with {self.path}, {self.why}"


def select(
    task: Task,
    diff: str,
    installed: frozenset[str],
    always: tuple[str, ...] = ALWAYS,
    loaded: frozenset[str] | None = None,
) -> Selection:
    """`installed`: top-level module names of the environment's interpreter, `loaded` those that its test runner loads
    (None: all of them); `always`: globs that are protected in every environment. Reads the base: call it in a
    thread."""
    kept: list[FileChange] = []
    left_out: dict[str, str] = {}
    marks, dropped = Marks(), Marks()
    changes = split_diff(diff)
    if not changes and diff.strip():  # not a diff at all: git says so, and the verdict repeats it
        return Selection(diff, frozenset())
    shadowing = Shadowing(task, changes, installed, installed if loaded is None else loaded)
    language = language_of(task)
    rules = _Rules(task, changes, shadowing, always + language.PROTECTED + task.environment.protected)

    def before(path: str) -> str:
        return base_text(task, path)

    reasons = [rules.why_protected(change) for change in changes]
    # git writes a file that becomes a link, or the other way round, as two sections: the one is nothing without the
    # other
    lost = {frozenset(change.paths): reason for change, reason in zip(changes, reasons, strict=True) if reason}
    for change in changes:
        if reason := lost.get(frozenset(change.paths)):
            left_out |= {path: reason.of(path) for path in sorted(change.paths) or ["(no path)"]}
            dropped |= Marks() if rules.is_test(change) else language.scan(task, change, before)
            dropped |= Marks((f"{change.path}: {reason.why}",) if reason.accuses else ())
        else:
            kept.append(change)
            relaxed = any(matches_any(path, rules.globs) for path in change.paths) or LINK in change.made
            marks |= language.scan(task, change, before) | Marks(possible=relaxed)
    applied_paths = frozenset(path for change in kept for path in change.paths)
    return Selection("".join(change.text for change in kept), applied_paths, left_out, marks, (marks | dropped).certain)


class _Rules:
    """The rules of one task for one diff, so that the oracle's patch is read once."""

    def __init__(self, task: Task, changes: list[FileChange], shadowing: Shadowing, globs: tuple[str, ...]):
        self.task, self.shadowing, self.globs = task, shadowing, globs
        self.own = frozenset(task.environment.protected)
        self.hidden = frozenset(task.hidden_tests) | {
            path for change in split_diff(task.test_patch) for path in change.paths
        }
        oracle = split_diff(task.oracle_patch)
        self.oracle = {path: change for change in oracle for path in change.paths}
        self.made = {(path, mode, *change.added) for change in oracle for path in change.paths for mode in change.made}
        self.binary = {path for change in oracle for path in change.paths if change.binary}
        unknown = (change for change in changes if change.binary and not self.binary.issuperset(change.paths))
        self.texts = as_texts(task, unknown)
        self.at_targets = at_or_below({target for change in changes if (target := link_target(change))}, changes)

    def why_protected(self, change: FileChange) -> Reason | None:
        """Why the section, one of the diff's, is not applied; None where it is."""
        if not change.paths:
            return Reason("names no path", accuses=True)
        reasons = [reason._replace(path=path) for path in sorted(change.paths) if (reason := self._why(path))]
        if any(
            not mode.startswith("100") and (path, mode, *change.added) not in self.made
            for mode in change.made
            for path in change.paths
        ):
            target = link_target(change)
            if target is None or self._is_hidden(target):
                reasons.append(Reason("a symlink or submodule", accuses=True))
            elif not is_one_file(self.task, target, self.at_targets[target]):
                reasons.append(Reason("a symlink to other than one file of the checkout"))
        elif change.binary and not self.binary.issuperset(change.paths) and not self.texts.issuperset(change.paths):
            reasons.append(Reason("a binary file"))
        return next((reason for reason in reasons if reason.accuses), reasons[0] if reasons else None)

    def is_test(self, change: FileChange) -> bool:
        """All its paths are hidden tests or in the environment's own globs: an agent that writes tests does what it
        should."""
        return all(
            self._is_hidden(path) or matches_any(path, self.task.environment.protected) for path in change.paths
        ) and not any(matches_any(path, ALWAYS) for path in change.paths)

    def _why(self, path: str) -> Reason | None:
        parts = path.split("/")
        if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
            return Reason("a path outside the checkout", accuses=True)
        if why := why_no_path(path):
            return Reason(why, accuses=True)
        if self._is_hidden(path):
            return Reason("a place of the hidden tests")
        if path in self.oracle:
            return None
        if matches_any(path, JUDGE):
            return Reason("read by the interpreter or by git, not by people", accuses=True)
        hidden = self.shadowing.hidden_by(path)
        if any(map(self.shadowing.is_imported, hidden)):
            return Reason("hides an installed module", accuses=True)
        if hidden:
            return Reason("has an installed module's name")
        if self._is_compared_with(path):
            return Reason("data that the tests name: what they compare with is theirs")
        if found := next((glob for glob in self.globs if matches_any(path, (glob,))), None):
            by = "by the task's environment" if found in self.own else "since test runners or git read it by themselves"
            return Reason(f"protected {by} ({found})")
        return None

    def _is_compared_with(self, path: str) -> bool:
        """Whether a test reads this file, as far as its words say so: a golden text is an expectation like any
        other."""
        file = PurePosixPath(path)
        if file.suffix.lower() in _PROGRAMS:
            return False
        named = self._named_by_tests
        return any("/".join(file.parts[start:]) in named for start in range(len(file.parts)))

    @cached_property
    def _named_by_tests(self) -> frozenset[str]:
        """Texts in quotes of the hidden tests and of the selected files."""
        files = [path for path in test_files(self.task) if path not in self.task.hidden_tests]
        texts = [
            *self.task.hidden_tests.values(),
            *(base_text(self.task, path) for path in files),
            *(line for change in split_diff(self.task.test_patch) for line in change.added),
        ]
        return frozenset(posixpath.normpath(one) for text in texts for one in _QUOTED.findall(text))

    def _is_hidden(self, path: str) -> bool:
        return any(
            path == hidden or path.startswith(hidden + "/") or hidden.startswith(path + "/") for hidden in self.hidden
        )


def matches_any(path: str, globs: tuple[str, ...]) -> bool:
    """As Environment.protected is read: a glob is a folder ("docs/"), a whole path, or any part of one."""
    parts = path.split("/")
    return any(_matches(path, parts, glob) for glob in globs)


def _matches(path: str, parts: list[str], glob: str) -> bool:
    if glob.endswith("/"):
        return path.startswith(glob) or ("/" not in glob[:-1] and glob[:-1] in parts[:-1])
    if "/" in glob:
        return fnmatchcase(path, glob)
    return any(fnmatchcase(part, glob) for part in parts)

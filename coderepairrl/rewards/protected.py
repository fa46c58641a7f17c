"""Which parts of a diff never reach the grading sandbox, because they could decide the tests' result instead of the code.

Always: what test runners and the interpreter load by themselves, what git reads, links but to one file of the checkout, binary files,
paths outside the checkout, paths of hidden tests, and new top-level modules that hide an installed one (shadowing.py: a new
xmlrunner.py in the checkout's root would be the test runner). Further: Environment.protected.

What the oracle's own patch touches is not protected (a repair of a test runner or of a conftest.py must be possible), unless it is
a hidden test. A glob without a slash is matched against every part of a path, one with a slash against the whole path, where `*`
crosses slashes; "tests/" means all that is in it. pyproject.toml is not in the list, since repairs change it: environments whose
test command reads pytest's options from it name it themselves.
"""
from dataclasses import dataclass
from fnmatch import fnmatchcase

from coderepairrl.rewards.diffs import FileChange, split_diff
from coderepairrl.rewards.published import LINK
from coderepairrl.rewards.scan import Marks, scan
from coderepairrl.rewards.shadowing import Shadowing, base_text
from coderepairrl.rewards.unusual import as_texts, at_or_below, is_one_file, link_target
from coderepairrl.sandboxes.bounds import why_no_path
from coderepairrl.types import Task

# Nobody who repairs a project writes these; that a diff has one is told in Verdict.tampered.
JUDGE = ("sitecustomize.py", "usercustomize.py", "*.pth", "*.egg-info", "*.dist-info", ".git", "*.pyc", "*.so")
ALWAYS = (*JUDGE, "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", ".git*", "__pycache__")


@dataclass(frozen=True)
class Selection:
    applied: str  # the sections that go into the grading sandbox
    applied_paths: frozenset[str]
    dropped_paths: tuple[str, ...]
    marks: Marks = Marks()  # of the applied sections
    touched: tuple[str, ...] = ()  # what the whole diff touches of the judge's own, with certainty


def select(task: Task, diff: str, installed: frozenset[str], always: tuple[str, ...] = ALWAYS,
           loaded: frozenset[str] | None = None) -> Selection:
    """`installed`: top-level module names of the environment's interpreter, `loaded` those that its test runner loads
    (None: all of them); `always`: globs that are protected in every environment. Reads the base: call it in a thread."""
    kept: list[FileChange] = []
    dropped: list[str] = []
    marks, left_out = Marks(), Marks()
    changes = split_diff(diff)
    if not changes and diff.strip():  # not a diff at all: git says so, and the verdict repeats it
        return Selection(diff, frozenset(), ())
    shadowing = Shadowing(task, changes, installed, installed if loaded is None else loaded)
    rules = _Rules(task, changes, shadowing, always + task.environment.protected)

    def before(path: str) -> str:
        return base_text(task, path)

    reasons = [rules.why_protected(change) for change in changes]
    # git writes a file that becomes a link, or the other way round, as two sections: the one is nothing without the other
    lost = {frozenset(change.paths): why for change, why in zip(changes, reasons, strict=True) if why}
    for change in changes:
        why = lost.get(frozenset(change.paths))
        if why:
            dropped += sorted(change.paths) or ["(no path)"]
            left_out |= Marks() if rules.is_test(change) else scan(change, task.oracle_patch, before)
            left_out |= Marks((f"{change.path}: {why}",) if why != _PROTECTED else ())
        else:
            kept.append(change)
            relaxed = any(_matches_any(path, rules.globs) for path in change.paths) or LINK in change.made
            marks |= scan(change, task.oracle_patch, before) | Marks(possible=relaxed)
    applied_paths = frozenset(path for change in kept for path in change.paths)
    return Selection("".join(change.text for change in kept), applied_paths, tuple(dict.fromkeys(dropped)), marks, (marks | left_out).certain)


_PROTECTED = "protected"


class _Rules:
    """The rules of one task for one diff, so that the oracle's patch is read once."""

    def __init__(self, task: Task, changes: list[FileChange], shadowing: Shadowing, globs: tuple[str, ...]):
        self.task, self.shadowing, self.globs = task, shadowing, globs
        self.hidden = frozenset(task.hidden_tests) | {path for change in split_diff(task.test_patch) for path in change.paths}
        oracle = split_diff(task.oracle_patch)
        self.oracle = {path: change for change in oracle for path in change.paths}
        self.made = {(path, mode, *change.added) for change in oracle for path in change.paths for mode in change.made}
        self.binary = {path for change in oracle for path in change.paths if change.binary}
        unknown = (change for change in changes if change.binary and not self.binary.issuperset(change.paths))
        self.texts = as_texts(task, unknown)
        self.at_targets = at_or_below({target for change in changes if (target := link_target(change))}, changes)

    def why_protected(self, change: FileChange) -> str:
        """Empty, or why the section, one of the diff's, is not applied."""
        if not change.paths:
            return "names no path"
        reasons = [reason for path in sorted(change.paths) if (reason := self._why(path))]
        if any(not mode.startswith("100") and (path, mode, *change.added) not in self.made for mode in change.made for path in change.paths):
            target = link_target(change)
            if target is None or self._is_hidden(target):
                reasons.append("a symlink or submodule")
            elif not is_one_file(self.task, target, self.at_targets[target]):
                reasons.append(_PROTECTED)
        elif change.binary and not self.binary.issuperset(change.paths) and not self.texts.issuperset(change.paths):
            reasons.append(_PROTECTED)
        return next((reason for reason in reasons if reason != _PROTECTED), reasons[0] if reasons else "")

    def is_test(self, change: FileChange) -> bool:
        """All its paths are hidden tests or in the environment's own globs: an agent that writes tests does what it should."""
        return all(self._is_hidden(path) or _matches_any(path, self.task.environment.protected) for path in change.paths) and \
            not any(_matches_any(path, ALWAYS) for path in change.paths)

    def _why(self, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or any(part in ("", ".", "..") for part in parts) :
            return "a path outside the checkout"
        if why := why_no_path(path):
            return why
        if self._is_hidden(path):
            return _PROTECTED
        if path in self.oracle:
            return ""
        if _matches_any(path, JUDGE):
            return "read by the interpreter or by git, not by people"
        hidden = self.shadowing.hidden_by(path)
        if any(map(self.shadowing.is_imported, hidden)):
            return "hides an installed module"
        return _PROTECTED if hidden or _matches_any(path, self.globs) else ""

    def _is_hidden(self, path: str) -> bool:
        return any(path == hidden or path.startswith(hidden + "/") or hidden.startswith(path + "/") for hidden in self.hidden)


def _matches_any(path: str, globs: tuple[str, ...]) -> bool:
    parts = path.split("/")
    return any(_matches(path, parts, glob) for glob in globs)


def _matches(path: str, parts: list[str], glob: str) -> bool:
    if glob.endswith("/"):
        return path.startswith(glob) or ("/" not in glob[:-1] and glob[:-1] in parts[:-1])
    if "/" in glob:
        return fnmatchcase(path, glob)
    return any(fnmatchcase(part, glob) for part in parts)

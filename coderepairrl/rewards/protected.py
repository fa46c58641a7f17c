"""Which parts of a diff never reach the grading sandbox, because they could decide the tests' result instead of the code.

Always: what test runners and the interpreter load by themselves, what git reads, symlinks, binary files, paths outside the
checkout, paths of hidden tests, and new top-level modules that hide an installed one (a new xmlrunner.py in the checkout's
root would be the test runner). Further: Environment.protected.

A glob without a slash is matched against every part of a path, one with a slash against the whole path, where `*` crosses
slashes; "tests/" means all that is in it. pyproject.toml is not in the list, since repairs change it: environments whose
test command reads pytest's options from it name it themselves.
"""
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from coderepairrl.rewards.diffs import FileChange, split_diff
from coderepairrl.types import Task

ALWAYS = ("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "sitecustomize.py",
          "usercustomize.py", "*.pth", ".git*", "*.egg-info", "*.dist-info", "__pycache__", "*.pyc", "*.so")


@dataclass(frozen=True)
class Selection:
    applied: str  # the sections that go into the grading sandbox
    applied_paths: frozenset[str]
    dropped_paths: tuple[str, ...]


def select(task: Task, diff: str, installed: frozenset[str]) -> Selection:
    """`installed`: top-level module names of the environment's interpreter."""
    kept: list[FileChange] = []
    dropped: list[str] = []
    changes = split_diff(diff)
    if not changes and diff.strip():  # not a diff at all: git says so, and the verdict repeats it
        return Selection(diff, frozenset(), ())
    for change in changes:
        if is_protected(task, change, installed):
            dropped += sorted(change.paths) or ["(no path)"]
        else:
            kept.append(change)
    return Selection("".join(change.text for change in kept), frozenset(path for change in kept for path in change.paths), tuple(dict.fromkeys(dropped)))


def is_protected(task: Task, change: FileChange, installed: frozenset[str]) -> bool:
    unusual = change.binary or not change.paths or any(not mode.startswith("100") for mode in change.modes)
    return unusual or any(_path_is_protected(task, path, installed) for path in change.paths)


def _path_is_protected(task: Task, path: str, installed: frozenset[str]) -> bool:
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        return True
    if any(_matches(path, parts, glob) for glob in (*ALWAYS, *task.environment.protected)):
        return True
    if any(path == hidden or path.startswith(hidden + "/") or hidden.startswith(path + "/") for hidden in task.hidden_tests):
        return True
    return any(_hides_installed(task, path, folder, installed) for folder in _import_folders(task))


def _matches(path: str, parts: list[str], glob: str) -> bool:
    if glob.endswith("/"):
        return path.startswith(glob) or ("/" not in glob[:-1] and glob[:-1] in parts[:-1])
    if "/" in glob:
        return fnmatchcase(path, glob)
    return any(fnmatchcase(part, glob) for part in parts)


def _import_folders(task: Task) -> set[str]:
    """Folders from which a test process may import: the root, and all folders on the way to a test."""
    named = [*task.hidden_tests, *(argument.partition("::")[0] for argument in task.test_selection)]
    parents = {str(parent) for name in named for parent in PurePosixPath(name).parents}
    return {"" if parent == "." else parent + "/" for parent in parents} | {""}


def _hides_installed(task: Task, path: str, folder: str, installed: frozenset[str]) -> bool:
    if not path.startswith(folder):
        return False
    top = path[len(folder):].split("/")[0]
    return top.split(".")[0] in installed and not _in_base(task, folder + top)


def _in_base(task: Task, path: str) -> bool:
    base = task.environment.base
    return any(name == path or name.startswith(path + "/") for name in task.files) or (base is not None and Path(base, path).exists())

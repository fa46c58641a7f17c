"""Which paths of a diff hide an installed module from the test process: a new traceback.py in the checkout's root does.

A file does where Python would import it under that name: a module `json.py`, or Python code below `json/`, in a folder
that comes first on sys.path, where the base has no module of that name. Texts, data and other languages hide nothing,
nor does a module of a package. Whoever hides what nothing imports, such as an agent's scratch file test.py, attacks
nothing: it is left out of the diff all the same.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from coderepairrl.diffs import FileChange
from coderepairrl.sandboxes.diff_bounds import why_no_path
from coderepairrl.types import Task

_IMPORTABLE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib")
_SETTINGS = ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "tox.ini", "setup.cfg")
_PYTHONPATH = re.compile(r"\bpythonpath\s*=\s*([^\n]*(?:\n[ \t]+\S[^\n]*)*)", re.IGNORECASE)
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\w+)(?:\.[\w.]*)?[ \t]+import\b|import[ \t]+([^\n#;]+))"
    r"|import_module\([ \t]*['\"](\w+)",
    re.MULTILINE,
)


class Shadowing:
    """Of one task and one diff."""

    def __init__(self, task: Task, changes: Iterable[FileChange], installed: frozenset[str], loaded: frozenset[str]):
        self.task, self.installed, self.loaded = task, installed, loaded
        self.touched = frozenset(path for change in changes for path in change.paths)
        self.added = "\n".join(line for change in changes for line in change.added)
        self.folders = frozenset(self._import_folders())

    def hidden_by(self, path: str) -> list[str]:
        """The installed modules that the path hides, from the folder of one entry of sys.path or another."""
        above = ["", *(path[: end.end()] for end in re.finditer("/", path))]
        return sorted({self._module(path, folder) for folder in above if folder in self.folders} - {""})

    def is_imported(self, name: str) -> bool:
        """Whether the runner loads it, or the tests, the diff or the checkout name it in an import."""
        base = self.task.environment.base
        return name in self.loaded or name in self._named or (base is not None and name in _base_imports(base))

    @functools.cached_property
    def _named(self) -> frozenset[str]:
        return _imports(self.added, *self.task.hidden_tests.values(), *self.task.files.values())

    def _module(self, path: str, folder: str) -> str:
        """The installed module that `path` hides if `folder` is on sys.path; empty for none."""
        top, *below = path[len(folder) :].split("/")
        name = top if below else top.split(".")[0]
        if name not in self.installed or PurePosixPath(path).suffix not in _IMPORTABLE:
            return ""
        known = [f"{folder}{name}.py", f"{folder}{name}/__init__.py"]  # the base itself hides what is installed
        if below and not below[0].startswith("__init__."):
            known.append(folder + name)  # a folder without __init__.py hides nothing; a new one may yet get it
        return "" if any(_in_base(self.task, there) for there in known) else name

    def _import_folders(self) -> Iterator[str]:
        """The root, the runner's script's, what settings name, and on the way to a test those that are no package."""
        yield ""
        tests = (*self.task.hidden_tests, *(argument.partition("::")[0] for argument in self.task.test_selection))
        for parent in (str(parent) for name in tests for parent in PurePosixPath(name).parents):
            if parent != "." and not self._stays_package(parent):  # pytest begins above packages
                yield parent + "/"
        for argument in self.task.environment.test_command:
            if argument.endswith(".py") and "/" in argument:
                yield argument.rpartition("/")[0] + "/"
        for folder in self._python_path():
            yield folder + "/"

    def _stays_package(self, folder: str) -> bool:
        init = f"{folder}/__init__.py"
        return init in self.task.hidden_tests or (init not in self.touched and _in_base(self.task, init))

    def _python_path(self) -> Iterator[str]:
        command = "\n".join(self.task.environment.test_command)
        for text in (command, self.added, *(base_text(self.task, path) for path in _SETTINGS)):
            for value in _PYTHONPATH.findall(text):
                yield from (word.removeprefix("./").strip("/") for word in re.findall(r"[\w./-]+", value))
        for entry in self.task.environment.variables.get("PYTHONPATH", "").split(":"):
            yield entry.removeprefix(self.task.environment.workdir).removeprefix("./").strip("/")


def base_text(task: Task, path: str) -> str:
    """The file at the base commit; empty when there is none, or when its path leads outside."""
    if path in task.files or task.environment.base is None or why_no_path(path):
        return task.files.get(path, "")
    root = Path(task.environment.base).resolve()
    file = (root / path).resolve()
    return file.read_text(errors="replace") if file.is_relative_to(root) and file.is_file() else ""


def _in_base(task: Task, path: str) -> bool:
    base = task.environment.base
    laid = any(name == path or name.startswith(path + "/") for name in task.files)
    return laid or (base is not None and not why_no_path(path) and Path(base, path).exists())


def _imports(*texts: str) -> frozenset[str]:
    """Top-level names in import statements, in linear time: a diff may hold any text."""
    found = (match for text in texts for match in _IMPORT.finditer(text))
    lists = (match[1] or match[3] or match[2] for match in found)
    return frozenset(re.split(r"\W", name.strip(), maxsplit=1)[0] for names in lists for name in names.split(","))


@functools.lru_cache(maxsize=1024)
def _base_imports(base: str) -> frozenset[str]:
    """Of all Python files of the base, which never changes. Links are not followed."""
    files = (path for path in Path(base).rglob("*.py") if path.is_file() and not path.is_symlink())
    return frozenset().union(*(_imports(file.read_text(errors="replace")) for file in files))

"""BugsInPy: 501 bugs of 17 Python projects. https://github.com/soarsmu/BugsInPy (no licence), Widyasari et al. 2020.

    tasks: {name: bugsinpy, source: data/BugsInPy, clones: "data/git/{owner}/{name}.git"}

The benchmark names two commits a bug, the tests that show it, and what its authors had installed. A task starts from
the buggy commit; the repair is the benchmark's patch; hidden is all that the fixed commit changes below its folders of
tests, since the test files alone lack their data. The files that hold the named tests are run, by pytest also where the
benchmark runs unittest, and scripts/prepare_tasks.py measures which of their tests must pass (docs/benchmarks.md).
Nobody wrote down an issue: the problem statement is the message of the commit that repaired it.
"""

import codecs
import functools
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name
from pydantic import PositiveFloat

from coderepairrl.config import Config, read_yaml
from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.lines import one_line
from coderepairrl.tasks import programs
from coderepairrl.tasks.build_rows import BUILD_TOOLS
from coderepairrl.tasks.pytest_options import OPTIONS
from coderepairrl.tasks.refusals import check_texts, refuse
from coderepairrl.tasks.translation import Gathered, Untranslatable
from coderepairrl.types import Environment, Recipe, Task

URL = "https://github.com/soarsmu/BugsInPy"
# Its requirements were frozen in 2020. What they leave open is of this day: since then the index has the releases of
# atomicwrites that they name (all were uploaded anew), and editable installations without a setup.py are possible.
WRITTEN = "2022-07-10T00:00:00Z"
WITHOUT = ("pkg-resources", "pywin32")  # Debian's pip alone lists the first, Windows alone has the second
FILES = "one file of tests: all of them may show the bug"
_INFO = re.compile(r'^(\w+)\s*=\s*"([^"]*)"', re.MULTILINE)
_TRAILER = re.compile(r"^(?:Co-authored-by|Signed-off-by|Reviewed-by):.*\n?", re.MULTILINE | re.IGNORECASE)


class BugsInPyConfig(Config):
    """BugsInPy."""

    name: Literal["bugsinpy"] = "bugsinpy"
    source: str  # folder of a clone of its repository
    clones: str  # where the projects' own clones are, bare or not: a folder with {owner} and {name}
    projects: tuple[str, ...] = ()  # of these names, or all
    only: tuple[str, ...] = ()  # these tasks, such as bugsinpy-black-1, or all
    use: Literal["train", "heldout"] = "heldout"  # what its tasks are for
    test_timeout_s: PositiveFloat = 300.0  # of a task's tests, all together
    skip_unusable: bool = False  # leave out, and report, bugs that cannot be used; false: the first one is an error


class PinCorrection(Config):
    """What the frozen requirements of a project need to be built here."""

    without: tuple[str, ...] = ()  # names of packages that are left out
    requirements: tuple[str, ...] = ()  # in addition
    build: tuple[str, ...] | None = None  # instead of the installation
    options: tuple[str, ...] = ()  # of pytest


def load(config: BugsInPyConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """Environments not built. Raises TaskError, unless bugs may be `refused`."""
    folder = programs.folder_of(config.source, "projects", URL)
    left_out: list[str] = []
    refused = left_out if config.skip_unusable else refused
    tasks = []
    for project in sorted((folder / "projects").iterdir()):
        if config.projects and project.name not in config.projects:
            continue
        bugs = sorted((path for path in (project / "bugs").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
        bugs = [bug for bug in bugs if not config.only or _task_id(bug) in config.only]
        try:
            repo, clone = _clone(project, config.clones) if bugs else ("", Path())
        except TaskError as error:
            refuse(error, refused)
            continue
        for bug in bugs:
            try:
                task = _to_task(bug, repo, clone, config)
                check_texts(task, task.task_id)
                tasks.append(task)
            except TaskError as error:
                refuse(error, refused)
    for line in left_out:
        print(f"left out: {line}")
    return {"train": [], "heldout": [], config.use: tasks}


def _task_id(bug: Path) -> str:
    return f"bugsinpy-{bug.parents[1].name}-{bug.name}"


def _clone(project: Path, pattern: str) -> tuple[str, Path]:
    """(OWNER/NAME, the folder of its clone). Raises TaskError."""
    url = dict(_INFO.findall(programs.text_of(project / "project.info"))).get("github_url", "").rstrip("/")
    owner, name = url.removesuffix(".git").split("/")[-2:] if url.count("/") > 1 else ("", "")
    try:
        clone = Path(pattern.format(owner=owner, name=name)).expanduser()
    except (KeyError, IndexError, ValueError) as error:
        raise TaskError(f"tasks.clones: {pattern!r} may hold {{owner}} and {{name}} only") from error
    if not clone.is_dir():
        raise TaskError(
            f"bugsinpy, {project.name}: no clone in {clone}: git clone --bare {url} {clone}, or leave it out"
        )
    return f"{owner}/{name}", clone


def _to_task(bug: Path, repo: str, clone: Path, config: BugsInPyConfig) -> Task:
    """Raises TaskError."""
    task_id = _task_id(bug)
    info = dict(_INFO.findall(programs.text_of(bug / "bug.info")))
    try:
        base, fixed, python = (info[name] for name in ("buggy_commit_id", "fixed_commit_id", "python_version"))
        named = [path.strip() for path in info["test_file"].split(";") if path.strip()]
    except KeyError as error:
        raise TaskError(f"{task_id}, bug.info: no {error}: leave it out") from error
    roots = sorted({_root(path) for path in named})
    test_patch = _git(task_id, clone, *_DIFF, base, fixed, "--", *roots)
    hidden = {path for change in split_diff(test_patch) for path in change.paths}
    patch = split_diff(programs.text_of(bug / "bug_patch.txt"))
    created_at, message = _git(task_id, clone, "log", "-1", "--format=%ad%n%B", *_DATE, fixed).split("\n", 1)
    tests, selection = _tests(task_id, programs.text_of(bug / "run_test.sh"), named)
    place = _environment(task_id, bug, Recipe(f"git:{repo}", base, ".".join(python.split(".")[:2])), config)
    return Task(
        task_id=task_id,
        problem_statement=_statement(repo, message, tests),
        environment=place,
        files={},
        hidden_tests={},
        test_selection=selection,
        fail_to_pass=(),
        pass_to_pass=(),
        oracle_patch="".join(change.text for change in patch if not change.paths & hidden),
        metadata={"repo": repo, "base_commit": base, "created_at": created_at, "split": config.use}
        | {"tests": "\n".join(tests), programs.WITHOUT_TESTS_TO_KEEP: FILES},
        test_patch=test_patch,
    )


@functools.cache
def corrections() -> dict[str, PinCorrection]:
    """By project."""
    tree = read_yaml(Path(__file__).with_suffix(".yaml"))
    return {name: PinCorrection.model_validate(fields) for name, fields in tree.items()}


def _text(path: Path) -> str:
    """Of a file that may be absent, and UTF-16 as Windows writes it. Raises TaskError."""
    data = path.read_bytes() if path.exists() else b""
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: {error}: fetch the benchmark's repository again") from error


_DIFF = ("diff-tree", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv")
_DATE = ("--date=format-local:%Y-%m-%dT%H:%M:%SZ",)


def _statement(repo: str, message: str, tests: list[str]) -> str:
    lines = [f"The commit that repaired this bug of {repo} says:", "", _TRAILER.sub("", message).strip(), ""]
    return "\n".join([*lines, "Without the repair these tests fail:", *(f"- {test}" for test in tests)])


def _root(path: str) -> str:
    """The folder of tests that a test file lies in; the file itself where no folder says that it is one."""
    parts = path.split("/")
    place = next((i for i, part in enumerate(parts[:-1]) if part in ("test", "tests", "testing")), None)
    return path if place is None else "/".join(parts[: place + 1])


def _git(task_id: str, clone: Path, *words: str) -> str:
    """Raises TaskError."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = own | {"TZ": "UTC", "LC_ALL": "C"}
    argv = ["git", "--literal-pathspecs", "-C", str(clone), *words]
    done = subprocess.run(argv, capture_output=True, env=environment)
    try:
        text = done.stdout.decode()
    except UnicodeDecodeError as error:
        raise TaskError(f"{task_id}: the tests' data is not UTF-8 ({error}): leave it out") from error
    if done.returncode:
        cause = one_line(done.stderr.decode(errors="replace"))
        raise TaskError(f"{task_id}: git {words[0]} in {clone}: {cause}: complete the clone, or leave it out")
    return text


def _tests(task_id: str, script: str, files: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """(the tests as the benchmark's commands name them, the files that hold them). Raises TaskError."""
    tests, selection = [], []
    modules = {path.removesuffix(".py").replace("/", "."): path for path in files if path.endswith(".py")}
    for test in dict.fromkeys(word for line in script.splitlines() for word in shlex.split(line)[1:]):
        holds = [path for module, path in modules.items() if f"{test}.".startswith(f"{module}.")]
        if ".py" in test or holds:
            tests.append(test)
            selection.append(holds[0] if holds else test.partition("::")[0])
    if not tests:
        raise TaskError(f"{task_id}, run_test.sh: names no test of {', '.join(files)}: leave it out")
    return tests, tuple(dict.fromkeys(selection))


def _environment(task_id: str, bug: Path, recipe: Recipe, config: BugsInPyConfig) -> Environment:
    """Its authors' packages are preferred: they yield to what the project itself declares. Raises TaskError."""
    project = bug.parents[1].name
    correction = corrections().get(project, PinCorrection())
    frozen, script = _text(bug / "requirements.txt"), _text(bug / "setup.sh")
    mentioned = {canonicalize_name(word) for word in re.findall(r"[\w.-]+", frozen + script)}
    gathered = Gathered(
        tuple(name for name in (project, *WITHOUT, *correction.without) if canonicalize_name(name) in mentioned)
    )
    try:
        gathered.command("pip install -e .")  # as its authors did, also where no script says so
        for line in filter(None, map(str.strip, frozen.splitlines())):
            if line.startswith("-e"):
                if not line.lower().endswith(f"#egg={project.lower()}"):  # the checkout itself
                    raise Untranslatable(f"it installs {line}")
            elif not line.startswith("#"):
                gathered.requirement(line)
        for line in script.splitlines():
            if line.startswith("touch "):  # modules by unittest's names
                gathered.left_out.append(line.strip())
            else:
                gathered.command(line.strip())
    except Untranslatable as error:
        raise TaskError(f"{task_id}: {error}: leave it out") from error
    found = (*gathered.own, *gathered.names, *correction.requirements, "pytest", *BUILD_TOOLS)
    recipe = Recipe(
        **recipe.__dict__
        | {"requirements": tuple(dict.fromkeys(found)), "preferred": tuple(gathered.preferred.values())}
        | {
            "exclude_newer": WRITTEN,
            "left_out": tuple(dict.fromkeys(name for name in gathered.left_out if name != project)),
        }
        | {"build": tuple(dict.fromkeys(gathered.build)) if correction.build is None else correction.build}
    )
    return Environment(
        name=task_id,
        base=None,
        python="",
        test_command=("{python}", "-m", "pytest", *OPTIONS, *correction.options, "{tests}", "{canary_path}"),
        variables={"SETUPTOOLS_SCM_PRETEND_VERSION": "0"},  # the checkout has no tags for setuptools_scm to read
        test_timeout_s=config.test_timeout_s,
        recipe=recipe,
    )

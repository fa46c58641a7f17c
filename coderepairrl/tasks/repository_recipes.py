"""What recipes.yaml says of a repository: how a row's environment is built and how its tests are run."""

import functools
import re
import shlex
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from coderepairrl.config import Config, read_yaml
from coderepairrl.diffs import split_diff
from coderepairrl.tasks.pytest_options import OPTIONS
from coderepairrl.tasks.rows import Row
from coderepairrl.types import Environment, Recipe

INSTALL = "python -m pip install --no-deps --no-build-isolation --disable-pip-version-check -e ."
BUILD_TOOLS = ("pip", "setuptools", "wheel")
MARKED = re.compile(r"^: '>+ Start Test Output'\n(.*?)^: '>+ End Test Output'", re.MULTILINE | re.DOTALL)
KEYWORDS_MAX = 60_000  # characters of a -k expression: an argument may have 128 KiB
# Parsers of swebench that read pytest's summary: those runners write JUnit XML instead, which is better evidence.
PYTEST_PARSERS = {
    f"parse_log_{name}"
    for name in (
        "pytest pytest_options pytest_v2 astroid astropy flask marshmallow matplotlib pvlib pydicom pylint pyvista "
        "requests scikit seaborn sphinx sqlfluff "
        "xarray"
    ).split()
}


class BuildRow(Config):
    versions: str = ""  # such as ">=2,<2.3"
    python: str
    requirements: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    build: tuple[str, ...] = (INSTALL,)
    variables: dict[str, str] = {}  # of the build and of the tests; {version} is the row's


class Repository(Config):
    runner: Literal["pytest", "log"] = "pytest"
    options: tuple[str, ...] = ()  # of pytest
    select: Literal["files", "keywords"] = "files"
    log_parser: str = ""
    command: str = ""
    recipes: tuple[BuildRow, ...] = ()


@functools.cache
def repositories() -> dict[str, Repository]:
    tree = read_yaml(Path(__file__).with_name("recipes.yaml"))
    return {name: Repository.model_validate(fields) for name, fields in tree.items()}


def build_environment(
    row: Row,
    *,
    repo: str,
    version: str,
    revision: str,
    created_at: str,
    tests: tuple[str, ...],
    test_patch: str,
    image: str | None,
    test_timeout_s: float,
) -> tuple[Environment, tuple[str, ...]]:
    """(the environment, not yet built; the arguments that select the tests). `image`: run in it instead of building.
    Raises TaskError."""
    repository = repositories().get(repo, Repository())
    parser = row.text("log_parser", "") or repository.log_parser
    command, selection, log_parser = _pytest(repository, tests), test_files(tests, test_patch), None
    if repository.runner == "log" or parser and parser not in PYTEST_PARSERS:
        if not parser:
            row.refuse("log_parser", "missing, and recipes.yaml knows none")
        command, selection, log_parser = ("bash", "-c", _log_command(row, repository, tests, test_patch)), (), parser
    shared = dict(
        name=row.id, base=None, python="", test_command=command, log_parser=log_parser, test_timeout_s=test_timeout_s
    )
    if image is not None:
        return Environment(**shared, image=image), selection
    recipe = _recipe(row, repository, repo, version, revision, created_at)
    return Environment(**shared, recipe=recipe, variables=_variables(repository, version)), selection


def _recipe(row: Row, repository: Repository, repo: str, version: str, revision: str, created_at: str) -> Recipe:
    if not repository.recipes:
        row.refuse("repo", f"recipes.yaml has no recipe for {repo}: add one, or use `environments: images`")
    found = _fitting(repository, version)
    if found is None:
        row.refuse(
            "version", f"recipes.yaml has no recipe of {repo} for {version!r}: add one, or use `environments: images`"
        )
    exports = "".join(f"{name}={shlex.quote(value)} " for name, value in _variables(repository, version).items())
    return Recipe(
        source=f"git:{repo}",
        revision=revision,
        python=found.python,
        pins=found.pins,
        requirements=() if found.pins else (*found.requirements, *BUILD_TOOLS),
        exclude_newer=created_at or None,
        build=tuple(exports + command for command in found.build),
    )


def _fitting(repository: Repository, version: str) -> BuildRow | None:
    try:
        number = Version(version)
    except InvalidVersion:
        number = None  # only an entry for all versions fits
    return next(
        (
            entry
            for entry in repository.recipes
            if not entry.versions or number is not None and number in SpecifierSet(entry.versions)
        ),
        None,
    )


def _variables(repository: Repository, version: str) -> dict[str, str]:
    found = _fitting(repository, version)
    return {name: value.replace("{version}", version) for name, value in found.variables.items()} if found else {}


def test_files(tests: tuple[str, ...], test_patch: str) -> tuple[str, ...]:
    """The files that pytest's node ids name; where they name none, the Python files of the test patch."""
    named = dict.fromkeys(test.partition("::")[0] for test in tests if ".py::" in test)
    return tuple(named) or tuple(
        dict.fromkeys(change.path for change in split_diff(test_patch) if change.path.endswith(".py"))
    )


def _pytest(repository: Repository, tests: tuple[str, ...]) -> tuple[str, ...]:
    """argv of the tests."""
    options = list(repository.options)
    if repository.select == "keywords":
        names = dict.fromkeys(re.split(r"::|\[", test)[-1] for test in tests)
        words = " or ".join([*names, "{canary_module}"])
        options += ["-k", words] if len(words) < KEYWORDS_MAX else []
    return ("{python}", "-m", "pytest", *OPTIONS, *options, "{tests}", "{canary_path}")


def _log_command(row: Row, repository: Repository, tests: tuple[str, ...], test_patch: str) -> str:
    """What stands between the markers of the row's own evaluation script, or the repository's command for the files of
    the test patch."""
    marked = MARKED.search(row.text("eval_script", ""))
    if marked and marked[1].strip():
        return marked[1].strip()
    if not repository.command:
        row.refuse("eval_script", "missing or without its markers, and recipes.yaml has no command")
    files = [change.path for change in split_diff(test_patch) if change.path.endswith(".py")]
    modules = [path.removeprefix("tests/").removesuffix(".py").replace("/", ".") for path in files]
    return repository.command.replace("{files}", shlex.join(files)).replace("{modules}", shlex.join(modules))

"""How a row's environment is built and how its tests are run: as recipes.yaml says of its repository, else as its
publishers' specification does."""

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from coderepairrl.config import Config, read_yaml
from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.tasks.build_rows import BUILD_TOOLS, BuildRow, Correction
from coderepairrl.tasks.pytest_options import OPTIONS
from coderepairrl.tasks.rows import Row
from coderepairrl.tasks.specifications import Tables
from coderepairrl.tasks.translation import Untranslatable, translate
from coderepairrl.types import Environment, Recipe

_Entry = TypeVar("_Entry", BuildRow, Correction)
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


class Repository(Config):
    runner: Literal["pytest", "log"] = "pytest"
    options: tuple[str, ...] = ()  # of pytest
    select: Literal["files", "keywords"] = "files"
    log_parser: str = ""
    command: str = ""
    recipes: tuple[BuildRow, ...] = ()
    corrections: tuple[Correction, ...] = ()  # of the published specifications


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
    specifications: Callable[[], Tables] | None = None,
) -> tuple[Environment, tuple[str, ...]]:
    """(the environment, not yet built; the arguments that select the tests). `image`: run in it instead of building.
    `specifications`: its publishers', for what recipes.yaml doesn't build. Raises TaskError."""
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
    found = _fitting(repository.recipes, version) or _specified(row, repository, repo, version, specifications)
    variables = {name: value.replace("{version}", version) for name, value in found.variables.items()}
    recipe = _recipe(found, variables, repo, revision, created_at)
    return Environment(**shared, recipe=recipe, variables=variables), selection


def _specified(
    row: Row, repository: Repository, repo: str, version: str, specifications: Callable[[], Tables] | None
) -> BuildRow:
    """Raises TaskError."""
    lacking = f"recipes.yaml has no recipe {f'of {repo} for {version!r}' if repository.recipes else f'for {repo}'}"
    remedy = "add one, or use `environments: images`"
    if specifications is None:
        row.refuse("version" if repository.recipes else "repo", f"{lacking}: {remedy}")
    try:
        return translate(specifications(), repo, version, _fitting(repository.corrections, version))
    except (Untranslatable, TaskError) as error:
        row.refuse("version" if repository.recipes else "repo", f"{lacking}: {error}: {remedy}")


def _recipe(found: BuildRow, variables: dict[str, str], repo: str, revision: str, created_at: str) -> Recipe:
    exports = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
    return Recipe(
        source=f"git:{repo}",
        revision=revision,
        python=found.python,
        pins=found.pins,
        requirements=() if found.pins else (*found.requirements, *BUILD_TOOLS),
        preferred=found.preferred,
        prepare=found.prepare,
        exclude_newer=max(created_at, found.not_before) or None,
        build=tuple(exports + command for command in found.build),
        left_out=found.left_out,
    )


def _fitting(entries: tuple[_Entry, ...], version: str) -> _Entry | None:
    try:
        number = Version(version)
    except InvalidVersion:
        number = None  # only an entry for all versions fits
    return next(
        (
            entry
            for entry in entries
            if not entry.versions or number is not None and number in SpecifierSet(entry.versions)
        ),
        None,
    )


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

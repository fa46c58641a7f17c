"""Which files say what is checked, and what they say: key by key where a format has keys, line by line where it hasn't.

    named    a check that is taken out, or that one line forgives; a value that is looser; a key that nobody knows the
             direction of
    not      what is stricter than before, and what belongs to no checker (dependencies, versions, descriptions)

Directions are read from a key's own words (ignore_errors allows, fail_under demands), since each linter has hundreds
of keys.
"""

import configparser
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from coderepairrl.grading.validation.commands import lines_loosen, lines_steer, makefile_steers

# a new one of these goes before those that are there, or is read beside them
_DEDICATED = re.compile(
    r"(?:^|/)(?:\.?ruff\.toml|\.?mypy\.ini|\.?flake8|\.?pylintrc(?:\.toml)?|\.coveragerc"
    r"|\.?pytest\.(?:ini|toml)|tox\.(?:ini|toml)"
    r"|\.bandit|\.isort\.cfg|\.pycodestyle|\.pydocstyle(?:\.ini)?|\.style\.yapf"
    r"|pyrightconfig\.json"
    r"|\.pyre_configuration|\.yamllint(?:\.ya?ml)?|\.eslintrc[^/]*|eslint\.config\.\w+"
    r"|biome\.jsonc?|\.stylelintrc[^/]*|\.jshintrc"
    r"|jest\.config\.\w+|vitest\.config\.\w+|karma\.conf\.\w+|\.mocharc\.\w+|\.nycrc[^/]*"
    r"|\.golangci\.\w+|\.?clippy\.toml"
    r"|\.rubocop\.yml|phpcs\.xml[^/]*|phpunit\.xml[^/]*|phpstan\.neon[^/]*|checkstyle[^/]*\.xml"
    r"|\.clang-tidy|\.editorconfig"
    r"|\.cargo/config(?:\.toml)?|\.mvn/[^/]*|CTestCustom\.cmake|\.swcrc|rust-toolchain(?:\.toml)?"
    r"|GNUmakefile|makefile|BSDmakefile|ty\.toml|\.?vulture[^/]*|\.codespellrc)$"
)
_SHARED = re.compile(
    r"(?:^|/)(?:pyproject\.toml|setup\.cfg|package\.json|Cargo\.toml|tsconfig[^/]*\.json"
    r"|composer\.json)$"
)
_LINES = re.compile(
    r"(?:^|/)(?:Makefile|[^/]*\.mk|noxfile\.py|tasks\.py|justfile|Justfile|Taskfile\.ya?ml|Rakefile"
    r"|Gruntfile\.\w+|gulpfile\.\w+"
    r"|pom\.xml|build\.gradle[^/]*|CMakeLists\.txt|\.github/(?:workflows|actions)/.*"
    r"|\.gitlab-ci\.yml|\.travis\.yml|appveyor\.yml"
    r"|azure-pipelines[^/]*\.yml|Jenkinsfile|\.circleci/[^/]*|\.pre-commit-config\.yaml"
    r"|lefthook\.yml|codecov\.yml|\.codecov\.yml"
    r"|\.npmrc|\.yarnrc[^/]*|\.env(?:rc|\.\w+)?|babel\.config\.\w+|\.babelrc[^/]*|(?:jest|vitest)\.setup\.\w+"
    r"|vite\.config\.\w+|playwright\.config\.\w+|cypress\.config\.\w+|turbo\.json|nx\.json|gradle\.properties"
    r"|settings\.gradle[^/]*|meson\.build|BUILD(?:\.bazel)?|WORKSPACE(?:\.bazel)?|MODULE\.bazel|\.bazelrc|configure\.ac"
    r"|build\.rs|Dockerfile[^/]*|(?:docker-)?compose[^/]*\.ya?ml"
    r"|(?:scripts?|tools|bin|dev)/(?:[^/]*[-_.])?(?:tests?|lint|check|ci|verify)(?:[-_.][^/]*)?"
    r"(?<!\.py)|[^/]*(?:tests?|lint|check|ci|build)\.(?:sh|bash|bat|ps1)|ci/[^/]*\.sh|\.husky/[^/]*|\.ci/[^/]*)$"
)
_IGNORES = re.compile(
    r"(?:^|/)\.(?:eslint|prettier|stylelint|ruff|flake8|pylint|git|hg|rg|jshint|npm"
    r"|coverage)?ignore$"
)
_CHECKERS = re.compile(
    r"(?:pytest|ruff|mypy|flake8|pylint|coverage|black|isort|pyright|basedpyright|bandit|tox"
    r"|testenv|nox|hatch|pydocstyle"
    r"|pycodestyle|pep8|yapf|vulture|interrogate|deptry|codespell|doc8|pyre|pytype|ty|mutmut|poe"
    r"|taskipy|pdm|lints?|jest|eslint"
    r"|scripts?|nyc|mocha|stylelint|xo|standard|vitest|ava|c8|profile|compilerOptions|include"
    r"|exclude|files|prettier|aliases"
    r"|report|run|html|MASTER|MAIN|MESSAGES CONTROL|FORMAT|rules?|extends|overrides"
    r"|plugins|importlinter|semgrep|pyrefly|eslint\w+)",
    re.IGNORECASE,
)
_DEMANDS_FIRST = re.compile(
    r"^(?:warn[_-](?!only)|disallow|no[_-](?:implicit|unused|fallthrough|property|unchecked|unsafe)"
    r"|strict|check[_-]|enable|extra[_-]checks"
    r"|require|fail[_-](?!on[_-]none)"
    r"|extend[_-]select|xfail_strict|error)"
)
_ALLOWS = re.compile(
    r"ignore|exclu|disable|skip|omit|allow|permit|suppress|silenc|deselect|no[_-]strict|implicit"
    r"|follow_imports|exit[_-]zero|xfail"
    r"|norecurse|unsafe|baseline|max|length|quiet|warn[_-]only|tolerance|silent|noqa"
    r"|passWithNoTests|todo|lenient|non[_-]blocking"
    r"|continue[_-]on",
    re.IGNORECASE,
)
_DEMANDS = re.compile(
    r"select|enable|strict|fail|disallow|warn|check|error|require|min|testpaths|files|packages"
    r"|source|include|plugin|branch|forbid"
    r"|deny|lint|test|verify|enforce|python_(?:functions|classes)|report|depends|module|load"
    r"|paths?$|threshold|rules|members|assertions",
    re.IGNORECASE,
)
_GROWS = re.compile(
    r"^(?:extend[_-]|enable|markers|plugins$|required_plugins"
    r"|fail[_-]on)"
)  # lists that are added to what holds without them
_COMMANDS = re.compile(r"commands|scripts?$|cmd$|shell$|^run$", re.IGNORECASE)
_FREE = re.compile(
    r"^(?:description|name|title|author|log_|cache_dir|junit|color|colour|console_output|show_"
    r"|pretty|verbos|output[_-]format)"
)
_ADDED_OPTION = re.compile(
    r"--strict[\w-]*|-v+|-q+|-r\w+|--cov[\w-]*(?:=\S*)?|--tb=\w+|--color=\w+|--durations=\d+"
    r"|-W|error|--doctest-modules|-ra"
)
_SEVERITY = {
    "off": 0,
    "none": 0,
    "ignore": 0,
    "silent": 0,
    "allow": 0,
    "0": 0,
    "skip": 0,
    "info": 1,
    "information": 1,
    "hint": 1,
    "basic": 1,
    "warn": 1,
    "warning": 1,
    "1": 1,
    "error": 2,
    "2": 2,
    "deny": 2,
    "standard": 2,
    "fatal": 3,
    "strict": 3,
    "forbid": 3,
}
_OF_CARGO = ("test", "doctest", "autotests", "required-features", "members", "overflow-checks", "debug-assertions")
_COMPILED_TO = ("target", "lib", "jsx", "module", "moduleResolution", "outDir", "rootDir", "esModuleInterop", "baseUrl")
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


def is_configuration(path: str) -> bool:
    """Whether a file says what is checked, and how."""
    return any(pattern.search(path) for pattern in (_DEDICATED, _SHARED, _LINES, _IGNORES))


def is_shared(path: str) -> bool:
    """... among other things, so that a repair may need it."""
    return bool(
        _SHARED.search(path)
        or re.search(
            r"(?:^|/)(?:pom\.xml|build\.gradle[^/]*|CMakeLists\.txt|Makefile"
            r"|[^/]*\.mk)$",
            path,
        )
    )


def loosened(path: str, before: str | None, after: str) -> list[str]:
    """Findings of a configuration file; None: it is new."""
    if before is None and _DEDICATED.search(path):
        return [f"{path}: a new configuration of checks goes before what was there"]
    if _IGNORES.search(path):
        return [f"{path}: {line!r} loosens a check" for line in _ignored(path, before or "", after)]
    old, new = _read(path, before), _read(path, after)
    if old is None or new is None:
        found = list(lines_loosen(path, before, after) if before is not None else lines_steer(after))
        return [f"{path}: {finding}" for finding in (*found, *makefile_steers(path, before or "", after))]
    return [f"{path}: {finding}" for finding in dict.fromkeys(_compared(path, old, new, before is None))]


def _ignored(path: str, before: str, after: str) -> Iterator[str]:
    known = {line.strip() for line in before.split("\n")}
    for line in (line.strip() for line in after.split("\n")):
        code = not path.endswith((".gitignore", ".hgignore")) or re.search(
            r"^[*/.]+$|\.(?:py|js|ts|go|rs|java|rb"
            r"|php|c|cc|cpp)$|^/?(?:src"
            r"|tests?)\b",
            line,
        )
        if line and not line.startswith(("#", "!")) and line not in known and code:
            yield line


def _read(path: str, text: str | None) -> dict[tuple[str, ...], Any] | None:
    """Key path -> value; {} of no file, None where the format has no keys that are known."""
    if text is None:
        return {} if _parser(path) else None
    parser = _parser(path)
    if parser is None:
        return None
    try:
        found = parser(text)
    except (
        ValueError,
        RecursionError,
        configparser.Error,
        yaml.YAMLError,
    ):  # what nobody can read is compared by lines
        return None
    return dict(_flat(found)) if isinstance(found, dict) else None


def _parser(path: str):
    name, suffix = PurePosixPath(path).name, PurePosixPath(path).suffix
    if _LINES.search(path):
        return None
    if suffix == ".toml":
        return tomllib.loads
    if suffix == ".json":
        return json.loads
    if suffix in (".yml", ".yaml"):
        return yaml.safe_load
    if suffix in (".ini", ".cfg") or name in (
        ".flake8",
        "flake8",
        ".pylintrc",
        "pylintrc",
        ".coveragerc",
        ".bandit",
        ".pycodestyle",
        ".editorconfig",
    ):
        return _ini
    return None


def _ini(text: str) -> dict[str, Any]:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    parser.optionxform = str
    parser.read_string(text)
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _flat(value: dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        at = (*prefix, str(key))
        if isinstance(inner, dict):
            yield from _flat(inner, at)
        elif isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner):
            for one in inner:
                identity = next(
                    (str(one[name]) for name in ("module", "path", "files", "name", "id") if name in one), ""
                )
                yield from _flat(
                    {name: text for name, text in one.items() if str(text) != identity} or {"is": identity},
                    (*at, identity),
                )
        else:
            yield at, inner


def _compared(path: str, old: dict, new: dict, new_file: bool) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        if (
            not _of_checker(path, key)
            or old.get(key) == new.get(key)
            and (key in old) == (key in new)
            or _FREE.match(key[-1])
        ):
            continue
        said = f"{'.'.join(key)} = {_short(new[key])}" if key in new else ".".join(key)
        if key not in new:
            strict = (_severity(old[key]) or 0) >= _SEVERITY["deny"]
            if strict or not (_allows(key) and not _demands_first(key)) and not _is_off(old[key]):
                yield f"'{said}' is gone: a check is taken out"
        elif _is_looser(key, old.get(key), new[key], key in old, new_file):
            yield f"'{said}' loosens a check"


def _is_looser(key: tuple[str, ...], old: Any, new: Any, there: bool, new_file: bool) -> bool:
    """Whether a value that is new or changed asks for less; of one whose direction is not known: whether it is
    another."""
    if key[-1] in ("addopts", "args", "opts"):
        return _options_loosen(_words(old), _words(new))
    if (
        not there
        and not new_file
        and re.match(r"(?:pre|post)(?:test|lint|check|build)$|commands_(?:pre|post)$", key[-1])
    ):
        return re.search(r"\b(?:rm|mv|cp|sed|exit)\b", str(new)) is not None
    if _COMMANDS.search(key[-1]) or any(_COMMANDS.search(part) for part in key[:-1]) and isinstance(new, str):
        return there and any(lines_loosen("Makefile", _recipe(old), _recipe(new)))
    demands = _demands_first(key) or not _allows(key) and bool(_DEMANDS.search(key[-1]))
    if key[0].endswith("ependencies"):  # a checker's own version is anybody's; a file in its place is not
        return str(new).startswith(("file:", "link:", "npm:", ".", "/"))
    level, was = _severity(new), _severity(old)
    if level is not None and not isinstance(new, bool) and not (_allows(key) and level != 0):
        return level < was if was is not None else level < 2
    if _truth(new) is not None and (_truth(old) is not None or not there):
        return _truth(new) is not demands if demands or _allows(key) else there or not new_file
    if isinstance(new, int | float) or str(new).replace(".", "", 1).isdigit():
        return _number_loosens(key, old, new, there, demands)
    had, has = _words(old), _words(new)
    if any(re.match(r"ignore|default|once", word) for word in set(has) - set(had)):
        return True
    if _allows(key) and not demands:
        return bool(set(has) - set(had))
    if demands or key[-1] == "markers":
        return bool(set(had) - set(has)) if there else not has or not (_GROWS.match(key[-1]) or new_file)
    return there or not new_file


def _number_loosens(key: tuple[str, ...], old: Any, new: Any, there: bool, demands: bool) -> bool:
    try:
        before = float(old) if there else None
    except (TypeError, ValueError):
        return True
    if demands:
        return before is not None and float(new) < before or float(new) == 0
    return before is None or float(new) > before if _allows(key) else True


def _options_loosen(old: list[str], new: list[str]) -> bool:
    rest = list(new)
    for word in old:
        if word in rest:
            rest.remove(word)
        elif not _forgiving_option(word):
            return True
    return not all(_ADDED_OPTION.fullmatch(word) for word in rest)


def _forgiving_option(word: str) -> bool:
    return bool(
        re.match(
            r"--(?:ignore|deselect|exclude|skip|exit-zero|maxfail|exitfirst|no)|-x$|-[kmp]$|no:"
            r"|-p",
            word,
        )
    )


def _of_checker(path: str, key: tuple[str, ...]) -> bool:
    name = PurePosixPath(path).name
    if name.startswith("tsconfig") and key[-1] in _COMPILED_TO:
        return False
    if name == "Cargo.toml" and ("lints" in key or key[-1] in _OF_CARGO):
        return True
    if "pytest11" in key or key[0] == "build-system" and key[-1] in ("backend-path", "build-backend"):
        return True
    if not _SHARED.search(path) and not path.endswith("tox.ini"):
        return True
    if name == "package.json" and key[0].endswith("ependencies"):
        return bool(_CHECKERS.match(key[-1])) and key[-1] not in ("files", "include")
    parts = key[1:] if key[0] == "tool" else key[:1]
    return bool(parts) and any(_CHECKERS.match(part) for part in re.split(r"[:.]", parts[0]) if part != "tool")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _demands_first(key: tuple[str, ...]) -> bool:
    return bool(_DEMANDS_FIRST.match(key[-1]) or _DEMANDS_FIRST.match(_snake(key[-1])))


def _allows(key: tuple[str, ...]) -> bool:
    return any(_ALLOWS.search(part) for part in key)


def _severity(value: Any) -> int | None:
    with_options = isinstance(value, list) and len(value) > 1 and not isinstance(value[1], str)
    first = value[0] if with_options or isinstance(value, list) and len(value) == 1 else value
    return _SEVERITY.get(str(first).lower()) if isinstance(first, str) else None


def _is_off(value: Any) -> bool:
    return _truth(value) is False or _severity(value) == 0


def _truth(value: Any) -> bool | None:
    word = str(value).strip().lower()
    return True if value is True or word in _TRUE else False if value is False or word in _FALSE else None


def _recipe(value: Any) -> str:
    """Commands as a Makefile has them: a dash before one forgives it in tox, too."""
    lines = value if isinstance(value, list) else str(value or "").split("\n")
    return "\n".join(f"\t{one}" for one in lines if one)


def _words(value: Any) -> list[str]:
    """The parts of a list, or of a text that stands for one."""
    if isinstance(value, list):
        return [one if isinstance(one, str) else json.dumps(one, default=str, sort_keys=True) for one in value]
    return [word for word in re.split(r"[\s,]+", str(value)) if word] if value is not None else []


def _short(value: Any) -> str:
    return str(value).replace("\n", " ").strip()[:60]

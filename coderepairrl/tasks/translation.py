"""A published specification -> a recipe: what pip alone does of it.

SWE-bench installs in three steps, of which a later one wins: the packages (a list, a requirement file or a conda
environment of the commit), exact pins, and the project with what it declares itself. So the pins become preferences of
one resolution; the project's own requirements hold. Commands of the package manager of the system, of git and of
downloads are left out, and named; what nothing can stand in for is refused by name.
"""

import re
import shlex
from typing import Any

from packaging.utils import canonicalize_name

from coderepairrl.tasks.build_rows import INSTALL, BuildRow, Correction
from coderepairrl.tasks.specifications import Tables

# The specifications were written for what the index held then. As of an older row's date it lacks wheels for their
# Pythons, and what their pins need.
WRITTEN = "2024-08-01T00:00:00Z"
_PARTS = re.compile(r"""(?:[^;&'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*"|(?<!&)&(?!&))+""")
_LEFT_OUT = {"apt-get", "locale-gen", "echo", "printf", "wget", "tar", "mkdir", "hash", "git", "which", "export", "cd"}
_RUNNER = re.compile(r"tox\b|tox-current-env\b")  # the test command is pytest's own
_EDITS = re.compile(r"(?:\[|grep|sed)\s")
_LOCALE = re.compile(r"en_US[.:].*|en_US")


class Untranslatable(Exception):
    """The cause."""


def translate(tables: Tables, repository: str, version: str, correction: Correction | None) -> BuildRow:
    """Raises Untranslatable, also where there is no such specification."""
    fields, correction = tables.of(repository, version), correction or Correction()
    if fields is None:
        raise Untranslatable(f"{tables.name} specifies no {repository} {version!r}")
    work = Gathered(correction.without)
    _check_tests(fields)
    if correction.packages is None:
        work.packages(fields.get("packages", ""), tables, repository)
    work.names += correction.packages or ()
    for requirement in fields.get("pip_packages", ()):
        work.requirement(requirement)
    for command in (*_commands(fields.get("pre_install")), *_commands(fields.get("install"))):
        work.command(command)
    for command in _commands(fields.get("eval_commands")):
        work.export(command)
    python = correction.python or fields.get("python")
    if not python:
        raise Untranslatable(f"{tables.name} leaves the Python of {repository} {version} to conda")
    return BuildRow(
        python=python,
        requirements=tuple(dict.fromkeys((*work.own, *work.names, *correction.requirements))),
        preferred=tuple(work.preferred.values()),
        prepare=tuple(work.prepare),
        build=tuple(dict.fromkeys(work.build)),
        left_out=tuple(dict.fromkeys(work.left_out)),
        # the checkout has no tags for setuptools_scm to read
        variables={"SETUPTOOLS_SCM_PRETEND_VERSION": version.removeprefix("v")} | work.variables | correction.variables,
        not_before=WRITTEN,
    )


def _check_tests(fields: dict[str, Any]) -> None:
    command = fields.get("test_cmd", "pytest")
    command = command if isinstance(command, str) else " && ".join(command)
    if not re.search(r"\bpytest\b|\btox\b|bin/test\b|runtests\.py\b", command):
        raise Untranslatable(f"its test command {command!r} is none of pytest, tox, Django's and sympy's")


def _commands(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


class Gathered:
    """What has been gathered from requirements and commands, in the publishers' order: their methods raise
    Untranslatable."""

    def __init__(self, without: tuple[str, ...]):
        self.without = {_normal(name) for name in without}
        self.own: list[str] = []  # the project itself, with its extras
        self.names: list[str] = []
        self.preferred: dict[str, str] = {}  # name -> exact pin
        self.prepare: list[str] = []
        self.build: list[str] = []
        self.left_out: list[str] = [f"{name}" for name in without]
        self.variables: dict[str, str] = {}

    def packages(self, text: str, tables: Tables, repository: str) -> None:
        if text in ("requirements.txt", "environment.yml"):
            conda = text == "environment.yml"
            paths = (tables.conda_files if conda else tables.requirement_files).get(repository.lower())
            if not paths:
                raise Untranslatable(f"{tables.name} doesn't say where {repository} has its {text}")
            without = f" --without {','.join(sorted(self.without))}" if self.without else ""
            self.names.append(f"{'--conda' if conda else '--first-of'} {' '.join(paths)}{without}")
            return
        for requirement in shlex.split(text):
            self.requirement(requirement)

    def requirement(self, text: str) -> None:
        """A later pin of the same package wins."""
        text = re.sub(r"(?<![=<>!~])=(?![=])", "==", text.strip())  # conda's way to write it
        if _normal(text) in self.without:
            return
        if _RUNNER.match(text):
            self.left_out.append(text)
        elif exact := re.fullmatch(r"([\w.-]+)\s*==\s*([\w.!+]+)", text):
            self.names.append(exact[1])
            self.preferred[_normal(exact[1])] = f"{exact[1]}=={exact[2]}"
        else:
            self.names.append(text)

    def command(self, command: str) -> None:
        if _EDITS.match(command) and "pip install" not in command:
            self.prepare.append(command)
            return
        for part in filter(None, (part.strip() for part in _PARTS.findall(command))):
            optional = part.endswith("|| true")
            words = shlex.split(part.removesuffix("|| true"))
            if words[0] == "sed":
                self.prepare.append(part)
            elif words[0] in _LEFT_OUT or "=" in words[0] or words[:2] == ["pip", "uninstall"]:
                self.left_out.append(" ".join(words)[:80])
            elif words[:2] == ["python", "setup.py"]:
                self._project(".")
            elif (install := _arguments(words)) is not None:
                self._install(install, optional)
            else:
                raise Untranslatable(f"only its publishers' image runs `{part[:80]}`")

    def _install(self, arguments: list[str], optional: bool) -> None:
        dependencies, words = "--no-deps" not in arguments, iter(arguments)
        for word in words:
            if word in ("-r", "--requirement"):
                path = next(words)
                if optional:
                    raise Untranslatable(f"it installs {path} only where that works")
                self.names.append(f"--first-of {path}")
            elif word.startswith((".", "/")) or word.endswith("/"):
                self._project(word, dependencies)
            elif word.startswith(("git+", "http")):
                if not optional:
                    raise Untranslatable(f"it installs {word}")
                self.left_out.append(word)
            elif not word.startswith("-"):
                self.requirement(word)

    def _project(self, place: str, dependencies: bool = True) -> None:
        folder, bracket, extras = place.partition("[")
        folder = folder.rstrip("/") or "."
        if dependencies:
            self.own.append(f"{folder if folder == '.' else f'./{folder}'}{bracket}{extras}")
        self.build.append(INSTALL.removesuffix(".") + folder)

    def export(self, command: str) -> None:
        named = re.fullmatch(r"export (\w+)=([^$`]*)", command.strip())
        if named is None:
            self.left_out.append(command[:80])
        else:  # no machine has the locale en_US by itself, each has C.UTF-8
            self.variables[named[1]] = _LOCALE.sub("C.UTF-8", named[2].strip("\"'"))


def _arguments(words: list[str]) -> list[str] | None:
    """What follows `pip install`; None for other commands."""
    rest = words[2:] if words[:2] == ["python", "-m"] else words
    return rest[2:] if rest[:2] in (["pip", "install"], ["pip3", "install"]) else None


def _normal(requirement: str) -> str:
    """The name of it, as names are compared."""
    return canonicalize_name(re.match(r"[\w.-]*", requirement)[0])

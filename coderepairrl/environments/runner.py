"""The environment in which a package's own suite is judged: pytest, what the suite imports beside its package, what
these need, and nothing else. Copied from what is installed beside this program, so that it needs no index.

    runner = make_runner(base, "cachetools", Needs(), cache)    ->    <cache>/runners/<hash>/venv/bin/python

The project under repair must not be in it in any version. What pytest or the suite needs of it is refused by name.
"""

import functools
import os
import re
import shutil
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from coderepairrl.config import Config
from coderepairrl.environments.cache import EnvironmentsConfig, Steps, cache_of, digest, once
from coderepairrl.environments.copies import find
from coderepairrl.errors import TaskError

LAYOUT = 1  # part of every name: raise it when what is made changes
RUNNER = "pytest"
PROGRAM = "#!{python}\nimport sys\nfrom {module} import {function}\n\nsys.exit({function}())\n"  # as pip writes it


class Needs(Config):
    """What a suite takes from its environment beside pytest."""

    packages: tuple[str, ...] = ()  # of what is installed beside this program
    programs: dict[str, str] = {}  # of the project itself, which its tests start by name: "module:function"


def make_runner(base: str, project: str, needs: Needs, cache: Path) -> tuple[str, str]:
    """(the interpreter, a hash of what it is made of). A few seconds the first time. Raises TaskError.

    A needed package that isn't installed here is left out, and the tests say what they make of that."""
    found = _closure((RUNNER, *needs.packages))
    if _normal(project) in found:
        raise TaskError(
            f"{project}: {', '.join(_who_needs(project, found))} of the environment need the project itself, "
            "which would show them its repair: leave the package out of the task set"
        )
    folder, content = _environment(needs, cache)
    if copies := find(base, (str(folder / "venv"),)):
        raise TaskError(
            f"{project}: the environment of its tests holds {copies[0]}, which is the project in another "
            "version: leave the package out of the task set"
        )
    return str(folder / "venv/bin/python"), content


def make_environment(packages: tuple[str, ...], cache: Path) -> str:
    """The interpreter of an environment of pytest and these packages, for tasks that are no project of their own."""
    folder, _ = _environment(Needs(packages=packages), cache)
    return str(folder / "venv/bin/python")


def _environment(needs: Needs, cache: Path) -> tuple[Path, str]:
    """(folder, a hash of what it is made of)"""
    found = _closure((RUNNER, *needs.packages))
    made_of = [
        LAYOUT,
        sys.version,
        os.path.realpath(sys.executable),
        sorted(f"{name}=={one.version}" for name, one in found.items()),
        needs.programs,
    ]
    config = EnvironmentsConfig(cache=str(cache))
    folder = cache_of(config) / "runners" / digest(made_of)[:16]
    folder.parent.mkdir(exist_ok=True)
    once(
        folder,
        f"of the suites with {', '.join((RUNNER, *needs.packages))}",
        config,
        lambda own, steps: _make(found.values(), needs.programs, folder, own, steps),
    )
    return folder, digest(made_of)


@functools.cache
def _closure(names: tuple[str, ...]) -> dict[str, Distribution]:
    """These distributions and all that they need, by normalised name."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        name = _normal(left.pop())
        try:
            one = distribution(name)
        except PackageNotFoundError:
            if name == RUNNER:
                raise TaskError(f"{RUNNER} is not installed beside {sys.executable}: pip install {RUNNER}") from None
            continue
        if name not in found:
            found[name] = one
            left += [requirement.name for requirement in _requirements(one)]
    return found


def _requirements(one: Distribution) -> list[Requirement]:
    every = [Requirement(line) for line in one.requires or ()]
    return [needed for needed in every if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def _who_needs(project: str, found: dict[str, Distribution]) -> list[str]:
    named = [name for name, one in found.items() if _normal(project) in {_normal(r.name) for r in _requirements(one)}]
    return named or [project]


def _make(
    distributions: Iterable[Distribution], programs: dict[str, str], folder: Path, own: Path, steps: Steps
) -> dict:
    """Fills `own`, which becomes `folder`: an environment may be moved, but for its programs' first lines."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(own / "venv")
    (site,) = (own / "venv/lib").glob("python*/site-packages")
    for one in distributions:
        if one.files is None:
            raise TaskError(f"{one.name} does not say which files are its own (no RECORD): install it by pip")
        for file in one.files:
            if ".." in file.parts or "__pycache__" in file.parts or file.suffix == ".pth":
                continue  # programs, what is compiled anew, what runs with every start
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), site / file)
    for name, entry in programs.items():
        module, _, function = entry.partition(":")
        program = own / "venv/bin" / name
        program.write_text(PROGRAM.format(python=folder / "venv/bin/python", module=module, function=function))
        program.chmod(0o755)
    # what speaks of another version of Python in a package's data does not compile
    steps.run(
        "compiling",
        [
            str(own / "venv/bin/python"),
            "-c",
            "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[1])",
            str(site),
        ],
    )
    return {"packages": sorted(f"{one.name}=={one.version}" for one in distributions)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

"""An agent's own environment: exact packages in a folder of their own, made once, with network; read-only and without
network after that.

    installed = await install(Installation("mini_swe_agent", lock("mini_swe_agent.txt")), EnvironmentsConfig())

    <environments.cache>/scaffolds/<name>-<hash>/{venv,node_modules,build.log,record.json}

The hash is of the locks and the Python. pip packages are installed by uv without their dependencies, which the lock
names, and every hash that it holds is checked; npm packages by `npm ci`. The folder is shown to the sandboxes at the
path that it has here.
"""

import asyncio
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.environments.cache import BuildError, EnvironmentsConfig, StepError, Steps, cache_of, digest, once
from coderepairrl.environments.pythons import find_python, uv
from coderepairrl.errors import TaskError
from coderepairrl.sandboxes.interpreter import interpreter

LAYOUT = 1  # part of every name: raise it when what is installed changes
# the locks hold wheels for the versions that the project supports
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LOCKS = Path(__file__).with_name("locks")
NPM = "npm.txt"  # a node with npm from pip's index, for machines without


def lock(name: str) -> str:
    """The text of one of the project's own locks."""
    return (LOCKS / name).read_text()


@dataclass(frozen=True)
class Installation:
    """`pip`: requirements with exact versions, complete. `npm`: the text of a package-lock.json, or empty."""

    name: str
    pip: str = ""
    npm: str = ""


@dataclass(frozen=True)
class Installed:
    folder: Path
    shown: tuple[str, ...]  # folders that a sandbox must show: this one, and those of its Python

    @property
    def python(self) -> str:
        return str(self.folder / "venv/bin/python")


async def install(installation: Installation, config: EnvironmentsConfig) -> Installed:
    """Seconds to a minute the first time, milliseconds after that; safe to call from many programs at once. Raises
    BuildError with one line."""
    return await asyncio.to_thread(_install, installation, config)


def _install(installation: Installation, config: EnvironmentsConfig) -> Installed:
    name = f"of scaffold {installation.name}"
    try:
        python, version = find_python(PYTHON, config)
    except StepError as error:
        raise BuildError(name, str(error)) from error
    cache = cache_of(config)
    key = digest(LAYOUT, installation.pip, installation.npm, python, version)
    folder = cache / "scaffolds" / f"{installation.name}-{key[:16]}"
    try:
        folder.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise TaskError(
            f"{folder.parent} cannot be made ({error.strerror}): set environments.cache to a writable folder"
        ) from error
    try:
        once(folder, name, config, lambda own, steps: _make(installation, python, folder, own, steps))
    except BuildError as error:
        raise BuildError(
            name,
            f"{error.cause} (connect to the package index once: python scripts/install_scaffold.py "
            f"{installation.name}; or copy the folder from a machine that has it)",
            error.log,
        ) from error
    needed = dict.fromkeys((str(folder), *interpreter(str(folder / "venv/bin/python")).folders))
    return Installed(folder, tuple(path for path in needed if path == str(folder) or not path.startswith(f"{folder}/")))


def _make(installation: Installation, python: str, folder: Path, own: Path, steps: Steps) -> dict:
    """Fills `own`, which becomes `folder`. Scripts of the environment name the final path; an environment itself may be
    moved."""
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA", "UV_PROJECT"))
    }
    _pip(installation.pip, python, own / "venv", variables, steps)
    for script in (own / "venv/bin").iterdir():
        if script.is_file() and not script.is_symlink() and (data := script.read_bytes()).startswith(b"#!"):
            script.write_bytes(data.replace(str(own).encode(), str(folder).encode()))
    if installation.npm:
        _npm(installation, python, own, variables, steps)
    return {"name": installation.name, "python": python}


def _pip(requirements: str, python: str, venv: Path, variables: dict[str, str], steps: Steps) -> None:
    steps.run(
        "making the environment",
        [uv(), "venv", "-q", "--no-project", "--python", python, str(venv)],
        environment=variables,
    )
    if requirements.strip():
        steps.run(
            "installing",
            [
                uv(),
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--compile-bytecode",
                "--link-mode",
                "copy",
                "--python",
                str(venv / "bin/python"),
                "-r",
                "-",
            ],
            environment=variables,
            stdin=requirements,
        )


def _npm(installation: Installation, python: str, own: Path, variables: dict[str, str], steps: Steps) -> None:
    """Into own/node_modules. Where the machine has no npm, one from pip's index is used and thrown away."""
    npm, borrowed = shutil.which("npm"), own / "npm"
    if npm is None:
        _pip(lock(NPM), python, borrowed, variables, steps)
        npm, variables = (
            str(borrowed / "bin/npm"),
            variables | {"PATH": f"{borrowed}/bin:{variables.get('PATH', '/usr/bin:/bin')}"},
        )
    packages = json.loads(installation.npm)["packages"][""]
    (own / "package.json").write_text(json.dumps(packages))
    (own / "package-lock.json").write_text(installation.npm)
    steps.run("installing", [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], environment=variables, cwd=own)
    if borrowed.exists():
        shutil.rmtree(borrowed)

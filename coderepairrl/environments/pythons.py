"""Where a Python of a given version is."""

import functools
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

from coderepairrl.environments.cache import EnvironmentsConfig, StepError


def uv() -> str:
    """The path of uv: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("uv")
    path = str(beside) if beside.exists() else shutil.which("uv")
    if path is None:
        raise StepError("uv is not installed: pip install uv")
    return path


@functools.lru_cache(maxsize=256)
def find_python(version: str, config: EnvironmentsConfig) -> tuple[str, str]:
    """(path of the interpreter, its full version) of an installed Python "3.9" or "3.9.18". Raises StepError."""
    for path in _candidates(version, config):
        if (full := _version(path)) is not None and (full + ".").startswith(version + "."):
            return path, full
    raise StepError(
        f"Python {version} is not installed: uv python install {version}, or name its folder in environments.pythons"
    )


def _candidates(version: str, config: EnvironmentsConfig):
    minor = ".".join(version.split(".")[:2])
    for pattern in config.pythons:
        for folder in sorted(glob.glob(os.path.expanduser(pattern)), reverse=True):
            yield f"{folder}/bin/python{minor}"
    asked = [uv(), "python", "find", "--managed-python", "--no-python-downloads", "--no-project", version]
    yield subprocess.run(asked, capture_output=True, text=True, cwd="/").stdout.strip()
    for folder in ("/usr/bin", "/usr/local/bin", *os.environ.get("PATH", "").split(":")):
        yield f"{folder}/python{minor}"


def _version(path: str) -> str | None:
    """None for what is no interpreter, or a stand-in for one that is not there."""
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        return None
    done = subprocess.run(
        [path, "-I", "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True, cwd="/"
    )
    return done.stdout.strip() if done.returncode == 0 else None

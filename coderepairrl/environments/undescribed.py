"""Projects that do not say what they consist of: several folders of code side by side and a build tool that may not
guess, or no build description at all. No tool installs them, but they need no installation: what they require is
installed, and their checkout is put on the path, as `setup.py develop` or PYTHONPATH did. A project that cannot be
built for any other reason (a compiler, a version) is not one.
"""

import configparser
import os
import re
import tomllib
from pathlib import Path

from coderepairrl.environments.base import StepError

_SAID = (  # by setuptools, pip, uv, hatchling, flit, poetry, uv's own backend
    r"Multiple top-level (?:packages|modules) discovered in a flat-layout",
    "does not appear to be a Python project",
    "Unable to determine which files to ship",
    "No file/folder found for (?:module|package)",
    "Expected a Python module at",
)
_UNDESCRIBED = re.compile("|".join(_SAID))
_FRAME = re.compile(r"[\s│├╰─▶×]+")  # uv breaks its lines, and draws what leads to what
_ITSELF = re.compile(r"(?:-e\s*)?\.(?:\[([^\]]*)\])?")  # ".", ".[tests]", "-e ."


def is_undescribed(error: StepError) -> bool:
    return bool(_UNDESCRIBED.search(_FRAME.sub(" ", f"{error} {error.output}")))


def requirements_of(requirements: tuple[str, ...], checkout: Path) -> list[str] | None:
    """The same with what the project declares in its own place; None where it isn't in it, or where only building it
    would tell."""
    found: list[str] = []
    for line in requirements:
        itself = _ITSELF.fullmatch(line.strip())
        declared = (
            _declared(checkout, [extra.strip() for extra in (itself[1] or "").split(",") if extra.strip()])
            if itself
            else [line]
        )
        if declared is None:
            return None
        found += declared
    return found if tuple(found) != tuple(requirements) else None


def _declared(checkout: Path, extras: list[str]) -> list[str] | None:
    """What needs no building to be read: pyproject.toml, else setup.cfg, else requirements.txt; nothing where there is
    none of them."""
    described = checkout / "pyproject.toml"
    project = tomllib.loads(described.read_text()).get("project") if described.exists() else None
    if project is not None:
        optional = project.get("optional-dependencies", {})
        dynamic = {"dependencies", *(["optional-dependencies"] if extras else [])} & set(project.get("dynamic", ()))
        return (
            None
            if dynamic
            else [*project.get("dependencies", ()), *(line for extra in extras for line in optional.get(extra, ()))]
        )
    if (checkout / "setup.py").exists():
        return None
    if (checkout / "setup.cfg").exists():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(checkout / "setup.cfg")
        listed = [
            parser.get("options", "install_requires", fallback=""),
            *(parser.get("options.extras_require", extra, fallback="") for extra in extras),
        ]
        return (
            None
            if any("file:" in text for text in listed)
            else [line.strip() for text in listed for line in text.splitlines() if line.strip()]
        )
    return ["-r requirements.txt"] if (checkout / "requirements.txt").exists() else []


def put_on_path(checkout: Path, workdir: str, venv: Path) -> None:
    """`workdir`: where commands will see the checkout; its src/ is on the path, too, where it has one."""
    (site,) = (venv / "lib").glob("python*/site-packages")
    folders = [workdir, *([f"{workdir}/src"] if os.path.isdir(checkout / "src") else [])]
    (site / "checkout.pth").write_text("".join(f"{folder}\n" for folder in folders))

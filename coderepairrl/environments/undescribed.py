"""Projects that do not say what they consist of: several folders of code side by side and a build tool that may not
guess, or no build description at all. No tool installs them, but they need no installation: what they require is
installed, and their checkout is put on the path, as `setup.py develop` or PYTHONPATH did. A project that cannot be
built for any other reason (a compiler, a version) is not one.
"""

import configparser
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from coderepairrl.environments.cache import StepError

_SAID = (  # by setuptools, pip, uv, hatchling, flit, poetry, uv's own backend
    r"Multiple top-level (?:packages|modules) discovered in a flat-layout",
    "does not appear to be a Python project",
    "Unable to determine which files to ship",
    "No file/folder found for (?:module|package)",
    "Expected a Python module at",
)
_UNDESCRIBED = re.compile("|".join(_SAID))
_FRAME = re.compile(r"[\s│├╰─▶×]+")  # uv breaks its lines, and draws what leads to what
_ITSELF = re.compile(r"(?:(?:-e|--editable)[\s=]*)?\./?(?:\[([^\]]*)\])?")  # ".", ".[tests]", "-e ."
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")


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
    """What needs no building to be read: pyproject.toml, else setup.cfg, else requirements.txt; nothing where none of
    them describes it."""
    described, settings = checkout / "pyproject.toml", configparser.ConfigParser(interpolation=None)
    tree = tomllib.loads(described.read_text()) if described.exists() else {}
    if project := tree.get("project"):
        dynamic = {"dependencies", *(["optional-dependencies"] if extras else [])} & set(project.get("dynamic", ()))
        optional = project.get("optional-dependencies", {})
        return (
            None
            if dynamic
            else _with_extras(project.get("name", ""), project.get("dependencies", ()), optional, extras)
        )
    if (checkout / "setup.py").exists() or {"poetry", "flit"} & tree.get("tool", {}).keys():  # in words of their own
        return None
    settings.read(checkout / "setup.cfg")
    if settings.has_section("metadata") or settings.has_section("options"):  # else it is of other tools
        optional = dict(settings["options.extras_require"]) if settings.has_section("options.extras_require") else {}
        needed = settings.get("options", "install_requires", fallback="")
        if any("file:" in text for text in (needed, *optional.values())):
            return None
        own = settings.get("metadata", "name", fallback="")
        return _with_extras(own, _lines(needed), {extra: _lines(text) for extra, text in optional.items()}, extras)
    return ["-r requirements.txt"] if (checkout / "requirements.txt").exists() else []


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _with_extras(own: str, needed: Iterable[str], optional: dict[str, Iterable[str]], extras: list[str]) -> list[str]:
    """An extra may name others of the project, `own[tests]`: they are meant, not a release of it, which would lie
    before
    the checkout on the path."""
    found, waiting, seen = [*needed], [*map(_normal, extras)], set()
    by_name = {_normal(extra): lines for extra, lines in optional.items()}
    while waiting:
        extra = waiting.pop(0)
        for line in by_name.get(extra, ()) if extra not in seen else ():
            named = _NAMED.match(line)
            if named and _normal(named[1]) == _normal(own):
                waiting += [_normal(one) for one in (named[2] or "").split(",") if one.strip()]
            else:
                found.append(line)
        seen.add(extra)
    return found


def _normal(name: str) -> str:
    """As packages and extras are compared."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def put_on_path(checkout: Path, workdir: str, venv: Path) -> None:
    """`workdir`: where commands will see the checkout; its src/ is on the path, too, where it has one."""
    (site,) = (venv / "lib").glob("python*/site-packages")
    folders = [workdir, *([f"{workdir}/src"] if os.path.isdir(checkout / "src") else [])]
    (site / "checkout.pth").write_text("".join(f"{folder}\n" for folder in folders))

"""A recipe -> an immutable folder with the checkout and its own Python environment.

Three steps. The source: one commit, nothing else. The pinned packages: exact pins without their dependencies, or
`requirements` resolved as of
a day and frozen into pins; installed once for all tasks that pin the same. The project: the pinned environment is
copied (its files are
hard links: they cost no space and may not be written), and the recipe's build commands run in it without network. What
they change is the
task's own. A project that no tool can install, because it does not say what it consists of, is put on the path instead
(undescribed.py); the log and the record's `instead` say so.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from coderepairrl.environments.cache import EnvironmentsConfig, StepError, Steps, cache_of, digest, once
from coderepairrl.environments.copies import SITES, find
from coderepairrl.environments.mount import BuildMount, build_variables
from coderepairrl.environments.pythons import find_python, uv
from coderepairrl.environments.requirement_files import expand
from coderepairrl.environments.sources import fetch_commit, fetch_distribution, files_of, remove_copies
from coderepairrl.environments.undescribed import is_undescribed, put_on_path, requirements_of
from coderepairrl.types import Environment, Recipe

LAYOUT = 1  # part of the name of what is pinned: raise it when that changes
BUILT = 3  # the same of what is built on it
WITHHELD = "withheld"  # folder beside the checkout


def _recipe(environment: Environment) -> Recipe:
    """Its recipe. Raises StepError of one that comes from elsewhere."""
    if environment.recipe is None:
        raise StepError(f"{environment.name} is built from no recipe")
    return environment.recipe


def build_recipe(environment: Environment, config: EnvironmentsConfig) -> tuple[Path, dict[str, Any]]:
    """(folder, record). Raises BuildError."""
    recipe, cache = _recipe(environment), cache_of(config)
    key = digest(BUILT, _made_of(recipe), environment.workdir, environment.variables, config.incomplete_mirrors)
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", recipe.source.partition(":")[2]).strip("-")
    folder = cache / "built" / f"{slug}-{key[:16]}"
    return folder, once(
        folder, environment.name, config, lambda own, steps: _make(environment, folder, own, config, steps)
    )


def _made_of(recipe: Recipe) -> dict[str, Any]:
    """What the build depends on. Fields that most recipes leave empty are in it where they aren't, so that what was
    built before there were such fields stays valid."""
    later = ("preferred", "prepare", "left_out", "withheld")
    return {name: value for name, value in recipe.__dict__.items() if value or name not in later}


def _make(
    environment: Environment, folder: Path, own: Path, config: EnvironmentsConfig, steps: Steps
) -> dict[str, Any]:
    recipe, workdir = _recipe(environment), environment.workdir
    absent = _fetch(recipe, own, config, steps)
    if not recipe.python:
        return _bare(recipe, own, absent)
    python, version = find_python(recipe.python, config)
    files = files_of(own / "checkout")
    instead = [f"left out of its specification: {', '.join(recipe.left_out)}"] if recipe.left_out else []
    _prepare(environment, python, own, config, steps)
    pins = list(recipe.pins) or _resolve(environment, python, own, config, steps, instead)
    layer = _pinned(pins, recipe, python, version, config)
    venv = folder / "venv"
    _copy(layer / "venv", own / "venv", venv)
    variables = _variables(environment, str(venv))
    mount = BuildMount(
        steps, cache_of(config), {own / "venv": str(venv), own / "checkout": workdir}, _readable(python), workdir
    )
    for command in recipe.build:
        try:
            mount.run("build", ["/bin/bash", "-euc", command], variables, network=False)
        except StepError as error:
            if not is_undescribed(error):
                raise
            put_on_path(own / "checkout", workdir, own / "venv")
            _note(instead, steps, f"{command!r} failed ({error}): the checkout is on Python's path instead")
    _refuse_itself(own, files, steps)
    frozen = _freeze(own / "venv", steps)
    (own / "lock.txt").write_text(frozen)
    made_of = [frozen, version, recipe.source, recipe.revision, [*recipe.prepare, *recipe.build], absent]
    lock = digest(*made_of, *([len(instead)] if instead else []))
    return {
        "lock": lock,
        "python": version,
        "source": recipe.source,
        "revision": recipe.revision,
        "packages": str(layer),
        "workdir": workdir,
        "absent": absent,
        "instead": "; ".join(instead),
    }


def _fetch(recipe: Recipe, own: Path, config: EnvironmentsConfig, steps: Steps) -> list[str]:
    """The checkout, less what is withheld; the paths that its mirror lacks."""
    kind, _, source = recipe.source.partition(":")
    absent: list[str] = []
    if kind == "git":
        absent = fetch_commit(source, recipe.revision, own / "checkout", config, steps)
    elif kind == "sdist":
        fetch_distribution(source, recipe.revision, recipe.keep, own / "checkout")
    else:
        raise StepError(f"source {recipe.source!r}: write git:OWNER/NAME or sdist:NAME==VERSION")
    for path in recipe.withheld:
        if not (own / "checkout" / path).is_file():
            raise StepError(f"{path} of `withheld` is no file of {recipe.source} at {recipe.revision[:12]}")
        (own / WITHHELD / path).parent.mkdir(parents=True, exist_ok=True)
        (own / "checkout" / path).rename(own / WITHHELD / path)
    return absent


def _bare(recipe: Recipe, own: Path, absent: list[str]) -> dict[str, Any]:
    """The record of a checkout without an environment of Python."""
    if recipe.pins or recipe.requirements or recipe.prepare or recipe.build:
        raise StepError("a recipe without `python` installs and builds nothing: leave these fields out")
    (own / "lock.txt").write_text("")
    lock = digest(recipe.source, recipe.revision, recipe.withheld, absent)
    return {"lock": lock, "python": "", "source": recipe.source, "revision": recipe.revision, "absent": absent}


def _prepare(environment: Environment, python: str, own: Path, config: EnvironmentsConfig, steps: Steps) -> None:
    """What its publishers change in the project's description: read before it is built."""
    workdir = environment.workdir
    mount = BuildMount(steps, cache_of(config), {own / "checkout": workdir}, _readable(python), workdir)
    variables = _variables(environment, os.path.dirname(os.path.dirname(python)))
    for command in _recipe(environment).prepare:
        # a condition that isn't met is no failure
        mount.run("preparing", ["/bin/bash", "-euc", f"{command}\ntrue"], variables, network=False)


def _refuse_itself(own: Path, files: set[str], steps: Steps) -> None:
    """Whoever works in the environment could copy the repair from another version of the project. Those that can be
    imported
    are a wrong recipe's; of others (vendored by a tool) the sandboxes cover the place, see sandboxes/covered.py."""
    for path in remove_copies(own / "checkout", files):
        steps.note(f"removed from the checkout: {path}, the project's own code, left by the build")
    for path in find(str(own / "checkout"), (str(own / "venv"),)):
        if Path(path).parent.name in SITES:
            raise StepError(
                f"its packages hold {Path(path).name}, the project itself in a version of their own: install the "
                "checkout editable, or leave out what requires the project"
            )
        steps.note(f"covered in sandboxes: {path}, a copy of the project")


def _note(instead: list[str], steps: Steps, text: str) -> None:
    steps.note(text)
    instead.append(text)


def _resolve(
    environment: Environment, python: str, own: Path, config: EnvironmentsConfig, steps: Steps, instead: list[str]
) -> list[str]:
    """`requirements`, and what the project is built with, as exact pins as of the recipe's day. `instead`: gets a line
    where the project is left out of them."""
    wanted = tuple(expand(_recipe(environment).requirements, own / "checkout", _recipe(environment).preferred))
    if not wanted:
        return []
    tools = _build_requirements(own / "checkout")
    try:
        return _compile([*wanted, *tools], environment, python, own, config, steps)
    except StepError as error:
        rest = requirements_of(wanted, own / "checkout") if is_undescribed(error) else None
        if rest is None:
            raise
        why = str(error).rstrip(".")
        _note(instead, steps, f"{why}: resolved without the project, but with what it declares: {', '.join(rest)}")
        return _compile([*rest, *tools], environment, python, own, config, steps)


def _compile(
    wanted: list[str], environment: Environment, python: str, own: Path, config: EnvironmentsConfig, steps: Steps
) -> list[str]:
    """Exact pins. Raises StepError where there are none."""
    recipe, workdir = _recipe(environment), environment.workdir
    wanted = list(wanted)
    date = ["--exclude-newer", recipe.exclude_newer] if recipe.exclude_newer else []
    preferred = own / "preferred"  # uv keeps the pins of a file that it is to write where it can
    preferred.mkdir(exist_ok=True)
    (preferred / "pins.txt").write_text("".join(f"{pin}\n" for pin in recipe.preferred))
    binds = {own / "checkout": workdir, preferred: "/tmp/preferred", **_uv_cache()}
    mount = BuildMount(steps, cache_of(config), binds, _readable(python), workdir)
    argv = [uv(), "pip", "compile", "-q", "--no-header", "--no-annotate", *_uv_config(), "--python", python, *date]
    argv += [*(["-o", "/tmp/preferred/pins.txt"] if recipe.preferred else []), "-"]
    variables = _variables(environment, os.path.dirname(os.path.dirname(python)))
    while True:
        try:
            text = mount.run(
                "resolving the requirements",
                argv,
                variables,
                network=True,
                stdin="".join(f"{line}\n" for line in wanted),
            )
            break
        except StepError as error:
            # What was withdrawn since was there on that day; uv takes it only when it is asked for exactly.
            yanked = recipe.exclude_newer and re.search(r"because ([\w.-]+)==([\w.]+) was yanked", str(error))
            if not yanked or f"{yanked[1]}=={yanked[2]}" in wanted:
                raise
            wanted.append(f"{yanked[1]}=={yanked[2]}")
    text = (preferred / "pins.txt").read_text() if recipe.preferred else text
    shutil.rmtree(preferred)
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("#")]
    # the checkout itself is `build`'s
    return [line for line in lines if not line.startswith(("-e", ".", "/")) and f"file://{workdir}" not in line]


def _variables(environment: Environment, venv: str) -> dict[str, str]:
    """Of the project's own code while it is built: the environment's, too, but for what leads to programs."""
    own = {
        name: value for name, value in environment.variables.items() if name != "PATH" and not name.startswith("PYTHON")
    }
    return build_variables(venv, uv()) | own


def _build_requirements(checkout: Path) -> list[str]:
    """`requires` of pyproject.toml: without network nothing else can bring them."""
    try:
        tree = tomllib.loads((checkout / "pyproject.toml").read_text())
    except FileNotFoundError:
        return []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StepError(f"pyproject.toml: {error}") from error
    return list(tree.get("build-system", {}).get("requires", []))


def _pinned(pins: list[str], recipe: Recipe, python: str, version: str, config: EnvironmentsConfig) -> Path:
    """The folder of an environment that holds exactly these packages, compiled; no file of it may be written."""
    cache = cache_of(config)
    key = digest(LAYOUT, pins, python, version, "" if recipe.pins else recipe.exclude_newer)
    folder = cache / "pins" / key[:16]
    once(
        folder,
        f"pins-{key[:16]}",
        config,
        lambda own, steps: _make_pinned(pins, recipe, python, version, folder, own, config, steps),
    )
    return folder


def _make_pinned(
    pins: list[str],
    recipe: Recipe,
    python: str,
    version: str,
    folder: Path,
    own: Path,
    config: EnvironmentsConfig,
    steps: Steps,
) -> dict[str, Any]:
    venv = own / "venv"
    date = ["--exclude-newer", recipe.exclude_newer] if recipe.exclude_newer and not recipe.pins else []
    steps.run(
        "making the environment", [uv(), "venv", "-q", *_uv_config(), "--no-project", "--python", python, str(venv)]
    )
    mount = BuildMount(steps, cache_of(config), {venv: str(folder / "venv"), **_uv_cache()}, _readable(python), "/")
    variables = build_variables(str(folder / "venv"), uv()) | {"UV_LINK_MODE": "copy"}
    _rewrite(venv, str(venv), str(folder / "venv"))
    if pins:
        mount.run(
            "installing the pins",
            [uv(), "pip", "install", "-q", *_uv_config(), "--no-deps", *date, "-r", "-"],
            variables,
            network=True,
            stdin="".join(f"{pin}\n" for pin in pins),
        )
        compile_all = '"$0" -m compileall -qq "$1" || true'  # files for other Pythons do not compile
        mount.run(
            "compiling",
            ["/bin/sh", "-c", compile_all, f"{folder}/venv/bin/python", f"{folder}/venv/lib"],
            variables,
            network=False,
        )
    (own / "lock.txt").write_text(_freeze(venv, steps))
    for where, _, files in os.walk(venv):
        for name in files:
            path = os.path.join(where, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & 0o555)
    return {"pins": pins, "python": version, "interpreter": python}


def _copy(layer: Path, target: Path, final: Path) -> None:
    """Hard links, but for the few files that name the environment's folder."""
    shutil.copytree(layer, target, symlinks=True, copy_function=os.link)
    _rewrite(target, str(layer), str(final))


def _rewrite(venv: Path, old: str, new: str) -> None:
    """The environment believes to be at `new`: scripts, activation and pyvenv.cfg. Files are replaced, not written."""
    for path in (venv / "pyvenv.cfg", *(venv / "bin").iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if old.encode() in data:
            mode = path.stat().st_mode
            path.unlink()
            path.write_bytes(data.replace(old.encode(), new.encode()))
            path.chmod(mode | 0o200)


def _freeze(venv: Path, steps: Steps) -> str:
    return steps.run("freezing", [uv(), "pip", "freeze", "--no-config", "--python", str(venv / "bin/python")])


def _uv_cache() -> dict[Path, str]:
    """uv's own cache, so that the same package is fetched and built once for all environments."""
    path = subprocess.run(
        [uv(), "cache", "dir", "--no-config"], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()
    os.makedirs(path, exist_ok=True)
    return {Path(path): path}


def _uv_config() -> list[str]:
    """The user's, never that of the checkout."""
    path = Path(
        os.environ.get("UV_CONFIG_FILE")
        or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "uv/uv.toml")
    )
    return ["--config-file", str(path)] if path.exists() else ["--no-config"]


def _readable(python: str) -> tuple[Path, ...]:
    """What a build needs of folders that its mount hides."""
    hidden = [os.path.dirname(os.path.dirname(path)) for path in (python, os.path.realpath(python), uv())]
    return tuple(Path(path) for path in dict.fromkeys(hidden) if path.startswith("/tmp/"))

"""An image -> one SIF or one folder in the cache, the checkout taken out of it with its history scrubbed, and how its
Python is reached.

`docker://...` is converted once; a SIF or a folder of the user's stays where it is. In the image the checkout lies
where the image was built for
(/testbed for SWE-bench and SWE-Gym); sandboxes mount a fresh copy over it. What activating the image's environment sets
is found out once, by
doing it, and becomes variables of every command.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from coderepairrl.environments import copies
from coderepairrl.environments.cache import EnvironmentsConfig, StepError, Steps, cache_of, digest, once
from coderepairrl.environments.copies import find
from coderepairrl.environments.sources import commit_tracked, remove_copies, tracked_of
from coderepairrl.processes.containers import sealed
from coderepairrl.types import Environment

LAYOUT = 2  # part of every name: raise it when what is built changes
_NOT_FILES = ("/proc", "/sys", "/dev")
_PYTHONS = "/opt/miniconda3/bin/python3 python3 /usr/bin/python3"  # that may be newer than the environment's
WORKDIRS = ("/testbed", "/workspace", "/app")  # where images have their checkout, if not at Environment.workdir
# Variables that say nothing about the image: the shell's, Apptainer's, those that sandboxes set themselves.
_PASSING = re.compile(
    r"(APPTAINER|SINGULARITY)_.*|PWD|OLDPWD|SHLVL|_|HOME|TERM|PS1|PROMPT_COMMAND|USER|LOGNAME|HOSTNAME|LANG|LC_.*"
    r"|PYTHON_FOUND"
)


def build_image(environment: Environment, config: EnvironmentsConfig) -> tuple[Path, dict[str, Any]]:
    """(folder, record). Raises BuildError."""
    image, place = environment.image, Path(environment.image)
    local = "://" not in image
    made_of = (
        [image, config.image_format]
        if not local
        else [str(place.absolute()), place.stat().st_mtime_ns if place.exists() else 0]
    )
    key = digest(LAYOUT, made_of, config.activation, environment.workdir)
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", image.rpartition("/")[2]).strip("-")
    folder = cache_of(config) / "images" / f"{slug}-{key[:16]}"
    return folder, once(
        folder,
        environment.name,
        config,
        lambda own, steps: _make(image, local, environment.workdir, folder, own, config, steps),
    )


def _make(
    image: str, local: bool, wanted: str, folder: Path, own: Path, config: EnvironmentsConfig, steps: Steps
) -> dict[str, Any]:
    if local:
        path = final = Path(image).absolute()
        if not path.exists():
            raise StepError(f"image {path} does not exist")
    else:
        name = "image.sif" if config.image_format == "sif" else "image"
        path, final = own / name, folder / name
        _convert(image, path, own, config, steps)
    run = sealed(str(path))
    places = " ".join(shlex.quote(place) for place in dict.fromkeys((wanted, *WORKDIRS)))
    workdir = steps.run(
        "looking for the checkout",
        [*run, "sh", "-c", f"for d in {places}; do [ -d $d ] && echo $d && break; done; true"],
    ).strip()
    if not workdir:
        raise StepError(f"no checkout in the image at {places}: set the environment's workdir")
    _take_out(run, path, workdir, own / "checkout", steps)
    commit_tracked(own / "checkout", steps)
    for left in remove_copies(own / "checkout", tracked_of(own / "checkout", steps)):
        steps.note(f"removed from the checkout: {left}, the project's own code, left by the image's build")
    python, variables = _activate(run, config, steps)
    return {
        "image": str(final),
        "workdir": workdir,
        "python": python,
        "variables": variables,
        "lock": digest(_content(path), python, variables, workdir),
        "copies": _copies(run, path, workdir, python, own, steps),
    }


def _convert(image: str, path: Path, own: Path, config: EnvironmentsConfig, steps: Steps) -> None:
    if shutil.which("apptainer") is None:
        raise StepError("converting an image needs apptainer: install it or load its module")
    work = own / "work"
    work.mkdir()
    sandbox = ["--sandbox"] if config.image_format == "folder" else []
    steps.run(
        "converting the image",
        ["apptainer", "-q", "build", *sandbox, str(path), image],
        environment=os.environ | {"APPTAINER_TMPDIR": str(work)},
    )
    shutil.rmtree(work)


def _take_out(run: list[str], image: Path, workdir: str, checkout: Path, steps: Steps) -> None:
    checkout.mkdir()
    if image.is_dir():
        steps.run("copying the checkout", ["cp", "-a", "--no-preserve=ownership", f"{image}{workdir}/.", str(checkout)])
    else:
        out = shlex.join([*run, "tar", "-C", workdir, "-cf", "-", "."])
        steps.run(
            "copying the checkout",
            ["bash", "-o", "pipefail", "-c", f"{out} | tar -C {shlex.quote(str(checkout))} --no-same-owner -xf -"],
        )


def _activate(run: list[str], config: EnvironmentsConfig, steps: Steps) -> tuple[str, dict[str, str]]:
    """(path of the Python, variables) after the activation."""
    script = f"{{ {config.activation}\n}} >&2 || {{ echo 'error: the activation failed' >&2; exit 3; }}\n"
    script += "PYTHON_FOUND=$(command -v python || command -v python3) exec env -0"
    text = steps.run(
        "activating the environment",
        [*run, "bash", "-c", script],
        environment={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    )
    found = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    if not found.get("PYTHON_FOUND"):
        raise StepError("the image has no python: correct environments.activation")
    variables = {
        name: value
        for name, value in sorted(found.items())
        if not _PASSING.fullmatch(name) and not value.startswith("/.singularity.d/")
    }
    return found["PYTHON_FOUND"], variables


def _copies(run: list[str], image: Path, workdir: str, python: str, own: Path, steps: Steps) -> list[str]:
    """Where in the image other versions of the project are, which sandboxes cover: what conda keeps, what tools
    vendor."""
    if image.is_dir():
        skip = tuple(f"{image}{path}" for path in (workdir, *_NOT_FILES))
        return [path.removeprefix(str(image)) for path in find(str(own / "checkout"), (str(image),), skip)]
    arguments = [json.dumps(words) for words in (workdir, [workdir, *_NOT_FILES], ["/"])]
    look = (
        f"for p in {shlex.quote(python)} {_PYTHONS}; do "
        'if "$p" -c "import sys; sys.exit(sys.version_info < (3, 7))" 2>/dev/null; '
        'then exec "$p" -I -c "$@"; fi; done; echo "error: no Python of 3.7 or later looks for copies" >&2; exit 9'
    )
    script = Path(copies.__file__).read_text()
    return json.loads(steps.run("looking for copies", [*run, "sh", "-c", look, "sh", script, *arguments]))


def _content(image: Path) -> str:
    """A hash of the SIF, or of the names and sizes of an unpacked image's files."""
    whole = hashlib.sha256()
    if image.is_file():
        with image.open("rb") as file:
            while data := file.read(1 << 24):
                whole.update(data)
        return whole.hexdigest()
    for where, folders, files in os.walk(image):
        folders.sort()
        for name in sorted(files):
            whole.update(
                f"{os.path.relpath(where, image)}/{name} {os.lstat(os.path.join(where, name)).st_size}\n".encode(
                    errors="surrogateescape"
                )
            )
    return whole.hexdigest()

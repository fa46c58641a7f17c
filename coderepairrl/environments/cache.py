"""What recipes and images share: the configuration, the cache folder that appears whole, steps that are logged and fail
in one line."""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.errors import TaskError
from coderepairrl.files import publish, read_json, write_json
from coderepairrl.lines import one_line
from coderepairrl.processes import cause

log = logging.getLogger(__name__)
RECORD = "record.json"
ACTIVATION = "if [ -e /opt/miniconda3/bin/activate ]; then . /opt/miniconda3/bin/activate && conda activate testbed; fi"


class EnvironmentsConfig(Config):
    """Where environments are built, and from what."""

    cache: str | None = None  # folder of what is built; null: $XDG_CACHE_HOME/coderepairrl/environments
    # where "git:OWNER/NAME" is fetched, tried in order: URLs or folders
    mirrors: tuple[str, ...] = ("https://github.com/{owner}/{name}.git",)
    # a mirror may lack files (large ones): they are left out, and named in the log and the record
    incomplete_mirrors: bool = False
    # folders of Python installations, as globs; then uv's own and those on PATH
    pythons: tuple[str, ...] = ("~/.pyenv/versions/*",)
    # folders of installations of other languages' tools (a JDK, Go, Node, Rust), as globs; then those on PATH
    tools: tuple[str, ...] = ("/usr/lib/jvm/*", "~/.sdkman/candidates/java/*")
    jars: tuple[str, ...] = ("~/.m2/repository",)  # folders with jars, at any depth; then the distribution's
    timeout_s: PositiveFloat = 1800.0  # of each step of a build: a fetch, an installation, a build command
    image_format: Literal["sif", "folder"] = "sif"  # what images are kept as; bubblewrap needs folders
    # shell commands that an image's tests start with: run once, the variables that they set are kept
    activation: str = ACTIVATION


class BuildError(TaskError):
    """An environment cannot be built. One line; `log` is the path of the whole story."""

    def __init__(self, name: str, cause: str, log: Path | None = None):
        super().__init__(f"environment {name} cannot be built: {cause}" + (f": see {log}" if log else ""))
        self.cause, self.log = cause, log


class StepError(Exception):
    """A step of a build failed; becomes a BuildError where the log's final path is known. `output`: what it said."""

    def __init__(self, message: str, output: str = ""):
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Steps:
    """Runs the steps of one build, one after the other, into one log."""

    log: Path
    timeout_s: float

    def run(
        self,
        what: str,
        argv: list[str],
        *,
        environment: dict[str, str] | None = None,
        cwd: str | Path = "/",
        stdin: str = "",
    ) -> str:
        """stdout. Raises StepError with the cause that its output names."""
        started = time.monotonic()
        with self.log.open("a") as file:
            file.write(f"== {what}: {' '.join(argv)[-2000:]}\n")
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                cwd=cwd,
                timeout=self.timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise StepError(f"{what} took longer than {self.timeout_s:g} s: raise environments.timeout_s") from error
        except OSError as error:
            raise StepError(f"{what}: {argv[0]} does not start ({error.strerror})") from error
        with self.log.open("a") as file:
            file.write(
                f"{done.stdout}{done.stderr}== exit {done.returncode} after {time.monotonic() - started:.1f} s\n"
            )
        if done.returncode:
            said = done.stdout + done.stderr
            raise StepError(f"{what}: {cause.of_text(said) or f'exit code {done.returncode}'}", said)
        return done.stdout

    def note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(f"== {text}\n")


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coderepairrl" / "environments"


def cache_of(config: EnvironmentsConfig) -> Path:
    """Absolute, and made."""
    folder = Path(config.cache).expanduser().absolute() if config.cache else default_cache()
    try:
        for name in ("pins", "built", "images", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(
            f"{folder} cannot be made ({error.strerror}): set environments.cache to a writable folder"
        ) from error
    return folder


def digest(*made_of: Any) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode(errors="surrogatepass")).hexdigest()


def once(
    folder: Path, name: str, config: EnvironmentsConfig, make: Callable[[Path, Steps], dict[str, Any]]
) -> dict[str, Any]:
    """The record of `folder`, which make(temporary folder, steps) fills unless it is there already.

    Builders of one machine wait for each other; of several machines each builds its own and the first rename wins.
    """
    if (record := read_json(folder / RECORD)) is not None:
        return record
    with _lock(folder):
        if (record := read_json(folder / RECORD)) is not None:
            return record
        _sweep(folder)
        started = time.monotonic()
        own = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            own.mkdir()
            steps = Steps(own / "build.log", config.timeout_s)
            record = make(own, steps) | {"seconds": round(time.monotonic() - started, 1)}
            write_json(own / RECORD, record)
            publish(own, folder)
        except (StepError, OSError) as error:
            kept = folder.parents[1] / "logs" / f"{folder.name}.log"
            if (own / "build.log").exists():
                shutil.move(own / "build.log", kept)
            raise BuildError(name, one_line(error), kept if kept.exists() else None) from error
        finally:
            if own.exists():
                shutil.rmtree(own)
    log.info("environment %s: %s in %.1f s", name, folder, record["seconds"])
    return read_json(folder / RECORD)


def _sweep(folder: Path) -> None:
    """Removes what killed builds of this folder on this machine left."""
    for left in folder.parent.glob(f".{folder.name}.{socket.gethostname()}-*.tmp"):
        if not Path("/proc", left.name.split("-")[-2]).exists():
            shutil.rmtree(left)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One builder at a time on this machine. The kernel frees it when the builder dies."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

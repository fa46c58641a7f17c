"""What sandboxes cover of what they show: copies of the project under repair, from which a repair could be had.

They lie where they lie on this machine, so they are looked for when a sandbox starts; in an image they were when it was
taken in. A covered folder is an empty one, a covered file an empty one, for the agent and for the tests alike.
"""

import os
from pathlib import Path

from coderepairrl.environments.cache import RECORD
from coderepairrl.environments.copies import find
from coderepairrl.files import read_json
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Environment

MACHINE = "/usr"
JARS = ("/usr/share/java/", "/usr/share/maven-repo/")  # any of which may be the project's, in another version


def covered(environment: Environment, *, machine: bool = True) -> tuple[str, ...]:
    """Paths inside, those of folders with a slash at their end. `machine`: this machine's own /usr is shown, too.
    Some 100 ms the first time."""
    if environment.base is None:  # no checkout, no project
        return ()
    if environment.image:
        record = read_json(Path(environment.base).parent / RECORD)
        return tuple(record.get("copies", ())) if record else ()
    jars = [path for path in JARS if machine and environment.language == "java" and os.path.isdir(path)]
    folders = [path for path in interpreter(environment.python).folders if not _is_of_machine(path)]
    return (*find(environment.base, (*([MACHINE] if machine else []), *_outermost(folders))), *jars)


def places(root: Path, paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """(what to bind, where) for each of them."""
    return [(str(root / ("nothing" if path.endswith("/") else "no_text")), path.rstrip("/")) for path in paths]


def prepare(root: Path) -> None:
    """The empty folder and the empty file, which nobody may write to."""
    (root / "nothing").mkdir(mode=0o555, exist_ok=True)
    (root / "no_text").touch(mode=0o444)


def _is_of_machine(path: str) -> bool:
    return path == MACHINE or path.startswith(f"{MACHINE}/")


def _outermost(folders: list[str]) -> list[str]:
    return [one for one in folders if not any(one.startswith(f"{other}/") for other in folders)]

"""What a task's interpreter is made of: asked once, of the interpreter itself, on the host (environments are trusted)."""
import functools
import json
import os
import subprocess
from dataclasses import dataclass

from coderepairrl.errors import TaskError

_QUESTION = """
import json, pkgutil, sys
print(json.dumps({"folders": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix],
                  "modules": sorted({*sys.stdlib_module_names, *(m.name for m in pkgutil.iter_modules())})}))
"""


@dataclass(frozen=True)
class Interpreter:
    folders: tuple[str, ...]  # its installation: prefix and base prefix, as named and with symlinks resolved
    modules: frozenset[str]  # top-level names that it imports without the checkout


@functools.lru_cache(maxsize=64)
def interpreter(python: str) -> Interpreter:
    """Blocks for some 50 ms the first time. Raises TaskError for an interpreter that does not run."""
    try:
        done = subprocess.run([python, "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=60, check=True)
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TaskError(f"environment.python {python!r} does not answer ({error}): give the absolute path of a Python 3.10 or newer") from error
    binary = os.path.realpath(python)
    named = [*answer["folders"], os.path.dirname(os.path.dirname(binary))]
    folders = dict.fromkeys(path for name in named for path in (name, os.path.realpath(name)))
    forbidden = {"/", "/root", "/home", os.path.realpath(os.path.expanduser("~"))}
    for folder in folders:
        if folder in forbidden:
            raise TaskError(f"environment.python {python!r} is installed in {folder}, which would show all of it: use one in a folder of its own")
    return Interpreter(tuple(folders), frozenset(answer["modules"]))

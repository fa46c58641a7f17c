"""What a task's interpreter is made of: asked once, of the interpreter itself (environments are trusted), in its image
where it has one."""

import functools
import json
import os
import subprocess
from dataclasses import dataclass

from coderepairrl.errors import TaskError
from coderepairrl.processes.containers import sealed

_QUESTION = """
import importlib, json, os, pkgutil, sys
def holds_code(folder):
    return any(file.endswith((".py", ".so")) for _, _, files in os.walk(folder) for file in files)
sites = [folder for folder in sys.path if folder.endswith("-packages") and os.path.isdir(folder)]
namespaces = set(name for site in sites for name in os.listdir(site)
                 if name.isidentifier() and name != "__pycache__" and holds_code(os.path.join(site, name)))
modules = set(sys.builtin_module_names) | set(m[1] for m in pkgutil.iter_modules()) | namespaces
sys.stdout = sys.stderr  # of what speaks when it is imported
for runner in ("pytest", "unittest.main", "xmlrunner"):
    try:
        importlib.import_module(runner)
    except Exception:  # not there, or not for this Python: it loads nothing
        continue
print(json.dumps({"folders": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix],
                  "modules": sorted(modules | set(getattr(sys, "stdlib_module_names", ()))),
                  "loaded": sorted(set(name.split(".")[0] for name in sys.modules) - {"__main__"})}),
      file=sys.__stdout__)
"""


@dataclass(frozen=True)
class Interpreter:
    # its installation: prefix and base prefix, as named and with symlinks resolved; none in an image
    folders: tuple[str, ...]
    # top-level names that it imports without the checkout, packages without __init__.py included
    modules: frozenset[str]
    loaded: frozenset[str]  # those of them that its test runners load before any test


@functools.lru_cache(maxsize=1024)
def interpreter(python: str, image: str | None = None) -> Interpreter:
    """Blocks for some 300 ms the first time. Of an environment that has none (empty): nothing. Raises TaskError for an
    interpreter that does not run."""
    if not python:
        return Interpreter((), frozenset(), frozenset())
    try:
        done = subprocess.run(
            [*sealed(image), python, "-I", "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd="/",
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TaskError(
            f"environment.python {python!r} does not answer ({error}): give the absolute path of a Python 3 interpreter"
        ) from error
    if image is not None:
        return Interpreter((), frozenset(answer["modules"]), frozenset(answer["loaded"]))
    binary = os.path.realpath(python)
    named = [*answer["folders"], os.path.dirname(os.path.dirname(binary))]
    folders = dict.fromkeys(path for name in named for path in (name, os.path.realpath(name)))
    forbidden = {"/", "/root", "/home", os.path.realpath(os.path.expanduser("~"))}
    for folder in folders:
        if folder in forbidden:
            raise TaskError(
                f"environment.python {python!r} is installed in {folder}, which would show all of it: use one in a "
                "folder of its own"
            )
    return Interpreter(tuple(folders), frozenset(answer["modules"]), frozenset(answer["loaded"]))

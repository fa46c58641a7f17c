"""A test command of any length: what a sandbox takes for no command any more goes through a file.

A row may select tens of thousands of tests, more than the kernel hands to a program. pytest itself reads arguments from
a file only in newer
releases, so Python does it for any module.
"""

import os
import shlex
from pathlib import Path

from coderepairrl.sandboxes import MAX_COMMAND_BYTES, Sandbox

FOLDER, FILE = "arguments", "arguments"
ROOM = 1000  # bytes, for what the judge puts before the command
# As `python -m MODULE ARGUMENTS...`: the working directory comes first on sys.path, the module's own file is
# sys.argv[0].
MODULE = (
    "import os, runpy, sys; path, module = sys.argv[1:]; "
    "sys.argv[1:] = open(path, encoding='utf-8', errors='surrogateescape', newline='').read().split('\\0'); "
    "sys.path[:1] = [sys.path[0] or os.getcwd()]; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def shortened(argv: list[str], sandbox: Sandbox) -> list[str]:
    """The same command; a long one reads its arguments, or its shell's text, from a file of the sandbox."""
    if sum(len(os.fsencode(part)) + 1 for part in argv) <= MAX_COMMAND_BYTES - ROOM:
        return argv
    if len(argv) == 3 and argv[1] == "-c" and Path(argv[0]).name in ("sh", "bash"):
        return [argv[0], _write(argv[2], sandbox)]
    at = argv.index("-m") if "-m" in argv else 0
    if at and "python" in Path(argv[0]).name:
        return [*argv[:at], "-c", MODULE, _write("\0".join(argv[at + 2 :]), sandbox), argv[at + 1]]
    return ["/bin/sh", _write(f"exec {shlex.join(argv)}\n", sandbox)]


def _write(text: str, sandbox: Sandbox) -> str:
    folder, inside = sandbox.share(FOLDER)
    (folder / FILE).write_bytes(os.fsencode(text))
    return f"{inside}/{FILE}"

"""A sandbox is a live, isolated, disposable copy of a task's checkout. One file a runtime, one dict of names.

    check(config)                                         # once, at the start of a program
    async with start_sandbox(config, task) as sandbox:
        result = await sandbox.run("python3 test_lib.py", timeout_s=10)
        patch = await sandbox.diff()

Every command is a fresh set of namespaces: only the checkout lives on from one command to the next, /tmp and background
processes do not. A sandbox must be used from an event loop whose thread outlives it: the kernel kills a command when
the
thread that started it ends, which is also what stops all commands when the program is killed.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.apptainer import ApptainerSandbox
from coderepairrl.sandboxes.bubblewrap import BubblewrapSandbox
from coderepairrl.sandboxes.checkout import MAX_COMMAND_BYTES
from coderepairrl.sandboxes.limits import allow_descriptors
from coderepairrl.sandboxes.local import LocalSandbox
from coderepairrl.sandboxes.protocol import CommandResult, PathError, Sandbox, SandboxConfig, plain_terminal
from coderepairrl.sandboxes.templates import Store
from coderepairrl.types import Task

__all__ = [
    "MAX_COMMAND_BYTES",
    "SANDBOXES",
    "CommandResult",
    "PathError",
    "Sandbox",
    "SandboxConfig",
    "check",
    "plain_terminal",
    "start_sandbox",
]

SANDBOXES = {"bubblewrap": BubblewrapSandbox, "apptainer": ApptainerSandbox, "local": LocalSandbox}


def check(config: SandboxConfig) -> None:
    """Runs one empty command in a sandbox of this kind, removes folders that killed runs of this machine left behind,
    and
    lets this process have as many descriptors as it may.

    Raises SandboxError with the cause and the remedy; blocks for some 20 ms, with apptainer 200 ms.
    """
    for tool in ("git", "cp", "prlimit"):
        if shutil.which(tool) is None:
            raise SandboxError(f"{tool!r} is not installed: install it (Debian: apt install git coreutils util-linux)")
    allow_descriptors()
    store = _store(config)
    store.sweep()
    SANDBOXES[config.kind].check(config, store.root)


@asynccontextmanager
async def start_sandbox(config: SandboxConfig, task: Task) -> AsyncIterator[Sandbox]:
    """A fresh copy of the task's base commit. Leaving the block, also by an error or a cancellation, removes it.

    Raises SandboxError when the machine cannot make it, TaskError when the environment's folder or interpreter is
    wrong.
    """
    sandbox = await SANDBOXES[config.kind].start(config, _store(config), task)
    try:
        yield sandbox
    finally:
        await sandbox.close()


def _store(config: SandboxConfig) -> Store:
    scratch = Path(os.path.abspath(config.scratch or tempfile.gettempdir()))  # git runs elsewhere
    return Store(scratch / f"coderepairrl-{os.getuid()}")

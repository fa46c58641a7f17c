"""What all sandboxes share: the configuration, a command's result, the protocol, the variables of a command."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import PositiveFloat, PositiveInt

from coderepairrl.config import Config
from coderepairrl.errors import CodeRepairError
from coderepairrl.types import Environment, Task

HOMES = {"jdk": "JAVA_HOME", "go": "GOROOT", "junit": "JUNIT_HOME"}  # variables that name a tool's folder
FOR_PROMPTS = {"TERM": "dumb", "NO_COLOR": "1"}


class SandboxConfig(Config):
    """What agents' commands and tests run in, and its limits."""

    kind: Literal["bubblewrap", "apptainer", "local"] = "bubblewrap"  # what isolates it; local: nothing does
    # what apptainer runs tasks in that name no image: a SIF or a folder; null: this machine's own system, read-only
    image: str | None = None
    scratch: str | None = None  # folder for templates and live checkouts; null: the system's temporary folder
    command_timeout_s: PositiveFloat = 60.0  # wall clock of one command, where the caller gives no other
    # of each process (RLIMIT_DATA), and of all of a command together, shared memory included (watchdog)
    memory_mib: PositiveInt = 2048
    processes: PositiveInt = 256  # processes and threads of one command
    descriptors: PositiveInt = 1024  # that each of them may have open
    output_kib: PositiveInt = 64  # of a command's output, half from its head and half from its tail
    file_size_mib: PositiveInt = 64  # of each file that a command writes
    disk_mib: PositiveInt = 1024  # of all that one sandbox's commands write to the checkout, or hold of it (watchdog)
    tmp_mib: PositiveInt = 256  # of /tmp and of /dev/shm, which live in memory
    overlay: bool = True  # a large checkout is an overlay over its template where the machine can; false: always a copy


@dataclass(frozen=True)
class CommandResult:
    """`exit_code` is the shell's (124 after the time limit, 137 when killed for memory); `output` is stdout and
    stderr."""

    exit_code: int
    output: str
    timed_out: bool
    seconds: float


class PathError(CodeRepairError):
    """The agent named a path that it may not or cannot use. The message is one line, written for the agent."""


class Sandbox(Protocol):
    config: SandboxConfig  # with `task`: for another one like it
    task: Task
    root: Path  # the checkout, for this program's own file operations; other processes of the host may not see it there
    inside: str  # the checkout as a command sees it: Environment.workdir, but for kind local
    network: bool  # whether its commands have this machine's
    left_out: dict[str, str]  # what the latest diff() left out, and why
    dropped_paths: tuple[str, ...]  # the same in words, "path: why"

    async def run(
        self,
        command: str | list[str],
        *,
        timeout_s: float | None = None,
        variables: dict[str, str | None] | None = None,
    ) -> CommandResult:
        """A string goes to bash, a list is argv; of `variables` those that are None are not set. Raises SandboxError
        only for infrastructure trouble."""

    async def read_text(self, path: str) -> str:
        """Raises PathError."""

    async def write_text(self, path: str, text: str) -> None:
        """Raises PathError."""

    async def lay(self, files: dict[str, str]) -> None:
        """Writes them all, in random order and with equal times: nothing but its content tells one from another.
        Raises PathError."""

    async def diff(self) -> str:
        """Unified git diff against the base commit, untracked files included; made outside the sandbox."""

    async def apply(self, diff: str, allowed: frozenset[str] | None = None) -> str:
        """`git apply` outside the sandbox, all or nothing. Empty, or the one-line reason why it does not apply; one
        reason is
        that git would write a path that is not in `allowed`."""

    def share(self, name: str) -> tuple[Path, str]:
        """A new empty folder beside the checkout, writable by the commands that follow: (host path, path inside).
        An older one of that name is removed."""

    def show(self, path: str) -> None:
        """A folder of this machine, read-only and at the same path, for the commands that follow."""

    async def close(self) -> None:
        """Removes everything. May be called twice."""


def plain_terminal(environment: Environment) -> dict[str, None]:
    """Variables of a command whose output no prompt holds: what tells programs to be brief is not set, unless the
    environment sets it, so
    a project's tests see what they would see in a CI."""
    return dict.fromkeys(name for name in FOR_PROMPTS if name not in environment.variables)


def command_variables(environment: Environment, home: str, variables: dict[str, str | None]) -> dict[str, str]:
    """All variables of a command: nothing is inherited from the host, so siblings see equal prompts. `variables`: its
    own; None: not set."""
    tools = {tool.partition(":")[0]: folder for tool, folder in zip(environment.tools, environment.tool_folders)}
    own = [f"{folder}/bin" for name, folder in tools.items() if name != "junit"]
    own += [os.path.dirname(environment.python)] if environment.python else []
    path = dict.fromkeys([*own, "/usr/local/bin", "/usr/bin", "/bin"])
    git = {"safe.directory": "*", "user.name": "agent", "user.email": "agent@localhost"}
    numbered = {
        f"GIT_CONFIG_{part}_{i}": text
        for i, pair in enumerate(git.items())
        for part, text in zip(("KEY", "VALUE"), pair, strict=True)
    }
    found = {
        "PATH": ":".join(path),
        "HOME": home,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        **FOR_PROMPTS,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(git)),
        **numbered,
        **{HOMES[name]: folder for name, folder in tools.items() if name in HOMES},
        **environment.variables,
        **variables,
    }
    return {name: value for name, value in found.items() if value is not None}

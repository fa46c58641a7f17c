"""Bubblewrap: each command in fresh namespaces without network, on a read-only system, with the checkout at
Environment.workdir.

The system is the machine's own, or the environment's image where that is a folder (mounts.py).

Who a command runs as: user 1000 of a user namespace, with no capability, in which no other one can be made (own.py).
Root drops to `nobody` first (the kernel exempts root from process limits in any namespace); the checkout then belongs
to `nobody`.
What stops it: the first process of the pid namespace dies -> the kernel kills all others.
What is limited: data segment, file size, processes and descriptors by rlimits, System V memory by its namespace, memory
of all processes together and what they write to the checkout by a watchdog, /tmp by its size. What would hold memory
that none of these see is not there (seccomp.py).
"""

import asyncio
import functools
import json
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.processes import cause
from coderepairrl.processes.proc import tree
from coderepairrl.sandboxes import mounts, own, seccomp
from coderepairrl.sandboxes.checkout import Checkout
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.sandboxes.protocol import CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.running import END_S, Pipe, gone, spawn, supervise
from coderepairrl.sandboxes.templates import SandboxFolder, Store
from coderepairrl.types import Task

_INSTALL = "install it (Debian: apt install bubblewrap util-linux) or set sandbox.kind=local, which isolates nothing"


class BubblewrapSandbox(Checkout):
    @staticmethod
    def check(config: SandboxConfig, root: Path) -> None:
        """Starts an empty sandbox; raises SandboxError unless a command in it is user 1000."""
        system = [*mounts.of_machine(root), *mounts.fresh(config)]
        argv = [*_namespaces(), *system, "--remount-ro", "/", *_become(config, "/")]
        advice = (
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns)"
        )
        own.check_user("bubblewrap", argv, {"PATH": "/usr/bin:/bin"}, _INSTALL, advice)

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "BubblewrapSandbox":
        _tool("bwrap")
        store.prepare()
        environment = task.environment
        if environment.image:
            system = [
                *(await asyncio.to_thread(mounts.of_image, environment.image, environment.workdir, store.root)),
                *mounts.fresh(config),
                *mounts.var_tmp(environment.image, config),
            ]
        else:
            installed = await asyncio.to_thread(interpreter, environment.python)
            system = [
                *mounts.of_machine(store.root),
                *mounts.fresh(config),
                *mounts.shown((*installed.folders, *environment.tool_folders)),
            ]
        system += await asyncio.to_thread(mounts.covers, environment, store.root)
        owner = own.NOBODY if os.getuid() == 0 else None
        return cls(config, task, await store.copy(task, owner, overlay=config.overlay), owner, system)

    def __init__(self, config: SandboxConfig, task: Task, live: SandboxFolder, owner: int | None, system: list[str]):
        super().__init__(config, task, live, owner, inside=task.environment.workdir)
        self.ending: list[int] = []  # first processes of finished commands' namespaces, on the host
        self.mounts = [*system, *mounts.parents(self.inside), "--bind", str(self.worktree.path), self.inside]

    def _inside(self, shared: Path) -> str:
        return f"/{shared.name}"

    async def _execute(self, argv: list[str], timeout_s: float, variables: dict[str, str | None]) -> CommandResult:
        shared = [part for host, inside in self.shared.items() for part in ("--bind", str(host), inside)]
        with Pipe() as said, Pipe() as made:
            rules = seccomp.opened(self.folder)
            status = _Status(said.read_end)
            command = [
                *self.worktree.enter,
                *_namespaces(),
                "--json-status-fd",
                str(said.write_end),
                "--seccomp",
                str(rules),
                *self.mounts,
                *await asyncio.to_thread(self._also_shown),
                *shared,
                "--remount-ro",
                "/",
                *_become(self.config, self.inside),
                *argv,
            ]
            try:
                environment = command_variables(self.task.environment, "/tmp", variables)
                process = await spawn(
                    command, environment=environment, cwd="/", stdin=made.write_end, pass_fds=(said.write_end, rules)
                )
            finally:
                os.close(rules)
                said.given()
                made.given()
            try:
                result = await supervise(
                    process,
                    timeout_s=timeout_s,
                    output_bytes=self.config.output_kib << 10,
                    watched=self._watched(lambda: status.read().pid),
                )
            finally:
                await self._end(status.read())
            if not own.was_made(made.read_end) and not result.timed_out and result.exit_code != 137:
                raise SandboxError(
                    f"bubblewrap broke before the command ran ({cause.of_text(result.output)}): run check() to see why"
                )
            return result

    def _also_shown(self) -> list[str]:
        image = self.task.environment.image
        opened = mounts.opened(image, self.shown) if image else []
        return [
            *opened,
            *(["--bind", str(self.worktree.path), self.inside] if opened else []),
            *mounts.shown(tuple(self.shown)),
            *(part for place in self.covered_of_shown() for part in ("--ro-bind", *place)),
        ]

    async def _end(self, status: "_Status") -> None:
        """bwrap is dead, so its child, the namespace's first process, dies too, and with it all others; but for one
        that was made so lately that it has not asked for that yet, which is killed here.

        That takes the kernel some 20 ms, because it takes the mounts down first. Where something was killed it is
        waited for; after a command that ended alone nothing is left that could run, so it is not.
        """
        if status.pid is not None and (not status.ran or len(tree(status.pid)) > 1):
            with suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
            self.ending.append(status.pid)
            await self._ended()

    async def _ended(self) -> None:
        try:
            while self.ending:
                await asyncio.wait_for(gone(self.ending[-1]), END_S)
                self.ending.pop()
        except TimeoutError as error:
            raise SandboxError("a killed sandbox did not end: the machine is overloaded or a disk hangs") from error

    async def close(self) -> None:
        try:
            await self._ended()
        finally:
            await super().close()


class _Status:
    """What bwrap reports on its status pipe: the namespace's first process, and that the command ran to its exit."""

    def __init__(self, descriptor: int):
        self.descriptor, self.data = descriptor, b""
        self.reading = threading.Lock()  # the watchdogs' threads read it, too
        os.set_blocking(descriptor, False)

    def read(self) -> "_Status":
        with self.reading:
            try:
                while data := os.read(self.descriptor, 4096):
                    self.data += data
            except BlockingIOError:  # nothing more for now
                return self
        return self

    @property
    def _said(self) -> dict:
        lines = self.data.split(b"\n")[:-1]
        return {key: value for line in lines for key, value in json.loads(line).items()}

    @property
    def pid(self) -> int | None:
        return self._said.get("child-pid")

    @property
    def ran(self) -> bool:
        return "exit-code" in self._said


@functools.cache
def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name!r} is not on this machine: {_INSTALL}")
    return path


def _namespaces() -> list[str]:
    start = [
        _tool("bwrap"),
        "--die-with-parent",
        "--new-session",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--hostname",
        "sandbox",
    ]
    if os.getuid() == 0:
        return [*start, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*start, "--unshare-user", "--uid", str(own.AGENT), "--gid", str(own.AGENT)]


def _become(config: SandboxConfig, workdir: str) -> list[str]:
    """What the namespaces' first command becomes, step by step, before it is the agent's."""
    drop = own.drop(_tool("setpriv")) if os.getuid() == 0 else []
    unshare = _tool("unshare")
    return [
        "--",
        *drop,
        *own.shell(unshare, own.steps(config), workdir),
        *own.agent(unshare),
        *own.limits(config, _tool("prlimit")),
    ]

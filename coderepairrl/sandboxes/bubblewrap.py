"""Bubblewrap: each command in fresh namespaces without network, on a read-only system, with the checkout at
Environment.workdir.

The system is the machine's own, or the environment's image where that is a folder.

Who a command runs as: user 1000 of a user namespace, with no capability, in which no other one can be made (own.py).
Root drops to `nobody` first (the kernel exempts root from process limits in any namespace); the checkout then belongs
to
`nobody`.
What stops it: the first process of the pid namespace dies -> the kernel kills all others.
What is limited: data segment, file size, processes and descriptors by rlimits, System V memory by its namespace, memory
of
all processes together and what they write to the checkout by a watchdog, /tmp by its size. What would hold memory that
none of these see is not there (seccomp.py).
"""

import asyncio
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.files import publish
from coderepairrl.processes import cause
from coderepairrl.processes.proc import tree
from coderepairrl.sandboxes import own, seccomp
from coderepairrl.sandboxes.checkout import Checkout
from coderepairrl.sandboxes.covered import covered, places, prepare
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.sandboxes.protocol import CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.running import Pipe, gone, spawn, supervise
from coderepairrl.sandboxes.templates import Live, Store
from coderepairrl.types import Environment, Task

NOBODY, AGENT = 65534, own.AGENT
END_S = 30.0  # how long the kernel may take to end a killed pid namespace
_ETC = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ssl",
    "ca-certificates",
    "mime.types",
    "services",
    "protocols",
)
_OWN_ETC = {
    "passwd": f"root:x:0:0:root:/:/bin/sh\nagent:x:{AGENT}:{AGENT}:agent:/tmp:/bin/bash\nnobody:x:{NOBODY}:{NOBODY}:nobody:/:/bin/false\n",
    "group": f"root:x:0:\nagent:x:{AGENT}:\nnogroup:x:{NOBODY}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_INSTALL = "install it (Debian: apt install bubblewrap util-linux) or set sandbox.kind=local, which isolates nothing"


class BubblewrapSandbox(Checkout):
    @staticmethod
    def check(config: SandboxConfig, root: Path) -> None:
        """Starts an empty sandbox; raises SandboxError unless a command in it is user 1000."""
        argv = [*_namespaces(), *_machine(root), *_fresh(config), "--remount-ro", "/", *_become(config, "/")]
        advice = "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        check_user("bubblewrap", argv, {"PATH": "/usr/bin:/bin"}, _INSTALL, advice)

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "BubblewrapSandbox":
        _tool("bwrap")
        store.prepare()
        environment = task.environment
        if environment.image:
            system = [
                *(await asyncio.to_thread(_image, environment.image, environment.workdir, store.root)),
                *_fresh(config),
                *_var_tmp(environment.image, config),
            ]
        else:
            installed = await asyncio.to_thread(interpreter, environment.python)
            system = [*_machine(store.root), *_fresh(config), *_shown(installed.folders)]
        system += await asyncio.to_thread(_covered, environment, store.root)
        owner = NOBODY if os.getuid() == 0 else None
        return cls(config, task, await store.copy(task, owner, overlay=config.overlay), owner, system)

    def __init__(self, config: SandboxConfig, task: Task, live: Live, owner: int | None, system: list[str]):
        super().__init__(config, task, live, owner, inside=task.environment.workdir)
        self.ending: list[int] = []  # first processes of finished commands' namespaces, on the host
        self.mounts = [*system, *_parents(self.inside), "--bind", str(self.worktree.path), self.inside]

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
                *self._also_shown(),
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
        opened = _opened(image, self.shown) if image else []
        return [
            *opened,
            *(["--bind", str(self.worktree.path), self.inside] if opened else []),
            *_shown(tuple(self.shown)),
        ]

    async def _end(self, status: "_Status") -> None:
        """bwrap is dead, so its child, the namespace's first process, dies too, and with it all others; but for one
        that was
        made so lately that it has not asked for that yet, which is killed here.

        That takes the kernel some 20 ms, because it takes the mounts down first. Where something was killed it is
        waited for;
        after a command that ended alone nothing is left that could run, so it is not.
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


def check_user(runtime: str, argv: list[str], environment: dict[str, str], install: str, advice: str) -> None:
    """Raises SandboxError unless a command behind `argv` is user 1000. `install` and `advice`: remedies where it
    doesn't start, or is another."""
    try:
        done = subprocess.run(
            [*argv, "id", "-u"],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{runtime} does not run ({error}): {install}") from error
    if done.stdout.strip() != str(AGENT):
        raise SandboxError(f"{runtime} cannot make a sandbox ({cause.of_text(done.stdout + done.stderr)}): {advice}")


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
    return [*start, "--unshare-user", "--uid", str(AGENT), "--gid", str(AGENT)]


def _become(config: SandboxConfig, workdir: str) -> list[str]:
    """What the namespaces' first command becomes, step by step, before it is the agent's."""
    drop = [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
    unshare = _tool("unshare")
    return [
        "--",
        *drop,
        *own.shell(unshare, own.steps(config), workdir),
        *own.agent(unshare),
        *own.limits(config, _tool("prlimit")),
    ]


def _machine(root: Path) -> list[str]:
    """This machine's own system, less all that is personal."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            mounts += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            mounts += ["--ro-bind", name, name]
    return [
        *mounts,
        "--ro-bind",
        str(own_etc(root)),
        "/etc",
        "--perms",
        "0755",
        "--dir",
        "/var",
        "--symlink",
        "../tmp",
        "/var/tmp",
    ]


def _image(image: str, workdir: str, root: Path) -> list[str]:
    """An unpacked image, entry by entry, so that mounts find their places; its users are ours."""
    if not os.path.isdir(image):
        raise SandboxError(
            f"{image} is no folder, and bubblewrap runs in nothing else: set environments.image_format=folder, or "
            "sandbox.kind=apptainer"
        )
    left_out = {"proc", "dev", "sys", "tmp", workdir.split("/")[1] if workdir.count("/") == 1 else ""}
    mounts = []
    for name in sorted(set(os.listdir(image)) - left_out):
        path = f"{image}/{name}"
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), f"/{name}"]
        elif os.path.isdir(path):
            mounts += ["--ro-bind", path, f"/{name}"]
    users = [name for name in ("passwd", "group") if os.path.isfile(f"{image}/etc/{name}")]
    return [*mounts, *(part for name in users for part in ("--ro-bind", f"{own_etc(root)}/{name}", f"/etc/{name}"))]


def _var_tmp(image: str, config: SandboxConfig) -> list[str]:
    """Writable, where the image has it as a folder of its own."""
    own = (
        os.path.isdir(f"{image}/var/tmp")
        and not os.path.islink(f"{image}/var/tmp")
        and not os.path.islink(f"{image}/var")
    )
    return ["--perms", "1777", "--size", str(config.tmp_mib << 20), "--tmpfs", "/var/tmp"] if own else []


def _opened(image: str, paths: list[str]) -> list[str]:
    """The image's folders on the way to the paths, which are read-only here, as folders in memory with the same
    entries: then the paths have a place."""
    words = []
    for folder in sorted(
        {str(parent) for path in paths for parent in Path(path).parents[:-1] if os.path.isdir(f"{image}{parent}")}
        - {"/tmp"}
    ):
        words += ["--perms", "0755", "--tmpfs", folder]
        for name in sorted(os.listdir(image + folder)):
            inside, path = f"{folder}/{name}", f"{image}{folder}/{name}"
            words += ["--symlink", os.readlink(path), inside] if os.path.islink(path) else ["--ro-bind", path, inside]
    return words


def _shown(folders: tuple[str, ...]) -> list[str]:
    """The interpreter's own folders, at the paths that they have here."""
    return [
        part
        for path in sorted(folders)
        if not path.startswith("/usr/") and path != "/usr"
        for part in (*_parents(path), "--ro-bind", path, path)
    ]


def _covered(environment: Environment, root: Path) -> list[str]:
    prepare(root)
    return [part for place in places(root, covered(environment)) for part in ("--ro-bind", *place)]


def _fresh(config: SandboxConfig) -> list[str]:
    """The folders in memory, new with every command."""
    size = str(config.tmp_mib << 20)
    return [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--size",
        size,
        "--tmpfs",
        "/dev/shm",
        "--remount-ro",
        "/dev",
        "--perms",
        "1777",
        "--size",
        size,
        "--tmpfs",
        "/tmp",
    ]


def _parents(path: str) -> list[str]:
    """Folders that bubblewrap would otherwise make for its own user only."""
    return [part for folder in reversed(Path(path).parents[:-1]) for part in ("--perms", "0755", "--dir", str(folder))]


@functools.cache
def own_etc(root: Path) -> Path:
    """Our own /etc: a few files of the host's, copied, and fixed users. One folder, since each mount costs a command
    time."""
    made_of = [[name, os.lstat(f"/etc/{name}").st_mtime_ns] for name in _ETC if os.path.exists(f"/etc/{name}")]

    def fill(own: Path) -> None:
        for name, _ in made_of:
            if os.path.isdir(f"/etc/{name}"):
                shutil.copytree(f"/etc/{name}", own / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
            else:
                shutil.copyfile(f"/etc/{name}", own / name)
        for name, text in _OWN_ETC.items():
            (own / name).write_text(text)

    return made_once(root, "etc", [made_of, _OWN_ETC], fill)


def made_once(root: Path, name: str, made_of: list, fill: Callable[[Path], None]) -> Path:
    """The folder below `root`, named by what it is made of, that `fill` fills unless it is there already. Raises
    SandboxError."""
    folder = root / f"{name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    own = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".tmp", dir=root))
    own.chmod(0o755)
    fill(own)
    try:
        publish(own, folder)
    except OSError as error:
        raise SandboxError(f"{folder} cannot be made ({error}): set sandbox.scratch to a writable folder") from error
    if own.exists():
        shutil.rmtree(own)
    return folder

"""Bubblewrap: each command in fresh namespaces without network, on a read-only system, with the checkout at /repo.

Who a command runs as: user 1000 of a user namespace, with no capability. For a normal user bubblewrap makes that namespace.
For root it cannot (the kernel exempts root from process limits in any namespace), so a command drops to `nobody` first and
makes its own; the checkout then belongs to `nobody`.
What stops it: the first process of the pid namespace dies -> the kernel kills all others.
What is limited: data segment, file size and processes by rlimits, memory of all processes together by a watchdog, /tmp by
its size. Not limited: how much a command writes to the checkout in many files.
"""
import asyncio
import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.base import REPO, CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.sandboxes.process import gone, spawn, supervise
from coderepairrl.sandboxes.workspace import Checkout, Store
from coderepairrl.types import Task

NOBODY, AGENT = 65534, 1000
END_S = 30.0  # how long the kernel may take to end a killed pid namespace
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "ca-certificates", "mime.types")
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
        argv = [*_namespaces(), *_system(root, config), "--remount-ro", "/", *_limits(config), "/usr/bin/id", "-u"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxError(f"bubblewrap does not run ({error}): {_INSTALL}") from error
        if done.stdout.strip() != str(AGENT):
            raise SandboxError(f"bubblewrap cannot make a sandbox ({' '.join(done.stderr.split())[-300:]}): allow user namespaces "
                               "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)")

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "BubblewrapSandbox":
        _tool("bwrap")
        folders = (await asyncio.to_thread(interpreter, task.environment.python)).folders
        owner = NOBODY if os.getuid() == 0 else None
        return cls(config, task, await store.copy(task, owner), owner, store.root, folders)

    def __init__(self, config: SandboxConfig, task: Task, folder: Path, owner: int | None, root: Path, folders: tuple[str, ...]):
        super().__init__(config, task, folder, owner, inside=REPO)
        self.ending: list[int] = []  # first processes of finished commands' namespaces, on the host
        shown = [part for path in sorted(folders) if not path.startswith("/usr/") and path != "/usr"
                 for part in (*_parents(path), "--ro-bind", path, path)]
        self.mounts = [*_system(root, config), *shown, "--bind", str(self.root), REPO]

    def _inside(self, shared: Path) -> str:
        return f"/{shared.name}"

    async def _execute(self, argv: list[str], timeout_s: float, variables: dict[str, str]) -> CommandResult:
        shared = [part for host, inside in self.shared.items() for part in ("--bind", str(host), inside)]
        read_end, write_end = os.pipe()
        status = _Status(read_end)
        command = [*_namespaces(), "--json-status-fd", str(write_end), *self.mounts, *shared, "--remount-ro", "/", "--chdir", REPO,
                   *_limits(self.config), *argv]
        try:
            try:
                process = await spawn(command, environment=command_variables(self.task.environment, "/tmp") | variables, cwd="/", pass_fds=(write_end,))
            finally:
                os.close(write_end)
            try:
                result = await supervise(process, timeout_s=timeout_s, output_bytes=self.config.output_kib << 10,
                                         overused=lambda: _overused(status.read().pid, self.config.memory_mib))
            finally:
                await self._end(status.read())
        finally:
            os.close(read_end)
        if not status.ran and not result.timed_out and result.exit_code != 137:
            raise SandboxError(f"bubblewrap broke before the command ran ({' '.join(result.output.split())[-300:]}): run check() to see why")
        return result

    async def _end(self, status: "_Status") -> None:
        """bwrap is dead, so its child, the namespace's first process, dies too, and with it all others.

        Its own end takes the kernel some 20 ms (it takes the mounts down first): waited for here when the command was
        killed or left processes behind, otherwise in close().
        """
        if status.pid is None:
            return
        self.ending.append(status.pid)
        if not status.ran or len(_tree(status.pid)) > 1:
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
        os.set_blocking(descriptor, False)

    def read(self) -> "_Status":
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


def _overused(pid: int | None, memory_mib: int) -> str:
    """Empty, or that the private memory of all processes under `pid` is over the limit."""
    used_mib = sum(map(_private_mib, _tree(pid))) if pid is not None else 0.0
    return f"memory limit of {memory_mib} MiB" if used_mib > memory_mib else ""


def _tree(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        try:
            waiting += [int(child) for task in os.listdir(f"/proc/{found[-1]}/task")
                        for child in Path(f"/proc/{found[-1]}/task/{task}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return found


def _private_mib(pid: int) -> float:
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE") / (1 << 20)


@functools.cache
def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name!r} is not on this machine: {_INSTALL}")
    return path


def _namespaces() -> list[str]:
    start = [_tool("bwrap"), "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
             "--unshare-cgroup-try", "--hostname", "sandbox"]
    if os.getuid() == 0:
        return [*start, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*start, "--unshare-user", "--uid", str(AGENT), "--gid", str(AGENT)]


def _limits(config: SandboxConfig) -> list[str]:
    """Run inside, after the namespaces: the kernel counts processes per user namespace, so siblings do not add up."""
    limits = [_tool("prlimit"), f"--nproc={config.processes}", f"--data={config.memory_mib << 20}", f"--fsize={config.file_size_mib << 20}", "--core=0", "--"]
    if os.getuid() != 0:
        return ["--", *limits]
    drop = [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["--", *drop, _tool("unshare"), "--user", f"--map-user={AGENT}", f"--map-group={AGENT}", *limits]


def _system(root: Path, config: SandboxConfig) -> list[str]:
    """The read-only system and the fresh folders in memory; later mounts go on top of these."""
    size = str(config.tmp_mib << 20)
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            mounts += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            mounts += ["--ro-bind", name, name]
    mounts += ["--ro-bind", str(_etc(root)), "/etc"]
    return [*mounts, "--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
            "--perms", "1777", "--size", size, "--tmpfs", "/tmp"]


def _parents(path: str) -> list[str]:
    """Folders that bubblewrap would otherwise make for its own user only."""
    return [part for folder in reversed(Path(path).parents[:-1]) for part in ("--perms", "0755", "--dir", str(folder))]


@functools.cache
def _etc(root: Path) -> Path:
    """Our own /etc: a few files of the host's, copied, and fixed users. One folder, since each mount costs a command time."""
    made_of = [[name, os.lstat(f"/etc/{name}").st_mtime_ns] for name in _ETC if os.path.exists(f"/etc/{name}")]
    folder = root / ("etc-" + hashlib.sha256(json.dumps([made_of, _OWN_ETC]).encode()).hexdigest()[:16])
    if folder.exists():
        return folder
    own = Path(tempfile.mkdtemp(prefix="etc-", suffix=".tmp", dir=root))
    own.chmod(0o755)
    for name, _ in made_of:
        if os.path.isdir(f"/etc/{name}"):
            shutil.copytree(f"/etc/{name}", own / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
        else:
            shutil.copyfile(f"/etc/{name}", own / name)
    for name, text in _OWN_ETC.items():
        (own / name).write_text(text)
    try:
        own.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise SandboxError(f"{folder} cannot be made ({error}): set sandbox.scratch to a writable folder") from error
        shutil.rmtree(own)  # another process was first: equal content
    return folder

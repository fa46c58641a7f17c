"""Apptainer: each command in a container of its own, `--containall`, without network, with the checkout at
Environment.workdir.

The root file system is the environment's image (a SIF or a folder), or `sandbox.image`, or this machine's own system,
read-only. Inside, Apptainer's process becomes what the agent is: as root it drops to `nobody`; then, in a user and
mount namespace of its own, it gets /tmp and /dev/shm of the configured size (Apptainer's own have 64 MB), then it is
user 1000 without capabilities, under rlimits.
What stops it: the first process of the container is killed, the kernel kills all others, Apptainer takes its mounts
down and ends. The programs `setpriv`, `unshare`, `prlimit` (util-linux), `mount` and `env` must be in the image.
"""

import asyncio
import csv
import functools
import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.processes import cause, proc, reaper
from coderepairrl.sandboxes import own, seccomp
from coderepairrl.sandboxes.checkout import Checkout
from coderepairrl.sandboxes.covered import covered, places, prepare
from coderepairrl.sandboxes.etc import made_once, own_etc
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.sandboxes.members import first_inside
from coderepairrl.sandboxes.protocol import CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.running import END_S, Pipe, gone, spawn, supervise
from coderepairrl.sandboxes.templates import SandboxFolder, Store
from coderepairrl.types import Environment, Task

_INSTALL = (
    "install it (https://apptainer.org/docs/admin/latest/installation.html), load its module, or set "
    "sandbox.kind=bubblewrap"
)
_IN_MEMORY = ("/tmp/", "/var/tmp/")  # folders that are mounted anew inside, over what is bound below them


class ApptainerSandbox(Checkout):
    @staticmethod
    def check(config: SandboxConfig, root: Path) -> None:
        """Starts an empty container; raises SandboxError unless a command in it is user 1000."""
        become = _become(config, {"PATH": "/usr/bin:/bin"}, "/", [])
        argv = [*_container(), *_rules(root), *_root(config.image, root), *become]
        own.check_user(
            "apptainer", argv, _outside(), _INSTALL, "allow user namespaces, and choose an image that holds util-linux"
        )

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "ApptainerSandbox":
        environment = task.environment
        store.prepare()
        folders = environment.tool_folders
        if not environment.image:
            folders += (await asyncio.to_thread(interpreter, environment.python)).folders
        if environment.image and not os.path.exists(environment.image):
            raise SandboxError(
                f"the image {environment.image} of {environment.name} does not exist: build the environment first"
            )
        system = await asyncio.to_thread(_root, environment.image or config.image, store.root)
        root = os.getuid() == 0  # for others an Apptainer inside our user namespace could not mount images
        live = await store.copy(task, own.NOBODY if root else None, overlay=config.overlay and root)
        shown = [path for path in folders if not (path == "/usr" or path.startswith("/usr/"))]
        over = await asyncio.to_thread(_covered, environment, store.root, config.image)
        return cls(config, task, live, own.NOBODY if root else None, shown, [*system[:-1], *over, system[-1]])

    def __init__(
        self,
        config: SandboxConfig,
        task: Task,
        live: SandboxFolder,
        owner: int | None,
        shown: list[str],
        system: list[str],
    ):
        super().__init__(config, task, live, owner, inside=task.environment.workdir)
        binds = [part for path in shown for part in _bind(path, path, "ro")]
        self.binds, self.system = [*binds, *_bind(self.worktree.path, self.inside)], system
        self.hidden = [path for path in sorted(shown) if path.startswith(_IN_MEMORY)]

    def _inside(self, shared: Path) -> str:
        return f"/{shared.name}"

    async def _execute(self, argv: list[str], timeout_s: float, variables: dict[str, str | None]) -> CommandResult:
        shared = [part for host, inside in self.shared.items() for part in _bind(host, inside)]
        shown = sorted({path for path in self.shown if not path.startswith("/usr/")})
        over = await asyncio.to_thread(self.covered_of_shown)
        shared += [part for place in (*((path, path) for path in shown), *over) for part in _bind(*place, "ro")]
        hidden = sorted({*self.hidden, *(path for path in shown if path.startswith(_IN_MEMORY))})
        become = _become(self.config, command_variables(self.task.environment, "/tmp", variables), self.inside, hidden)
        rules = _rules(self.folder)
        argv = [*self.worktree.enter, *_container(), *rules, *self.binds, *shared, *self.system, *become, *argv]
        with Pipe() as made:
            process = await spawn(argv, environment=_outside(), cwd="/", stdin=made.write_end)
            made.given()
            result = await self._supervised(process, timeout_s)
            if not own.was_made(made.read_end) and not result.timed_out and result.exit_code != 137:
                raise SandboxError(
                    f"apptainer broke before the command ran ({cause.of_text(result.output)}): run check() to see why"
                )
        return result

    async def _supervised(self, process: asyncio.subprocess.Process, timeout_s: float) -> CommandResult:
        start, seen = proc.start_of(process.pid), set()
        if start is not None:  # one that has ended already leaves nothing to be ended
            _reaper(f"+{process.pid} {start}\n")

        def end(pid: int) -> None:
            seen.update(proc.tree(pid))
            _end(pid)

        try:
            return await supervise(
                process,
                timeout_s=timeout_s,
                output_bytes=self.config.output_kib << 10,
                end=end,
                watched=self._watched(lambda: first_inside(process.pid)),
            )
        finally:
            for pid in seen - {process.pid}:
                await self._ended(pid)
            if start is not None:
                _reaper(f"-{process.pid}\n")

    async def _ended(self, pid: int) -> None:
        try:
            await asyncio.wait_for(gone(pid), END_S)
        except TimeoutError as error:
            raise SandboxError("a killed container did not end: the machine is overloaded or a disk hangs") from error


def _end(pid: int) -> None:
    """All that runs inside is killed; Apptainer then ends by itself. Before anything runs inside, Apptainer is
    killed."""
    inside = first_inside(pid)
    members = [inside] if inside is not None else proc.tree(pid)
    reaper.kill(members)


def _container() -> list[str]:
    """`apptainer exec` up to binds and image."""
    apptainer = shutil.which("apptainer")
    if apptainer is None:
        raise SandboxError(f"'apptainer' is not on this machine: {_INSTALL}")
    rights = ["--add-caps", "CAP_SETUID,CAP_SETGID"] if os.getuid() == 0 else []
    # /dev/full is the one device that Apptainer's own /dev lacks beside bubblewrap's
    return [
        apptainer,
        "-s",
        "exec",
        "--containall",
        "--no-home",
        "--no-eval",
        "--no-mount",
        "sys,bind-paths",
        *_bind("/dev/full", "/dev/full"),
        "--net",
        "--network",
        "none",
        "--hostname",
        "sandbox",
        "--pwd",
        "/",
        *rights,
    ]


def _bind(source: str | Path, inside: str, *options: str) -> list[str]:
    """`--bind` takes no path with a colon or a comma."""
    return ["--mount", _row("type=bind", f"source={source}", f"destination={inside}", *options)]


def _rules(folder: Path) -> list[str]:
    return ["--security", _row(f"seccomp:{seccomp.profile(folder)}")]


def _row(*fields: str) -> str:
    """Of CSV, as options are read."""
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(fields)
    return row.getvalue()


def _covered(environment: Environment, root: Path, image: str | None) -> list[str]:
    prepare(root)
    found = places(root, covered(environment, machine=image is None))
    return [part for source, inside in found for part in _bind(source, inside, "ro")]


def _become(config: SandboxConfig, variables: dict[str, str], workdir: str, hidden: list[str]) -> list[str]:
    """What the container's first program becomes, step by step, before it is the command. `hidden`: binds below /tmp or
    /var/tmp, to be seen in the new ones."""
    drop = own.drop("setpriv") if os.getuid() == 0 else []
    memory = f"mount -t tmpfs -o size={config.tmp_mib}m,mode=1777 tmpfs"
    over = [root for root in _IN_MEMORY if any(path.startswith(root) for path in hidden)]
    kept = [f"mkdir -p /dev/shm{root} && mount --rbind {root} /dev/shm{root}" for root in over]
    again = [f"mkdir -p {path} && mount --rbind /dev/shm{path} {path}" for path in map(shlex.quote, hidden)]
    # an image may have a link to /tmp, or none
    var_tmp = f"if [ -d /var/tmp ] && [ ! -L /var/tmp ]; then {memory} /var/tmp; fi"
    steps = [*kept, f"{memory} /tmp", var_tmp, *again, f"{memory} /dev/shm", *own.steps(config)]
    words = [f"{name}={value}" for name, value in variables.items()]
    return [
        *drop,
        *own.shell("unshare", steps, workdir),
        *own.agent("unshare"),
        "env",
        "-i",
        *words,
        *own.limits(config),
    ]


def _root(image: str | None, root: Path) -> list[str]:
    """The image with our users in it, or this machine's own system: a folder of empty places with /usr bound into
    it."""
    etc = own_etc(root)
    if image is not None:
        return [*_bind(etc / "passwd", "/etc/passwd", "ro"), *_bind(etc / "group", "/etc/group", "ro"), image]
    links = {
        name: os.readlink(f"/{name}")
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
        if os.path.islink(f"/{name}")
    }

    places = ("usr", "proc", "dev", "tmp", "var/tmp")

    def fill(own: Path) -> None:
        for name in places:
            (own / name).mkdir(parents=True)
        for name, target in links.items():
            (own / name).symlink_to(target)
        shutil.copytree(etc, own / "etc", symlinks=True)

    return [*_bind("/usr", "/usr", "ro"), str(made_once(root, "system", [str(etc), links, places], fill))]


def _outside() -> dict[str, str]:
    """Variables of Apptainer itself: nothing of the caller's but where programs and its configuration are."""
    return {
        name: os.environ[name]
        for name in ("PATH", "HOME", "APPTAINER_CONFIGDIR", "APPTAINER_CACHEDIR", "XDG_RUNTIME_DIR")
        if name in os.environ
    }


@functools.cache
def _reaper_of(pid: int) -> subprocess.Popen:
    """This process's own (after a fork the child's pid asks for another)."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _reaper(line: str) -> None:
    process = _reaper_of(os.getpid())
    process.stdin.write(line.encode())
    process.stdin.flush()

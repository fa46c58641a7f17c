"""The host's side of a sandbox: the checkout, its template, reading, writing and the diff.

    <scratch>/coderepairrl-<uid>/templates/<key>/{checkout,judge}     built once a task, never changed
    <scratch>/coderepairrl-<uid>/live/<host>-<pid>-<random>/{checkout,...}   one a sandbox, removed by close()

A template's name is a hash of all that it is made of, so a template is never out of date; deleting the folder is safe
while no program uses it.
"""
import asyncio
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.sandboxes.base import REPO, CommandResult, PathError, SandboxConfig
from coderepairrl.sandboxes.git import EPOCH_S, Judge, commit_base
from coderepairrl.sandboxes.process import capture, in_thread
from coderepairrl.types import Task

log = logging.getLogger(__name__)
LAYOUT = 1  # part of a template's key: raise it when what a template holds changes
SMALL = 300  # files and folders; fewer are copied faster by this process than by starting cp
MAX_COMMAND_BYTES = 100_000  # below the kernel's limit for one argument, 128 KiB
MAX_READ_BYTES = 4 << 20
_REMEDY = "check the space and the permissions of sandbox.scratch"
_AGENTS_FAULT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
# templates that are being built right now: siblings of the same event loop wait instead of building too (a lock works in one loop)
_building: dict[tuple[asyncio.AbstractEventLoop, Path], asyncio.Lock] = {}


@dataclass(frozen=True)
class Store:
    """The folder that holds templates and live sandboxes. Made readable for its owner only."""
    root: Path

    def prepare(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("templates", "live"):
                (self.root / name).mkdir(exist_ok=True)
            owner = self.root.lstat()
        except OSError as error:
            raise SandboxError(f"scratch folder {self.root} cannot be made ({error}): set sandbox.scratch to a writable folder") from error
        if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.getuid():
            raise SandboxError(f"scratch folder {self.root} belongs to someone else: remove it or set sandbox.scratch")

    def sweep(self) -> None:
        """Removes what killed programs of this machine left: live folders whose process is gone."""
        self.prepare()
        for folder in (self.root / "live").glob(f"{socket.gethostname()}-*-*"):
            if not Path("/proc", folder.name.split("-")[-2]).exists():
                _remove(folder)

    async def copy(self, task: Task, owner: int | None) -> Path:
        """A new live folder with the task's base commit in `checkout`, owned by `owner` (None: by this user)."""
        self.prepare()
        template = await self._template(task, owner)
        live = self.root / "live" / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            live.mkdir(mode=0o700)
            (live / "judge").symlink_to(template / "judge")
            if int((template / "entries").read_text()) <= SMALL:
                await in_thread(_copy_small, template / "checkout", live / "checkout", owner)
            else:
                await _cp(template / "checkout", live / "checkout")
        except BaseException as error:  # a cancellation too must leave no folder
            _remove(live)
            if isinstance(error, OSError):
                raise SandboxError(f"a checkout cannot be copied ({error}): {_REMEDY}") from error
            raise
        return live

    async def _template(self, task: Task, owner: int | None) -> Path:
        base = task.environment.base
        made_of = [LAYOUT, base, os.stat(base).st_mtime_ns if base and os.path.isdir(base) else 0, sorted(task.files.items()), owner]
        template = self.root / "templates" / hashlib.sha256(json.dumps(made_of).encode(errors="surrogatepass")).hexdigest()[:32]
        if template.exists():
            return template
        key = asyncio.get_running_loop(), template
        try:
            async with _building.setdefault(key, asyncio.Lock()):
                if not template.exists():
                    await self._build(task, owner, template)
        finally:
            _building.pop(key, None)
        return template

    async def _build(self, task: Task, owner: int | None, template: Path) -> None:
        own = template.with_name(f"{template.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        checkout = own / "checkout"
        try:
            own.mkdir()
            await in_thread(_lay_out, task, checkout)
            await commit_base(checkout / ".git", checkout, sorted(task.files))
            await Judge.build(own / "judge", checkout)
            await in_thread(_give, checkout, owner)
            (own / "entries").write_text(str(sum(len(names) + len(files) for _, names, files in os.walk(checkout))))
            try:
                own.rename(template)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was first: equal content
                    raise
        except OSError as error:
            raise SandboxError(f"the checkout of task {task.task_id} cannot be built ({error}): {_REMEDY}") from error
        finally:
            _remove(own)


class Checkout:
    """A sandbox less the running of commands: a subclass adds start(), check(), _execute() and _inside()."""

    def __init__(self, config: SandboxConfig, task: Task, folder: Path, owner: int | None, inside: str):
        self.config, self.task, self.folder, self.owner, self.inside = config, task, folder, owner, inside
        self.root = folder / "checkout"
        self.dropped_paths: tuple[str, ...] = ()
        self.shared: dict[Path, str] = {}
        self.judge = Judge(Path(os.path.realpath(folder / "judge")))
        self.lock = asyncio.Lock()  # a diff must not race a command that swaps a file for a symlink

    async def run(self, command: str | list[str], *, timeout_s: float | None = None, variables: dict[str, str] | None = None) -> CommandResult:
        argv = ["/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        size = sum(len(part.encode(errors="surrogateescape")) + 1 for part in argv)
        if size > MAX_COMMAND_BYTES or any("\0" in part for part in argv):
            return CommandResult(126, f"a command must be shorter than {MAX_COMMAND_BYTES} bytes and without NUL: write a file and run it\n", False, 0.0)
        async with self.lock:
            return await self._execute(argv, timeout_s or self.config.command_timeout_s, variables or {})

    async def read_text(self, path: str) -> str:
        async with self.lock:
            try:
                target = self._resolve(path)
                status = target.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise PathError(f"{path}: not a file: " + ("it is a folder" if target.is_dir() else "only regular files can be read"))
                if status.st_size > MAX_READ_BYTES:
                    raise PathError(f"{path}: {status.st_size} bytes are too many to read at once: print the part you need with a command")
                return target.read_bytes().decode()
            except UnicodeDecodeError:
                raise PathError(f"{path}: not UTF-8 text: use a command to look at it") from None
            except OSError as error:
                raise _path_error(path, error) from error

    async def write_text(self, path: str, text: str) -> None:
        async with self.lock:
            try:
                data = text.encode()
                if len(data) > self.config.file_size_mib << 20:
                    raise PathError(f"{path}: more than {self.config.file_size_mib} MiB: write less")
                target = self._resolve(path)
                if target.exists() and not target.is_file():
                    raise PathError(f"{path}: not a file: choose another name")
                new = [folder for folder in (target, *target.parents) if not folder.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                for made in new:
                    self._own(made)
            except UnicodeEncodeError:
                raise PathError(f"{path}: the text is not valid Unicode: leave out lone surrogates") from None
            except OSError as error:
                raise _path_error(path, error) from error

    async def diff(self) -> str:
        async with self.lock:
            try:
                text, self.dropped_paths = await self.judge.diff(self.root, self.folder)
            except OSError as error:
                raise SandboxError(f"the diff of {self.task.task_id} cannot be made ({error}): {_REMEDY}") from error
        if self.dropped_paths:
            log.info("left out of the diff of %s: %s", self.task.task_id, ", ".join(self.dropped_paths[:20]))
        return text

    async def apply(self, diff: str, allowed: frozenset[str] | None = None) -> str:
        async with self.lock:
            paths, problem = await self.judge.touched(self.root, diff)
            if allowed is not None and not allowed.issuperset(paths):
                problem = f"git reads other paths in it than its headers name: {', '.join(sorted(set(paths) - allowed))[:200]}"
            problem = problem or await self.judge.apply(self.root, diff)
            if not problem:
                for path in paths:
                    for made in (self.root / path, *(self.root / path).parents):
                        if made == self.root:
                            break
                        self._own(made)
        return problem

    def share(self, name: str) -> tuple[Path, str]:
        folder = self.folder / "shared" / name
        try:
            folder.mkdir(parents=True)
            self._own(folder)
        except OSError as error:
            raise SandboxError(f"{folder} cannot be made ({error}): {_REMEDY}") from error
        self.shared[folder] = self._inside(folder)
        return folder, self.shared[folder]

    async def close(self) -> None:
        await in_thread(_remove, self.folder)

    def _own(self, path: Path) -> None:
        if self.owner is not None and path.exists() and not path.is_symlink():
            os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def _resolve(self, path: str) -> Path:
        """The host's path of the agent's `path`, all symlinks followed. Raises PathError for one outside the checkout."""
        relative = path.removeprefix(REPO + "/") if path != REPO else "."
        if not relative or "\0" in relative or any(0xD800 <= ord(letter) <= 0xDFFF for letter in relative):
            raise PathError(f"{path!r}: not a path: give one relative to {REPO}")
        root = Path(os.path.realpath(self.root))
        target = Path(os.path.realpath(root / relative))
        if not target.is_relative_to(root):
            raise PathError(f"{path}: outside the repository: give a path inside {REPO}")
        return target


def _path_error(path: str, error: OSError) -> PathError | SandboxError:
    if error.errno not in _AGENTS_FAULT:
        return SandboxError(f"{path}: {error.strerror}: {_REMEDY}")
    return PathError(f"{path}: {error.strerror.lower()}: list the folder to see what is there")


def _lay_out(task: Task, checkout: Path) -> None:
    """environment.base, less its .git (history may hold the fix), then Task.files; every date the same."""
    base = task.environment.base
    if base is None:
        checkout.mkdir()
    elif not os.path.isdir(base):
        raise TaskError(f"environment {task.environment.name}: folder {base} does not exist: prepare the environment first")
    else:
        shutil.copytree(base, checkout, symlinks=True, ignore=lambda folder, names: [".git"] if folder == base and ".git" in names else [])
    root = Path(os.path.realpath(checkout))
    for name, text in task.files.items():
        path = root / name
        if name.startswith("/") or not Path(os.path.realpath(path)).is_relative_to(root) or ".git" in Path(name).parts:
            raise TaskError(f"task {task.task_id}: file {name!r} is not inside the checkout: use a relative path")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            os.utime(os.path.join(folder, name), (EPOCH_S, EPOCH_S), follow_symlinks=False)


async def _cp(source: Path, target: Path) -> None:
    code, _, err = await capture(["cp", "-a", "--reflink=auto", str(source), str(target)], environment={"PATH": os.environ["PATH"], "LC_ALL": "C"}, cwd="/")
    if code:
        raise SandboxError(f"a checkout cannot be copied ({err.decode(errors='replace').strip()[:300]}): {_REMEDY}")


def _copy_small(source: Path, target: Path, owner: int | None) -> None:
    shutil.copytree(source, target, symlinks=True)
    _give(target, owner)


def _give(folder: Path, owner: int | None) -> None:
    if owner is None:
        return
    os.chown(folder, owner, owner)
    for where, names, files in os.walk(folder):
        for name in (*names, *files):
            os.chown(os.path.join(where, name), owner, owner, follow_symlinks=False)


def _remove(folder: Path) -> None:
    """rmtree that also removes what an agent made unreadable for its own user."""
    def unlock(function, path, _error):
        for part in (os.path.dirname(path), path):
            if os.path.lexists(part) and not os.path.islink(part):
                os.chmod(part, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=unlock)

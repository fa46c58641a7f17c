"""The host's side of a sandbox: reading, writing, the diff, folders that are shared with its commands."""

import asyncio
import errno
import logging
import os
import random
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from coderepairrl.environments.copies import find
from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes import covered
from coderepairrl.sandboxes.changes import Judge
from coderepairrl.sandboxes.git import EPOCH_S, GitError
from coderepairrl.sandboxes.held import held
from coderepairrl.sandboxes.limits import DiskWatch
from coderepairrl.sandboxes.memory import MemoryWatch
from coderepairrl.sandboxes.overlay import remove
from coderepairrl.sandboxes.protocol import CommandResult, PathError, SandboxConfig
from coderepairrl.sandboxes.running import in_thread
from coderepairrl.sandboxes.templates import SandboxFolder, remedy
from coderepairrl.types import Task

log = logging.getLogger(__name__)
MAX_COMMAND_BYTES = 100_000  # below the kernel's limit for one argument and Apptainer's for all, 128 KiB
MAX_READ_BYTES = 4 << 20
# time of files that are laid over a checkout: no bytecode of the base's own files is taken for theirs
LAID_S = EPOCH_S + 1
MAX_LINKS = 40  # that a path may lead over, as in the kernel
_AGENTS_FAULT = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


class Checkout:
    """A sandbox less the running of commands: a subclass adds start(), check(), _execute() and _inside()."""

    network = False

    def __init__(self, config: SandboxConfig, task: Task, live: SandboxFolder, owner: int | None, inside: str):
        self.config, self.task, self.owner, self.inside = config, task, owner, inside
        self.live, self.folder = live, live.folder
        self.worktree, self.root = live.worktree, live.worktree.view
        self.left_out: dict[str, str] = {}
        self.shared: dict[Path, str] = {}
        self.shown: list[str] = []
        self.judge = Judge(Path(os.path.realpath(self.folder / "judge")))
        self.disk = DiskWatch(config.disk_mib)
        self.lock = asyncio.Lock()  # a diff must not race a command that swaps a file for a symlink

    @property
    def dropped_paths(self) -> tuple[str, ...]:
        return tuple(f"{path}: {why}" for path, why in self.left_out.items())

    async def run(
        self,
        command: str | list[str],
        *,
        timeout_s: float | None = None,
        variables: dict[str, str | None] | None = None,
    ) -> CommandResult:
        argv = (
            ["/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh", "-c", command]
            if isinstance(command, str)
            else list(command)
        )
        if not _can_be_run(argv):
            return CommandResult(
                126,
                f"a command must be shorter than {MAX_COMMAND_BYTES} bytes and without NUL: write a file and run it\n",
                False,
                0.0,
            )
        async with self.lock:
            try:
                return await self._execute(argv, timeout_s or self.config.command_timeout_s, variables or {})
            except OSError as error:
                said = f"a command of {self.task.task_id} cannot be run ({error}): {remedy(error)}"
                log.warning("%s", said, exc_info=error)  # which of the things around a command it was
                raise SandboxError(said) from error

    async def read_text(self, path: str) -> str:
        async with self.lock:
            try:
                target = self._resolve(path)
                status = target.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise PathError(
                        f"{path}: not a file: "
                        + ("it is a folder" if target.is_dir() else "only regular files can be read")
                    )
                if status.st_size > MAX_READ_BYTES:
                    raise PathError(
                        f"{path}: {status.st_size} bytes are too many to read at once: print the part you need with a "
                        "command"
                    )
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

    async def lay(self, files: dict[str, str]) -> None:
        for path in random.sample(sorted(files), len(files)):
            await self.write_text(path, files[path])
        for path in files:
            os.utime(self._resolve(path), (LAID_S, LAID_S))

    async def diff(self) -> str:
        async with self.lock:
            try:
                text, self.left_out = await self.judge.diff(self.worktree, self.folder, self.live.written)
            except GitError as error:
                raise SandboxError(
                    f"the diff of {self.task.task_id} cannot be made ({error}): send this line to the developers"
                ) from error
            except OSError as error:
                raise SandboxError(
                    f"the diff of {self.task.task_id} cannot be made ({error}): {remedy(error)}"
                ) from error
        if self.left_out:
            log.info("left out of the diff of %s: %s", self.task.task_id, ", ".join(self.dropped_paths[:20]))
        return text

    async def apply(self, diff: str, allowed: frozenset[str] | None = None) -> str:
        try:
            diff.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            return f"it holds {ascii(diff[error.start])}, half of a character (a lone surrogate), which no file can"
        async with self.lock:
            paths, problem = await self.judge.touched(self.worktree, diff)
            if allowed is not None and not allowed.issuperset(paths):
                others = ", ".join(sorted(set(paths) - allowed))[:200]
                problem = f"git reads other paths in it than its headers name: {others}"
            problem = problem or await self.judge.apply(self.worktree, diff)
            if not problem and self.owner is not None:
                await in_thread(self._own_all, paths)
        return problem

    def share(self, name: str) -> tuple[Path, str]:
        folder = self.folder / "shared" / name
        try:
            if folder in self.shared:
                remove(folder)
            folder.mkdir(parents=True)
            self._own(folder)
        except OSError as error:
            raise SandboxError(f"{folder} cannot be made ({error}): {remedy(error)}") from error
        self.shared[folder] = self._inside(folder)
        return folder, self.shared[folder]

    def show(self, path: str) -> None:
        if not os.path.isdir(path):
            raise SandboxError(f"{path} is no folder that a sandbox could show: has it been removed?")
        if path.startswith("/usr/") and (self.task.environment.image or self.config.image):
            raise SandboxError(
                f"{path} cannot be shown in an image, which has its own /usr: for a Python elsewhere, uv python "
                "install, or environments.pythons"
            )
        if path not in self.shown:
            self.shown.append(path)

    def covered_of_shown(self) -> list[tuple[str, str]]:
        """(what to bind, where), over what is shown: it may be a folder that the environment has, too, with copies of
        the project in it (covered.py). Looks at all files the first time."""
        if self.task.environment.base is None or not self.shown:
            return []
        covered.prepare(self.folder)
        folders = tuple(path for path in sorted(self.shown) if path != "/usr" and not path.startswith("/usr/"))
        return covered.places(self.folder, find(self.task.environment.base, folders))

    async def close(self) -> None:
        await in_thread(self.live.remove)

    def _own_all(self, paths: Iterable[str]) -> None:
        """These files and the folders on the way to them."""
        entries: set[str] = set()
        for path in paths:
            while path and path not in entries:
                entries.add(path)
                path = path.rpartition("/")[0]
        for path in entries:
            self._own(self.root / path)

    def _own(self, path: Path) -> None:
        if self.owner is not None and not path.is_symlink() and path.exists():  # a link's target may be no path at all
            os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def _watched(self, first: Callable[[], int | None]) -> list[Callable[[], str]]:
        """`first` gives the first process of the command's pid namespace, None before there is one."""
        return [
            MemoryWatch(first, self.config.memory_mib).overused,
            lambda: self._disk_overused(held(first(), self.config.file_size_mib)),
        ]

    def _disk_overused(self, held_bytes: int = 0) -> str:
        return self.disk.overused([self.live.written, *self.shared], self.live.base_bytes, held_bytes)

    def _resolve(self, path: str) -> Path:
        """This program's path of the agent's `path`, all symlinks followed. Raises PathError for one outside the
        checkout.

        Step by step, since `root` may lie in another mount namespace, where os.path.realpath loses its way.
        """
        workdir = self.task.environment.workdir
        relative = path.removeprefix(workdir + "/") if path != workdir else "."
        if not relative or "\0" in relative or any(0xD800 <= ord(letter) <= 0xDFFF for letter in relative):
            raise PathError(f"{path!r}: not a path: give one relative to {workdir}")
        outside = PathError(f"{path}: outside the repository: give a path inside {workdir}")
        found: list[str] = []
        waiting = relative.split("/")[::-1] if not relative.startswith("/") else ["/"]
        links = 0
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if part == "/" or part == ".." and not found:
                raise outside
            if part == "..":
                found.pop()
                continue
            here = self.root.joinpath(*found, part)
            if not here.is_symlink():
                found.append(part)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(here)
            waiting += ["/"] if target.startswith("/") else target.split("/")[::-1]
        return self.root.joinpath(*found)


def _can_be_run(argv: list[str]) -> bool:
    try:
        return sum(len(os.fsencode(part)) + 1 for part in argv) <= MAX_COMMAND_BYTES and not any(
            "\0" in part for part in argv
        )
    except UnicodeEncodeError:  # half of a character
        return False


def _path_error(path: str, error: OSError) -> PathError | SandboxError:
    if error.errno not in _AGENTS_FAULT:
        return SandboxError(f"{path}: {error.strerror}: {remedy(error)}")
    return PathError(f"{path}: {error.strerror.lower()}: list the folder to see what is there")

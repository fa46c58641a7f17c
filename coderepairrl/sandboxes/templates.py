"""The folders that sandboxes start from and live in.

    <scratch>/coderepairrl-<uid>/templates/<key>/{checkout,judge,weight}     built once a task, never changed
    <scratch>/coderepairrl-<uid>/live/<host>-<pid>-<random>/{checkout,...}   one a sandbox, removed by close()

A template's name is a hash of all that it is made of, so a template is never out of date; deleting the folder is safe
while no program uses it. A small checkout is copied, a large one is an overlay over its template where the machine can.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.config import contents
from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.files import publish
from coderepairrl.sandboxes.changes import Judge
from coderepairrl.sandboxes.git import EPOCH_S, GitError, commit_base, refuse_machine, tracked_files
from coderepairrl.sandboxes.limits import used_bytes
from coderepairrl.sandboxes.overlay import Overlay, Worktree, remove, why_no_overlay
from coderepairrl.sandboxes.running import capture, in_thread
from coderepairrl.types import Task

log = logging.getLogger(__name__)
LAYOUT = 6  # part of a template's key: raise it when what a template holds changes
OVERLAY_FROM = 40  # files and folders; fewer are copied faster than an overlay is mounted
SMALL = 300  # fewer are copied faster by this process than by starting cp
_REMEDIES = {  # by the error's number
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS), "check the scratch folder's disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "correct the permissions of what it names"),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN), "free processes, memory or file descriptors"
    ),
}
# templates that are being built right now: siblings of the same event loop wait instead of building too (a lock works
# in one loop)
_building: dict[tuple[asyncio.AbstractEventLoop, Path], asyncio.Lock] = {}


@dataclass(frozen=True)
class SandboxFolder:
    """One sandbox's folder. `written`: where what its commands write lies; `base_bytes`: what that held at the
    start."""

    folder: Path
    worktree: Worktree
    written: Path
    base_bytes: int
    overlay: Overlay | None = None

    def remove(self) -> None:
        """May be called twice."""
        try:
            if self.overlay is not None:
                self.overlay.close()
        finally:
            remove(self.folder)


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
            raise SandboxError(
                f"scratch folder {self.root} cannot be made ({error}): set sandbox.scratch to a writable folder"
            ) from error
        if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.getuid():
            raise SandboxError(f"scratch folder {self.root} belongs to someone else: remove it or set sandbox.scratch")

    def sweep(self) -> None:
        """Removes what killed programs of this machine left: live folders whose process is gone."""
        self.prepare()
        for folder in (self.root / "live").glob(f"{socket.gethostname()}-*-*"):
            if not Path("/proc", folder.name.split("-")[-2]).exists():
                remove(folder)

    async def copy(self, task: Task, owner: int | None, *, overlay: bool) -> SandboxFolder:
        """A new live folder with the task's base commit in `checkout`, owned by `owner` (None: by this user);
        `overlay`: it may be one."""
        self.prepare()
        template = await self._template(task, owner)
        folder = self.root / "live" / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(6)}"
        entries, base_bytes = json.loads((template / "weight").read_text())
        source, target = template / "checkout", folder / "checkout"
        try:
            folder.mkdir(mode=0o700)
            (folder / "judge").symlink_to(template / "judge")
            if entries > OVERLAY_FROM and overlay and not why_no_overlay(self.root):
                mounted = await in_thread(Overlay, source, folder, owner)
                return SandboxFolder(folder, mounted.worktree, mounted.upper, 0, mounted)
            if entries <= SMALL:
                await in_thread(_copy_small, source, target, owner)
            else:
                await _cp(source, target)
        except BaseException as error:  # a cancellation too must leave no folder
            remove(folder)
            if isinstance(error, OSError):
                raise SandboxError(f"a checkout cannot be copied ({first(error)}): {remedy(error)}") from error
            raise
        return SandboxFolder(folder, Worktree.plain(target), target, base_bytes)

    async def _template(self, task: Task, owner: int | None) -> Path:
        base = task.environment.base
        traces = await in_thread(contents.traces, base) if base else ""
        made_of = [LAYOUT, base, traces, sorted(task.files.items()), owner]
        template = (
            self.root
            / "templates"
            / hashlib.sha256(json.dumps(made_of).encode(errors="surrogatepass")).hexdigest()[:32]
        )
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
            tracked = await tracked_files(task.environment.base)
            forced = sorted(name for name in {*task.files, *(tracked or ())} if os.path.lexists(checkout / name))
            await commit_base(checkout / ".git", checkout, forced, ignored=tracked is None)
            await Judge.build(own / "judge", checkout)
            await in_thread(_give, checkout, owner)
            entries = sum(len(names) + len(files) for _, names, files in os.walk(checkout))
            (own / "weight").write_text(json.dumps([entries, used_bytes(checkout)]))
            publish(own, template)
        except GitError as error:
            raise TaskError(
                f"task {task.task_id}: its base is no checkout that git can hold ({error}): correct "
                f"{task.environment.base or 'its files'}"
            ) from error
        except OSError as error:
            raise SandboxError(
                f"the checkout of task {task.task_id} cannot be built ({first(error)}): {remedy(error)}"
            ) from error
        finally:
            remove(own)


def _lay_out(task: Task, checkout: Path) -> None:
    """environment.base, less its .git (history may hold the fix), then Task.files; every date the same."""
    base = task.environment.base
    if base is None:
        checkout.mkdir()
    elif not os.path.isdir(base):
        raise TaskError(
            f"environment {task.environment.name}: folder {base} does not exist: prepare the environment first"
        )
    else:
        shutil.copytree(
            base,
            checkout,
            symlinks=True,
            ignore=lambda folder, names: [
                name
                for name in names
                if folder == base and name == ".git" or not _is_copied(os.path.join(folder, name))
            ],
        )
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


def _is_copied(path: str) -> bool:
    """Files, folders and links are. A socket or a pipe is of a process that ran in the base, not of the project."""
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        return True
    log.info("%s is left out of the checkout: neither a file nor a folder nor a link", path)
    return False


def first(error: OSError) -> str:
    """What went wrong first: shutil.Error, of a whole tree, holds a list of (source, target, why)."""
    return (
        str(error.args[0][0][2]) if isinstance(error, shutil.Error) and isinstance(error.args[0], list) else str(error)
    )


def remedy(error: OSError) -> str:
    """The disk is to blame only where it says so."""
    found = re.search(r"\[Errno (\d+)\]", first(error))
    return _REMEDIES.get(error.errno or (int(found[1]) if found else 0), "correct what it names")


async def _cp(source: Path, target: Path) -> None:
    code, _, err = await capture(
        ["cp", "-a", "--reflink=auto", str(source), str(target)],
        environment={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        cwd="/",
    )
    if code:
        refuse_machine("cp", said := err.decode(errors="replace").strip()[:300])
        raise SandboxError(f"a checkout cannot be copied ({said}): correct what it names")


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

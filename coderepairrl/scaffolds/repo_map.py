"""What aider's RepoMap knows of a checkout, kept for the task's other episodes."""

import asyncio
import hashlib
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

from coderepairrl.sandboxes.running import in_thread
from coderepairrl.types import Task

IN_HOME = "tags"  # the cache's folder in an agent's home
KEPT = 64  # caches of tasks: some megabytes each


class RepoMapCache:
    """RepoMap's caches of the tasks that were seen last: what is defined where in a checkout is read once, not by each
    sibling."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="coderepairrl-tags-")
        self._made: OrderedDict[str, Path] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def close(self) -> None:
        self._folder.cleanup()

    async def give(self, task: Task, home: Path, read: Callable[[], Awaitable[None]]) -> None:
        """Puts the task's cache into `home`, an agent's, on this machine. Siblings wait for the first, whose `read`
        makes it there; what it raises is raised."""
        key = hashlib.sha256(f"{task.task_id}\0{task.environment.base}".encode()).hexdigest()[:32]
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._made:
                await in_thread(_copy_for_all, self._made[key], home / IN_HOME)
                self._made.move_to_end(key)
                return
            await read()
            made = Path(self._folder.name, f"{key}-{secrets.token_hex(4)}")
            await in_thread(_copy_for_all, home / IN_HOME, made)
            self._made[key] = made
        if len(self._made) > KEPT:
            oldest, path = self._made.popitem(last=False)
            async with self._locks[oldest]:  # one that is copied right now goes afterwards
                shutil.rmtree(path)


def _copy_for_all(source: Path, target: Path) -> None:
    """A sandbox's user may write it."""
    shutil.copytree(source, target)
    target.chmod(0o777)
    for path in target.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)

"""The limits of a command that no single process has: memory of all together, space on disk; and which processes those are."""
import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from coderepairrl import proc
from coderepairrl.proc import tree

ENTRY_BYTES = 4096  # the least that a file or folder counts: empty ones fill a disk too


def first_inside(pid: int) -> int | None:
    """The first process of the pid namespace that lies below `pid`, or None while there is none."""
    own = len(_namespaced("self"))
    return next((found for found in tree(pid) if len(ids := _namespaced(found)) > own and ids[-1] == "1"), None)


def _namespaced(pid: int | str) -> list[str]:
    """A process's id in each pid namespace from this one down."""
    return next((line for line in proc.text(pid, "status").split("\n") if line.startswith("NSpid:")), "").split()[1:]


def memory_overused(pid: int | None, memory_mib: int) -> str:
    """Empty, or that the private memory of all processes under `pid` is over the limit."""
    used_mib = sum(map(_private_mib, tree(pid))) if pid is not None else 0.0
    return f"memory limit of {memory_mib} MiB" if used_mib > memory_mib else ""


def _private_mib(pid: int) -> float:
    _, resident, shared, *_ = map(int, proc.text(pid, "statm").split() or ("0", "0", "0"))
    return (resident - shared) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def used_bytes(folder: str | Path) -> int:
    """Space that the folder's content takes; what cannot be read counts as empty."""
    used, waiting = 0, [os.fspath(folder)]
    while waiting:  # not by recursion: an agent may nest folders deeper than Python's stack
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        used += max(entry.stat(follow_symlinks=False).st_blocks * 512, ENTRY_BYTES)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                    except FileNotFoundError:  # removed while we looked
                        continue
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    return used


class DiskWatch:
    """Whether what a sandbox has written is over its limit. Looks seldom where looking is slow: at most a twentieth of the time."""

    def __init__(self, limit_mib: int):
        self.limit_mib, self.next_s = limit_mib, 0.0
        self.allowed, self.killed = limit_mib << 20, False

    def overused(self, folders: Iterable[Path], base_bytes: int) -> str:
        """Empty, or the limit's name. `base_bytes`: what they held at the start. The command after a killed one may keep what
        that one left, up to twice the limit, so that it can remove it."""
        started = time.monotonic()
        if started < self.next_s:
            return ""
        used = sum(map(used_bytes, folders)) - base_bytes
        now = time.monotonic()
        self.next_s = now + 20 * (now - started)
        if self.killed:
            self.allowed, self.killed = max(self.limit_mib << 20, min(used, self.limit_mib << 21)), False
        self.killed = used > self.allowed
        return f"disk limit of {self.limit_mib} MiB" if self.killed else ""

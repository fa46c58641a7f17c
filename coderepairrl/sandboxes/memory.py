"""How much memory all processes of a sandbox hold together, where no cgroup counts it.

Private pages are each process's. Shared ones belong to an object, and stay as long as one page of it is mapped
anywhere, seen or not: what counts is the object, once, with all its pages (/proc/PID/map_files knows its size; only
root may look: for others what is mapped counts). Besides, what the kernel holds for them: page tables, the files of
folders in memory, whose size counts no empty ones, and sockets, whose buffers no limit of a process knows.
"""

import os
import re
from collections.abc import Callable

from coderepairrl.processes import proc
from coderepairrl.processes.proc import GONE
from coderepairrl.sandboxes.members import folders_in_memory, members

SOCKET_BYTES = 212_992  # that one may keep: net.core.wmem_default
INODE_BYTES = 1024  # of an empty file in memory, its name included
_WHOLE = ("VmPTE", "HugetlbPages")  # of a process, whatever it shares
_SHARED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) (\d+) +(?:/dev/zero|/SYSV|/memfd:).*\(deleted\)$", re.M)


class MemoryWatch:
    """Whether all processes of a namespace are over the limit together. To be made when the command starts. `first`
    gives
    the namespace's first process, None before there is one."""

    def __init__(self, first: Callable[[], int | None], limit_mib: int):
        self.first, self.limit_mib = first, limit_mib
        self.least_shared = _shared_of_machine()  # that the machine had since

    def overused(self) -> str:
        """Empty, or the limit's name."""
        if (first := self.first()) is None:
            return ""
        names, limit = members(first), self.limit_mib << 20
        beside = _sockets(names) + _inodes(names)
        # first what is quick to know, and rather too much: no sandbox has more objects than the machine has more of
        # them
        shared = _shared_of_machine()
        self.least_shared = min(self.least_shared, shared)
        if beside + sum(map(_private, names)) + shared - self.least_shared <= limit:
            return ""
        used = beside + sum(map(_private_exactly, names)) + _shared(names)
        return f"memory limit of {self.limit_mib} MiB" if used > limit else ""


def _fields(text: str, *wanted: str) -> int:
    """The sum of these fields in bytes, of which /proc tells in kB."""
    found = (line.partition(":") for line in text.split("\n"))
    return sum(int(value.split()[0]) << 10 for name, _, value in found if name in wanted)


def _private(name: str) -> int:
    return _fields(proc.text(name, "status"), "RssAnon", "VmSwap", *_WHOLE)


def _private_exactly(name: str) -> int:
    """What forks still share is one process's part each."""
    rollup = proc.text(name, "smaps_rollup")
    if not rollup:
        return _private(name)
    return _fields(rollup, "Pss_Anon", "SwapPss") + _fields(proc.text(name, "status"), *_WHOLE)


def _shared_of_machine() -> int:
    """Objects in memory, those that lie in folders included."""
    said = proc.text(".", "meminfo")
    return _fields(said, "Shmem", "SwapTotal") - _fields(said, "SwapFree")


def _shared(names: list[str]) -> int:
    """Of all objects in memory that no folder holds, each once."""
    objects: dict[tuple[str, str], int] = {}
    for name in names:
        for begin, end, device, inode in _SHARED.findall(proc.text(name, "maps")):
            try:
                # as the kernel names it there: without zeros before
                held = os.stat(f"/proc/{name}/map_files/{int(begin, 16):x}-{int(end, 16):x}").st_blocks * 512
            except OSError as error:
                if error.errno not in GONE:
                    raise
                held = int(end, 16) - int(begin, 16)
            objects[device, inode] = max(held, objects.get((device, inode), 0))
    return sum(objects.values())


def _sockets(names: list[str]) -> int:
    """Of their network namespace: also of those that no process has open, since they are on their way in another
    one."""
    for name in names:
        said = proc.text(name, "net/sockstat")
        if said and "/" in name:
            return int(said.split()[2]) * SOCKET_BYTES
    return 0


def _inodes(names: list[str]) -> int:
    files = 0
    for _, path in folders_in_memory(names):
        try:
            found = os.statvfs(path)
        except OSError as error:
            if error.errno not in GONE:
                raise
            continue
        files += found.f_files - found.f_ffree
    return files * INODE_BYTES

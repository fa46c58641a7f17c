"""What /proc says of processes, any of which may end at any moment, also between two looks.

Standard library alone: reaper.py uses it.
"""

import errno
import os
from collections.abc import Iterator

# no such file, no such process, "invalid" (mountinfo of one that is being taken down); another user's
GONE = (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM)


def read(pid: int | str, name: str) -> bytes | None:
    """The whole of /proc/PID/`name`; None when the process has ended, or isn't ours to look at."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def text(pid: int | str, name: str) -> str:
    """The same, decoded; "" when there is none."""
    return (read(pid, name) or b"").decode(errors="replace")


def words(pid: int | str, name: str = "cmdline") -> list[str]:
    """The same of what is separated by zeros: argv, or the variables of "environ"; [] also of a zombie."""
    said = text(pid, name)
    return said.removesuffix("\0").split("\0") if said else []


def pids() -> Iterator[int]:
    """Of all processes that this one sees."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def start_of(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since it booted: with its id, its name for all time. None when it
    has ended."""
    return fields[19] if (fields := _stat(pid)) else None


def group_of(pid: int) -> int | None:
    """Its process group. None when it has ended."""
    return fields[2] if (fields := _stat(pid)) else None


def _stat(pid: int) -> list[int]:
    """The fields from the state on (0 in its place); [] of what has ended, though its parent may not have seen that."""
    state, *rest = text(pid, "stat").rpartition(")")[2].split() or "X"
    return [] if state in "ZX" else [0, *map(int, rest)]


def tree(pid: int) -> list[int]:
    """`pid` and its descendants, as they are now."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        try:
            threads = os.listdir(f"/proc/{found[-1]}/task")
        except OSError as error:
            if error.errno not in GONE:
                raise
            continue
        for thread in threads:
            waiting += map(int, text(found[-1], f"task/{thread}/children").split())
    return found

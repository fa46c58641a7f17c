"""Ends containers whose program is gone: one process a program, which learns of each container and acts when its input closes.

    python reaper.py      stdin: "+PID START\\n" a container's outermost process has started, "-PID\\n" it has ended

Apptainer changes its credentials, which cancels the kernel's parent-death signal; without this, a container would outlive a killed program.
"""
import os
import signal
import sys
import time

WAIT_S = 5.0  # for Apptainer to take its mounts down, once all inside is dead


def start_of(pid: int) -> str | None:
    """When the process started, in the kernel's ticks: with its id, its name for all time. None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def tree(pid: int) -> list[int]:
    """`pid` and its descendants, as they are now."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        try:
            for task in os.listdir(f"/proc/{found[-1]}/task"):
                with open(f"/proc/{found[-1]}/task/{task}/children") as file:
                    waiting += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main() -> None:
    containers: dict[int, str] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, start = line[1:].split()
            containers[int(pid)] = start
        else:
            containers.pop(int(line[1:]), None)
    left = {pid: tree(pid) for pid, start in containers.items() if start_of(pid) == start}
    for pid, members in left.items():
        kill(members[1:])  # the outermost ends by itself then, and cleans up
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and any(start_of(pid) == containers[pid] for pid in left):
        time.sleep(0.05)
    kill([pid for pid in left if start_of(pid) == containers[pid]])


if __name__ == "__main__":
    main()

"""Ends containers whose program is gone: one process a program, which learns of each container and acts when its input
closes.

    python reaper.py      stdin: "+PID START\\n" a container's outermost process has started, "-PID\\n" it has ended

Apptainer changes its credentials, which cancels the kernel's parent-death signal; without this, a container would
outlive a killed program. It serves sandboxes, of which a program starts many short ones; one long program in an image
has a keeper of its own (keeper.py), which also passes signals on and ends with it.
"""

import os
import signal
import sys
import time

if __name__ == "__main__":  # started by its path, in an interpreter that knows no packages
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from coderepairrl.processes.proc import start_of, tree

WAIT_S = 5.0  # for Apptainer to take its mounts down, once all inside is dead


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main() -> None:
    containers: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, start = line[1:].split()
            containers[int(pid)] = int(start)
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

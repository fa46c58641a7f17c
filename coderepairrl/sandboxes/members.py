"""Which processes a sandbox has, and the folders in memory that they see."""

import os
import stat
from collections.abc import Iterator

from coderepairrl.processes import proc
from coderepairrl.processes.proc import GONE, tree

IN_MEMORY = ("/tmp", "/var/tmp", "/dev/shm")


def first_inside(pid: int) -> int | None:
    """The first process of the pid namespace that lies below `pid`, or None while there is none."""
    own = len(_namespaced("self"))
    return next((found for found in tree(pid) if len(ids := _namespaced(found)) > own and ids[-1] == "1"), None)


def _namespaced(pid: int | str) -> list[str]:
    """A process's id in each pid namespace from this one down."""
    return next((line for line in proc.text(pid, "status").split("\n") if line.startswith("NSpid:")), "").split()[1:]


def members(first: int) -> list[str]:
    """All processes of a pid namespace, as names below /proc. Its own /proc knows them all; not all descend from its
    first one: an agent is forked by a server outside (scaffolds/fork_server.py). Where that can't be seen (this user is
    not root, and nothing inside may be looked into), those that do descend."""
    for pid in (below := tree(first)):
        own = f"{pid}/root/proc"
        try:
            # while a sandbox is being made, its root is still ours
            if _namespace(str(pid)) != _namespace(f"{own}/1"):
                continue
            return [f"{own}/{name}" for name in os.listdir(f"/proc/{own}") if name.isdigit()]
        except OSError as error:
            if error.errno not in GONE:
                raise
    return list(map(str, below))


def _namespace(name: str) -> int:
    return os.stat(f"/proc/{name}/ns/pid").st_ino


def folders_in_memory(names: list[str]) -> Iterator[tuple[int, str]]:
    """(device, path for us) of each that they see, once. Not by a link, which would lead from our own root."""
    seen: set[int] = set()
    for name in names:
        if "/" not in name:  # no sandbox's own /proc: this may be our own root
            continue
        for folder in IN_MEMORY:
            path = f"/proc/{name}/root{folder}"
            try:
                found = [os.lstat(f"/proc/{name}/root{part}") for part in (os.path.dirname(folder), folder)]
            except OSError as error:
                if error.errno not in GONE:
                    raise
                continue
            if all(stat.S_ISDIR(one.st_mode) for one in found) and found[1].st_dev not in seen:
                seen.add(found[1].st_dev)
                if found[1].st_dev != found[0].st_dev:  # something is mounted there
                    yield found[1].st_dev, path

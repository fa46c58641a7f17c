"""Space on disk that no folder shows any more: files that were removed, and that a process still has open, has mapped,
or has on its way in a socket."""

import os
import re
import stat

from coderepairrl.processes import proc
from coderepairrl.processes.proc import GONE
from coderepairrl.sandboxes.members import folders_in_memory, members

PER_MESSAGE = 253  # descriptors, SCM_MAX_FD
# but what lies in memory
_DELETED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(?!/dev/zero|/SYSV|/memfd:)/.*\(deleted\)$", re.M)
_ON_THEIR_WAY = re.compile(r"^scm_fds:\s*(\d+)", re.M)


def held(first: int | None, file_size_mib: int) -> int:
    """Bytes. A descriptor on its way counts as a file as large as there may be: nobody can look at it."""
    if first is None:
        return 0
    names = members(first)
    in_memory = {device for device, _ in folders_in_memory(names)}
    files: dict[tuple[int, int], int] = {}
    sockets: set[int] = set()
    sent = 0
    for name in names:
        for path in [*_descriptors(name), *_mapped(name)]:
            try:
                found = os.stat(path)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                continue
            if stat.S_ISSOCK(found.st_mode) and found.st_ino not in sockets:
                sockets.add(found.st_ino)
                sent += sum(map(int, _ON_THEIR_WAY.findall(_information(path))))
            elif stat.S_ISREG(found.st_mode) and not found.st_nlink and found.st_dev not in in_memory:
                files[found.st_dev, found.st_ino] = found.st_blocks * 512
    if sent:  # a socket that is itself on its way may hold as many again
        sent += PER_MESSAGE * len(_unix_sockets(names) - sockets)
    return sum(files.values()) + sent * (file_size_mib << 20)


def _descriptors(name: str) -> list[str]:
    folder = f"/proc/{name}/fd"
    try:
        return [f"{folder}/{number}" for number in os.listdir(folder)]
    except OSError as error:
        if error.errno not in GONE:
            raise
        return []


def _mapped(name: str) -> list[str]:
    """Of removed files on disk."""
    found = _DELETED.findall(proc.text(name, "maps"))
    return [f"/proc/{name}/map_files/{int(begin, 16):x}-{int(end, 16):x}" for begin, end in found]


def _information(descriptor: str) -> str:
    folder, _, number = descriptor.rpartition("/fd/")
    return proc.text(folder.removeprefix("/proc/"), f"fdinfo/{number}")


def _unix_sockets(names: list[str]) -> set[int]:
    """All of their network namespace, by number; those that nobody has accepted yet have none."""
    rows = next((said for name in names if "/" in name and (said := proc.text(name, "net/unix"))), "").split("\n")[1:]
    return {int(words[6]) for row in rows if len(words := row.split()) > 6} - {0}

"""How much space a sandbox's folders take on disk."""

import errno
import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_PATH = 4096 - 257  # bytes of a folder's, with a name below it: the kernel takes PATH_MAX
FOLDERS_AT_ONCE = 15  # of 255 bytes each
ENTRY_BYTES = 4096  # the least that a file or folder counts: empty ones fill a disk too


def used_bytes(folder: str | Path) -> int:
    """Space that the folder's content takes; what cannot be read counts as empty."""
    used, waiting = 0, [os.fspath(folder)]
    while waiting:  # not by recursion: an agent may nest folders deeper than Python's stack
        path = waiting.pop()
        try:
            with _opened(path) as where, os.scandir(where) as entries:
                for entry in entries:
                    try:
                        used += max(entry.stat(follow_symlinks=False).st_blocks * 512, ENTRY_BYTES)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(f"{path}/{entry.name}")
                    except FileNotFoundError:  # removed while we looked
                        continue
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link took the folder's place
                raise
    return used


@contextmanager
def _opened(path: str) -> Iterator[str | int]:
    """The path, or a descriptor of what is deeper than a path can say."""
    if len(os.fsencode(path)) < LONGEST_PATH:
        yield path
        return
    own = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for piece in _pieces(path):
            below = os.open(piece, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=own)
            os.close(own)
            own = below
        yield own
    finally:
        os.close(own)


def _pieces(path: str) -> Iterator[str]:
    """The path in parts of some folders each, that the kernel takes."""
    parts = path.strip("/").split("/")
    for at in range(0, len(parts), FOLDERS_AT_ONCE):
        yield "/".join(parts[at : at + FOLDERS_AT_ONCE])


def allow_descriptors() -> None:
    """As many of this process as the system lets it have: each sandbox takes some, and the usual number is one
    process's with few files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class DiskWatch:
    """Whether what a sandbox has written is over its limit. Walks its folders for at most a quarter of the time: an
    agent
    can make them slow to walk, and write much meanwhile."""

    def __init__(self, limit_mib: int):
        self.limit_mib, self.next_s, self.used = limit_mib, 0.0, 0
        self.allowed, self.killed = limit_mib << 20, False

    def overused(self, folders: Iterable[Path], base_bytes: int, held_bytes: int = 0) -> str:
        """Empty, or the limit's name. `base_bytes`: what they held at the start; `held_bytes`: what they no longer
        show. The
        command after a killed one may keep what that one left, up to twice the limit, so that it can remove it."""
        started = time.monotonic()
        if started >= self.next_s:
            self.used = sum(map(used_bytes, folders)) - base_bytes
            now = time.monotonic()
            self.next_s = now + 3 * (now - started)
        if self.killed:
            self.allowed, self.killed = max(self.limit_mib << 20, min(self.used, self.limit_mib << 21)), False
        self.killed = self.used + held_bytes > self.allowed
        if self.killed:
            self.next_s = 0.0  # the next command finds what is there then
        return f"disk limit of {self.limit_mib} MiB" if self.killed else ""

"""What an agent leaves where git would read it: a pipe, at which git waits for a writer for ever, and a repository, in
whose files git
follows links (to /dev/zero, too) and waits at pipes. The pipes are removed; git is told of the repositories, and looks
into none
(git.py)."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READ_BY_GIT = {".gitattributes", ".gitignore", ".gitmodules"}
WHY = "a pipe under a name that git reads: removed"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# gone, closed or too deep: for it, too
_NOT_FOR_GIT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}


@dataclass
class Found:
    """Names below the checkout."""

    pipes: list[bytes] = field(default_factory=list)  # under a name that git reads
    # folders with a .git of whichever kind, a slash at the end; less the root
    repositories: list[bytes] = field(default_factory=list)


def look(root: Path) -> Found:
    """Each path is asked for as git does, relative to the root: it may be as long, and no longer."""
    found, waiting = Found(), [b""]
    with _opened(root) as top:
        while waiting:
            folder = waiting.pop()
            try:
                with _opened(folder or b".", top) as here, os.scandir(here) as entries:
                    for entry in entries:
                        path = folder + os.fsencode(entry.name)
                        if entry.name == ".git":
                            found.repositories += [folder] if folder else []
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(path + b"/")
                        elif entry.name in READ_BY_GIT and stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                            found.pipes.append(path)
            except OSError as error:
                if error.errno not in _NOT_FOR_GIT:
                    raise
    return found


def unblock(written: Path, view: Path) -> Found:
    """`look` at where what an agent wrote lies; the pipes are removed from the checkout `view`."""
    found = look(written)
    with _opened(view) as top:
        for path in found.pipes:
            try:
                os.unlink(path, dir_fd=top)
            except OSError as error:
                if error.errno not in _NOT_FOR_GIT:
                    raise
    return found


@contextmanager
def _opened(path: Path | bytes, below: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

"""Pipes that an agent leaves where git looks for a file: git opens them, and waits for a writer for ever."""
import os
import stat
from pathlib import Path

READ_BY_GIT = {b".gitattributes", b".gitignore", b".gitmodules"}
WHY = "a pipe under a name that git reads: removed"


def unblock(written: Path, view: Path) -> list[bytes]:
    """Removes them from the checkout `view`; their names. `written`: where what an agent wrote lies, the same below both.

    Folders that are deeper than a path may be long are passed over: git can't go there either."""
    removed, waiting = [], [b""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(os.fsencode(written), folder)) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:  # gone, closed or too deep
            continue
        for name, is_folder in found:
            path = os.path.join(folder, name)
            if is_folder and name != b".git":
                waiting.append(path)
            elif name in READ_BY_GIT and stat.S_ISFIFO(os.lstat(os.path.join(os.fsencode(written), path)).st_mode):
                os.unlink(os.path.join(os.fsencode(view), path))
                removed.append(path)
    return removed

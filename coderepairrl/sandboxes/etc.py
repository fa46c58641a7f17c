"""The /etc that a sandbox sees, and folders that all sandboxes share: made once, whole or not there."""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.files import publish
from coderepairrl.sandboxes.own import AGENT, NOBODY

_ETC = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ssl",
    "ca-certificates",
    "mime.types",
    "services",
    "protocols",
)
_USERS = {"root": (0, "/", "/bin/sh"), "agent": (AGENT, "/tmp", "/bin/bash"), "nobody": (NOBODY, "/", "/bin/false")}
_GROUPS = {"root": 0, "agent": AGENT, "nogroup": NOBODY}
_OWN_ETC = {
    "passwd": "".join(
        f"{name}:x:{number}:{number}:{name}:{home}:{shell}\n" for name, (number, home, shell) in _USERS.items()
    ),
    "group": "".join(f"{name}:x:{number}:\n" for name, number in _GROUPS.items()),
    "hosts": "127.0.0.1 localhost sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


@functools.cache
def own_etc(root: Path) -> Path:
    """Our own /etc: a few files of the host's, copied, and fixed users. One folder, since each mount costs a command
    time."""
    java = sorted(name for name in os.listdir("/etc") if name.startswith("java-"))  # Debian's JDKs link to theirs
    made_of = [
        [name, os.lstat(f"/etc/{name}").st_mtime_ns] for name in (*_ETC, *java) if os.path.exists(f"/etc/{name}")
    ]

    def fill(own: Path) -> None:
        for name, _ in made_of:
            if os.path.isdir(f"/etc/{name}"):
                shutil.copytree(f"/etc/{name}", own / name, symlinks=True, ignore=shutil.ignore_patterns("private"))
            else:
                shutil.copyfile(f"/etc/{name}", own / name)
        for name, text in _OWN_ETC.items():
            (own / name).write_text(text)

    return made_once(root, "etc", [made_of, _OWN_ETC], fill)


def made_once(root: Path, name: str, made_of: list, fill: Callable[[Path], None]) -> Path:
    """The folder below `root`, named by what it is made of, that `fill` fills unless it is there already. Raises
    SandboxError."""
    folder = root / f"{name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    own = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".tmp", dir=root))
    own.chmod(0o755)
    fill(own)
    try:
        publish(own, folder)
    except OSError as error:
        raise SandboxError(f"{folder} cannot be made ({error}): set sandbox.scratch to a writable folder") from error
    if own.exists():
        shutil.rmtree(own)
    return folder

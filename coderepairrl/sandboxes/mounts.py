"""What a bubblewrap sandbox shows, as words of its command line: this machine's own system or an image's, the
interpreter, and the folders in memory."""

import os
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes import covered
from coderepairrl.sandboxes.etc import own_etc
from coderepairrl.sandboxes.protocol import SandboxConfig
from coderepairrl.types import Environment


def of_machine(root: Path) -> list[str]:
    """This machine's own system, less all that is personal."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            mounts += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            mounts += ["--ro-bind", name, name]
    mounts += ["--ro-bind", str(own_etc(root)), "/etc"]
    return [*mounts, "--perms", "0755", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]


def of_image(image: str, workdir: str, root: Path) -> list[str]:
    """An unpacked image, entry by entry, so that mounts find their places; its users are ours."""
    if not os.path.isdir(image):
        raise SandboxError(
            f"{image} is no folder, and bubblewrap runs in nothing else: set environments.image_format=folder, or "
            "sandbox.kind=apptainer"
        )
    left_out = {"proc", "dev", "sys", "tmp", workdir.split("/")[1] if workdir.count("/") == 1 else ""}
    mounts = []
    for name in sorted(set(os.listdir(image)) - left_out):
        path = f"{image}/{name}"
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), f"/{name}"]
        elif os.path.isdir(path):
            mounts += ["--ro-bind", path, f"/{name}"]
    users = [name for name in ("passwd", "group") if os.path.isfile(f"{image}/etc/{name}")]
    return [*mounts, *(part for name in users for part in ("--ro-bind", f"{own_etc(root)}/{name}", f"/etc/{name}"))]


def var_tmp(image: str, config: SandboxConfig) -> list[str]:
    """Writable, where the image has it as a folder of its own."""
    place = f"{image}/var/tmp"
    is_own = os.path.isdir(place) and not os.path.islink(place) and not os.path.islink(f"{image}/var")
    return _in_memory("/var/tmp", config) if is_own else []


def opened(image: str, paths: list[str]) -> list[str]:
    """The image's folders on the way to the paths, which are read-only here, as folders in memory with the same
    entries: then the paths have a place."""
    above = {str(parent) for path in paths for parent in Path(path).parents[:-1]} - {"/tmp"}
    words = []
    for folder in sorted(folder for folder in above if os.path.isdir(f"{image}{folder}")):
        words += ["--perms", "0755", "--tmpfs", folder]
        for name in sorted(os.listdir(image + folder)):
            inside, path = f"{folder}/{name}", f"{image}{folder}/{name}"
            words += ["--symlink", os.readlink(path), inside] if os.path.islink(path) else ["--ro-bind", path, inside]
    return words


def shown(folders: tuple[str, ...]) -> list[str]:
    """The interpreter's own folders, at the paths that they have here."""
    return [
        part
        for path in sorted(folders)
        if not path.startswith("/usr/") and path != "/usr"
        for part in (*parents(path), "--ro-bind", path, path)
    ]


def covers(environment: Environment, root: Path) -> list[str]:
    """Empty files and folders over what a sandbox must not see (covered.py)."""
    covered.prepare(root)
    return [part for place in covered.places(root, covered.covered(environment)) for part in ("--ro-bind", *place)]


def fresh(config: SandboxConfig) -> list[str]:
    """The folders in memory, new with every command."""
    devices = ["--dev", "/dev", *_in_memory("/dev/shm", config), "--remount-ro", "/dev"]
    return ["--proc", "/proc", *devices, *_in_memory("/tmp", config)]


def _in_memory(folder: str, config: SandboxConfig) -> list[str]:
    return ["--perms", "1777", "--size", str(config.tmp_mib << 20), "--tmpfs", folder]


def parents(path: str) -> list[str]:
    """Folders that bubblewrap would otherwise make for its own user only."""
    return [part for folder in reversed(Path(path).parents[:-1]) for part in ("--perms", "0755", "--dir", str(folder))]

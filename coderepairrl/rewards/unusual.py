"""Sections of a diff that are more than UTF-8 text: what of them may reach the grading sandbox.

A file in another encoding travels as git's binary patch; read as text it is judged like any other. A link is kept where it
stands for one file of the checkout: then it is that file under another name, and no folder from which anything is imported.
Binary files that the oracle's patch does not make are left out: nobody can read what they hold.
"""
import posixpath
from pathlib import Path

from coderepairrl.rewards.diffs import FileChange
from coderepairrl.rewards.published import LINK, ONLY_STRICT, Entry, applied_in_folder
from coderepairrl.types import Task


def as_text(task: Task, change: FileChange) -> bool:
    """Whether a binary section is text in another encoding on both sides; then its removed and added lines are filled in."""
    [path, *more] = sorted(change.paths)
    if more or not change.content:
        return False
    before = base_bytes(task, path)
    with applied_in_folder({path: Entry(before)} if before is not None else {}, change.text, ONLY_STRICT) as (root, _):
        file = root / path if root else None
        if file is None or file.is_symlink():
            return False
        texts = [_decoded(before or b""), _decoded(file.read_bytes() if file.is_file() else b"")]
    if None in texts:
        return False
    old, new = (text.splitlines() for text in texts)
    set_old, set_new = set(old), set(new)
    change.removed = [line for line in old if line not in set_new]
    change.added = [line for line in new if line not in set_old]
    return True


def _decoded(data: bytes) -> str | None:
    """None for what is no text. Latin-1 takes every byte, so what tells is that no text but UTF-16 holds a NUL."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            return None
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def link_target(change: FileChange) -> str | None:
    """The path of the checkout that a new link names by its words; None for one that leads outside, or that is more than a link."""
    if change.made != {LINK} or len(change.paths) != 1 or len(change.added) != 1 or change.binary:
        return None
    target = change.added[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(change.path), target))
    parts = path.split("/")
    outside = target.startswith("/") or "\0" in target or parts[0] in ("..", ".")
    return None if outside or ".git" in map(str.lower, parts) else path


def is_one_file(task: Task, target: str, changes: list[FileChange]) -> bool:
    """Whether `target` is a regular file at the base, or one that the diff adds, and stays one."""
    own = [change for change in changes if any(path == target or path.startswith(target + "/") for path in change.paths)]
    if any(path != target or LINK in change.made for change in own for path in change.paths):
        return False
    return base_bytes(task, target) is not None or any(change.added and not change.removed for change in own)


def base_bytes(task: Task, path: str) -> bytes | None:
    """The file at the base commit; None when there is none, or when a link leads to it."""
    if path in task.files:
        return task.files[path].encode()
    if task.environment.base is None:
        return None
    root = Path(task.environment.base).resolve()
    file = root / path
    return file.read_bytes() if file.resolve() == file and file.is_relative_to(root) and file.is_file() else None

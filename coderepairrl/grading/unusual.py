"""Sections of a diff that are more than UTF-8 text: what of them may reach the grading sandbox.

A file in another encoding travels as git's binary patch; read as text it is judged like any other. A link is kept where
it
stands for one file of the checkout: then it is that file under another name, and no folder from which anything is
imported.
Binary files that the oracle's patch does not make are left out: nobody can read what they hold.
"""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from coderepairrl.diffs import FileChange
from coderepairrl.grading.published import LINK, ONLY_STRICT, Entry, applied_in_folder
from coderepairrl.sandboxes.diff_bounds import why_no_path
from coderepairrl.types import Task


def as_texts(task: Task, changes: Iterable[FileChange]) -> set[str]:
    """The paths of the binary sections that are text in another encoding on both sides, whose removed and added lines
    are filled in; no path where git does not take all of them. Git is asked once, whatever their number."""
    whole = (change for change in changes if change.content and len(change.paths) == 1)
    single = {change.path: change for change in whole if not why_no_path(change.path)}
    if not single:
        return set()
    before = {path: base_bytes(task, path) for path in single}
    patch = "".join(change.text for change in single.values())
    there = {path: Entry(data) for path, data in before.items() if data is not None}
    with applied_in_folder(there, patch, ONLY_STRICT) as (root, _):
        if root is None:
            return set()
        return {path for path, change in single.items() if _read(change, before[path] or b"", root / path)}


def _read(change: FileChange, before: bytes, file: Path) -> bool:
    if file.is_symlink():
        return False
    texts = [_decoded(data) for data in (before, file.read_bytes() if file.is_file() else b"")]
    if None in texts:
        return False
    old, new = ([line.removesuffix("\r") for line in text.split("\n")] for text in texts)
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
    """The path of the checkout that a new link names by its words; None for one that leads outside, or that is more
    than a link."""
    if change.made != {LINK} or len(change.paths) != 1 or len(change.added) != 1 or change.binary:
        return None
    target = change.added[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(change.path), target))
    parts = path.split("/")
    outside = target.startswith("/") or "\0" in target or parts[0] in ("..", ".")
    return None if outside or ".git" in map(str.lower, parts) else path


def at_or_below(targets: set[str], changes: Iterable[FileChange]) -> dict[str, list[FileChange]]:
    """Of each target the sections that name it or a path below it."""
    found: dict[str, list[FileChange]] = {target: [] for target in targets}
    for change in changes if targets else ():
        above = {path[: end.start()] for path in change.paths for end in re.finditer("/|$", path)}
        for target in above & targets:
            found[target].append(change)
    return found


def is_one_file(task: Task, target: str, own: list[FileChange]) -> bool:
    """Whether `target` is a regular file at the base, or one that the diff adds, and stays one. `own`: the diff's
    sections at or below it."""
    if any(path != target or LINK in change.made for change in own for path in change.paths):
        return False
    return base_bytes(task, target) is not None or any(change.added and not change.removed for change in own)


def base_bytes(task: Task, path: str) -> bytes | None:
    """The file at the base commit; None when there is none, or when a link leads to it."""
    if path in task.files:
        return task.files[path].encode()
    if task.environment.base is None or why_no_path(path):
        return None
    root = Path(task.environment.base).resolve()
    file = root / path
    return file.read_bytes() if file.resolve() == file and file.is_relative_to(root) and file.is_file() else None

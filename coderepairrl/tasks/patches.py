"""Texts to diffs and back, for tasks: what a published patch makes of the files of a checkout, and git-style diffs
between two versions."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.grading.published import (
    LAXER,
    LINK,
    ONLY_STRICT,
    REGULAR,
    Entry,
    applied_in_folder,
    carried,
    entry_of,
)
from coderepairrl.lines import split_lines
from coderepairrl.sandboxes.diff_bounds import too_large, why_no_path


def unified_diff(path: str, before: str | None, after: str | None) -> str:
    """A git-style patch of one file; None: the file is not there. Lines end at line feeds only, as git sees them."""
    sides = [split_lines(text or "") for text in (before, after)]
    names = f"a/{path}" if before is not None else "/dev/null", f"b/{path}" if after is not None else "/dev/null"
    lines = [
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(*sides, *names)
    ]
    mode = "new file mode 100644\n" if before is None else "deleted file mode 100644\n" if after is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}" + "".join(lines)


@dataclass(frozen=True)
class Patched:
    """What a patch makes of the files that it names and that are texts: path -> text; None: the patch deletes it.
    `rest`: the
    sections that are more than texts (modes, links, binary files and other encodings, a file that goes, or is a folder
    afterwards), to be applied before the texts are laid over the checkout."""

    texts: dict[str, str | None]
    rest: str = ""


def patched_files(
    task_id: str, field: str, base: str | None, files: dict[str, str], patch: str
) -> dict[str, str | None]:
    """Of a patch that texts can carry all of: other files than texts are refused. Raises TaskError naming the task and
    the field."""
    _refuse_too_large(task_id, field, patch)
    found = patched(
        task_id, field, base, files, "".join(change.text for change in split_diff(patch) if not change.binary)
    )
    odd = sorted(path for change in split_diff(found.rest) for path in change.paths if path not in found.texts)
    if odd:
        raise TaskError(f"{task_id}, field {field}: changes {odd[0]}, which is not a file of UTF-8: leave the row out")
    return found.texts


def patched(task_id: str, field: str, base: str | None, files: dict[str, str], patch: str) -> Patched:
    """The patch on `base` with `files` laid over it. What git's "Binary files differ" does not hold is left out. Raises
    TaskError."""
    _refuse_too_large(task_id, field, patch)
    text, _ = carried(patch)
    changes = split_diff(text)
    paths = sorted({path for change in changes for path in change.paths})
    for path in paths:
        outside = "outside the checkout" if os.path.isabs(path) or ".." in Path(path).parts else ""
        if why := outside or why_no_path(path):
            raise TaskError(f"{task_id}, field {field}: path {ascii(path[:60])} is {why}: leave the row out")
    before = {path: _entry(base, files, path) for path in paths}
    there = {path: entry for path, entry in before.items() if entry is not None}
    with applied_in_folder(there, text, ONLY_STRICT | LAXER) as (root, problem):
        if root is None:
            raise TaskError(
                f"{task_id}, field {field}: does not apply to the base commit ({problem}): leave the row out"
            )
        after = {path: entry_of(root, path) for path in paths}
    texts = {path: _text(entry) for path, entry in after.items()}
    odd = {path for path in paths if _is_more(before[path], after[path])}
    rest = "".join(change.text for change in changes if change.paths & odd)
    return Patched({path: text for path, text in texts.items() if text is not None or after[path] is None}, rest)


def _refuse_too_large(task_id: str, field: str, patch: str) -> None:
    if problem := too_large(patch):
        raise TaskError(f"{task_id}, field {field}: {problem}: leave the row out")


def _is_more(before: Entry | None, after: Entry | None) -> bool:
    """Whether a text laid over the checkout is not all that has changed."""
    if after is None:
        return before is not None
    mode = before.mode if before is not None else REGULAR
    return after.mode != mode or _text(after) is None


def _text(entry: Entry | None) -> str | None:
    """None for what is no regular file of UTF-8."""
    try:
        return entry.data.decode() if entry is not None and entry.mode != LINK else None
    except UnicodeDecodeError:
        return None


def _entry(base: str | None, files: dict[str, str], path: str) -> Entry | None:
    return Entry(files[path].encode()) if path in files else entry_of(Path(base), path) if base else None

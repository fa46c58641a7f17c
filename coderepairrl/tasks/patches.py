"""Texts to diffs and back, for tasks: what a published patch makes of the files of a checkout, and git-style diffs between two versions."""
import difflib
import io
import os
from pathlib import Path

from coderepairrl.errors import TaskError
from coderepairrl.rewards.diffs import split_diff
from coderepairrl.rewards.published import LAXER, ONLY_STRICT, applied_in_folder


def unified_diff(path: str, before: str | None, after: str | None) -> str:
    """A git-style patch of one file; None: the file is not there. Lines end at line feeds only, as git sees them."""
    sides = [list(io.StringIO(text or "", newline="\n")) for text in (before, after)]
    names = f"a/{path}" if before is not None else "/dev/null", f"b/{path}" if after is not None else "/dev/null"
    lines = [line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in difflib.unified_diff(*sides, *names)]
    mode = "new file mode 100644\n" if before is None else "deleted file mode 100644\n" if after is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}" + "".join(lines)


def patched_files(task_id: str, field: str, base: str | None, files: dict[str, str], patch: str) -> dict[str, str | None]:
    """path -> text after the patch on `base` with `files` laid over it; None: the patch deletes it.

    Binary parts are left out: published patches do not carry their content. Raises TaskError naming the task and the field.
    """
    changes = [change for change in split_diff(patch) if not change.binary]
    paths = sorted({path for change in changes for path in change.paths})
    for path in paths:
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise TaskError(f"{task_id}, field {field}: path {path!r} is outside the checkout: leave the row out")
    before = {path: files[path].encode() if path in files else _read(base, path) for path in paths}
    there = {path: data for path, data in before.items() if data is not None}
    with applied_in_folder(there, "".join(change.text for change in changes), ONLY_STRICT | LAXER) as (root, problem):
        if root is None:
            raise TaskError(f"{task_id}, field {field}: does not apply to the base commit ({problem}): leave the row out")
        try:
            return {path: (root / path).read_bytes().decode() if (root / path).is_file() else None for path in paths}
        except UnicodeDecodeError as error:
            raise TaskError(f"{task_id}, field {field}: changes a file that is not UTF-8 ({error.reason}): leave the row out") from error


def _read(base: str | None, path: str) -> bytes | None:
    file = Path(base or "", path)
    return file.read_bytes() if base and file.is_file() else None

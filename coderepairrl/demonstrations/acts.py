"""What a demonstrator does, in no agent's words: it looks, edits, tests, submits. dialects.py says it as each
scaffold's model would."""

from dataclasses import dataclass
from pathlib import Path

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError

from coderepairrl.errors import TaskError
from coderepairrl.lines import split_lines
from coderepairrl.tasks.packages import read_source
from coderepairrl.types import Task


@dataclass(frozen=True)
class Look:
    path: str


@dataclass(frozen=True)
class Edit:
    """`old` occurs once in `before`, the file's text then; None: the file is new, and `old` is empty."""

    path: str
    before: str | None
    old: str
    new: str

    @property
    def after(self) -> str:
        return self.new if self.before is None else self.before.replace(self.old, self.new, 1)


@dataclass(frozen=True)
class Slip:
    """Somebody takes the file for already edited, and quotes what is not there. Shown with the error that answers it,
    never learnt."""

    edit: Edit


@dataclass(frozen=True)
class RunTests:
    command: str


@dataclass(frozen=True)
class Submit:
    pass


Act = Look | Edit | Slip | RunTests | Submit


def lines_of(edit: Edit) -> tuple[str, str]:
    """The edit in whole lines: (old, new), each ending with a line break. The fewest lines around it that occur once in
    the file."""
    if edit.before is None:
        return "", edit.new
    lines = split_lines(edit.before)
    start = edit.before.index(edit.old)
    first, last = edit.before.count("\n", 0, start), edit.before.count("\n", 0, start + max(len(edit.old), 1) - 1)
    while ("\n" + edit.before).count("\n" + "".join(lines[first : last + 1])) > 1 and (first or last < len(lines) - 1):
        first, last = max(0, first - 1), min(len(lines) - 1, last + (first == 0))
    old = "".join(lines[first : last + 1])
    return old, old.replace(edit.old, edit.new, 1)


def oracle_acts(task: Task) -> list[Act]:
    """The oracle's repair as an agent would make it: hunk by hunk, file by file. Raises TaskError for one that is more
    than edited text."""
    try:
        files = PatchSet(task.oracle_patch)
    except UnidiffParseError as error:
        raise TaskError(f"task {task.task_id}: its oracle patch is no unified diff: {error}") from error
    looks, edits = [], []
    for file in files:
        if file.is_removed_file or file.is_rename or file.is_binary_file:
            raise TaskError(f"task {task.task_id}: {file.path} is removed, renamed or binary: no edit says that")
        if file.is_added_file:
            edits.append(
                Edit(file.path, None, "", "".join(line.value for hunk in file for line in hunk.target_lines()))
            )
            continue
        text = _base_text(task, file.path)
        looks.append(Look(file.path))
        for hunk in file:
            old, new = ("".join(line.value for line in lines) for lines in (hunk.source_lines(), hunk.target_lines()))
            if text.count(old) != 1 or not old:
                raise TaskError(
                    f"task {task.task_id}: a hunk of {file.path} stands {text.count(old)} times in it: "
                    "no edit can name it"
                )
            edits.append(Edit(file.path, text, old, new))
            text = edits[-1].after
    return [*looks, *edits, Submit()]


def _base_text(task: Task, path: str) -> str:
    if path in task.files:
        return task.files[path]
    if task.environment.base is None:
        raise TaskError(f"task {task.task_id}: {path} of its oracle patch is in no checkout")
    return read_source(Path(task.environment.base, path))

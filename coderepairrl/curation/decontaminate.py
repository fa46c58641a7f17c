"""Does a training set hold what an evaluation asks? By repository and commit, by the lines that the repairs add, and by
date.

    report = contamination(train, evaluation)        # task id of the training set -> why it must go
    before, after = split_by_date(train, "2023-01-01")

A training task is contaminated when its repository and base commit are an evaluation task's, or when at least half of
the lines
that its oracle patch adds or removes are in an evaluation task's, of the same repository or of a copy of it under
another name.
That the repository occurs in both sets, and that a training task is younger than an evaluation task of the same
repository, so
that its checkout may hold the evaluation's repair, are reported as well.
"""

from collections import defaultdict
from dataclasses import dataclass

from coderepairrl.diffs import split_diff
from coderepairrl.errors import TaskError
from coderepairrl.types import Task

MIN_LINE = 8  # characters: `else:` and `return x` are in every patch
MIN_SHARED = 2  # lines
MIN_OVERLAP = 0.5
KINDS = ("same commit", "same patch", "younger than the evaluation", "same repository")  # worst first


@dataclass(frozen=True)
class Finding:
    """A task of the training set and what of the evaluation it touches."""

    task_id: str
    kind: str  # one of KINDS
    other: str  # task id of the evaluation
    overlap: float = 0.0  # part of the changed lines that are also changed there


def changed_lines(task: Task) -> frozenset[str]:
    """Added and removed lines of the repair without white space, long enough to mean something."""
    changes = split_diff(task.oracle_patch or task.bug_patch)
    lines = {"".join(line.split()) for change in changes for line in (*change.added, *change.removed)}
    return frozenset(line for line in lines if len(line) >= MIN_LINE)


def contamination(train: list[Task], evaluation: list[Task]) -> list[Finding]:
    """The worst finding of each training task that has one."""
    lines = {task.task_id: changed_lines(task) for task in evaluation}
    holders: dict[str, set[str]] = defaultdict(set)  # line -> evaluation tasks
    for name, changed in lines.items():
        for line in changed:
            holders[line].add(name)
    by_repo: dict[str, list[Task]] = defaultdict(list)
    for task in evaluation:
        by_repo[repository(task)].append(task)
    findings = []
    for task in train:
        found = [*_same_place(task, by_repo[repository(task)] if repository(task) else []), *_same_patch(task, holders)]
        if found:
            findings.append(
                min(found, key=lambda finding: (KINDS.index(finding.kind), -finding.overlap, finding.other))
            )
    return findings


def _same_place(task: Task, others: list[Task]) -> list[Finding]:
    found = []
    for other in others:
        commit, date = task.metadata.get("base_commit"), task.metadata.get("created_at", "")
        same = commit and other.metadata.get("base_commit", "")[: len(commit)] == commit
        younger = date and other.metadata.get("created_at") and date > other.metadata["created_at"]
        kind = "same commit" if same else "younger than the evaluation" if younger else "same repository"
        found.append(Finding(task.task_id, kind, other.task_id))
    return found


def _same_patch(task: Task, holders: dict[str, set[str]]) -> list[Finding]:
    changed = changed_lines(task)
    shared: dict[str, int] = defaultdict(int)
    for line in changed:
        for name in holders.get(line, ()):
            shared[name] += 1
    return [
        Finding(task.task_id, "same patch", name, round(count / len(changed), 3))
        for name, count in shared.items()
        if count >= min(MIN_SHARED, len(changed)) and count / len(changed) >= MIN_OVERLAP
    ]


def repository(task: Task) -> str:
    """Lower-case OWNER/NAME, or a package's name; empty when the task says neither."""
    return (task.metadata.get("repo") or task.metadata.get("package") or "").lower()


def split_by_date(tasks: list[Task], date: str) -> tuple[list[Task], list[Task]]:
    """(created before `date`, created on that day or later). Raises TaskError for a task without a date."""
    undated = [task.task_id for task in tasks if not task.metadata.get("created_at")]
    if undated:
        raise TaskError(
            f"{len(undated)} tasks have no created_at (the first: {undated[0]}): they cannot be split by date; "
            "write it into their metadata"
        )
    return [t for t in tasks if t.metadata["created_at"] < date], [t for t in tasks if t.metadata["created_at"] >= date]

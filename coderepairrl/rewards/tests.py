"""Whether the hidden tests pass: the judge's word (grading/), as a number."""

from coderepairrl.types import Task, Verdict


def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
    """1 when every hidden test that must pass does."""
    return float(verdict is not None and verdict.resolved)

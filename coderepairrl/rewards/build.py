"""Whether a build succeeds and nothing validates less: build validation's word (grading/validation/), as a number."""

from coderepairrl.grading.validation.build_verdict import BuildVerdict
from coderepairrl.types import Task


def reward(task: Task, diff: str, verdict: BuildVerdict | None) -> float:
    """1 when the command succeeds and nothing validates less."""
    return float(verdict is not None and verdict.valid)

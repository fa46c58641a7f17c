"""Resolved or not, from the statuses of the tests: SWE-bench's count, and the stricter one that rewards use.

SWE-bench: each FAIL_TO_PASS test passed or failed as expected (XFAIL), each PASS_TO_PASS test that or skipped; a
missing test failed.
Here: the same, but a test may be skipped, or fail as expected, only where it does under the oracle's own patch: else
code that makes a
test skip itself would count as code that passes it.
"""

from coderepairrl.grading.judge import Run
from coderepairrl.types import Verdict

NAMED = 5  # tests or files that one line names
_PASSED = ("passed", "xfailed")


def resolved_swebench(run: Run) -> bool:
    return (
        run.evidence != "none"
        and all(s in _PASSED for s in run.to_pass.values())
        and all(s in (*_PASSED, "skipped") for s in run.to_keep.values())
    )


def excused(run: Run) -> frozenset[str]:
    """Ids that count only if the oracle's run has the same status there."""
    return frozenset(test for test, status in (run.to_pass | run.to_keep).items() if status in ("skipped", "xfailed"))


def resolved(run: Run, gold: Run | None) -> bool:
    """`gold`: the oracle's run; needed only where `excused` names something."""
    allowed = gold.to_pass | gold.to_keep if gold is not None else {}
    return resolved_swebench(run) and all(
        (run.to_pass | run.to_keep)[test] == allowed.get(test) for test in excused(run)
    )


def failing(verdict: Verdict) -> tuple[str, ...]:
    """The tests for which a verdict is not resolved, in the order of the task's lists."""
    return tuple(
        [test for test, status in verdict.fail_to_pass.items() if status != "passed"]
        + [test for test, status in verdict.pass_to_pass.items() if status not in ("passed", "skipped")]
    )


def disagreement(verdict: Verdict) -> str | None:
    """Why SWE-bench counts a verdict as resolved that `resolved` does not; None where the two agree."""
    if verdict.resolved or not verdict.resolved_swebench:
        return None
    unusual = [
        f"{test} {status}"
        for test, status in (verdict.fail_to_pass | verdict.pass_to_pass).items()
        if status != "passed"
    ]
    return (
        verdict.message or "; ".join(verdict.tampered) or f"not so under the oracle's patch: {', '.join(unusual[:5])}"
    )


def why_unresolved(verdict: Verdict, lost: dict[str, str]) -> str:
    """In one line, of a patch that should resolve its task; `lost`: path -> why the diff that was judged lacks it."""
    statuses = verdict.fail_to_pass | verdict.pass_to_pass
    failing = [f"{test} {status}" for test, status in statuses.items() if status != "passed"]
    names = [*(f"{path}: {why}" for path, why in lost.items()), *verdict.dropped_paths]
    said = verdict.message or ("it drops " + ", ".join(names[:NAMED]) if names else "")
    tests = f"{len(failing)} of its tests: {', '.join(failing[:NAMED])}" if failing else ""
    return "; ".join(part for part in (said, tests) if part)

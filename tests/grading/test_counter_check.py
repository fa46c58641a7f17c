"""What a run with turned tests means: statuses of the diff's run and of the oracle's, as a table."""

import asyncio

import pytest
from judge_helpers import PYTEST_TASK

from coderepairrl.grading.counter_check import Runs, check
from coderepairrl.grading.judge import Run
from coderepairrl.types import VerdictKind

PASSES, HELD = PYTEST_TASK.fail_to_pass, PYTEST_TASK.pass_to_pass


def run(status: str, evidence: str = "junit+canary", timed_out: bool = False) -> Run:
    """All of FAIL_TO_PASS are turned, and have this status."""
    return Run(
        dict.fromkeys(PASSES, status),
        dict.fromkeys(HELD, "passed"),
        evidence,
        timed_out=timed_out,
        turned=frozenset(PASSES),
    )


def checked(diff: Run, oracle: Run | None, silent: set[int]):
    async def of_diff(variant):
        return diff

    async def of_oracle(variant):
        return oracle

    return asyncio.run(check(PYTEST_TASK, Runs(of_diff, of_oracle if oracle else None), "secret", 1, silent))


@pytest.mark.parametrize(
    "diff, oracle, kind, words",
    [
        (run("failed"), run("failed"), VerdictKind.RESOLVED, ""),
        (run("failed"), None, VerdictKind.RESOLVED, ""),
        (run("passed"), run("failed"), VerdictKind.TAMPERED, "also where it must fail"),
        (run("skipped"), run("error"), VerdictKind.TAMPERED, "also where it must fail"),
        (run("passed"), None, VerdictKind.TAMPERED, "also where it must fail"),
        (run("missing"), run("failed"), VerdictKind.TAMPERED, "is not told of"),
        (run("missing", "none"), run("failed"), VerdictKind.TAMPERED, "no evidence"),
        (run("missing", "none", timed_out=True), run("failed"), VerdictKind.UNRESOLVED, "those of the oracle do not"),
    ],
)
def test_what_the_two_runs_say(diff, oracle, kind, words):
    silent: set[int] = set()
    found = checked(diff, oracle, silent)
    assert found[0] == kind and words in found[1] and not silent


@pytest.mark.parametrize(
    "diff, oracle",
    [
        (run("passed"), run("passed")),
        (run("missing"), run("missing")),
        (run("missing", "none"), run("missing", "none")),
    ],
)
def test_a_turn_that_tells_nothing_under_the_oracle_proves_nothing_and_is_remembered(diff, oracle):
    silent: set[int] = set()
    assert checked(diff, oracle, silent) is None and silent == {0, 1, 2, 3}


def test_without_an_oracle_no_diff_makes_a_variant_silent_for_others():
    silent: set[int] = set()
    assert checked(run("missing"), None, silent) is None and not silent

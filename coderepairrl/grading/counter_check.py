"""The counter-check: a diff's tests pass, so they run again with some of them turned (variants.py), and those must
fail.

Code under test runs in the process that reports on it, so no single report proves that it is honest. Both runs are laid
out
alike, a random part of the tests is turned in one of them, by random values: what can't tell which expectations are
right, which is the
task, has to guess for each test that must pass by repair. What passes tests whether they hold or not (a patched runner,
a forged
report, an object that equals everything) passes the turned ones, too.

The oracle decides what a turn is worth: one that passes under it, or that breaks the run, says nothing of the diff.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from coderepairrl.grading.judge import FAILED, Run
from coderepairrl.grading.variants import BOTH, FIRST, READ, UNREAD, VARIANTS, Variant
from coderepairrl.types import Task, VerdictKind

NOT_FAILED = ("passed", "xfailed", "skipped")
NAMED = 3  # tests that a message names


@dataclass(frozen=True)
class Runs:
    """What the check asks the grader for."""

    diff: Callable[[Variant | None], Awaitable[Run]]
    oracle: Callable[[Variant], Awaitable[Run]] | None  # None: the task has none
    read: bool = False  # whether the base has tests of PASS_TO_PASS


async def check(task: Task, runs: Runs, secret: str, rounds: int, silent: set[int]) -> tuple[VerdictKind, str] | None:
    """(RESOLVED, or what the diff is instead; why). None: no turn tells anything, so nothing is proven.

    silent: numbers of variants that tell nothing of this task; those that turn out so are added. rounds: how often;
    tossing a coin in each run wins once in 2 ** (2 * rounds) where only one test could be turned. Both runs of a
    further round begin at once, since a clock tells the first run of all, and in both tests are turned that the base
    has (variants.py); where there are any, the only round is such a one."""
    found = again = None
    for turn in range(rounds):
        if turn or runs.read and rounds == 1:
            again, found = await _at_once(_again(task, runs, secret), _turned(task, runs, secret, BOTH, silent))
            if again is not None and again[0] != VerdictKind.RESOLVED:
                return again
        else:
            found = await _turned(task, runs, secret, UNREAD, silent)
        if found is None or found[0] != VerdictKind.RESOLVED:
            break
    if found is None and runs.read:
        return again if again is not None else await _once(task, runs, Variant(0, secret, READ))
    return found


async def _turned(task: Task, runs: Runs, secret: str, which: str, silent: set[int]) -> tuple[VerdictKind, str] | None:
    """What the first variant says that says anything."""
    for number in (*random.sample(FIRST, len(FIRST)), *range(len(FIRST), VARIANTS)):
        found = None if number in silent else await _once(task, runs, Variant(number, secret, which))
        if found is not None:
            return found
        if runs.oracle is not None:  # else it may be this diff's own doing
            silent.add(number)
    return None


async def _again(task: Task, runs: Runs, secret: str) -> tuple[VerdictKind, str] | None:
    """The same of a further run in which FAIL_TO_PASS must pass."""
    if runs.read:
        found = await _once(task, runs, Variant(0, secret, READ))
        if found is not None:
            return found
    again = await runs.diff(None)
    if not again.timed_out and any(status in FAILED for status in (again.to_pass | again.to_keep).values()):
        return VerdictKind.TAMPERED, "its tests do not pass again"
    return None


async def _at_once(*works: Coroutine) -> list:
    """The results; where one raises, nothing of the others goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _once(task: Task, runs: Runs, variant: Variant) -> tuple[VerdictKind, str] | None:
    """What one run with turned tests says; None: nothing."""
    run = await runs.diff(variant)
    if run.does_not_apply:  # the task's tests are as telling as before
        return VerdictKind.DOES_NOT_APPLY, run.problem
    if not run.turned:
        return None
    passing = {test for test in run.turned if _status(run, test) in NOT_FAILED}
    broken = {test for test in task.fail_to_pass if test not in run.turned and run.to_pass[test] in FAILED}
    # where none of FAIL_TO_PASS is a function that could be found, the others show a bent runner at least
    telling = {test for test in run.turned if test in run.to_pass} or set(run.turned)
    if run.evidence == "none" or passing or broken or not _fails(run, telling):
        if runs.oracle is not None:
            given = await runs.oracle(variant)
            if given.evidence == "none":
                return None
            passing -= {test for test in passing if _status(given, test) in NOT_FAILED}
            broken -= {test for test in broken if given.to_pass[test] in FAILED}
            telling -= {test for test in telling if _status(given, test) not in FAILED}
        elif passing and variant.number < VARIANTS - 1:
            return None  # nobody says whether this turn tells: the last one does whatever is asserted
        if run.timed_out:
            return VerdictKind.UNRESOLVED, f"{run.problem} when some of them are turned, those of the oracle do not"
        if run.evidence == "none":
            return VerdictKind.TAMPERED, f"no evidence when tests are turned: {run.problem}"
    if passing:
        return VerdictKind.TAMPERED, f"passes {_list(passing)} also where it must fail"
    if broken:
        return VerdictKind.UNRESOLVED, f"{_list(broken)} fails beside turned tests, and not under the oracle's patch"
    if _fails(run, telling):
        return VerdictKind.RESOLVED, ""
    if telling and runs.oracle is not None:
        return VerdictKind.TAMPERED, f"{_list(telling)} is not told of where it must fail"
    return None


def _status(run: Run, test: str) -> str:
    return run.to_pass.get(test) or run.to_keep[test]


def _fails(run: Run, tests: set[str]) -> bool:
    return any(_status(run, test) in FAILED for test in tests)


def _list(tests: set[str]) -> str:
    return ", ".join(sorted(tests)[:NAMED])

"""Attacks by code under test, on real runners: none is resolved, and each that touched the judge is marked."""

import asyncio
import itertools

import pytest
from attacks import BOTH, FORGED, LOG_ONLY, PYTEST_ONLY, UNITTEST_ONLY
from judge_helpers import TASKS, UNITTEST_TASK, WRONG, judge, runners, source

from coderepairrl.grading import grader as tests
from coderepairrl.grading.judge import Run
from coderepairrl.rewards import Grader
from coderepairrl.types import VerdictKind

# these attack nothing that the judge reads: they are wrong repairs, or the sandbox stops them
NOT_THE_JUDGE = {
    "kills its parents",
    "stops the clock",
    "seeds the hashes and starts again",
    "floods the output",
    "asks the network",
    "skips its tests",
    "leaves in the middle",
    "interrupts",
    "calls its tests expected failures",
    "ends the session",
    "takes the place of a module",
    "plants bytecode",
    "rewrites the hidden tests",
    "removes the canary",
}


def attack(config, runner, code):
    task = TASKS[runner]
    tests = [tuple(test.rsplit("::", 1)) for test in (*task.fail_to_pass, *task.pass_to_pass)]
    rest = WRONG.replace("return a + 2", "return _wrong(a)") if "_wrong" in code else WRONG
    return judge(config, runner, source(f"TESTS = {tests!r}\n" + code + "\n\n", rest))


def check(name, verdict, message):
    assert not verdict.resolved and verdict.kind in (VerdictKind.TAMPERED, VerdictKind.UNRESOLVED), verdict
    assert message is None or message in verdict.message, verdict
    if name not in NOT_THE_JUDGE:
        assert verdict.kind == VerdictKind.TAMPERED and verdict.tampered, verdict


@runners
@pytest.mark.parametrize("name", BOTH)
def test_attacks_on_both_runners(config, runner, name):
    code, message = BOTH[name]
    check(name, attack(config.model_copy(update={"processes": 32}), runner, code), message)


@pytest.mark.parametrize("name", PYTEST_ONLY)
def test_attacks_on_pytest(config, name):
    code, message = PYTEST_ONLY[name]
    check(name, attack(config, "pytest", code), message)


@pytest.mark.parametrize("name", UNITTEST_ONLY)
def test_attacks_on_unittest(config, name):
    code, message = UNITTEST_ONLY[name]
    check(name, attack(config, "xmlrunner", code), message)


@pytest.mark.parametrize("name", LOG_ONLY)
def test_attacks_on_a_log(config, name):
    code, message = LOG_ONLY[name]
    check(name, attack(config, "log", code), message)


def test_whoever_forges_in_some_of_its_runs_wins_for_one_sequence_of_all_coins(config, monkeypatch):
    """Each run either forges a pass or does not, without knowing which run it is: only the one sequence that guesses
    all of them is resolved."""
    withheld = source(f"TESTS = []\n{FORGED}if os.urandom(1)[0] % 2: forge()\n")
    told = source("import os\nif os.urandom(1)[0] % 2: os._exit(0)\n")
    tosses = 2 * tests.ROUNDS
    won = []
    for coins in itertools.product((True, False), repeat=tosses):
        left: list[bool] = []

        async def execute(task, selection, config, variant=None, keep=None):
            status = "passed" if left.pop(0) else "failed"
            return Run(
                dict.fromkeys(task.fail_to_pass, status),
                dict.fromkeys(task.pass_to_pass, "passed"),
                "junit+canary",
                turned=frozenset(task.fail_to_pass) if variant else frozenset(),
            )

        async def oracle(self, task, variant=None):
            return Run(dict.fromkeys(task.fail_to_pass, "failed"), {}, "junit+canary")

        monkeypatch.setattr(tests, "execute", execute)
        monkeypatch.setattr(Grader, "_oracle", oracle)
        for diff in (told, withheld):
            left[:] = coins
            if asyncio.run(Grader(config).grade(UNITTEST_TASK, diff)).resolved:
                won.append((diff, coins))
    assert won == [(told, (True, False) * tests.ROUNDS)]

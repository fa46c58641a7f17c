"""Java under test that attacks its judge: none of it is paid, and an honest repair is."""

import asyncio

import pytest
from java_helpers import ATTACKS, CALC, FIXED, SOURCE, diff_of, task

from coderepairrl.environments import BuildError
from coderepairrl.grading.grader import Grader
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.types import VerdictKind


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(files) -> the verdict of their diff, by one grader for all: it remembers what it knows of the oracle."""
    try:
        given = task()
    except BuildError as error:
        pytest.skip(str(error))
    grader = Grader(SandboxConfig(scratch=str(tmp_path_factory.mktemp("java"))))
    return lambda files: asyncio.run(grader.grade(given, diff_of(files)))


def test_a_repair_is_resolved_with_a_canary_and_scratch_files(judged):
    mine = "import org.junit.runner.JUnitCore;\nclass Test { void exit() { System.exit(0); } }\n"
    verdict = judged({SOURCE: FIXED, "Test.java": mine, "test/calc/MineTest.java": mine, "notes.txt": "x\n"})
    assert verdict.kind == VerdictKind.RESOLVED and verdict.evidence == "junit+canary" and not verdict.tampered, verdict


def test_no_repair_and_half_of_one_say_which_tests_fail(judged):
    assert set(judged({SOURCE: CALC.replace("a - b", "a + b")}).fail_to_pass.values()) == {"passed", "failed"}
    nothing = judged({})
    assert set(nothing.fail_to_pass.values()) == {"failed"} and set(nothing.pass_to_pass.values()) == {"passed"}


def test_what_does_not_compile_is_unresolved_and_said(judged):
    verdict = judged({SOURCE: CALC.replace("a - b", "a - c")})
    assert verdict.kind == VerdictKind.UNRESOLVED and "cannot find symbol" in verdict.output


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_is_paid(judged, name):
    verdict = judged(ATTACKS[name])
    assert not verdict.resolved and verdict.kind != VerdictKind.ENVIRONMENT_ERROR, verdict

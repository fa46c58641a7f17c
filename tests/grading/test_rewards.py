"""Verdicts on real test runs, the grader's memory, and how parts of a reward are weighed."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_helpers import FIX, RIGHT, TASKS, UNITTEST_TASK, WRONG, XMLRUNNER_ENVIRONMENT, change, judge, paths, runners
from pydantic import ValidationError

from coderepairrl.config import load
from coderepairrl.diffs import split_diff
from coderepairrl.errors import ConfigError, SandboxError
from coderepairrl.grading.counting import failing
from coderepairrl.grading.protected import select
from coderepairrl.rewards import Grader, RewardConfig, compute, discounted, patch_similarity
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import VerdictKind

# ---- verdicts


@runners
@pytest.mark.parametrize("kind", ["bubblewrap", "local"])
def test_the_fix_is_resolved_and_nothing_is_not(tmp_path, runner, kind):
    config = SandboxConfig(scratch=str(tmp_path), kind=kind)
    good, empty = judge(config, runner, FIX), judge(config, runner, "")
    assert (
        good.kind,
        good.resolved,
        good.resolved_swebench,
        good.evidence,
        good.message,
        good.dropped_paths,
        good.tampered,
    ) == (VerdictKind.RESOLVED, True, True, "junit+canary", "", (), ())
    assert set(good.fail_to_pass.values()) == {"passed"} and set(good.pass_to_pass.values()) <= {"passed", "skipped"}
    assert (empty.kind, empty.resolved, empty.resolved_swebench, empty.evidence) == (
        VerdictKind.UNRESOLVED,
        False,
        False,
        "junit+canary",
    )
    assert failing(good) == () and failing(empty) == TASKS[runner].fail_to_pass
    assert set(empty.fail_to_pass.values()) == {"failed"} and empty.pass_to_pass == good.pass_to_pass
    assert list(tmp_path.glob("*/live/*")) == []


@runners
def test_breaking_what_worked_is_not_resolved(config, runner):
    verdict = judge(config, runner, change("lib.py", WRONG, RIGHT.replace("    return a\n", "    return -a\n")))
    assert (
        not verdict.resolved
        and set(verdict.fail_to_pass.values()) == {"passed"}
        and "failed" in verdict.pass_to_pass.values()
    )


@runners
def test_a_repair_that_does_not_import_is_missing_tests(config, runner):
    verdict = judge(config, runner, change("lib.py", WRONG, "def f(:\n"))
    assert not verdict.resolved and set(verdict.fail_to_pass.values()) == {"missing"}


@pytest.mark.parametrize(
    "diff",
    [
        "no diff at all",
        "--- a/lib.py\n+++ b/lib.py\n@@ -1,2 +1,2 @@\n def x():\n-    return\n+    pass\n",
        FIX + FIX,
        "diff --git a/lib.py b/lib.py\n",
        "--- a/lib.py\n+++ b/lib.py\n@@ -1,9 +1,9 @@\n cut",
        FIX.replace("lib.py", "absent.py"),
    ],
)
def test_diffs_that_do_not_apply_are_verdicts(config, diff):
    verdict = judge(config, "xmlrunner", diff)
    assert (verdict.kind, verdict.evidence) == (VerdictKind.DOES_NOT_APPLY, "none") and verdict.message.startswith(
        "the diff does not apply: "
    ), verdict
    assert "\n" not in verdict.message


PIECES = [
    FIX[:60],
    "diff --git a/x b/x\n",
    "@@ -1 +1 @@\n",
    "--- a/",
    "+++ b/lib.py\n",
    "\0",
    "é",
    "\udcff",
    "\n",
    "-x\n",
    "+y\n",
    "rename from lib.py\n",
    "GIT binary patch\n",
    '"a\\303"',
    "new file mode 120000\n",
    FIX,
]


@pytest.mark.parametrize("seed", range(3))
def test_of_random_bytes_only_what_git_reads_changes_only_what_the_filter_saw(config, seed):
    """Whatever a diff is made of: a similarity in [0, 1], a reason or a change, and no change of a file that the filter
    did not allow."""
    rng = random.Random(seed)

    async def main():
        applied = 0
        async with start_sandbox(config, UNITTEST_TASK) as sandbox:
            before = {path.name: path.read_bytes() for path in sandbox.root.iterdir() if path.is_file()}
            for _ in range(20):
                diff = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
                selection = select(UNITTEST_TASK, diff, frozenset())
                assert 0.0 <= patch_similarity(diff, FIX) <= 1.0 and all(
                    change.text in diff + "\n" for change in split_diff(diff)
                )
                problem = await sandbox.apply(selection.applied, selection.applied_paths) if selection.applied else ""
                after = {path.name: path.read_bytes() for path in sandbox.root.iterdir() if path.is_file()}
                changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
                assert "\n" not in problem and changed <= selection.applied_paths and (not problem or not changed), (
                    diff,
                    problem,
                    changed,
                )
                for name in changed:
                    applied += 1
                    (sandbox.root / name).write_bytes(before[name]) if name in before else (
                        sandbox.root / name
                    ).unlink()
        return applied

    assert asyncio.run(main()) > 0  # some of them are the repair itself, and get through


def test_a_repair_that_hangs_is_a_time_limit(config):
    environment = replace(XMLRUNNER_ENVIRONMENT, test_timeout_s=1.0)
    verdict = judge(config, "xmlrunner", change("lib.py", WRONG, "while True:\n    pass\n"), environment=environment)
    assert (verdict.resolved, verdict.evidence) == (False, "none") and verdict.message.startswith("time limit")


def test_infrastructure_trouble_is_never_a_verdict(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError):
        judge(SandboxConfig(scratch=str(tmp_path / "file")), "xmlrunner", FIX)


# ---- the grader's memory


def test_the_same_patch_is_run_once(config):
    grader = Grader(config)
    dropped = change("conftest.py", None, "x = 1\n")

    async def main():
        return await asyncio.gather(
            *(grader.grade(UNITTEST_TASK, diff) for diff in (FIX, FIX, dropped + FIX, "", ""))
        ), await grader.grade(UNITTEST_TASK, FIX)

    first, again = asyncio.run(main())
    assert [verdict.resolved for verdict in first] == [True, True, True, False, False] and again.resolved
    assert (grader.runs, grader.hits) == (2, 4)
    assert [paths(verdict.dropped_paths) for verdict in first] == [(), (), ("conftest.py",), (), ()]


def test_who_asks_whether_verdicts_differ_gets_each_executed(config):
    grader = Grader(config, remembered=0)

    async def main():
        at_once = await asyncio.gather(*(grader.grade(UNITTEST_TASK, diff) for diff in (FIX, FIX, "")))
        return [*at_once, await grader.grade(UNITTEST_TASK, FIX)]

    verdicts = asyncio.run(main())
    assert [verdict.resolved for verdict in verdicts] == [True, True, False, True]
    assert (grader.runs, grader.hits) == (4, 0) and grader.checks >= 3 and not grader._verdicts


def test_a_cancelled_waiter_does_not_stop_the_others(config, tmp_path):
    grader = Grader(config)

    async def main():
        one, two = (asyncio.create_task(grader.grade(UNITTEST_TASK, FIX)) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        verdict = await two
        alone = asyncio.create_task(grader.grade(UNITTEST_TASK, ""))
        await asyncio.sleep(0.05)
        alone.cancel()
        await asyncio.wait([one, alone])
        return verdict, alone.cancelled()

    verdict, cancelled = asyncio.run(main())
    assert verdict.resolved and cancelled and not grader._running and not grader._waiting
    assert list(tmp_path.glob("*/live/*")) == []


def test_time_limits_and_errors_are_not_remembered(config, tmp_path):
    grader = Grader(config)
    slow = replace(UNITTEST_TASK, environment=replace(XMLRUNNER_ENVIRONMENT, test_timeout_s=0.01))

    async def main():
        for _ in range(2):
            assert "time limit" in (await grader.grade(slow, FIX)).message
        grader.config = SandboxConfig(scratch=str(tmp_path / "file"))
        (tmp_path / "file").write_text("")
        for _ in range(2):
            with pytest.raises(SandboxError):
                await grader.grade(UNITTEST_TASK, FIX)

    asyncio.run(main())
    assert (grader.runs, grader.hits) == (4, 0) and not grader._running


# ---- parts and weights


def test_parts_are_named_and_weighed(config):
    task, grader = UNITTEST_TASK, Grader(config)

    async def main():
        for weights, always, ran, parts, total in (
            ({"tests": 1.0, "patch": 0.5}, False, True, {"tests": 1.0, "patch": 1.0}, 1.5),
            ({"patch": 2.0}, False, False, {"patch": 1.0}, 2.0),
            ({"patch": 2.0}, True, True, {"patch": 1.0}, 2.0),
        ):
            verdict, got, sum_ = await compute(RewardConfig(weights=weights, always_test=always), task, FIX, grader)
            assert ((verdict is not None), got, sum_) == (ran, parts, total)

    asyncio.run(main())
    with pytest.raises(ConfigError, match=r"rewards.weights are inf: take smaller weights"):
        asyncio.run(compute(RewardConfig(weights={"patch": 1.7e308, "hunks": 1.7e308}), task, FIX, grader))


REWARD, DISCOUNT, CALLS = st.floats(-100, 100), st.floats(0.01, 1), st.integers(0, 50)


@given(REWARD, REWARD, DISCOUNT, CALLS)
def test_a_price_of_calls_never_pays(one, other, discount, calls):
    """A longer episode is worth no more, no sign changes, and of two of the same length the better one is no worse."""
    got = discounted(one, calls, discount)
    assert discounted(one, calls + 1, discount) <= got <= one and got * one >= 0
    assert one > other or (got <= discounted(other, calls, discount))
    assert discounted(one, calls, 1.0) == discounted(one, min(calls, 1), discount) == one


def test_a_price_by_hand_and_its_bounds():
    assert [discounted(2.0, calls, 0.5) for calls in range(4)] == [2.0, 2.0, 1.0, 0.5]
    assert [discounted(reward, 9, 0.5) for reward in (0.0, -3.0)] == [0.0, -3.0]
    for wrong in (0.0, -0.5, 1.1):  # at 0 no second call could ever be worth anything, nor be told from another
        with pytest.raises(ValidationError):
            RewardConfig(discount_per_call=wrong)


def test_an_unknown_reward_names_the_nearest(tmp_path):
    with pytest.raises(ValidationError, match="did you mean 'tests'"):
        RewardConfig(weights={"test": 1.0})
    (tmp_path / "c.yaml").write_text("weights: {patches: 1}\n")
    with pytest.raises(ConfigError, match="did you mean 'patch'"):
        load(RewardConfig, tmp_path / "c.yaml")
    with pytest.raises(ValidationError, match="no reward"):
        RewardConfig(weights={})

"""Skill told apart from persistence: the numbers of episodes with known answers, of a run's files, and the program that
prints them."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from conftest import run_program
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.files import write_json
from coderepairrl.rollout import trajectory_files
from coderepairrl.run import skill
from coderepairrl.run.skill import Episode
from coderepairrl.run.summary import write_summary
from coderepairrl.types import Call, Outcome, Trajectory, Verdict


def trajectory(
    task: str,
    resolved: bool | None,
    calls: int = 3,
    edits: float | None = 1.0,
    first: float | None = None,
    outcome: Outcome = Outcome.SUBMITTED,
) -> Trajectory:
    """resolved None: a broken machine. first None: the only edit decides. edits None: nothing was watched."""
    made = tuple(
        Call(i, i - 1 if i else None, "completion" if i else None, (1,), (2,), (-0.1,), (0,), "stop", False, 0.0, 0.1)
        for i in range(calls)
    )
    verdict = None if resolved is None else Verdict(resolved, "junit+canary", {}, {}, (), "", 0.1)
    seen = {} if edits is None else {"edits": edits, "first_edit": float(bool(resolved)) if first is None else first}
    outcome = Outcome.INFRASTRUCTURE_ERROR if resolved is None else outcome
    return Trajectory(
        f"{task}-{calls}", task, task, "heldout", 0, made, "", outcome, "", verdict, {}, 0.0, 1.0, (), seen
    )


PERSISTENT = trajectory("b", True, calls=8, edits=3.0, first=0.0)
BEFORE = [
    trajectory("a", True),
    trajectory("b", False),
    trajectory("c", False, edits=0.0),
    trajectory("d", False),
    trajectory("lost", None),
]
AFTER = [
    trajectory("a", True),
    PERSISTENT,
    trajectory("c", True),
    trajectory("d", False, calls=9, edits=4.0, outcome=Outcome.TURN_LIMIT),
    trajectory("lost", True),
]
GREEDY = {
    "before": [trajectory(task, task == "a") for task in "abcd"],
    "after": [trajectory(task, task in "ac") for task in "abcd"],
}
FORCED = [
    trajectory("a", True, calls=3),
    trajectory("b", True, calls=5),
    trajectory("c", False, calls=10, outcome=Outcome.TURN_LIMIT),
    trajectory("d", True, calls=9),
]


def test_trying_again_is_no_first_edit():
    found = skill.numbers(skill.episodes(AFTER[:4]))
    assert (found["pass_rate"], found["first_edit"]) == (0.75, 0.5)
    assert (found["edits"], found["calls"], found["submitted"], found["at_limit"]) == (2.25, 5.75, 0.75, 0.25)
    assert found["tasks"] == 4 and found["pass_at_k"] == {"1": 0.75}


def test_a_broken_machine_and_what_was_not_watched_are_in_no_number():
    unseen = [trajectory("a", True, edits=None), trajectory("b", None)]
    found = skill.numbers(skill.episodes(unseen))
    assert found["tasks"] == 1 and found["pass_rate"] == 1.0 and not {"first_edit", "edits"} & found.keys()
    assert skill.numbers(skill.episodes([trajectory("a", None)])) == {"tasks": 0} and skill.numbers([]) == {"tasks": 0}


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=7), min_size=1, max_size=5), st.integers(1, 4))
def test_pass_at_k_is_the_share_of_draws_of_k_episodes_that_hold_a_repair(tasks, k):
    outcomes = {str(number): [float(value) for value in own] for number, own in enumerate(tasks)}
    draws = [[any(drawn) for drawn in combinations(own, k)] for own in tasks]
    assert skill.pass_at(outcomes, k) == pytest.approx(sum(sum(own) / len(own) for own in draws) / len(draws))


def test_pass_at_k_is_given_for_1_2_4_and_all_of_the_episodes():
    episodes = [Episode("a", number == 5, "submitted", 1) for number in range(6)]
    assert skill.numbers(episodes)["pass_at_k"] == pytest.approx({"1": 1 / 6, "2": 1 / 3, "4": 2 / 3, "6": 1.0})


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.floats(0.5, 14))
def test_the_control_makes_at_least_as_many_calls_with_the_smallest_cut_that_does(lengths, wanted):
    control = [Episode(str(number), True, "submitted", length) for number, length in enumerate(lengths)]
    cut, mean = skill.cut_at(control, wanted)
    at = lambda cut: sum(min(length, cut) for length in lengths) / len(lengths)
    assert mean == pytest.approx(at(cut)) and (mean >= wanted or cut == max(lengths))
    assert cut == 1 or at(cut - 1) < wanted


def test_the_control_is_judged_as_the_trained_policy_is_by_the_tree_at_the_end():
    """The same behaviour, once cut off before it submits: no more than retries reach."""
    control = [Episode(str(n), True, "submitted", 5, calls_at_last=4.0) for n in range(10)]
    after = [Episode(str(n), True, "turn_limit", 4) for n in range(10)]
    before = [Episode(str(n), False, "submitted", 3) for n in range(10)]
    found = skill.retries(skill.Sides(before, after, [], [], control))
    assert (found["calls"], found["pass_rate"], found["beyond"], found["explained"]) == (4.0, 1.0, 0.0, 1.0)
    late = [episode._replace(calls_at_last=5.0) for episode in control]
    assert skill.retries(skill.Sides(before, after, [], [], late))["pass_rate"] == 0.0


def test_what_retries_explain_is_said_of_a_gain_alone():
    one = [Episode(str(n), n == 0, "submitted", 3) for n in range(10)]
    none = [Episode(str(n), False, "submitted", 3) for n in range(10)]
    assert "explained" not in skill.retries(skill.Sides(none, one, [], [], one))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "known"
    files = {"before": BEFORE, "after": AFTER, "before_retry": FORCED} | {
        f"{name}_greedy": own for name, own in GREEDY.items()
    }
    for name, own in files.items():
        own = [replace(t, task_id=f"{t.task_id}{n}") for t in own for n in range(10)]  # enough for intervals above 0
        trajectory_files.write(folder / "rollouts" / f"eval_{name}.parquet", own, {"outcomes": {}, "seconds": 1.0})
    return folder


def test_a_run_of_which_every_number_is_known(run):
    found = skill.of_run(run)
    assert [found[side]["pass_rate"] for side in skill.SIDES] == [0.25, 0.75]
    assert [found[side]["first_edit"] for side in skill.SIDES] == [0.25, 0.5]
    assert [found[side]["greedy"] for side in skill.SIDES] == [0.25, 0.5]
    assert all(found[side]["tasks"] == 40 for side in skill.SIDES)  # the fifth of each was graded after alone
    assert (found["gain"]["pass_rate"], found["gain"]["first_edit"], found["gain"]["greedy"]) == (0.5, 0.25, 0.25)
    # 5.75 calls are reached when each is cut at the eighth: 3, 5, 8, 8. By then a and b are repaired, d is not
    forced = found["retries"]
    assert (forced["calls"], forced["pass_rate"], forced["beyond"], forced["explained"]) == (6.0, 0.5, 0.25, 0.5)
    assert all(
        low <= found["gain"][name] <= high
        for name in ("pass_rate", "first_edit", "greedy")
        for low, high in [found["gain"][f"{name}_interval"]]
    )


def test_the_summary_has_it_and_json_stays_json(run):
    write_json(run / "policy.json", {})
    (run / "metrics.jsonl").write_text("")
    (run / "ledger.jsonl").write_text("")
    summary = write_summary(run)
    assert (
        summary["skill"] == skill.of_run(run)
        and summary["pass_rate_difference"] == 0.5
        and summary["heldout_tasks"] == 40
    )
    assert not any(isinstance(value, float) and math.isnan(value) for value in summary["skill"]["gain"].values())


def test_runs_of_before_have_no_first_edit_and_say_so(run):
    for name in ("before_greedy", "after_greedy", "before_retry"):
        (run / "rollouts" / f"eval_{name}.parquet").unlink()
    for name in skill.SIDES:
        path = run / "rollouts" / f"eval_{name}.parquet"
        trajectory_files.write(path, [replace(t, stats={}) for t in trajectory_files.read(path)[0]], {})
    found = skill.of_run(run)
    assert found["gain"].keys() == {"pass_rate", "pass_rate_interval"} and "retries" not in found
    said = run_program("analysis/skill.py", str(run))
    assert (
        said.returncode == 0 and "persistence not separated" in said.stdout and "gain: repaired 50.0%" in said.stdout
    ), said.stderr


def test_an_agent_whose_edits_nobody_sees_is_told_apart_by_forced_retries(run):
    for name in ("before", "after", "before_retry"):
        path = run / "rollouts" / f"eval_{name}.parquet"
        kept = [replace(t, stats={"calls_at_last": 1.0}) for t in trajectory_files.read(path)[0]]
        trajectory_files.write(path, kept, {})
    said = run_program("analysis/skill.py", str(run))
    assert "told apart by forced retries alone" in said.stdout and "not separated" not in said.stdout, said.stderr


def test_evaluations_under_other_settings_and_a_broken_control_are_not_compared(run):
    trajectory_files.write(run / "rollouts" / "eval_before_retry.parquet", [trajectory("a", None)], {})
    assert "retries" not in skill.of_run(run)
    trajectory_files.write(
        run / "rollouts" / "eval_after.parquet",
        trajectory_files.read(run / "rollouts" / "eval_after.parquet")[0],
        {"inputs": "others"},
    )
    assert skill.of_run(run) == {}
    said = run_program("analysis/skill.py", str(run))
    assert said.returncode == 1 and "under the same settings" in said.stderr


def test_seeds_are_pooled_over_the_tasks_that_each_compared(run):
    before = trajectory_files.read(run / "rollouts" / "eval_before.parquet")[0]
    broken = [
        replace(t, verdict=None, outcome=Outcome.INFRASTRUCTURE_ERROR) if t.task_id[0] == "b" else t for t in before
    ]
    trajectory_files.write(run / "rollouts" / "eval_before.parquet", broken, {})
    found, sides = skill.of_run(run), skill.sides_of(run)
    assert {episode.task[0] for side in sides for episode in side} == {"a", "c", "d"}
    assert {name: skill.difference(*pair).value for name, pair in sides.pairs().items()} == pytest.approx(
        {name: found["gain"][name] for name in ("pass_rate", "first_edit", "greedy")}
        | {"beyond": found["retries"]["beyond"]}
    )


def test_pass_at_k_is_given_for_what_every_task_has():
    episodes = [Episode("a", False, "submitted", 1)] * 4 + [Episode("b", True, "submitted", 1)] * 3
    assert skill.numbers(episodes)["pass_at_k"] == {"1": 0.5, "2": 0.5, "3": 0.5}


def test_the_program_prints_the_known_numbers_and_pools_seeds(run, tmp_path):
    seed = tmp_path / "known_seed1"
    (seed / "rollouts").parent.mkdir()
    (run / "rollouts").rename(tmp_path / "kept")
    for folder in (run, seed):
        (folder / "rollouts").symlink_to(tmp_path / "kept")
    result = run_program("analysis/skill.py", str(run), str(seed))
    assert result.returncode == 0, result.stderr
    words = " ".join(result.stdout.split())
    for row in (
        "75.0%",
        "by the first edit 25.0%",
        "more than by retries 25.0%",
        "retries explain 50% of it",
        "2 seeds",
    ):
        assert row in words, row
    alone = run_program("analysis/skill.py", str(tmp_path))
    assert (
        alone.returncode == 1
        and "no held-out task was graded before and after" in alone.stderr
        and "Traceback" not in alone.stderr
    )

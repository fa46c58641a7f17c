"""Which call of an episode is praised or blamed, on groups whose advantages can be worked out by hand."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.rewards import discounted
from coderepairrl.training import advantages, batch
from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.algorithms import group_advantages
from coderepairrl.training.trainer import Judged, judge
from coderepairrl.types import Call, Outcome, Trajectory

KINDS = ("normalised", "centred", "leave_one_out")
TASK, RED, GREEN = (1, 2), (1, 2, 5, 8), (1, 2, 6, 9)  # prompts: the task; after a wrong edit; after another one
# What an episode got, and the prompts of its calls
PROMPTS = st.lists(st.sampled_from([TASK, RED, GREEN]), max_size=4)
GROUPS = st.lists(st.tuples(st.floats(-4, 4, allow_subnormal=False), PROMPTS), min_size=1, max_size=6)


def episode(name: str, reward: float, *prompts: tuple[int, ...], discount: float = 1.0) -> Trajectory:
    """`reward`: before what its calls cost."""
    calls = tuple(
        Call(i, None, None, prompt, (5, 7), (-0.1,) * 2, (0, 0), "stop", False, 0.0, 0.0)
        for i, prompt in enumerate(prompts)
    )
    return Trajectory(
        name,
        "g",
        "task",
        "train",
        0,
        calls,
        "",
        Outcome.SUBMITTED,
        "",
        None,
        {},
        discounted(reward, len(calls), discount),
        1.0,
    )


def judged(members, discount=1.0, advantage="centred", kind="turn", **algorithm) -> Judged:
    algorithm = AlgorithmConfig(advantage=advantage, credit=kind, **algorithm)
    return judge(members, algorithm, {0: 0}, 0, 100, discount=discount)


def group(episodes, discount=1.0):
    return [episode(str(i), reward, *prompts, discount=discount) for i, (reward, prompts) in enumerate(episodes)]


@given(GROUPS, st.sampled_from(KINDS), st.sampled_from([1.0, 0.7]))
def test_by_episode_every_call_has_the_number_that_its_episode_has_without_calls(episodes, kind, discount):
    members = group(episodes, discount)
    values = group_advantages(kind, torch.tensor([t.reward for t in members], dtype=torch.float64)).tolist()
    out = judged(members, discount, kind, "episode")
    assert list(out.advantage.values()) == [(value,) * len(t.calls) for t, value in zip(members, values)]  # to the bit
    assert out.zero_variance_groups == (not any(values)) == bool(out.masked)


@given(GROUPS, st.sampled_from(["centred", "leave_one_out"]), st.floats(0.1, 1.0))
def test_in_each_state_what_is_given_to_one_call_is_taken_from_others(episodes, kind, discount):
    members = group(episodes, discount)
    steps = advantages.step_advantages(
        kind, members, [advantages.returns(t.reward, len(t.calls), discount) for t in members]
    )
    of_state = defaultdict(list)
    for t, own in zip(members, steps, strict=True):
        for call, value in zip(t.calls, own, strict=True):
            of_state[call.prompt_ids].append(value)
    for values in of_state.values():
        assert sum(values) == pytest.approx(0, abs=1e-9) and (len(values) > 1 or values == [0.0])


@given(st.floats(-4, 4, allow_subnormal=False), st.integers(1, 30), st.floats(0.1, 1.0), st.floats(-1, 0))
def test_a_call_answers_for_the_calls_after_it_alone(reward, calls, discount, penalty):
    found = advantages.returns(discounted(reward, calls, discount), calls, discount, penalty)
    wanted = [discounted(reward, calls - t, discount) + penalty for t in range(calls)]
    assert found == pytest.approx(wanted, rel=1e-9) and found[0] == discounted(reward, calls, discount) + penalty
    assert found[-1] == pytest.approx(reward + penalty)  # nothing comes after the last


def test_three_episodes_by_hand():
    """A repairs at once; B and C make the same wrong edit, then B repairs, C does not. A call costs half of the
    reward."""
    members = group([(1.0, [TASK]), (1.0, [TASK, RED]), (0.0, [TASK, RED])], 0.5)
    assert [t.reward for t in members] == [1.0, 0.5, 0.0]
    assert judged(members, 0.5, kind="episode").advantage == {"0": (0.5,), "1": (0.0, 0.0), "2": (-0.5, -0.5)}
    # in TASK the returns are 1, 0.5 and 0; in RED 1 and 0: there the first call costs nothing any more
    assert judged(members, 0.5).advantage == {"0": (1.0,), "1": (0.0, 0.5), "2": (-1.0, -1.0)}
    assert judged(members, 0.5, "leave_one_out").advantage == {"0": (1.5,), "1": (0.0, 1.0), "2": (-1.5, -1.75)}


def test_a_second_try_that_costs_nothing_is_as_good_as_a_first():
    """The issue: both end repaired, so neither credit has anything to teach."""
    members = group([(1.0, [TASK]), (1.0, [TASK, RED])])
    for kind in ("episode", "turn"):
        out = judged(members, kind=kind)
        assert out.advantage == {"0": (0.0,), "1": (0.0, 0.0)} and set(out.masked.values()) == {"zero_variance"}


def test_at_a_price_the_edit_that_repairs_at_once_is_preferred_and_by_turn_the_retry_is_not_blamed_as_the_mistake_is():
    members = group([(1.0, [TASK]), (1.0, [TASK, RED])], 0.5)
    assert judged(members, 0.5, kind="episode").advantage == {"0": (0.25,), "1": (-0.25, -0.25)}
    assert judged(members, 0.5).advantage == {"0": (0.5,), "1": (-0.5, -0.25)}  # alone in its state: the episode's


def test_without_a_price_by_turn_the_calls_of_a_common_state_count_twice():
    members = group([(1.0, [TASK, RED]), (0.0, [TASK, GREEN])])
    assert judged(members).advantage == {"0": (1.0, 0.5), "1": (-1.0, -0.5)}


def test_two_calls_of_one_episode_in_one_state_are_two_of_its_calls():
    """Asked again, as an agent does after an answer that it could not read. Three returns: 0.5, 1 and 0."""
    members = group([(1.0, [TASK, TASK]), (0.0, [TASK])], 0.5)
    assert judged(members, 0.5).advantage == {"0": (0.25 + 0.0, 0.25 + 0.5), "1": (-0.25 - 0.5,)}


def test_equal_rewards_can_still_teach_by_turn():
    """Both repair with their second call, whose prompt was the task's once more in one: there the returns are 0.5, 0.5,
    1."""
    members = group([(1.0, [TASK, RED]), (1.0, [TASK, TASK])], 0.5)
    assert judged(members, 0.5, kind="episode").zero_variance_groups == 1
    out = judged(members, 0.5)
    assert out.masked == {} and out.zero_variance_groups == 0 and out.groups == 1
    assert out.advantage["0"] == pytest.approx((-1 / 6, 0)) and out.advantage["1"] == pytest.approx((-1 / 6, 1 / 3))


@pytest.mark.parametrize("kind", KINDS)
def test_returns_that_differ_by_rounding_are_equal(kind):
    """0.8^2 / 0.8 is not 0.8."""
    members = group([(1.0, [RED, TASK, (3,)]), (1.0, [TASK, (3,)])], 0.8)
    found = [advantages.returns(t.reward, len(t.calls), 0.8) for t in members]
    assert found[0][1] != found[1][0]
    assert advantages.step_advantages(kind, members, found) == [[0.0] * 3, [0.0] * 2]


def test_a_negative_reward_is_the_same_for_each_of_its_calls():
    members = group([(-1.0, [TASK, RED]), (1.0, [TASK])], 0.5)
    assert [t.reward for t in members] == [-1.0, 1.0] and advantages.returns(-1.0, 2, 0.5) == (-1.0, -1.0)
    assert judged(members, 0.5).advantage == {"0": (-2.0, -1.0), "1": (2.0,)}


def test_what_length_takes_from_the_reward_is_not_discounted():
    short, full = episode("short", 1.0, TASK, RED, discount=0.5), episode("full", 1.0, TASK, (1,) * 98, discount=0.5)
    out = judged([short, full], 0.5, overlong_buffer=20)  # the longest call of `full` has 100 tokens: -1
    assert out.advantage == {"short": (1.0, 0.5), "full": (-1.0, -0.5)}


def test_who_is_in_no_statistics_is_in_no_state():
    members = group([(1.0, [TASK]), (0.0, [TASK])])
    broken = Trajectory(**{**vars(episode("x", 1.0, TASK)), "outcome": Outcome.INFRASTRUCTURE_ERROR})
    assert judged([*members, broken]).advantage == judged(members).advantage == {"0": (1.0,), "1": (-1.0,)}


def test_episodes_without_calls_are_compared_and_train_nothing():
    members = group([(1.0, []), (0.0, [])])
    out = judged(members)
    assert out.advantage == {"0": (), "1": ()} and out.zero_variance_groups == 0
    assert [row for t in members for row in batch.samples(t, out.advantage[t.trajectory_id])] == []

"""Intervals: against published values, inside what is possible, around their value, never of width 0, and about as
often right as they say."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.run import intervals

OUTCOMES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=12)


def pairs_of(both, before, after, neither):
    """(outcomes before, outcomes after) of a table of pairs: how many tasks were repaired both times, before only,
    after only, never."""
    table = [([1], [1])] * both + [([1], [0])] * before + [([0], [1])] * after + [([0], [0])] * neither
    return [one for one, _ in table], [other for _, other in table]


def test_wilson_as_published():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3; and the ends, where the normal approximation has
    no width."""
    for repaired, tasks, ends in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (8, 8, (0.6756, 1.0)),
        (0, 8, (0.0, 0.3244)),
        (1, 1, (0.2065, 1.0)),
    ):
        found = intervals.rate([[1]] * repaired + [[0]] * (tasks - repaired))
        assert found == pytest.approx((repaired / tasks, *ends), abs=6e-5)


def test_paired_differences_as_published():
    """Newcombe's square-and-add interval in Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850: airway
    hyper-responsiveness."""
    assert intervals.paired_difference(*pairs_of(1, 1, 7, 12)) == pytest.approx((6 / 21, 0.026, 0.507), abs=6e-4)
    assert intervals.paired_difference(*reversed(pairs_of(1, 1, 7, 12))) == pytest.approx(
        (-6 / 21, -0.507, -0.026), abs=6e-4
    )


@given(OUTCOMES)
def test_a_rate_has_an_interval_inside_of_what_is_possible(outcomes):
    value, low, high = intervals.rate(outcomes)
    assert 0 <= low <= value <= high <= 1 and high - low > 0.05
    assert value == pytest.approx(np.mean([np.mean(task) for task in outcomes]))
    # failures instead of successes
    other, less, more = intervals.rate([[1 - outcome for outcome in task] for task in outcomes])
    assert (other, less, more) == pytest.approx((1 - value, 1 - high, 1 - low))


@given(OUTCOMES, st.randoms())
def test_a_difference_has_one_too(outcomes, rng):
    other = [[rng.randint(0, 1) for _ in task] for task in outcomes]
    for after in (other, outcomes, [[1 - outcome for outcome in task] for task in outcomes], [[1] for _ in outcomes]):
        value, low, high = intervals.paired_difference(outcomes, after)
        assert -1 <= low <= value <= high <= 1 and high - low > 0.005
        assert value == pytest.approx(intervals.rate(after).value - intervals.rate(outcomes).value)
        assert intervals.paired_difference(after, outcomes) == pytest.approx((-value, -high, -low))


@given(OUTCOMES, st.integers(2, 4))
def test_more_episodes_of_a_task_that_say_the_same_are_no_more_tasks(outcomes, times):
    """One outcome a task, repeated: the tasks stay as few, so the interval stays as wide."""
    once = [[task[0]] for task in outcomes]
    assert intervals.rate([task * times for task in once]) == pytest.approx(intervals.rate(once))


def test_episodes_that_are_as_good_as_tasks_count_as_such():
    rng = random.Random(0)
    outcomes = [[int(rng.random() < 0.5) for _ in range(10)] for _ in range(400)]
    widths = [
        high - low
        for _, low, high in (intervals.rate(outcomes), intervals.wilson(0.5, 4000), intervals.wilson(0.5, 400))
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.1) and widths[0] < 0.5 * widths[2]


@pytest.mark.parametrize("tasks, episodes, likeness", [(60, 1, 0.0), (40, 4, 0.4), (20, 2, 0.4)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(tasks, episodes, likeness):
    """Tasks of different difficulty, some repaired rarely: the normal approximation holds as few as 75% here."""
    rng, share, repetitions, rates, gains = np.random.default_rng(1), 0.1, 300, 0, 0
    for _ in range(repetitions):
        hard = (
            rng.beta(share * (1 / likeness - 1), (1 - share) * (1 / likeness - 1), tasks)
            if likeness
            else np.full(tasks, share)
        )
        before, after = (
            (rng.random((tasks, episodes)) < chance[:, None]).astype(int).tolist()
            for chance in (hard, hard + 0.2 * (1 - hard))
        )
        _, low, high = intervals.rate(before)
        rates += low <= share <= high
        _, low, high = intervals.paired_difference(before, after)
        gains += low <= 0.2 * (1 - share) <= high
    assert rates / repetitions > 0.92 and gains / repetitions > 0.92


def test_nothing_has_no_value_and_what_lacks_a_side_is_left_out():
    assert (
        intervals.rate([]) is intervals.rate([[]]) is intervals.mean([]) is intervals.paired_difference([], []) is None
    )
    assert intervals.paired_difference([[]], [[1]]) is None and intervals.percent(None) == intervals.NOTHING
    assert intervals.paired_difference([[1], [], [0]], [[1], [1], [1]]) == intervals.paired_difference(
        [[1], [0]], [[1], [1]]
    )
    assert intervals.rate([[1], [], [0]]) == intervals.rate([[1], [0]])


def test_the_mean_of_few_runs_is_students():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    half = 2.776445 * draws.std(axis=1, ddof=1) / math.sqrt(5)
    assert intervals.mean(draws[0].tolist()) == pytest.approx(
        (draws[0].mean(), draws[0].mean() - half[0], draws[0].mean() + half[0])
    )
    # with the normal quantile it would be 88%
    assert np.mean(np.abs(draws.mean(axis=1) - 3.0) < half) == pytest.approx(0.95, abs=0.012)
    assert intervals.mean_rate([0.9, 1.0])[1:] == pytest.approx((0.3147, 1.0), abs=1e-4)
    assert intervals.mean_difference([-0.9, -1.0])[1:] == pytest.approx((-1.0, -0.3147), abs=1e-4)


@pytest.mark.parametrize("values", [[2.0], [0.8, 0.8, 0.8], [0.3, 0.1 + 0.2], [0.0, 0.0]])
def test_equal_runs_say_nothing_about_their_spread(values):
    value, low, high = intervals.mean(values)
    assert value == pytest.approx(values[0]) and math.isnan(low) and math.isnan(high)
    assert intervals.percent(intervals.mean_rate(values[:1])) == f"{values[0]:.1%}"

"""Comparisons of policies: against published values and slow references; as often right as they say."""

import itertools
import math
import random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coderepairrl.run import comparison, skill

OUTCOMES = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1)


def of_table(both, before, after, neither):
    """Outcomes of two policies: how many tasks both, the first alone, the second alone, and none resolved."""
    cells = [(1, 1)] * both + [(1, 0)] * before + [(0, 1)] * after + [(0, 0)] * neither
    return tuple([{str(n): [pair[side]] for n, pair in enumerate(cells)}] for side in (0, 1))


def test_mcnemars_exact_test_as_published():
    """Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850: airway hyper-responsiveness, 0.070."""
    found = comparison.compare(*of_table(1, 1, 7, 12))
    assert (found.tasks, found.won, found.lost) == (21, 7, 1)
    assert found.p == pytest.approx(0.0703, abs=5e-5) and found.discordant == pytest.approx(8 / 21)
    assert found.difference == pytest.approx((6 / 21, 0.026, 0.507), abs=6e-4)


def test_a_sign_test_by_draws_is_the_one_by_all_signs():
    gains = [0.5, -0.25, 0.25, 0.75, 0.5, 0.25, -0.25, 0.5]
    total = abs(sum(gains))
    every = [abs(sum(s * g for s, g in zip(signs, gains))) for signs in itertools.product((1, -1), repeat=len(gains))]
    assert comparison.sign_flips(gains) == pytest.approx(fmean(value >= total - 1e-9 for value in every), abs=0.01)
    assert comparison.sign_flips([0.0, 0.0]) == 1.0


def test_a_hierarchical_bootstrap_is_the_one_of_a_slow_loop():
    rng = random.Random(0)
    seeds = lambda rate: [{str(t): [int(rng.random() < rate)] for t in range(30)} for _ in range(3)]
    one, other = seeds(0.3), seeds(0.6)
    tasks, draws = sorted(one[0]), []
    for _ in range(15_000):
        chosen = rng.choices(tasks, k=len(tasks))
        old, new = (rng.choices(side, k=3) for side in (one, other))
        draws.append(fmean(s[t][0] for s in new for t in chosen) - fmean(s[t][0] for s in old for t in chosen))
    slow = np.quantile(draws, [0.025, 0.975])
    assert comparison.bootstrap(one, other, tasks)[1:] == pytest.approx(slow, abs=0.02)


def test_holm_as_published():
    """Holm 1979, Scandinavian Journal of Statistics 6:65: p-values times what is left to test, never falling."""
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_is_never_below_the_value(ps):
    found = comparison.holm(ps)
    assert all(p <= q <= 1 + 1e-12 for p, q in zip(ps, found))
    assert all(found[i] <= found[j] + 1e-12 for i in range(len(ps)) for j in range(len(ps)) if ps[i] < ps[j])


@pytest.mark.parametrize("gain, discordant, over", [(0.08, 0.3, 0.0), (0.12, 0.25, 0.05), (0.0, 0.2, 0.0)])
def test_power_is_the_share_of_simulated_studies_that_find_it(gain, discordant, over):
    rng, tasks, found = np.random.default_rng(1), 400, 0
    shares = [(discordant + gain) / 2, (discordant - gain) / 2]
    for _ in range(4000):
        won, lost, _ = rng.multinomial(tasks, [*shares, 1 - sum(shares)])
        value = (won - lost) / tasks
        spread = math.sqrt(((won + lost) / tasks - value**2) / tasks)
        found += value - 1.96 * spread > over
    expected = comparison.power(tasks=tasks, gain=gain, discordant=discordant, over=over)
    assert expected == pytest.approx(found / 4000, abs=0.03)


def test_a_gain_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="needs as many discordant tasks"):
        comparison.power(tasks=10, gain=0.3, discordant=0.2)


@settings(deadline=None, max_examples=30)
@given(OUTCOMES, OUTCOMES)
def test_two_policies_the_other_way_round_differ_by_the_sign(one, other):
    if not one.keys() & other.keys():
        with pytest.raises(ValueError, match="no task was graded in all"):
            comparison.compare([one], [other])
        return
    found, turned = comparison.compare([one], [other]), comparison.compare([other], [one])
    assert found.difference == pytest.approx(
        (-turned.difference.value, -turned.difference.high, -turned.difference.low)
    )
    assert (found.won, found.lost, found.tasks) == (turned.lost, turned.won, turned.tasks)
    assert found.p == pytest.approx(turned.p) and 0 < found.p <= 1
    assert found.bootstrap.low <= found.bootstrap.value <= found.bootstrap.high
    assert found.bootstrap.value == pytest.approx(found.difference.value)


def test_equal_policies_are_told_apart_as_rarely_as_the_level_says():
    rng = np.random.default_rng(3)
    outcomes = lambda: [{str(t): rng.integers(0, 2, 3).tolist() for t in range(40)}]
    assert fmean(comparison.compare(outcomes(), outcomes()).p <= 0.05 for _ in range(60)) <= 0.15


@given(st.lists(st.integers(0, 1), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_success(outcomes, data):
    """Chen et al. 2021, arXiv:2107.03374, equation 1: unbiased, which the enumeration is by definition."""
    k = data.draw(st.integers(1, len(outcomes)))
    choices = list(itertools.combinations(outcomes, k))
    assert skill.pass_at({"task": outcomes}, k) == pytest.approx(fmean(any(choice) for choice in choices))

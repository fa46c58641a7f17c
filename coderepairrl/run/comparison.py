"""Two policies on the same tasks: what a paper says of their difference, and whether a criterion is met.

    compare(one, other)                 one run, or several seeds, of each policy -> a Comparison
    holm([0.01, 0.04, 0.03])            p-values of several benchmarks, corrected for their number
    power(tasks=500, gain=0.05, discordant=0.2, over=0.0)

Outcomes of a run: task -> 0 or 1 for each of its episodes. Only tasks that both policies have are compared, pair by
pair. What is random draws from a seed of its own: the same outcomes give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from coderepairrl.run import intervals
from coderepairrl.run.intervals import Interval
from coderepairrl.run.skill import Outcomes

RESAMPLES = 10_000
BLOCK = 500  # of them at a time: the indices of all need not be in memory
LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """`other` less `one`, over the tasks of both."""

    tasks: int
    one: Interval  # rates, with the intervals of intervals.rate
    other: Interval
    difference: Interval  # Newcombe's for paired tasks
    # percentiles of the bootstrap: tasks are drawn, and seeds of each policy too where there are several
    bootstrap: Interval
    won: int  # tasks that `other` resolves more often
    lost: int
    p: float  # two-sided: McNemar's exact test, or sign flips where a task has several episodes
    discordant: float  # share of tasks with another outcome: (won + lost) / tasks


def compare(one: Sequence[Outcomes], other: Sequence[Outcomes]) -> Comparison:
    """Of each policy its seeds. Raises ValueError when no task is in all of them."""
    tasks = sorted(set.intersection(*(set(seed) for seed in (*one, *other)))) if one and other else []
    if not tasks:
        raise ValueError("no task was graded in all of these runs: evaluate both policies on the same tasks")
    first, last = (together(seeds, tasks) for seeds in (one, other))
    gains = [np.mean(b) - np.mean(a) for a, b in zip(first, last, strict=True)]
    won, lost = (sum(bool(sign * gain > 1e-12) for gain in gains) for sign in (1, -1))
    single = all(len(outcomes) == 1 for outcomes in (*first, *last))
    return Comparison(
        tasks=len(tasks),
        one=intervals.rate(first),
        other=intervals.rate(last),
        difference=intervals.paired_difference(first, last),
        bootstrap=bootstrap(one, other, tasks),
        won=won,
        lost=lost,
        p=mcnemar(won, lost) if single else sign_flips(gains),
        discordant=(won + lost) / len(tasks),
    )


def together(seeds: Sequence[Outcomes], tasks: Sequence[str]) -> list[list[float]]:
    """Of each task the episodes of all seeds."""
    return [[outcome for seed in seeds for outcome in seed[task]] for task in tasks]


def mcnemar(won: int, lost: int) -> float:
    """McNemar's exact two-sided test of two paired rates, one episode a task: the discordant tasks are tosses of a fair
    coin if the policies are equally good."""
    from scipy.stats import binomtest  # not before: it takes a second

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def sign_flips(gains: Sequence[float]) -> float:
    """Two-sided test of paired differences by random signs (Fisher 1935), which are exchangeable under equal policies;
    the observed signs are one of the draws."""
    values = np.asarray(gains)
    values = values[np.abs(values) > 1e-12]
    if not len(values):
        return 1.0
    rng = np.random.default_rng(0)
    hits = 1
    for _ in range(RESAMPLES // BLOCK):
        signs = rng.integers(0, 2, size=(BLOCK, len(values)), dtype=np.int8) * 2 - 1
        hits += int(np.sum(np.abs(signs @ values) >= abs(values.sum()) - 1e-9))
    return hits / (RESAMPLES + 1)


def bootstrap(one: Sequence[Outcomes], other: Sequence[Outcomes], tasks: Sequence[str]) -> Interval:
    """Percentile interval of the difference of mean rates. One draw takes seeds of each policy and tasks, both with
    replacement: with several seeds the hierarchical bootstrap of Davison and Hinkley 1997, section 3.8, as Agarwal et
    al. 2021 (arXiv:2108.13264) use it; with one seed the paired bootstrap over tasks."""
    rng = np.random.default_rng(0)
    sides = [np.array([[np.mean(seed[task]) for task in tasks] for seed in seeds]) for seeds in (one, other)]
    draws: list[np.ndarray] = []
    for _ in range(RESAMPLES // BLOCK):
        chosen = rng.integers(len(tasks), size=(BLOCK, len(tasks)))
        before, after = (_means(side, chosen, rng) for side in sides)
        draws.append(after - before)
    low, high = np.quantile(np.concatenate(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(sides[1].mean() - sides[0].mean())
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _means(side: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """side (S, N): a policy's rates of seeds and tasks; chosen (B, N): tasks of each draw -> (B,) means over as many
    drawn seeds."""
    seeds = rng.integers(len(side), size=(len(chosen), len(side)))
    return np.mean([side[seeds[:, place], chosen.T].mean(0) for place in range(len(side))], axis=0)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the p-values for which the chance of any false positive is the level."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(ps, method="holm")[1]] if len(ps) else []


def power(*, tasks: int, gain: float, discordant: float, over: float = 0.0) -> float:
    """The chance that the interval of a paired difference of one episode a task lies above `over` when the true gain is
    `gain` and this share of tasks has another outcome.

    Normal approximation (Connor 1987, Biometrics 43:207): a pair's difference has the variance discordant - gain**2.
    Raises ValueError for what cannot be: fewer discordant tasks than the gain needs.
    """
    if not abs(gain) <= discordant <= 1.0:
        raise ValueError(f"a gain of {gain:+.1%} needs as many discordant tasks, there are {discordant:.1%}")
    spread = ((discordant - gain**2) / tasks) ** 0.5
    if not spread:
        return float(gain > over)
    normal = NormalDist()
    return 1 - normal.cdf(normal.inv_cdf((1 + LEVEL) / 2) - (gain - over) / spread)

"""Every 95% interval that this project prints: of rates over tasks, of their paired differences, of means over seeds.

    rate([[1, 0], [1, 1]])                    outcomes of two tasks, two episodes each
    paired_difference(before, after)          the same tasks twice
    mean([0.31, 0.28, 0.35])                  numbers without bounds, or few runs: Student's t

A task's episodes are not independent, so tasks are what is counted. No interval of a rate or of a difference ends
outside
of what is possible, and none has width 0: 8 of 8 is [67.6%, 100%]. Of nothing there is no value: None.
"""

import math
from collections.abc import Sequence
from statistics import correlation, fmean, pvariance, stdev
from typing import NamedTuple

NOTHING = "-"  # what is printed where there is no value


class Interval(NamedTuple):
    """low and high are NaN where the values say nothing about their spread."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """46.0% [39.2%, 52.9%]"""
        ends = "" if math.isnan(self.low) else f" [{self.low:.1%}, {self.high:.1%}]"
        return f"{self.value:.1%}{ends}"


def percent(interval: Interval | None) -> str:
    return interval.percent() if interval else NOTHING


def wilson(share: float, count: float) -> Interval:
    """Wilson's score interval (1927) of a share of `count` trials; an effective count need not be whole."""
    from statsmodels.stats.proportion import proportion_confint  # not before: it takes a second

    low, high = map(float, proportion_confint(share * count, count, method="wilson"))
    return Interval(share, min(share, low), max(share, high))


def rate(outcomes: Sequence[Sequence[float]]) -> Interval | None:
    """The mean over tasks of a task's mean. Of each task the outcomes of its episodes, 0 or 1; one without any is left
    out.

    Wilson's interval at the effective count p (1 - p) / variance of the mean, tasks being the clusters (Korn and
    Graubard 1998,
    Survey Methodology 24:193; with Wilson's interval Dean and Pagano 2015, J. Survey Statistics and Methodology 3:484).
    It lies
    between the number of tasks (a task's episodes are all the same) and that of episodes; with one episode a task it is
    that number, and where all outcomes are equal, which hides the variance, the lower end is taken.
    """
    tasks = [task for task in outcomes if task]
    if not tasks:
        return None
    means = [fmean(task) for task in tasks]
    share = min(1.0, max(0.0, fmean(means)))
    episodes = len(tasks) ** 2 / sum(1 / len(task) for task in tasks)
    return wilson(share, _effective(share, means, episodes))


def _effective(share: float, means: Sequence[float], episodes: float) -> float:
    variance = pvariance(means)
    if not 0.0 < share < 1.0:
        return len(means)
    return min(episodes, max(len(means), len(means) * share * (1 - share) / variance)) if variance else episodes


def paired_difference(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Interval | None:
    """Rate of `after` - rate of `before`: the same tasks in the same order; those that lack one side are left out.

    Newcombe's square-and-add interval (method 10 of Statistics in Medicine 17:2635, 1998), made of the two rates'
    intervals
    and their correlation, whose covariance is lowered by 1 / (2 episodes) so that equal differences are no certainty.
    With
    several episodes a task the intervals are those of `rate`, and the correlation is that of the tasks' means (MOVER:
    Zou
    and Donner 2008, Statistics in Medicine 27:1693).
    """
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one and other]
    if not pairs:
        return None
    old, new = (rate(side) for side in zip(*pairs, strict=True))
    episodes = len(pairs) ** 2 / sum(1 / min(len(one), len(other)) for one, other in pairs)
    r = _correlation(*([fmean(task) for task in side] for side in zip(*pairs, strict=True)), episodes)
    value = new.value - old.value
    low = _added(new.value - new.low, old.high - old.value, r)
    high = _added(new.high - new.value, old.value - old.low, r)
    return Interval(value, max(-1.0, value - low), min(1.0, value + high))


def _correlation(one: Sequence[float], other: Sequence[float], count: float) -> float:
    deviations = math.sqrt(pvariance(one) * pvariance(other))
    if not deviations:
        return 0.0
    covariance = correlation(one, other) * deviations
    return (max(0.0, covariance - 1 / (2 * count)) if covariance > 0 else covariance) / deviations


def _added(one: float, other: float, r: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * r * one * other + other * other))


def mean(values: Sequence[float]) -> Interval | None:
    """By Student's t, for a few independent runs. One value, or equal ones, say nothing about their spread: NaN."""
    if not values:
        return None
    middle = fmean(values)
    spread = stdev(values) if len(values) > 1 else 0.0
    if spread <= 1e-12 * abs(middle):  # the last bits of equal numbers can differ
        return Interval(middle, math.nan, math.nan)
    from scipy.stats import t  # not before: it takes a second

    half = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half)


def mean_rate(rates: Sequence[float]) -> Interval | None:
    """`mean` of what lies between 0 and 1, such as the rates of a few runs."""
    return _within(mean(rates), 0.0)


def mean_difference(differences: Sequence[float]) -> Interval | None:
    """`mean` of differences of rates."""
    return _within(mean(differences), -1.0)


def _within(interval: Interval | None, lowest: float) -> Interval | None:
    if interval is None or math.isnan(interval.low):
        return interval
    return Interval(interval.value, max(lowest, interval.low), min(1.0, interval.high))

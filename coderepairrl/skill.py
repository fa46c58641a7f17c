"""What a policy can do, told apart from how often it tries again: the numbers of an evaluation's episodes.

    numbers(episodes)     of one evaluation: in stats["evaluation"] of its file, and in evaluate.py's summary
    of_run(run)           summary.json's "skill": before, after, their differences, and what retries alone explain

    pass_rate      share of episodes whose last state resolves the task, mean over tasks
    first_edit     share of episodes whose first edit alone resolves it: skill, since nothing has answered to an edit before it
    pass_at_k      share of tasks that at least one of k episodes resolves (Chen et al. 2021, arXiv:2107.03374, equation 1)
    calls, edits   means over episodes; submitted, at_limit: shares of them
    greedy         pass_rate of episodes decoded greedily

Persistence is what remains: a policy that submits later and tries more repairs more without being right more often. The
control for it is the starting policy under the scaffold `retry`, with the same limits, cut where it has made as many calls.
"""
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from coderepairrl import intervals, store
from coderepairrl.intervals import Interval
from coderepairrl.types import Outcome, Trajectory

LIMITS = (Outcome.TURN_LIMIT, Outcome.TOKEN_LIMIT, Outcome.TIME_LIMIT)
SIDES = ("before", "after")
Outcomes = dict[str, list[float]]  # task id -> 0 or 1 for each of its episodes


class Episode(NamedTuple):
    """What counts of a trajectory. None: not known, as edits of an agent that is a program, or not graded."""
    task: str
    resolved: bool | None
    outcome: str
    calls: int
    edits: float | None = None
    first_edit: float | None = None  # 1.0: the first edit alone resolves the task


def episodes(trajectories: Sequence[Trajectory]) -> list[Episode]:
    return [Episode(t.task_id, t.verdict and t.verdict.resolved, t.outcome, len(t.calls), t.stats.get("edits"), t.stats.get("first_edit"))
            for t in trajectories]


# ---- of one evaluation

def by_task(found: Sequence[Episode], value: Callable[[Episode], float | None]) -> Outcomes:
    """Less the episodes that were not graded, and those of which the value is not known."""
    out = defaultdict(list)
    for episode in found:
        if episode.resolved is not None and (own := value(episode)) is not None:
            out[episode.task].append(float(own))
    return dict(out)


def resolved(found: Sequence[Episode]) -> Outcomes:
    return by_task(found, lambda episode: episode.resolved)


def first_edits(found: Sequence[Episode]) -> Outcomes:
    return by_task(found, lambda episode: episode.first_edit)


def pass_at(outcomes: Outcomes, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for c of a task's n episodes, mean over the tasks that have k."""
    return fmean(1 - comb(len(own) - int(sum(own)), k) / comb(len(own), k) for own in outcomes.values() if len(own) >= k)


def numbers(found: Sequence[Episode]) -> dict:
    """JSON: the names above, of rates also NAME_interval; what could not be measured is not in it. `tasks` counts those that were graded."""
    graded = [episode for episode in found if episode.resolved is not None]
    outcomes = resolved(graded)
    if not graded:
        return {"tasks": 0}
    edits = [episode.edits for episode in graded if episode.edits is not None]
    return {"tasks": len(outcomes)} | rate("pass_rate", outcomes) | rate("first_edit", first_edits(graded)) | {
        "pass_at_k": {str(k): pass_at(outcomes, k) for k in _doubled(max(map(len, outcomes.values())))},
        "calls": fmean(episode.calls for episode in graded)} | ({"edits": fmean(edits)} if edits else {}) | {
        "submitted": fmean(episode.outcome == Outcome.SUBMITTED for episode in graded),
        "at_limit": fmean(episode.outcome in LIMITS for episode in graded)}


def _doubled(most: int) -> list[int]:
    """1, 2, 4 ... and the most."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i < most} | {most})


def rate(name: str, outcomes: Outcomes) -> dict:
    return _named(name, intervals.rate(list(outcomes.values())))


def _named(name: str, found: Interval | None) -> dict:
    return {name: found.value, f"{name}_interval": [found.low, found.high]} if found else {}


# ---- of a run, from its files

def of_run(run: Path) -> dict:
    """{"before", "after": numbers, "gain": their paired differences, "retries": see `retries`} over the tasks that were graded
    before and after; {} where there are none. What has no file is not in it."""
    sides = {name: read(run, name) for name in SIDES}
    tasks = set.intersection(*(set(resolved(found)) for found in sides.values()))
    if not tasks:
        return {}
    only = lambda found: [episode for episode in found if episode.task in tasks]
    sides = {name: only(found) for name, found in sides.items()}
    greedy = {name: only(read(run, f"{name}_greedy")) for name in SIDES}
    found = {name: numbers(sides[name]) | rate("greedy", resolved(greedy[name])) for name in SIDES}
    pairs = {"pass_rate": map(resolved, sides.values()), "first_edit": map(first_edits, sides.values()),
             "greedy": map(resolved, greedy.values())}
    gain = {key: value for name, pair in pairs.items() for key, value in _named(name, difference(*pair)).items()}
    control = only(read(run, "before_retry"))
    return found | {"gain": gain} | ({"retries": retries(control, *sides.values())} if control else {})


def read(run: Path, name: str) -> list[Episode]:
    """Of an evaluation's file; none where there is none."""
    path = run / "rollouts" / f"eval_{name}.parquet"
    return episodes(store.read(path)[0]) if path.exists() else []


def difference(before: Outcomes, after: Outcomes) -> Interval | None:
    """Over the tasks that both have, paired."""
    both = sorted(before.keys() & after.keys())
    return intervals.paired_difference([before[task] for task in both], [after[task] for task in both])


def retries(control: Sequence[Episode], before: Sequence[Episode], after: Sequence[Episode]) -> dict:
    """What the starting policy reaches when it is forced to go on, at as many calls as the trained one makes.

    {"calls": its mean, at least that of `after` where the limits let it, "pass_rate", "pass_rate_interval", "beyond", "beyond_interval":
    what `after` repairs more, "explained": the share of the whole gain that retries reach}; the last not without a gain.
    """
    reachable, first, last = forced(control, after), resolved(before), resolved(after)
    gained, reached = difference(first, last), difference(first, reachable)
    explained = {"explained": reached.value / gained.value} if gained and reached and gained.value > 0 else {}
    return {"calls": cut_at(control, _calls(after))[1]} | rate("pass_rate", reachable) | _named("beyond", difference(reachable, last)) | explained


def forced(control: Sequence[Episode], after: Sequence[Episode]) -> Outcomes:
    """Of the control, at as many calls as `after` makes."""
    cut, _ = cut_at(control, _calls(after))
    return by_task(control, lambda episode: episode.resolved and episode.calls <= cut)


def _calls(found: Sequence[Episode]) -> float:
    return fmean(episode.calls for episode in found if episode.resolved is not None)


def cut_at(control: Sequence[Episode], wanted: float) -> tuple[int, float]:
    """(number of calls at which every episode is cut, so that their mean is at least `wanted`, that mean)."""
    lengths = [episode.calls for episode in control if episode.resolved is not None]
    mean = lambda cut: fmean(min(length, cut) for length in lengths)
    cut = next((cut for cut in range(1, max(lengths)) if mean(cut) >= wanted), max(lengths))
    return cut, mean(cut)

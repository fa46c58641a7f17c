"""What a policy can do, told apart from how often it tries again: the numbers of an evaluation's episodes.

    numbers(episodes)     of one evaluation: in stats["evaluation"] of its file, and in evaluate.py's summary
    of_run(run)           summary.json's "skill": before, after, their differences, and what retries alone explain

    pass_rate      share of episodes whose last state resolves the task, mean over tasks
    first_edit     share of episodes whose first edit alone resolves it: skill, since nothing has answered to an edit
                   before it
    pass_at_k      share of tasks that at least one of k episodes resolves (Chen et al. 2021, arXiv:2107.03374, equation
                   1)
    calls, edits   means over episodes; submitted, at_limit: shares of them
    greedy         pass_rate of episodes decoded greedily

Persistence is what remains: a policy that submits later and tries more repairs more without being right more often. The
control for it is the starting policy under the scaffold `retry`, with the same limits, cut where it has made as many
calls.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from coderepairrl.rollout import trajectory_files
from coderepairrl.run import intervals
from coderepairrl.run.intervals import Interval
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
    calls_at_last: float | None = None  # made when the working tree came to be what is judged


def episodes(trajectories: Sequence[Trajectory]) -> list[Episode]:
    return [
        Episode(
            t.task_id,
            t.verdict and t.verdict.resolved,
            t.outcome,
            len(t.calls),
            *(t.stats.get(name) for name in ("edits", "first_edit", "calls_at_last")),
        )
        for t in trajectories
    ]


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
    return fmean(
        1 - comb(len(own) - int(sum(own)), k) / comb(len(own), k) for own in outcomes.values() if len(own) >= k
    )


def numbers(found: Sequence[Episode]) -> dict:
    """JSON: the names above, of rates also NAME_interval; what could not be measured is not in it. `tasks` counts those
    that were graded."""
    graded = [episode for episode in found if episode.resolved is not None]
    outcomes = resolved(graded)
    if not graded:
        return {"tasks": 0}
    edits = [episode.edits for episode in graded if episode.edits is not None]
    return (
        {"tasks": len(outcomes)}
        | rate("pass_rate", outcomes)
        | rate("first_edit", first_edits(graded))
        | {
            "pass_at_k": {str(k): pass_at(outcomes, k) for k in _doubled(min(map(len, outcomes.values())))},
            "calls": fmean(episode.calls for episode in graded),
        }
        | ({"edits": fmean(edits)} if edits else {})
        | {
            "submitted": fmean(episode.outcome == Outcome.SUBMITTED for episode in graded),
            "at_limit": fmean(episode.outcome in LIMITS for episode in graded),
        }
    )


def _doubled(most: int) -> list[int]:
    """1, 2, 4 ... and the most that every task has."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i < most} | {most})


def rate(name: str, outcomes: Outcomes) -> dict:
    return _named(name, intervals.rate(list(outcomes.values())))


def _named(name: str, found: Interval | None) -> dict:
    return {name: found.value, f"{name}_interval": [found.low, found.high]} if found else {}


# ---- of a run, from its files


class Sides(NamedTuple):
    """Episodes over the tasks that were graded before and after."""

    before: list[Episode]
    after: list[Episode]
    greedy_before: list[Episode]
    greedy_after: list[Episode]
    control: list[Episode]

    def pairs(self) -> dict[str, tuple[Outcomes, Outcomes]]:
        """Of each gain what is compared; `beyond` is what retries alone don't reach."""
        found = {
            "pass_rate": (resolved(self.before), resolved(self.after)),
            "first_edit": (first_edits(self.before), first_edits(self.after)),
            "greedy": (resolved(self.greedy_before), resolved(self.greedy_after)),
        }
        return found | (
            {"beyond": (forced(self.control, self.after), resolved(self.after))} if resolved(self.control) else {}
        )


def sides_of(run: Path) -> Sides | None:
    """None where no task was graded before and after under the same inputs."""
    if not comparable(run):
        return None
    sides = {name: read(run, name) for name in SIDES}
    tasks = set.intersection(*(set(resolved(found)) for found in sides.values()))
    names = (*SIDES, *(f"{name}_greedy" for name in SIDES), "before_retry")
    return (
        Sides(*([episode for episode in read(run, name) if episode.task in tasks] for name in names)) if tasks else None
    )


def comparable(run: Path) -> bool:
    """Whether the same inputs made the evaluations before and after, but for the policy."""
    files = [run / "rollouts" / f"eval_{name}.parquet" for name in SIDES]
    return (
        all(path.exists() for path in files)
        and len({trajectory_files.read_stats(path).get("inputs") for path in files}) == 1
    )


def of_run(run: Path) -> dict:
    """{"before", "after": numbers, "gain": their paired differences, "retries": see `retries`} over the tasks that were
    graded
    before and after; {} where there are none. What has no file is not in it."""
    sides = sides_of(run)
    if sides is None:
        return {}
    greedy = {"before": sides.greedy_before, "after": sides.greedy_after}
    found = {name: numbers(getattr(sides, name)) | rate("greedy", resolved(greedy[name])) for name in SIDES}
    gain = {
        key: value
        for name, pair in sides.pairs().items()
        if name != "beyond"
        for key, value in _named(name, difference(*pair)).items()
    }
    return found | {"gain": gain} | ({"retries": retries(sides)} if resolved(sides.control) else {})


def read(run: Path, name: str) -> list[Episode]:
    """Of an evaluation's file; none where there is none."""
    path = run / "rollouts" / f"eval_{name}.parquet"
    return episodes(trajectory_files.read(path)[0]) if path.exists() else []


def difference(before: Outcomes, after: Outcomes) -> Interval | None:
    """Over the tasks that both have, paired."""
    both = sorted(before.keys() & after.keys())
    return intervals.paired_difference([before[task] for task in both], [after[task] for task in both])


def retries(sides: Sides) -> dict:
    """What the starting policy reaches when it is forced to go on, at as many calls as the trained one makes.

    {"calls": its mean, at least that of `after` where the limits let it, "pass_rate", "pass_rate_interval", "beyond",
    "beyond_interval":
    what `after` repairs more, "explained": the share of the whole gain that retries reach}; the last only of a gain
    whose
    interval is above 0.
    """
    reachable, first, last = forced(sides.control, sides.after), resolved(sides.before), resolved(sides.after)
    gained, reached = difference(first, last), difference(first, reachable)
    explained = {"explained": reached.value / gained.value} if gained and reached and gained.low > 0 else {}
    return (
        {"calls": cut_at(sides.control, _calls(sides.after))[1]}
        | rate("pass_rate", reachable)
        | _named("beyond", difference(reachable, last))
        | explained
    )


def forced(control: Sequence[Episode], after: Sequence[Episode]) -> Outcomes:
    """Of the control, at as many calls as `after` makes: judged, as there, by the working tree at the end, which is
    what it will be once
    the calls are made that led to it. Of agents that can't be watched by the end of the episode, which is later."""
    cut, _ = cut_at(control, _calls(after))
    made = lambda episode: episode.calls if episode.calls_at_last is None else episode.calls_at_last
    return by_task(control, lambda episode: episode.resolved and made(episode) <= cut)


def _calls(found: Sequence[Episode]) -> float:
    return fmean(episode.calls for episode in found if episode.resolved is not None)


def cut_at(control: Sequence[Episode], wanted: float) -> tuple[int, float]:
    """(number of calls at which every episode is cut, so that their mean is at least `wanted`, that mean)."""
    lengths = [episode.calls for episode in control if episode.resolved is not None]
    mean = lambda cut: fmean(min(length, cut) for length in lengths)
    cut = next((cut for cut in range(1, max(lengths)) if mean(cut) >= wanted), max(lengths))
    return cut, mean(cut)

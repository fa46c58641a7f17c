"""What finished runs learnt, told apart from trying again: from their held-out episodes alone.

    python analysis/skill.py runs/quickstart [RUN ...]

Of each run the policy before and after, and the one before when it is forced to go on and cut where it has made as many
calls as
the one after (evaluation.retry). Intervals are 95%, of paired differences over tasks. Runs of the same name up to
_seedN are
seeds of one thing: their mean has an interval by Student's t, and the pool one over tasks, whose episodes are those of
all seeds.
A dash: not measured. Where no first edit was seen (an agent that is a program, a run of before) forced retries alone
tell skill and persistence apart; without them the two are not separated.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeds import grouped

from coderepairrl.run import skill
from coderepairrl.run.intervals import NOTHING, Interval, mean_difference, percent
from coderepairrl.run.program import program

RATES = {"pass_rate": "repaired", "first_edit": "by the first edit", "greedy": "greedy"}
GAINS = RATES | {"beyond": "more than by retries"}


def interval(numbers: dict, name: str) -> Interval | None:
    return Interval(numbers[name], *numbers[f"{name}_interval"]) if numbers.get(name) is not None else None


def shown(numbers: dict, name: str, form: str) -> str:
    return format(numbers[name], form) if name in numbers else NOTHING


def describe(run: Path, found: dict) -> Table:
    most = max(found["before"]["pass_at_k"], key=int)
    table = Table(
        "policy",
        "repaired",
        "by the first edit",
        "greedy",
        f"pass@{most}",
        "edits",
        "calls",
        "submitted",
        "at a limit",
        title=f"{run}: {found['after']['tasks']} held-out tasks",
        title_justify="left",
    )
    for name in skill.SIDES:
        own = found[name]
        table.add_row(
            name,
            *(percent(interval(own, rate)) for rate in RATES),
            f"{own['pass_at_k'][most]:.1%}" if most in own["pass_at_k"] else NOTHING,
            shown(own, "edits", ".2f"),
            f"{own['calls']:.2f}",
            f"{own['submitted']:.0%}",
            f"{own['at_limit']:.0%}",
        )
    if forced := found.get("retries"):
        table.add_row(
            "before, forced to go on",
            percent(interval(forced, "pass_rate")),
            *[NOTHING] * 4,
            f"{forced['calls']:.2f}",
            NOTHING,
            NOTHING,
        )
    return table


def gains(found: dict) -> dict[str, Interval | None]:
    return {name: interval(found["gain"], name) for name in RATES} | {
        "beyond": interval(found.get("retries", {}), "beyond")
    }


def gained(found: dict) -> str:
    said = "; ".join(f"{label} {percent(gains(found)[name])}" for name, label in GAINS.items() if gains(found)[name])
    explained = found.get("retries", {}).get("explained")
    return (
        f"gain: {said}"
        + (f"; retries explain {explained:.0%} of it" if explained is not None else "")
        + ("" if gains(found)["first_edit"] else f"; {unseparated(found)}")
    )


def unseparated(found: dict) -> str:
    """Of a run whose first edits nobody saw."""
    if gains(found)["beyond"]:
        return "no first edit was seen: persistence is told apart by forced retries alone"
    return "no first edit was seen: persistence not separated"


def over_seeds(name: str, runs: Sequence[Path], found: Sequence[dict]) -> Table:
    table = Table(
        "gain",
        "mean over seeds",
        "pool, over tasks",
        "seeds whose interval is above 0",
        "below 0",
        title_justify="left",
        title=f"{name}: {len(runs)} seeds; mean with 95% by Student's t",
    )
    pooled = pool(runs)
    for key, label in GAINS.items():
        own = [value for one in found if (value := gains(one)[key])]
        if own:
            table.add_row(
                label,
                percent(mean_difference([value.value for value in own])),
                percent(pooled[key]),
                f"{sum(value.low > 0 for value in own)} of {len(own)}",
                f"{sum(value.high < 0 for value in own)} of {len(own)}",
            )
    return table


def pool(runs: Sequence[Path]) -> dict[str, Interval | None]:
    """Of each gain over tasks, each with the episodes of all runs; the control of each run is cut at that run's
    calls."""
    before, after = ({key: defaultdict(list) for key in GAINS} for _ in skill.SIDES)
    for run in runs:
        for key, pair in skill.sides_of(run).pairs().items():
            for side, outcomes in zip((before, after), pair, strict=True):
                for task, own in outcomes.items():
                    side[key][task] += own
    return {key: skill.difference(before[key], after[key]) for key in GAINS}


@program
def main(arguments: list[str]) -> None:
    runs = [Path(name) for name in arguments]
    if not runs:
        sys.exit(__doc__)
    found = {run: skill.of_run(run) for run in runs}
    for run, own in found.items():
        if not own:
            sys.exit(
                f"error: {run}: no held-out task was graded before and after under the same settings: wait for "
                "its end, "
                "or "
                "train with training.evaluate=true"
            )
    curves = grouped(runs)
    console = Console(width=150)
    for run, own in found.items():
        console.print(describe(run, own))
        console.print(gained(own) + "\n")
    for name, members in curves.items():
        if len(members) > 1:
            console.print(over_seeds(name, members, [found[run] for run in members]))


if __name__ == "__main__":
    main(sys.argv[1:])

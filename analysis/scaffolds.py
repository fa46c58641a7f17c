"""Does an agent's loop help, and does what a policy learns under one scaffold help it under another?

    python analysis/scaffolds.py runs/scaffolds [out=scaffolds.png]

Takes every training run and evaluation below the folders (configs/grid/scaffolds.yaml makes them). A cell is a policy
evaluated under a scaffold: held-out
tasks repaired, with a 95% interval over tasks; of several seeds, all episodes of a task together. Differences are
paired: the same tasks, under the same scaffold.
Budget: what each training run has sampled; beside it the training tasks repaired when the run that sampled least was
done.
"""

import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
from curves import COLOURS, STYLE
from figure import TEXT, save
from rich.console import Console
from rich.table import Table

from coderepairrl.config import read_yaml
from coderepairrl.rollout.evaluations import own_names
from coderepairrl.run import intervals, skill
from coderepairrl.run.intervals import NOTHING, Interval, percent
from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program

WARM = "not trained"  # the policy before
LAST = 3  # steps whose mean says what a training run has reached
Tasks = dict[str, list[float]]  # task -> 1 for each of its episodes that repaired it, 0 for the others


@dataclass(frozen=True)
class Training:
    folder: Path
    scaffold: str
    tokens: list[int]  # sampled so far, after each step
    pass_rates: list[float]  # of training tasks, each step; NaN where none was graded

    def at(self, tokens: int) -> float:
        """What it had reached with so many tokens: the mean of the last steps until then. NaN: nothing was graded."""
        known = [(used, rate) for used, rate in zip(self.tokens, self.pass_rates, strict=True) if not math.isnan(rate)]
        done = [rate for used, rate in known if used <= tokens] or [rate for _, rate in known[:1]]
        return fmean(done[-LAST:]) if done else math.nan


@dataclass(frozen=True)
class Found:
    trainings: dict[str, list[Training]]  # scaffold -> its seeds
    # (policy, scaffold) -> its seeds; a policy is what it was trained under, or WARM
    cells: dict[tuple[str, str], list[Tasks]]


def read(folders: list[Path]) -> Found:
    """Raises ValueError when there is nothing, or an evaluation's model is no run that could be read."""
    trainings: dict[str, list[Training]] = defaultdict(list)
    cells: dict[tuple[str, str], list[Tasks]] = defaultdict(list)
    configs = {
        path.parent.resolve(): read_yaml(path) for folder in folders for path in sorted(folder.rglob("config.yaml"))
    }
    trained_under = {
        run: config["rollout"]["scaffold"]["name"] for run, config in configs.items() if "training" in config
    }
    for run, config in configs.items():
        if run in trained_under:
            rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
            tokens = accumulate(row["tokens_sampled"] for row in rows)
            trainings[trained_under[run]].append(
                Training(run, trained_under[run], list(tokens), [row.get("pass_rate", math.nan) for row in rows])
            )
            for name, policy in (("before", WARM), ("after", trained_under[run])):
                if name in own_names(run):
                    cells[policy, trained_under[run]].append(skill.resolved(skill.read(run, name)))
        elif "chunk_tasks" in config and (names := own_names(run)):
            model = Path(config["model"]).resolve()
            if model not in trained_under:
                raise ValueError(
                    f"{run}: its model {config['model']} is no training run below the folders that were given"
                )
            scaffold = config["scaffold"] or config["rollout"]["scaffold"]
            cells[trained_under[model], scaffold if isinstance(scaffold, str) else scaffold["name"]].append(
                {task: found for name in names for task, found in skill.resolved(skill.read(run, name)).items()}
            )
    if not cells:
        raise ValueError(f"{', '.join(map(str, folders))}: no training run or evaluation with results below")
    return Found(dict(trainings), dict(cells))


def together(seeds: list[Tasks]) -> Tasks:
    """The tasks that all seeds have, with the episodes of all."""
    return {
        task: [found for tasks in seeds for found in tasks[task]]
        for task in sorted(set.intersection(*(set(tasks) for tasks in seeds)))
    }


def rate(seeds: list[Tasks]) -> Interval | None:
    return intervals.rate(list(together(seeds).values()))


def difference(one: list[Tasks], other: list[Tasks]) -> Interval | None:
    """one - other, paired: the same tasks."""
    a, b = together(one), together(other)
    both = sorted(a.keys() & b.keys())
    return intervals.paired_difference([b[task] for task in both], [a[task] for task in both])


def names(found: Found) -> tuple[list[str], list[str]]:
    """(policies, scaffolds), in the same order."""
    scaffolds = list(dict.fromkeys([*found.trainings, *(scaffold for _, scaffold in found.cells)]))
    return [WARM, *(name for name in scaffolds if any(policy == name for policy, _ in found.cells))], scaffolds


def tables(found: Found) -> list[Table]:
    policies, scaffolds = names(found)
    rates = Table(
        "policy trained under",
        *(f"evaluated under {name}" for name in scaffolds),
        title="held-out tasks repaired",
        title_justify="left",
    )
    gains = Table(
        "policy trained under",
        *(f"evaluated under {name}" for name in scaffolds),
        title="difference to the policy before, paired",
        title_justify="left",
    )
    for policy in policies:
        cells = [found.cells.get((policy, scaffold)) for scaffold in scaffolds]
        rates.add_row(policy, *(percent(rate(cell)) if cell else "" for cell in cells))
        if policy != WARM:
            before = [found.cells.get((WARM, scaffold)) for scaffold in scaffolds]
            gains.add_row(
                policy,
                *(
                    percent(difference(cell, warm)) if cell and warm else ""
                    for cell, warm in zip(cells, before, strict=True)
                ),
            )
    transfer = Table(
        "evaluated under",
        "trained under it",
        "less: trained under",
        "difference, paired",
        title="what training under the same scaffold is worth",
        title_justify="left",
    )
    for scaffold in scaffolds:
        for other in policies[1:]:
            if other != scaffold and (scaffold, scaffold) in found.cells and (other, scaffold) in found.cells:
                transfer.add_row(
                    scaffold,
                    scaffold,
                    other,
                    percent(difference(found.cells[scaffold, scaffold], found.cells[other, scaffold])),
                )
    return [rates, gains, transfer, budget(found)]


def budget(found: Found) -> Table:
    runs = {name: [run for run in members if run.tokens] for name, members in found.trainings.items()}
    runs = {name: members for name, members in runs.items() if members}
    least = min((run.tokens[-1] for members in runs.values() for run in members), default=0)
    out = Table(
        "trained under",
        "seeds",
        "steps",
        "tokens sampled",
        f"training tasks repaired at {least:,} tokens",
        "at its end",
        title="budget of training",
        title_justify="left",
    )
    for name, members in runs.items():
        out.add_row(
            name,
            str(len(members)),
            str(len(members[0].tokens)),
            f"{fmean(run.tokens[-1] for run in members):,.0f}",
            reached([run.at(least) for run in members]),
            reached([run.at(run.tokens[-1]) for run in members]),
        )
    return out


def reached(rates: list[float]) -> str:
    known = [value for value in rates if not math.isnan(value)]
    return f"{fmean(known):.1%}" if known else NOTHING


def draw(found: Found, path: Path) -> None:
    policies, scaffolds = names(found)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.0), layout="constrained", width_ratios=(1.25, 1))
        width = 0.8 / len(policies)
        for place, policy in enumerate(policies):
            for column, scaffold in enumerate(scaffolds):
                if (seeds := found.cells.get((policy, scaffold))) and (measured := rate(seeds)):
                    mean, low, high = measured
                    left.bar(
                        column + (place - (len(policies) - 1) / 2) * width,
                        mean,
                        0.92 * width,
                        color=TEXT if policy == WARM else COLOURS[scaffolds.index(policy)],
                        alpha=0.45 if policy == WARM else 1.0,
                        yerr=[[mean - low], [high - mean]],
                        error_kw={"lw": 1, "ecolor": "black"},
                        label=(policy if policy == WARM else f"trained under {policy}") if column == 0 else None,
                    )
        left.set_xticks(range(len(scaffolds)), [f"under {name}" for name in scaffolds])
        left.set_title("held-out tasks repaired")
        left.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1.0))
        left.legend(frameon=False, fontsize=8)
        for name, members in found.trainings.items():
            for run in members:
                right.plot(
                    [tokens / 1000 for tokens in run.tokens],
                    run.pass_rates,
                    color=COLOURS[scaffolds.index(name)],
                    lw=1.5,
                    alpha=0.8,
                    label=name if run is members[0] else None,
                )
        right.set_title("training tasks repaired")
        right.set_xlabel("thousand tokens sampled")
        right.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1.0))
        right.legend(frameon=False, fontsize=8)
        save(figure, path)


@program
def main(arguments: list[str]) -> None:
    folders = [Path(argument) for argument in arguments if not argument.startswith("out=")]
    if not folders:
        sys.exit(__doc__)
    path = Path(
        next(
            (argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")),
            folders[0] / "scaffolds.png",
        )
    )
    try:
        found = read(folders)
    except ValueError as error:
        sys.exit(f"error: {error}")
    console = Console(width=150)
    for table in tables(found):
        console.print(table)
    draw(found, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])

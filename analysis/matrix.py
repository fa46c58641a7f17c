"""Does what a policy learns under one condition hold under another? A table of policies and conditions, and a picture.

    python analysis/matrix.py runs/matrix [baseline=base] [measure=resolved] [out=matrix.png]

The folder is a grid's (configs/grid/matrix.yaml). A row is a policy: a point of it, with its seeds; a column is a
condition: an evaluation below the point, by its name after `_under_`, or a benchmark. Environments, scaffolds, thinking
and benchmarks are all conditions. A policy that has a condition's name was trained under it.

    rates         held-out tasks repaired, with the interval of intervals.py; of several seeds all episodes of a task
    gains         over the baseline, paired by task, with 95%: Newcombe's interval over tasks, made wider where the
                  bootstrap over tasks and seeds is
    transfer      the policy that was trained under the condition less one that was trained under another, paired
    Holm          of the p-values of all gains and transfers together: McNemar's exact test, or random signs
    budget        what training has sampled, and what each had reached where the run that sampled least was done

measure: resolved, first_edit (skill without persistence), greedy.
"""

import math
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
from compare import ITSELF, MEASURES, evaluated_below, points
from figure import COLOURS, INK, STYLE, TEXT, save
from rich.console import Console
from rich.table import Table
from seeds import grouped

from coderepairrl.cluster.grid import UNDER
from coderepairrl.run import intervals
from coderepairrl.run.comparison import Comparison, compare, holm, together
from coderepairrl.run.criteria import LEVEL
from coderepairrl.run.intervals import NOTHING, Interval, percent
from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program
from coderepairrl.run.skill import Outcomes

LAST = 3  # steps whose mean says what a training run has reached
OPTIONS = ("baseline", "measure", "out")


@dataclass(frozen=True)
class Matrix:
    """seeds[policy, condition]: outcomes of each seed; policies and conditions in order, the baseline first."""

    policies: list[str]
    conditions: list[str]
    seeds: dict[tuple[str, str], list[Outcomes]]

    @property
    def baseline(self) -> str:
        return self.policies[0]

    def contrasts(self) -> list["Contrast"]:
        """Gains over the baseline, and transfers; each of which both sides were evaluated."""
        wanted = [(policy, self.baseline, condition) for policy in self.policies[1:] for condition in self.conditions]
        wanted += [
            (condition, other, condition)
            for condition in self.conditions
            for other in self.policies[1:]
            if condition in self.policies[1:] and other != condition
        ]
        there = [(a, b, at) for a, b, at in wanted if (a, at) in self.seeds and (b, at) in self.seeds]
        found = [compare(self.seeds[less, at], self.seeds[policy, at]) for policy, less, at in there]
        corrected = holm([one.p for one in found])
        return [Contrast(*names, one, p) for names, one, p in zip(there, found, corrected, strict=True)]


@dataclass(frozen=True)
class Contrast:
    """policy - less, under a condition."""

    policy: str
    less: str
    condition: str
    found: Comparison
    holm: float

    @property
    def interval(self) -> Interval:
        """Newcombe's knows no seeds; the bootstrap has no width where all tasks agree."""
        both = self.found.difference, self.found.bootstrap
        return Interval(both[0].value, min(one.low for one in both), max(one.high for one in both))

    def words(self) -> str:
        return f"{points(self.interval)} p {self.holm:.2g}"


@dataclass(frozen=True)
class Spent:
    """By one training run."""

    tokens: list[int]  # sampled so far, after each step
    pass_rates: list[float]  # of training tasks, each step; NaN where none was graded

    def at(self, tokens: int) -> float:
        """What it had reached with so many tokens: the mean of the last steps until then. NaN: nothing was graded."""
        known = [(used, rate) for used, rate in zip(self.tokens, self.pass_rates, strict=True) if not math.isnan(rate)]
        done = [rate for used, rate in known if used <= tokens] or [rate for _, rate in known[:1]]
        return fmean(done[-LAST:]) if done else math.nan


def policies_of(folder: Path) -> dict[str, list[Path]]:
    """Name -> its seeds' folders. Exits where the folder has no point."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("**/rollouts")))
    if not found:
        sys.exit(f"error: {folder}: no run or evaluation below: give the folder of a grid, runs/NAME")
    return grouped(found)


def read(policies: dict[str, list[Path]], baseline: str, measure: str) -> Matrix:
    """Exits where there is nothing to compare with."""
    if baseline not in policies:
        sys.exit(f"error: there is no policy {baseline}: give baseline=, one of {', '.join(policies)}")
    seeds: dict[tuple[str, str], list[Outcomes]] = {}
    for policy, folders in policies.items():
        for folder in folders:
            for name, outcomes in evaluated_below(folder, measure).items():
                if name != ITSELF:
                    seeds.setdefault((policy, name.rpartition(UNDER)[2]), []).append(outcomes)
    conditions = list(dict.fromkeys(condition for _, condition in seeds))
    if not conditions:
        sys.exit(f"error: no policy has an evaluation with {measure}: let the grid's evaluations end first")
    return Matrix([baseline, *(name for name in policies if name != baseline)], conditions, seeds)


def spent(folders: list[Path]) -> list[Spent]:
    logs = [read_metrics(folder / "metrics.jsonl") for folder in folders if (folder / "metrics.jsonl").exists()]
    return [
        Spent(list(accumulate(row["tokens_sampled"] for row in rows)), [row.get("pass_rate", math.nan) for row in rows])
        for rows in logs
        if rows
    ]


def tables(matrix: Matrix, contrasts: list[Contrast], title: str) -> list[Table]:
    columns = [f"under {condition}" for condition in matrix.conditions]
    rates = Table("policy", *columns, title=title, title_justify="left")
    for policy in matrix.policies:
        cells = [matrix.seeds.get((policy, condition)) for condition in matrix.conditions]
        rates.add_row(policy, *(percent(rate(cell)) if cell else "" for cell in cells))
    gains = Table("policy", *columns, title=f"gain over {matrix.baseline}, paired, Holm's p", title_justify="left")
    known = {(one.policy, one.condition): one for one in contrasts if one.less == matrix.baseline}
    for policy in matrix.policies[1:]:
        cells = [known.get((policy, condition)) for condition in matrix.conditions]
        gains.add_row(policy, *(cell.words() if cell else "" for cell in cells))
    transfer = Table("under", "trained under it", "less: trained under", "difference, paired, Holm's p")
    transfer.title, transfer.title_justify = "what training under the same condition is worth", "left"
    for one in contrasts:
        if one.less != matrix.baseline:
            transfer.add_row(one.condition, one.policy, one.less, one.words())
    return [rates, gains, *([transfer] if transfer.row_count else [])]


def rate(seeds: list[Outcomes]) -> Interval | None:
    """Over the tasks that all seeds have."""
    return intervals.rate(together(seeds, sorted(set.intersection(*(set(seed) for seed in seeds)))))


def budget(runs: dict[str, list[Spent]]) -> Table | None:
    """None where nothing was trained."""
    runs = {policy: members for policy, members in runs.items() if members}
    if not runs:
        return None
    least = min(run.tokens[-1] for members in runs.values() for run in members)
    out = Table("policy", "seeds", "steps", "tokens sampled", f"training tasks repaired at {least:,} tokens")
    out.add_column("at its end")
    out.title, out.title_justify = "budget of training", "left"
    for policy, members in runs.items():
        mean = f"{fmean(run.tokens[-1] for run in members):,.0f}"
        reached = [said([run.at(least) for run in members]), said([run.at(run.tokens[-1]) for run in members])]
        out.add_row(policy, str(len(members)), str(len(members[0].tokens)), mean, *reached)
    return out


def said(rates: list[float]) -> str:
    known = [value for value in rates if not math.isnan(value)]
    return f"{fmean(known):.1%}" if known else NOTHING


def colour(matrix: Matrix, policy: str) -> str:
    return TEXT if policy == matrix.baseline else COLOURS[(matrix.policies.index(policy) - 1) % len(COLOURS)]


def draw(matrix: Matrix, contrasts: list[Contrast], title: str, path: Path) -> None:
    gains = [one for one in contrasts if one.less == matrix.baseline]
    with plt.rc_context(STYLE):
        height = max(3.4, 1.4 + 0.34 * len(gains))
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, height), layout="constrained")
        draw_rates(matrix, left, title)
        draw_gains(matrix, gains, right)
        figure.legend(loc="outside lower left", ncols=6, frameon=False, fontsize=8, title="policy", title_fontsize=8)
        save(figure, path)


def draw_rates(matrix: Matrix, axes, title: str) -> None:
    width = 0.8 / len(matrix.policies)
    for place, policy in enumerate(matrix.policies):
        label = policy
        for column, condition in enumerate(matrix.conditions):
            if (seeds := matrix.seeds.get((policy, condition))) and (measured := rate(seeds)):
                mean, low, high = measured
                at = column + (place - (len(matrix.policies) - 1) / 2) * width
                axes.bar(at, mean, 0.92 * width, color=colour(matrix, policy), label=label)
                axes.errorbar(at, mean, [[mean - low], [high - mean]], ecolor="black", lw=1)
                label = None
    axes.set_xticks(range(len(matrix.conditions)), [f"under {name}" for name in matrix.conditions])
    axes.set_title(title)
    axes.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1.0))


def draw_gains(matrix: Matrix, gains: list[Contrast], axes) -> None:
    ordered = sorted(gains, key=lambda one: matrix.conditions.index(one.condition))
    for place, one in enumerate(reversed(ordered)):
        value, low, high = (100 * number for number in one.interval)
        shade = colour(matrix, one.policy)
        axes.plot([low, high], [place, place], color=shade, lw=2, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=shade, ms=6, mfc=shade if one.holm < LEVEL else "white")
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(ordered)), [f"{one.policy}, under {one.condition}" for one in reversed(ordered)])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel("points, 95%; filled: p < 0.05 after Holm")
    axes.set_title(f"gain over {matrix.baseline}")


@program
def main(arguments: list[str]) -> None:
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    folders = [Path(word) for word in arguments if "=" not in word]
    if unknown := set(options) - set(OPTIONS):
        sys.exit(f"error: {', '.join(sorted(unknown))}=: only {'=, '.join(OPTIONS)}= can be said")
    if len(folders) != 1:
        sys.exit(__doc__)
    if not folders[0].is_dir():
        sys.exit(f"error: {folders[0]}: no folder")
    measure = options.get("measure", "resolved")
    if measure not in MEASURES:
        sys.exit(f"error: measure={measure}: known are {', '.join(MEASURES)}")
    policies = policies_of(folders[0])
    matrix = read(policies, options.get("baseline", "base"), measure)
    contrasts = matrix.contrasts()
    title = f"held-out tasks: {MEASURES[measure].title}"
    found = [*tables(matrix, contrasts, title), budget({name: spent(own) for name, own in policies.items()})]
    console = Console(width=150)
    for table in found:
        if table is not None:
            console.print(table)
    path = Path(options.get("out", folders[0] / "matrix.png"))
    draw(matrix, contrasts, title, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])

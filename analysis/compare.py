"""Is one policy better than another, on each benchmark? Rates, paired differences, tests, a picture.

    python analysis/compare.py BASELINE OTHER [OTHER ...] [criteria=configs/criteria/thesis.yaml] [out=compare.png]

A policy is an evaluation's folder, or one with an evaluation a benchmark below it (configs/grid/generalisation.yaml
makes them), whose names are the benchmarks'; a training run is its evaluation after training. Folders of the same name
up to _seedN are seeds of one policy. Each other policy is compared with the first, over the tasks that both were graded
on; all of the seeds' episodes of a task together.

    difference   95% interval of paired tasks (Newcombe)
    bootstrap    95% percentiles over tasks, and over seeds where there are several
    p, Holm      McNemar's exact test, or random signs where a task has several episodes; corrected for all that is
                 compared here

Criteria, written before the run (coderepairrl/run/criteria.py), get a verdict each; a missed one also says how likely
so many tasks would have shown such a gain. Exits with 1 when one is missed.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from figure import COLOURS, INK, STYLE, save
from rich.console import Console
from rich.table import Table
from seeds import grouped

from coderepairrl.rollout.evaluations import own_names
from coderepairrl.run import criteria, skill
from coderepairrl.run.comparison import Comparison, compare, holm
from coderepairrl.run.intervals import NOTHING, percent
from coderepairrl.run.program import program
from coderepairrl.run.skill import Outcomes

ITSELF = "held-out tasks"  # of a folder that is itself an evaluation or a training run


class Row(NamedTuple):
    policy: str
    benchmark: str
    found: Comparison
    holm: float


class Measure(NamedTuple):
    """What is compared of an evaluation's episodes."""

    title: str
    suffix: str  # of the evaluation's file
    outcomes: Callable[[Sequence[skill.Episode]], Outcomes]


MEASURES = {
    "resolved": Measure("repaired", "", skill.resolved),
    "first_edit": Measure("repaired by the first edit", "", skill.first_edits),
    "greedy": Measure("repaired, decoded greedily", "_greedy", skill.resolved),
}


def outcomes_of(folder: Path, measure: str) -> Outcomes:
    """Of a training run the evaluation after it, of an evaluation all of its chunks."""
    names = ["after"] if (folder / "metrics.jsonl").exists() else own_names(folder)
    _, suffix, outcomes = MEASURES[measure]
    return {task: own for name in names for task, own in outcomes(skill.read(folder, name + suffix)).items()}


def evaluated_below(folder: Path, measure: str) -> dict[str, Outcomes]:
    """Benchmark -> outcomes, less those of which nothing is known."""
    runs = [path.parent for path in sorted(folder.rglob("rollouts"))]
    names = [run.relative_to(folder).as_posix() if run != folder else ITSELF for run in runs]
    own = {name: outcomes_of(run, measure) for name, run in zip(names, runs, strict=True)}
    return {name: outcomes for name, outcomes in own.items() if outcomes}


def benchmarks_of(folder: Path) -> dict[str, Outcomes]:
    """Benchmark -> outcomes. Exits where nothing was evaluated."""
    found = evaluated_below(folder, "resolved")
    if not found:
        sys.exit(f"error: {folder}: no evaluation with graded episodes below: run scripts/evaluate.py first")
    return found


def rows_of(policies: dict[str, list[Path]]) -> list[Row]:
    read = {name: [benchmarks_of(folder) for folder in folders] for name, folders in policies.items()}
    baseline, *others = read
    pairs = []
    for other in others:
        everywhere = set.intersection(*(set(seed) for seed in (*read[baseline], *read[other])))
        for benchmark in sorted(everywhere):
            sides = [[seed[benchmark] for seed in read[name]] for name in (baseline, other)]
            pairs.append((other, benchmark, compare(*sides)))
    if not pairs:
        sys.exit(f"error: {', '.join(read)} have no benchmark in common: evaluate them on the same")
    corrected = holm([found.p for _, _, found in pairs])
    return [Row(*pair, p) for pair, p in zip(pairs, corrected, strict=True)]


def table_of(rows: list[Row], baseline: str) -> Table:
    table = Table(
        "policy",
        "benchmark",
        "tasks",
        baseline,
        "itself",
        "difference",
        "bootstrap",
        "won, lost",
        "p",
        "Holm",
        title=f"against {baseline}, 95% intervals",
        title_justify="left",
    )
    for policy, benchmark, found, corrected in rows:
        table.add_row(
            policy,
            benchmark,
            str(found.tasks),
            percent(found.one),
            percent(found.other),
            points(found.difference),
            points(found.bootstrap),
            f"{found.won}, {found.lost}",
            f"{found.p:.2g}",
            f"{corrected:.2g}",
        )
    return table


def points(interval) -> str:
    value, low, high = (100 * number for number in interval)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def verdicts_of(rows: list[Row], wanted: criteria.Criteria) -> tuple[Table, bool]:
    """(table, whether all are met)"""
    table = Table(
        "criterion", "policy", "asked for", "found", "verdict", "power", title=wanted.name, title_justify="left"
    )
    met = True
    for name, criterion in wanted.criteria.items():
        fitting = [row for row in rows if row.benchmark == criterion.benchmark]
        asked = f"{criterion.benchmark}: {criterion.words()}"
        if not fitting:
            table.add_row(name, NOTHING, asked, "not evaluated", "missed", NOTHING)
            met = False
        for row in fitting:
            verdict = criterion.verdict(row.found, row.holm)
            met &= verdict.met
            chance = f"{verdict.power:.0%}" if verdict.power is not None else NOTHING
            table.add_row(name, row.policy, asked, points(row.found.difference), verdict.words, chance)
    return table, met


def draw(rows: list[Row], baseline: str, path: Path) -> None:
    policies = list(dict.fromkeys(row.policy for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.42 * len(rows)), layout="constrained")
        for place, row in enumerate(reversed(rows)):
            value, low, high = (100 * number for number in row.found.difference)
            colour = COLOURS[policies.index(row.policy) % len(COLOURS)]
            axes.plot([low, high], [place, place], color=colour, lw=2, solid_capstyle="butt")
            axes.plot([value], [place], "o", color=colour, ms=6, mfc=colour if row.holm <= criteria.LEVEL else "white")
        axes.axvline(0, color=INK, lw=0.8)
        names = [f"{row.benchmark} ({row.found.tasks})" for row in reversed(rows)]
        several = [f"{row.policy}: " if len(policies) > 1 else "" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), [policy + name for policy, name in zip(several, names, strict=True)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("percentage points, paired, 95% interval; filled: p < 0.05 after Holm")
        axes.set_title(f"{', '.join(policies)} against {baseline}")
        save(figure, path)


@program
def main(arguments: list[str]) -> None:
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    folders = [Path(word) for word in arguments if "=" not in word]
    if unknown := set(options) - {"criteria", "out"}:
        sys.exit(f"error: {', '.join(sorted(unknown))}=: only criteria= and out= can be said")
    if len(folders) < 2:
        sys.exit(__doc__)
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"error: {folder}: no folder")
    policies = grouped(folders)
    if len(policies) < 2:
        sys.exit(f"error: all folders are seeds of {next(iter(policies))}: give those of another policy, too")
    baseline, rows = next(iter(policies)), rows_of(policies)
    console, met = Console(width=150), True
    console.print(table_of(rows, baseline))
    if "criteria" in options:
        table, met = verdicts_of(rows, criteria.read(Path(options["criteria"])))
        console.print(table)
        for line in criteria.registrations(Path(options["criteria"]), folders):
            print(line)
    if "out" in options:
        draw(rows, baseline, Path(options["out"]))
    sys.exit(not met)


if __name__ == "__main__":
    main(sys.argv[1:])

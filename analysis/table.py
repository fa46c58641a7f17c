"""Prints what finished runs showed, and the mean gain over seeds.

    python analysis/table.py runs/quickstart [RUN ...]

Runs of the same name up to _seedN are seeds of one thing; intervals are 95%: of one run over its tasks, over seeds by
Student's t.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeds import grouped

from coderepairrl.files import read_json
from coderepairrl.run.intervals import NOTHING, Interval, mean_difference, mean_rate, percent
from coderepairrl.run.program import program


def of_run(summary: dict, name: str) -> Interval | None:
    return (
        Interval(summary[f"pass_rate_{name}"], *summary[f"pass_rate_{name}_interval"])
        if f"pass_rate_{name}" in summary
        else None
    )


def of_skill(found: dict) -> list[tuple[str, str]]:
    """What of the gain is skill, what persistence (coderepairrl/run/skill.py)."""
    if not found:  # a run of before
        return []
    before, after, gain = found["before"], found["after"], found["gain"]
    rows = [
        (label, f"{before[name]:.1%} -> {after[name]:.1%}   {percent(Interval(gain[name], *gain[f'{name}_interval']))}")
        for name, label in (("first_edit", "  by the first edit"), ("greedy", "  greedy"))
        if name in gain
    ]
    if forced := found.get("retries"):
        beyond = f"   beyond it {percent(Interval(forced['beyond'], *forced['beyond_interval']))}"
        rows.append(("  before, forced to go on", f"{forced['pass_rate']:.1%} at {forced['calls']:.1f} calls{beyond}"))
    change = lambda name, form: f"{before[name]:{form}} -> {after[name]:{form}}"
    edits = f", edits {change('edits', '.1f')}" if "edits" in before and "edits" in after else ""
    return [
        *rows,
        ("  calls an episode", change("calls", ".1f") + edits),
        ("  submitted, at a limit", f"{change('submitted', '.0%')}, {change('at_limit', '.0%')}"),
    ]


def describe(run: Path, summary: dict) -> Table:
    table = Table(title=str(run), title_justify="left", show_header=False)
    if "heldout_tasks" in summary:
        table.add_row("held-out tasks", str(summary["heldout_tasks"]))
        for name, label in (
            ("before", "repaired before"),
            ("after", "repaired after"),
            ("difference", "difference, paired"),
        ):
            table.add_row(label, percent(of_run(summary, name)))
        for row in of_skill(summary.get("skill", {})):
            table.add_row(*row)
    elif "not_compared" in summary:
        table.add_row("held-out tasks", f"not compared: {summary['not_compared']}")
    beside = [
        row
        for row in summary.get("evaluations", ())
        if row["name"] not in ("before", "after") and row.get("pass_rate") is not None
    ]
    if beside:
        table.add_row(
            "repaired beside training", "   ".join(f"step {row['step']}: {row['pass_rate']:.1%}" for row in beside)
        )
    if best := summary.get("best_checkpoint"):
        table.add_row("best checkpoint", f"{best['path']}  {best['pass_rate']:.1%}")
    table.add_row(
        "steps, episodes, weight updates", f"{summary['steps']}, {summary['episodes']}, {summary['weight_updates']}"
    )
    table.add_row(
        "largest |logprob trainer - vLLM|",
        f"{summary['max_logprob_gap']:.1e}" if "max_logprob_gap" in summary else NOTHING,
    )
    table.add_row("tokens sampled, trained", f"{summary['tokens_sampled']:,}, {summary['tokens_trained']:,}")
    table.add_row("infrastructure errors", str(summary["infrastructure_errors"]))
    table.add_row("seconds by stage", ", ".join(f"{name} {value:.0f}" for name, value in summary["wall_s"].items()))
    return table


def over_seeds(curves: dict[str, list[dict]]) -> Table:
    """Held-out tasks repaired, a row a curve: the mean over its seeds and its 95% interval; equal seeds have none."""
    table = Table(
        "run",
        "seeds",
        "repaired before",
        "repaired after",
        "difference",
        title="mean over seeds, 95% interval by Student's t",
        title_justify="left",
    )
    for name, summaries in curves.items():
        cells = [
            percent(over([summary[f"pass_rate_{key}"] for summary in summaries]))
            for key, over in (("before", mean_rate), ("after", mean_rate), ("difference", mean_difference))
        ]
        table.add_row(name, str(len(summaries)), *cells)
    return table


@program
def main(arguments: list[str]) -> None:
    runs = [Path(name) for name in arguments]
    if not runs:
        sys.exit(__doc__)
    summaries = {run: read_json(run / "summary.json") for run in runs}
    for run, summary in summaries.items():
        if summary is None:
            sys.exit(f"error: {run}: no summary.json: the run is not finished, start it again")
    curves = grouped(runs)
    console = Console(width=110)
    for run, summary in summaries.items():
        console.print(describe(run, summary))
    evaluated = {
        name: [summaries[run] for run in members]
        for name, members in curves.items()
        if all("pass_rate_difference" in summaries[run] for run in members)
    }
    if evaluated and any(len(members) > 1 for members in curves.values()):
        console.print(over_seeds(evaluated))


if __name__ == "__main__":
    main(sys.argv[1:])

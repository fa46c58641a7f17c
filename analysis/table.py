"""Prints what finished runs showed, and their mean gain.

    python analysis/table.py runs/quickstart [RUN ...]
"""
import sys
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from coderepairrl.policy import read_json


def percent(value: float, interval: list[float]) -> str:
    return f"{value:.1%}  [{interval[0]:.1%}, {interval[1]:.1%}]"


def describe(run: Path, summary: dict) -> Table:
    table = Table(title=str(run), title_justify="left", show_header=False)
    if "heldout_tasks" in summary:
        table.add_row("held-out tasks", str(summary["heldout_tasks"]))
        for name, label in (("before", "repaired before"), ("after", "repaired after"), ("difference", "difference, paired")):
            table.add_row(label, percent(summary[f"pass_rate_{name}"], summary[f"pass_rate_{name}_interval"]))
    table.add_row("steps, episodes, weight updates", f"{summary['steps']}, {summary['episodes']}, {summary['weight_updates']}")
    table.add_row("largest |logprob trainer - vLLM|", f"{summary['max_logprob_gap']:.1e}")
    table.add_row("tokens sampled, trained", f"{summary['tokens_sampled']:,}, {summary['tokens_trained']:,}")
    table.add_row("infrastructure errors", str(summary["infrastructure_errors"]))
    table.add_row("seconds by stage", ", ".join(f"{name} {value:.0f}" for name, value in summary["wall_s"].items()))
    return table


def main() -> None:
    runs = [Path(name) for name in sys.argv[1:]]
    if not runs:
        sys.exit(__doc__)
    for run in runs:
        summary = read_json(run / "summary.json")
        if summary is None:
            sys.exit(f"error: {run}: no summary.json: the run is not finished, start it again")
        Console(width=110).print(describe(run, summary))
    if len(runs) > 1:
        gains = [read_json(run / "summary.json")["pass_rate_difference"] for run in runs]
        print(f"mean gain over {len(runs)} runs: {fmean(gains):.1%} (standard deviation {stdev(gains):.1%})")


if __name__ == "__main__":
    main()

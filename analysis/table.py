"""Prints what finished runs showed, and the mean gain over seeds.

    python analysis/table.py runs/quickstart [RUN ...]

Runs of the same name up to _seedN are seeds of one thing; intervals are 95%: of one run over its tasks, over seeds by Student's t.
"""
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeds import curves_of, differences, interval

from coderepairrl.files import read_json
from coderepairrl.summary import DIFFERENCE, RATE, clipped


def percent(value: float, interval: list[float]) -> str:
    return f"{value:.1%}  [{interval[0]:.1%}, {interval[1]:.1%}]"


def describe(run: Path, summary: dict) -> Table:
    table = Table(title=str(run), title_justify="left", show_header=False)
    if "heldout_tasks" in summary:
        table.add_row("held-out tasks", str(summary["heldout_tasks"]))
        for name, label in (("before", "repaired before"), ("after", "repaired after"), ("difference", "difference, paired")):
            table.add_row(label, percent(summary[f"pass_rate_{name}"], summary[f"pass_rate_{name}_interval"]))
    beside = [row for row in summary.get("evaluations", ()) if row["name"] not in ("before", "after") and row["pass_rate"] is not None]
    if beside:
        table.add_row("repaired beside training", "   ".join(f"step {row['step']}: {row['pass_rate']:.1%}" for row in beside))
    if best := summary.get("best_checkpoint"):
        table.add_row("best checkpoint", f"{best['path']}  {best['pass_rate']:.1%}")
    table.add_row("steps, episodes, weight updates", f"{summary['steps']}, {summary['episodes']}, {summary['weight_updates']}")
    table.add_row("largest |logprob trainer - vLLM|", f"{summary['max_logprob_gap']:.1e}")
    table.add_row("tokens sampled, trained", f"{summary['tokens_sampled']:,}, {summary['tokens_trained']:,}")
    table.add_row("infrastructure errors", str(summary["infrastructure_errors"]))
    table.add_row("seconds by stage", ", ".join(f"{name} {value:.0f}" for name, value in summary["wall_s"].items()))
    return table


def over_seeds(curves: dict[str, list[dict]]) -> Table:
    """Held-out tasks repaired, a row a curve: the mean over its seeds and its 95% interval."""
    table = Table("run", "seeds", "repaired before", "repaired after", "difference", title="mean over seeds, 95% interval by Student's t", title_justify="left")
    for name, summaries in curves.items():
        cells = []
        for key, possible in (("before", RATE), ("after", RATE), ("difference", DIFFERENCE)):
            mean, half = interval([summary[f"pass_rate_{key}"] for summary in summaries])
            cells.append(f"{mean:.1%}" if math.isnan(half) else percent(mean, clipped(mean, half, possible)))
        table.add_row(name, str(len(summaries)), *cells)
    return table


def main(arguments: list[str]) -> None:
    runs = [Path(name) for name in arguments]
    if not runs:
        sys.exit(__doc__)
    summaries = {run: read_json(run / "summary.json") for run in runs}
    for run, summary in summaries.items():
        if summary is None:
            sys.exit(f"error: {run}: no summary.json: the run is not finished, start it again")
    try:
        curves = curves_of(runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    console = Console(width=110)
    for run, summary in summaries.items():
        console.print(describe(run, summary))
    for name, members in curves.items():
        if found := differences(members):
            print(f"warning: the runs of {name} differ by more than the seed: {'; '.join(found)}", file=sys.stderr)
    evaluated = {name: [summaries[run] for run in members] for name, members in curves.items() if all("heldout_tasks" in summaries[run] for run in members)}
    if evaluated and any(len(members) > 1 for members in curves.values()):
        console.print(over_seeds(evaluated))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Draws a run: pass rate, loss, entropy, gradient norm, gap between trainer and vLLM, outcomes, and where the time went.

    python analysis/curves.py runs/quickstart        -> runs/quickstart/curves.png
"""
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first

from coderepairrl.policy import read_json  # noqa: E402

INK, ACCENT, SOFT = "#20303c", "#c8553d", "#8aa1ad"
OUTCOMES = ("submitted", "turn_limit", "token_limit", "time_limit", "agent_error", "infrastructure_error")


def line(axis, steps: list[int], values: list[float], title: str, logarithmic: bool = False) -> None:
    axis.plot(steps, values, color=INK, linewidth=1.6)
    axis.set_title(title, loc="left", fontsize=10)
    if logarithmic and any(v > 0 for v in values):
        axis.set_yscale("log")


def pass_rate(axis, steps: list[int], rows: list[dict], summary: dict | None) -> None:
    """Training groups a step, and the held-out tasks before and after with their 95% intervals."""
    axis.plot(steps, [row["pass_rate"] for row in rows], color=SOFT, linewidth=1.2, label="training tasks, each step")
    if summary and "pass_rate_before" in summary:
        for name, x in (("before", steps[0] - 1), ("after", steps[-1] + 1)):
            value, (low, high) = summary[f"pass_rate_{name}"], summary[f"pass_rate_{name}_interval"]
            axis.errorbar([x], [value], yerr=[[value - low], [high - value]], color=ACCENT, marker="o", capsize=4, linewidth=1.6,
                          label=f"{summary['heldout_tasks']} held-out tasks" if name == "before" else None)
            axis.annotate(f"{value:.0%}", (x, high), textcoords="offset points", xytext=(0, 4), ha="center", color=ACCENT)
    axis.set_ylim(bottom=0)
    axis.set_title("tasks repaired", loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False)


def outcomes(axis, steps: list[int], rows: list[dict]) -> None:
    shown = [name for name in OUTCOMES if any(row.get(f"outcome/{name}") for row in rows)]
    axis.stackplot(steps, [[row.get(f"outcome/{name}", 0) for row in rows] for name in shown], labels=shown, alpha=0.85)
    axis.set_title("how episodes ended", loc="left", fontsize=10)
    axis.legend(fontsize=7, frameon=False, loc="lower left")


def seconds(axis, steps: list[int], rows: list[dict]) -> None:
    parts = {"rollout": "rollout_s", "training": "train_s", "weight update": "update_s"}
    axis.stackplot(steps, [[row[key] for row in rows] for key in parts.values()], labels=list(parts), colors=[SOFT, INK, ACCENT], alpha=0.9)
    axis.set_title("seconds of a step", loc="left", fontsize=10)
    axis.legend(fontsize=7, frameon=False)


def draw(run: Path) -> Path:
    rows = {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    steps, rows = sorted(rows), [rows[step] for step in sorted(rows)]
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    pass_rate(axes[0, 0], steps, rows, read_json(run / "summary.json"))
    line(axes[0, 1], steps, [row["entropy"] for row in rows], "entropy of sampled tokens (nats)")
    line(axes[0, 2], steps, [row["gradient_norm"] for row in rows], "gradient norm")
    line(axes[0, 3], steps, [row["logprob_gap"] for row in rows], "largest |logprob trainer - vLLM|", logarithmic=True)
    line(axes[1, 0], steps, [row["calls_per_episode"] for row in rows], "model calls an episode")
    outcomes(axes[1, 1], steps, rows)
    line(axes[1, 2], steps, [row["loss"] for row in rows], "loss")
    seconds(axes[1, 3], steps, rows)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step", fontsize=9)
    figure.suptitle(str(run.name), fontsize=12, x=0.01, ha="left")
    path = run / "curves.png"
    figure.savefig(run / "curves.tmp.png", dpi=110)
    plt.close(figure)
    (run / "curves.tmp.png").rename(path)
    return path


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
        sys.exit(__doc__ + "\nerror: give the folder of a run that has a metrics.jsonl")
    print(draw(Path(sys.argv[1])))


if __name__ == "__main__":
    main()

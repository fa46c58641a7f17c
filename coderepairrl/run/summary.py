"""summary.json of a finished run, from its files alone."""

from collections import defaultdict
from pathlib import Path

from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.evaluations import finished
from coderepairrl.run import skill
from coderepairrl.run.metrics import read_metrics


def _compared(found: dict) -> dict:
    """The headline beside the whole."""
    sides = {"before": found["before"], "after": found["after"], "difference": found["gain"]}
    rates = {
        f"pass_rate_{name}{kind}": side[f"pass_rate{kind}"]
        for name, side in sides.items()
        for kind in ("", "_interval")
    }
    return {"heldout_tasks": found["after"]["tasks"], "skill": found} | rates


def write_summary(run: Path) -> dict:
    """What could not be measured is not in it."""
    metrics = read_metrics(run / "metrics.jsonl")
    rows = list(ledger.rows(run / "ledger.jsonl"))
    by_event = defaultdict(list)
    for row in rows:
        by_event[row["event"]].append(row)
    masked = defaultdict(int)
    for row in by_event["trained"]:
        for reason, tokens in row["masked"].items():
            masked[reason] += tokens
    dropped = defaultdict(
        int, evaluation=0, infrastructure_error=sum(row["tokens"] for row in by_event["infrastructure_error"])
    )
    for row in by_event["dropped"]:
        dropped[row["reason"]] += row["tokens"]
    seconds = {"rollout": "rollout_s", "train": "train_s", "update": "update_s", "all_steps": "step_s"}
    summary = {
        "steps": len(metrics),
        "episodes": sum(len(row["outcomes"]) for row in by_event["finished"]),
        "weight_updates": len(metrics) - metrics[-1]["failed_updates"] if metrics else 0,
        "infrastructure_errors": len(by_event["infrastructure_error"]),
        "tokens_sampled": sum(row["sampled"] for row in by_event["finished"])
        + sum(row["tokens"] for row in by_event["infrastructure_error"]),
        "tokens_trained": sum(row["trained"] for row in by_event["trained"]),
        "tokens_masked": dict(masked),
        "tokens_dropped": dict(dropped),
        "wall_s": {name: round(sum(row[key] for row in metrics), 1) for name, key in seconds.items()},
    }
    gaps = [row["logprob_gap"] for row in (*metrics, read_json(run / "final_gap.json") or {}) if "logprob_gap" in row]
    summary |= {"max_logprob_gap": max(gaps)} if gaps else {}
    before_file, after_file = (run / "rollouts" / f"eval_{name}.parquet" for name in ("before", "after"))
    both = before_file.exists() and after_file.exists()
    if both and not skill.comparable(run):
        summary["not_compared"] = "tasks, limits, scaffold or evaluation were changed between before and after"
    elif both:
        summary |= _compared(found) if (found := skill.of_run(run)) else {}
        summary["wall_s"] |= {
            f"evaluate_{path.stem[5:]}": round(trajectory_files.read(path)[1]["seconds"], 1)
            for path in (before_file, after_file)
        }
    if evaluations := finished(run):
        summary["evaluations"] = evaluations
        summary["best_checkpoint"] = read_json(run / "checkpoints" / "best.json")
    stages = read_json(run / "stages.json")
    summary["wall_s"] |= stages or {}
    write_json(run / "summary.json", summary)
    return summary

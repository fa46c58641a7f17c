"""summary.json of a finished run, from its files alone."""
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from coderepairrl import ledger, store
from coderepairrl.evaluations import finished
from coderepairrl.files import read_json, write_json
from coderepairrl.metrics import read_metrics
from coderepairrl.types import Trajectory

RATE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # what a pass rate, and the difference of two, can be


def mean_interval(values: list[float], possible: tuple[float, float]) -> tuple[float, list[float]]:
    """(mean, its 95% interval by the normal approximation over tasks, less what isn't possible: of one value that is all)."""
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    mean = fmean(values)
    return mean, clipped(mean, half, possible)


def clipped(mean: float, half: float, possible: tuple[float, float]) -> list[float]:
    """[low, high] of mean +- half, within what is possible."""
    return [max(possible[0], mean - half), min(possible[1], mean + half)]


def pass_by_task(path: Path) -> dict[str, float]:
    """Task id -> share of its episodes that resolved it. Episodes on a broken machine are not counted."""
    return {task: fmean(values) for task, values in outcomes_by_task(store.read(path)[0]).items()}


def outcomes_by_task(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    """Task id -> 1.0 for each of its episodes that resolved it, 0.0 for the others. Episodes on a broken machine are not counted."""
    resolved: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.verdict is not None:
            resolved[trajectory.task_id].append(float(trajectory.verdict.resolved))
    return dict(resolved)


def evaluation_numbers(trajectories: Sequence[Trajectory]) -> dict:
    """stats["evaluation"] of an evaluation's file (evaluations.py) but for the step."""
    rates = [fmean(values) for values in outcomes_by_task(trajectories).values()]
    mean, interval = mean_interval(rates, RATE) if rates else (None, None)
    versions = sorted({version for t in trajectories for call in t.calls for version in call.policy_versions})
    return {"versions": versions, "tasks": len(rates), "pass_rate": mean, "pass_rate_interval": interval}


def write_summary(run: Path) -> dict:
    metrics = read_metrics(run / "metrics.jsonl")
    rows = list(ledger.rows(run / "ledger.jsonl"))
    by_event = defaultdict(list)
    for row in rows:
        by_event[row["event"]].append(row)
    masked = defaultdict(int)
    for row in by_event["trained"]:
        for reason, tokens in row["masked"].items():
            masked[reason] += tokens
    dropped = defaultdict(int, evaluation=0, infrastructure_error=sum(row["tokens"] for row in by_event["infrastructure_error"]))
    for row in by_event["dropped"]:
        dropped[row["reason"]] += row["tokens"]
    seconds = {"rollout": "rollout_s", "train": "train_s", "update": "update_s", "all_steps": "step_s"}
    summary = {
        "steps": len(metrics), "episodes": sum(len(row["outcomes"]) for row in by_event["finished"]),
        "weight_updates": len(metrics) - metrics[-1]["failed_updates"] if metrics else 0,
        "max_logprob_gap": max([row["logprob_gap"] for row in metrics] + [(read_json(run / "final_gap.json") or {}).get("logprob_gap", 0.0)]),
        "infrastructure_errors": len(by_event["infrastructure_error"]),
        "tokens_sampled": sum(row["sampled"] for row in by_event["finished"]) + sum(row["tokens"] for row in by_event["infrastructure_error"]),
        "tokens_trained": sum(row["trained"] for row in by_event["trained"]), "tokens_masked": dict(masked),
        "tokens_dropped": dict(dropped),
        "wall_s": {name: round(sum(row[key] for row in metrics), 1) for name, key in seconds.items()}}
    before_file, after_file = (run / "rollouts" / f"eval_{name}.parquet" for name in ("before", "after"))
    before, after = (pass_by_task(file) if file.exists() else {} for file in (before_file, after_file))
    if both := sorted(before.keys() & after.keys()):
        summary["heldout_tasks"] = len(both)
        for name, values, possible in (("before", [before[t] for t in both], RATE), ("after", [after[t] for t in both], RATE),
                                       ("difference", [after[t] - before[t] for t in both], DIFFERENCE)):
            summary[f"pass_rate_{name}"], summary[f"pass_rate_{name}_interval"] = mean_interval(values, possible)
        summary["wall_s"] |= {f"evaluate_{path.stem[5:]}": round(store.read(path)[1]["seconds"], 1) for path in (before_file, after_file)}
    if evaluations := finished(run):
        summary["evaluations"] = evaluations
        summary["best_checkpoint"] = read_json(run / "checkpoints" / "best.json")
    stages = read_json(run / "stages.json")
    summary["wall_s"] |= stages or {}
    write_json(run / "summary.json", summary)
    return summary

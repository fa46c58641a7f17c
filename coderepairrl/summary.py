"""summary.json of a finished run, from its files alone."""
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

from coderepairrl import ledger, store
from coderepairrl.files import read_json, write_json
from coderepairrl.metrics import read_metrics


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
    resolved = defaultdict(list)
    for trajectory in store.read(path)[0]:
        if trajectory.verdict is not None:
            resolved[trajectory.task_id].append(float(trajectory.verdict.resolved))
    return {task: fmean(values) for task, values in resolved.items()}


def _comparable(before: Path, after: Path) -> bool:
    """Whether the same inputs made both, but for the policy."""
    return store.read_stats(before).get("inputs") == store.read_stats(after).get("inputs")


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
    if before_file.exists() and after_file.exists() and not _comparable(before_file, after_file):
        summary["not_compared"] = "tasks, limits, scaffold or evaluation were changed between before and after"
    elif before_file.exists() and after_file.exists():
        before, after = pass_by_task(before_file), pass_by_task(after_file)
        both = sorted(before.keys() & after.keys())
        summary["heldout_tasks"] = len(both)
        for name, values, possible in (("before", [before[t] for t in both], RATE), ("after", [after[t] for t in both], RATE),
                                       ("difference", [after[t] - before[t] for t in both], DIFFERENCE)):
            summary[f"pass_rate_{name}"], summary[f"pass_rate_{name}_interval"] = mean_interval(values, possible)
        summary["wall_s"] |= {f"evaluate_{path.stem[5:]}": round(store.read(path)[1]["seconds"], 1) for path in (before_file, after_file)}
    stages = read_json(run / "stages.json")
    summary["wall_s"] |= stages or {}
    write_json(run / "summary.json", summary)
    return summary

"""summary.json of a finished run, from its files alone."""
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from coderepairrl import intervals, ledger, store
from coderepairrl.evaluations import finished
from coderepairrl.files import read_json, write_json
from coderepairrl.metrics import read_metrics
from coderepairrl.types import Trajectory


def pass_by_task(path: Path) -> dict[str, list[float]]:
    """outcomes_by_task of a file."""
    return outcomes_by_task(store.read(path)[0])


def outcomes_by_task(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    """Task id -> 1 for each of its episodes that resolved it, 0 for the others. Episodes on a broken machine are not counted."""
    resolved = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.verdict is not None:
            resolved[trajectory.task_id].append(float(trajectory.verdict.resolved))
    return dict(resolved)


def _comparable(before: Path, after: Path) -> bool:
    """Whether the same inputs made both, but for the policy."""
    return store.read_stats(before).get("inputs") == store.read_stats(after).get("inputs")


def evaluation_numbers(trajectories: Sequence[Trajectory]) -> dict:
    """stats["evaluation"] of an evaluation's file (evaluations.py) but for the step."""
    outcomes = list(outcomes_by_task(trajectories).values())
    found = intervals.rate(outcomes)
    versions = sorted({version for t in trajectories for call in t.calls for version in call.policy_versions})
    return {"versions": versions, "tasks": len(outcomes), "pass_rate": found and found.value,
            "pass_rate_interval": found and [found.low, found.high]}


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
    dropped = defaultdict(int, evaluation=0, infrastructure_error=sum(row["tokens"] for row in by_event["infrastructure_error"]))
    for row in by_event["dropped"]:
        dropped[row["reason"]] += row["tokens"]
    seconds = {"rollout": "rollout_s", "train": "train_s", "update": "update_s", "all_steps": "step_s"}
    summary = {
        "steps": len(metrics), "episodes": sum(len(row["outcomes"]) for row in by_event["finished"]),
        "weight_updates": len(metrics) - metrics[-1]["failed_updates"] if metrics else 0,
        "infrastructure_errors": len(by_event["infrastructure_error"]),
        "tokens_sampled": sum(row["sampled"] for row in by_event["finished"]) + sum(row["tokens"] for row in by_event["infrastructure_error"]),
        "tokens_trained": sum(row["trained"] for row in by_event["trained"]), "tokens_masked": dict(masked),
        "tokens_dropped": dict(dropped),
        "wall_s": {name: round(sum(row[key] for row in metrics), 1) for name, key in seconds.items()}}
    gaps = [row["logprob_gap"] for row in (*metrics, read_json(run / "final_gap.json") or {}) if "logprob_gap" in row]
    summary |= {"max_logprob_gap": max(gaps)} if gaps else {}
    before_file, after_file = (run / "rollouts" / f"eval_{name}.parquet" for name in ("before", "after"))
    before, after = (pass_by_task(file) if file.exists() else {} for file in (before_file, after_file))
    both = sorted(before.keys() & after.keys())
    if both and not _comparable(before_file, after_file):
        summary["not_compared"] = "tasks, limits, scaffold or evaluation were changed between before and after"
    elif both:
        summary["heldout_tasks"] = len(both)
        old, new = ([side[task] for task in both] for side in (before, after))
        for name, found in (("before", intervals.rate(old)), ("after", intervals.rate(new)), ("difference", intervals.paired_difference(old, new))):
            summary |= {f"pass_rate_{name}": found.value, f"pass_rate_{name}_interval": [found.low, found.high]} if found else {}
        summary["wall_s"] |= {f"evaluate_{path.stem[5:]}": round(store.read(path)[1]["seconds"], 1) for path in (before_file, after_file)}
    if evaluations := finished(run):
        summary["evaluations"] = evaluations
        summary["best_checkpoint"] = read_json(run / "checkpoints" / "best.json")
    stages = read_json(run / "stages.json")
    summary["wall_s"] |= stages or {}
    write_json(run / "summary.json", summary)
    return summary

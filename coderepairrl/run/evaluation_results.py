"""What an evaluation writes: a row an episode, predictions in SWE-bench's format, and the summary."""

from pathlib import Path
from statistics import fmean

from coderepairrl.files import read_jsonl, write_jsonl
from coderepairrl.rewards import disagreement, failing
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.evaluations import own_names
from coderepairrl.run import intervals, skill
from coderepairrl.types import Outcome, Trajectory


def write_results(run: Path, by: str) -> None:
    """results.jsonl and predictions.jsonl, from the chunks that are there. `by`: whose patches they are."""
    read = lambda name: trajectory_files.read(run / "rollouts" / f"eval_{name}.parquet")[0]
    own = [t for name in own_names(run) for t in read(name)]
    greedy = [
        t
        for name in own_names(run)
        if (run / "rollouts" / f"eval_{name}_greedy.parquet").exists()
        for t in read(f"{name}_greedy")
    ]
    write_jsonl(
        run / "results.jsonl", [*(_result(t, greedy=False) for t in own), *(_result(t, greedy=True) for t in greedy)]
    )
    write_jsonl(
        run / "predictions.jsonl",
        [{"instance_id": t.task_id, "model_name_or_path": by, "model_patch": t.diff} for t in own],
    )


def _result(t: Trajectory, greedy: bool) -> dict:
    """greedy: whether it is of the pass beside the evaluation."""
    v = t.verdict
    verdict = v and {
        "kind": v.kind,
        "resolved_swebench": v.resolved_swebench,
        "evidence": v.evidence,
        "message": v.message,
        "disagreement": disagreement(v),
        "failing": failing(v)[:20],
        "tampered": v.tampered,
        "verdict_s": round(v.seconds, 2),
    }
    return (
        {
            "task": t.task_id,
            **{name: part for name, part in (("set", t.task_set), ("scaffold", t.scaffold)) if part},
            "trajectory": t.trajectory_id,
            "resolved": bool(v and v.resolved),
            "graded": v is not None,
            "reward": t.reward,
            "greedy": greedy,
            "outcome": str(t.outcome),
            "detail": t.outcome_detail,
            "calls": len(t.calls),
            "tokens": t.sampled_tokens,
            **_spent(t),
            "diff_lines": t.diff.count("\n"),
            "diff_bytes": len(t.diff.encode()),
            "dropped_paths": t.dropped_paths,
            "seconds": round(t.seconds, 2),
        }
        | _said(t)
        | ({name: t.stats[name] for name in ("edits", "first_edit") if name in t.stats} | (verdict or {}))
    )


def _spent(t: Trajectory) -> dict:
    """On an external model: tokens that its API has counted, and what they cost."""
    if "external_prompt_tokens" not in t.stats:
        return {}
    return {
        "prompt_tokens": int(t.stats["external_prompt_tokens"]),
        "completion_tokens": int(t.stats.get("external_completion_tokens", 0)),
        "dollars": t.stats.get("external_microdollars", 0) / 1e6,
    }


def _said(t: Trajectory) -> dict:
    """What the tests printed, of an episode that is not resolved."""
    tail, file = t.test_output
    return ({"test_output": tail} if tail else {}) | ({"test_output_file": file} if file else {})


def broken_by(row: dict) -> str | None:
    """What the machine did to an episode of results.jsonl."""
    return row["detail"] if row["outcome"] == Outcome.INFRASTRUCTURE_ERROR else None


def sampled(rows: list[dict]) -> list[dict]:
    """Less those of the greedy pass."""
    return [row for row in rows if not row.get("greedy")]


def summary_of(run: Path) -> dict:
    """skill.numbers and {"greedy", "greedy_interval", "sets" and "scaffolds" of mixtures: name -> the same,
    "not_built", "episodes", "pass_rate_swebench", "disagreements": of each task that the two count differently the
    reason, "infrastructure_errors", "tokens"; of an external model "prompt_tokens", "completion_tokens", "dollars"}.

    An episode on a broken machine is not counted, a task without environment neither. Where none is left there are no
    rates. Greedy episodes count in `greedy`, `infrastructure_errors` and in tokens and dollars alone."""
    rows = read_jsonl(run / "results.jsonl")
    own = sampled(rows)
    laxer: dict[str, list[float]] = {}
    for row in own:
        if row["graded"]:
            laxer.setdefault(row["task"], []).append(float(row["resolved_swebench"]))
    rates = _skill(rows)
    for mixture, key in (("sets", "set"), ("scaffolds", "scaffold")):
        parts = sorted({row[key] for row in rows if key in row})
        rates |= {mixture: {part: _skill([r for r in rows if r[key] == part]) for part in parts}} if parts else {}
    rates |= {"pass_rate_swebench": fmean(fmean(values) for values in laxer.values())} if laxer else {}
    return (
        rates
        | {
            "not_built": sum(not row["built"] for row in read_jsonl(run / "environments.jsonl")),
            "episodes": len(own),
            "disagreements": {row["task"]: row["disagreement"] for row in own if row["graded"] and row["disagreement"]},
            "infrastructure_errors": sum(row["outcome"] == "infrastructure_error" for row in rows),
            "tokens": sum(row["tokens"] for row in rows),
        }
        | {
            name: sum(row.get(name, 0) for row in rows)
            for name in ("prompt_tokens", "completion_tokens", "dollars")
            if any(name in row for row in rows)
        }
    )


def _skill(rows: list[dict]) -> dict:
    greedy = [row for row in rows if row.get("greedy")]
    return skill.numbers(_episodes(sampled(rows))) | skill.rate("greedy", skill.resolved(_episodes(greedy)))


def _episodes(rows: list[dict]) -> list[skill.Episode]:
    return [
        skill.Episode(
            row["task"],
            row["resolved"] if row["graded"] else None,
            row["outcome"],
            row["calls"],
            row.get("edits"),
            row.get("first_edit"),
        )
        for row in rows
    ]


def repaired(summary: dict) -> str:
    return intervals.percent(
        intervals.Interval(summary["pass_rate"], *summary["pass_rate_interval"]) if "pass_rate" in summary else None
    )

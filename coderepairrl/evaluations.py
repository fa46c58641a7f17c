"""Evaluations of the held-out tasks: before the first step, beside training every so many updates, and after the last step.

    rollouts/eval_before.parquet, eval_step_00010.parquet, eval_after.parquet    written by the rollout process; stats["evaluation"]:
                     {"step": updates in the weights that it began under, "versions": of all weights that sampled its tokens,
                     "tasks": that were graded, "pass_rate", "pass_rate_interval": over tasks; None where none was graded}
    heldout.json     ids of the tasks that are evaluated, the same ones each time; there before the first step

The trainer never waits for one beside it. When it has written a step's metrics it takes in what has been finished meanwhile: a row of
metrics.jsonl under the step of the weights, the best checkpoint, and which checkpoints may go.
"""
from collections.abc import Sequence
from pathlib import Path

from coderepairrl import checkpoints, store
from coderepairrl.files import read_json, write_json
from coderepairrl.metrics import Metrics, read_evaluations
from coderepairrl.types import Outcome, Task


def name_of(updates: int) -> str:
    """Of an evaluation beside training."""
    return f"step_{updates:05d}"


def note_tasks(run: Path, tasks: Sequence[Task]) -> None:
    write_json(run / "heldout.json", [task.task_id for task in tasks])


def has_tasks(run: Path) -> bool:
    return bool(read_json(run / "heldout.json"))


def is_done(run: Path, name: str) -> bool:
    """Whether its file is there. One of which the machine ended every episode is made again."""
    path = run / "rollouts" / f"eval_{name}.parquet"
    return path.exists() and set(store.read_stats(path)["outcomes"]) != {Outcome.INFRASTRUCTURE_ERROR}


def missed(run: Path, every: int, updates: int) -> list[int]:
    """Steps below `updates` that should have been evaluated beside training and never will be: a former attempt ended meanwhile, or left them out."""
    steps = range(every, updates, every) if every and has_tasks(run) else ()
    return [step for step in steps if not is_done(run, name_of(step))]


def finished(run: Path) -> list[dict]:
    """A row each, in order of steps: {"name", "step", "versions", "tasks", "pass_rate", "pass_rate_interval", "episodes", "reward", "seconds"}."""
    rows = []
    for path in (run / "rollouts").glob("eval_*.parquet"):
        stats = store.read_stats(path)
        if "evaluation" in stats:  # files of before don't say of which step they are
            rows.append({"name": path.stem.removeprefix("eval_")} | stats["evaluation"]
                        | {"episodes": sum(stats["outcomes"].values()), "reward": stats.get("reward"), "seconds": round(stats["seconds"], 1)})
    return sorted(rows, key=lambda row: row["step"])


class Evaluations:
    """What the trainer, on rank 0, makes of the evaluations that are over. every, keep: training.evaluate_every, .keep_checkpoints."""

    def __init__(self, run: Path, metrics: Metrics, every: int, keep: int):
        self.run, self.metrics, self._every, self._keep = run, metrics, every, keep
        self._logged = {row["step"] for row in read_evaluations(run / "metrics.jsonl")}

    def take_in(self) -> None:
        rows = finished(self.run)
        for row in rows:
            if row["step"] not in self._logged and row["tasks"]:
                self._logged.add(row["step"])
                self._log(row)
            if row["pass_rate"] is not None:
                checkpoints.note_best(self.run, row["step"], row["pass_rate"])
        last = max((row["step"] for row in rows), default=0)
        waiting = self._every and has_tasks(self.run)  # for evaluations of later steps, which may turn out to be the best
        checkpoints.prune(self.run, self._keep, lambda step: bool(waiting and step % self._every == 0 and step > last))

    def _log(self, row: dict) -> None:
        low, high = row["pass_rate_interval"]
        values = {name: row[name] for name in ("pass_rate", "reward", "tasks", "episodes", "seconds")} | {"pass_rate_low": low, "pass_rate_high": high}
        if row["versions"]:
            values |= {"version_first": row["versions"][0], "version_last": row["versions"][-1]}
        self.metrics.log(row["step"], {f"eval/{name}": value for name, value in values.items()})
        print(f"step {row['step']}, held out: {row['pass_rate']:.1%} [{low:.1%}, {high:.1%}] of {row['tasks']} tasks repaired, "
              f"{row['seconds']:.0f} s", flush=True)

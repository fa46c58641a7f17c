"""Evaluations of the held-out tasks: before the first step, beside training every so many updates, and after the last
step.

    rollouts/eval_before.parquet, eval_step_00010.parquet, eval_after.parquet
                     written by the rollout process (held_out.py); stats["evaluation"]: {"step": updates in the weights
                     that it began under} and skill.numbers, with `greedy` of the file beside it
    rollouts/eval_NAME_greedy.parquet, eval_before_retry.parquet
                     the same tasks decoded greedily, and forced to go on
    heldout.json     ids of the tasks that are evaluated, the same ones each time; there before the first step

The trainer never waits for one beside it. When it has written a step's metrics it takes in what has been finished
meanwhile: a row of metrics.jsonl under the step of the weights, the best checkpoint, and which checkpoints may go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from coderepairrl.files import read_json, write_json
from coderepairrl.gateway.session_limits import SamplingConfig
from coderepairrl.rollout import trajectory_files
from coderepairrl.run.metrics import Metrics, read_evaluations
from coderepairrl.training import checkpoints
from coderepairrl.types import Outcome, Task

BEFORE = "before"
NUMBERS = (
    "pass_rate",
    "first_edit",
    "greedy",
    "reward",
    "tasks",
    "episodes",
    "calls",
    "edits",
    "submitted",
    "at_limit",
    "seconds",
)


class EvaluationConfig(SamplingConfig):
    """Of the held-out tasks."""

    samples: PositiveInt = 1  # episodes a task
    tasks: PositiveInt | None = None  # the first so many of the held-out tasks, the same ones each time; null: all
    # of concurrent_episodes: what an evaluation beside training may take of them
    share: PositiveFloat = Field(0.25, le=1)
    greedy: bool = True  # beside them one episode a task that is decoded greedily
    # before the first step also the control for persistence: the same policy, forced to go on (scaffold retry)
    retry: bool = False
    max_turns: PositiveInt | None = None  # model calls of one of its episodes; null: as in training, limits.max_turns


@dataclass(frozen=True)
class Pass:
    """One way to go through the tasks."""

    name: str  # of its file
    sampling: SamplingConfig
    samples: int
    forced: bool = False  # to go on


def passes(name: str, config: EvaluationConfig, calls_model: bool) -> list[Pass]:
    """Of one evaluation; it comes last itself, so that where its file is the others' are, too."""
    found = [Pass(name, config, config.samples)]
    if config.retry and name == BEFORE and calls_model:
        found.insert(0, Pass(f"{name}_retry", config, config.samples, forced=True))
    if config.greedy and config.temperature and calls_model:
        found.insert(0, Pass(f"{name}_greedy", SamplingConfig(temperature=0.0), 1))
    return found


def own_names(run: Path) -> list[str]:
    """Of the evaluations that have a file, less their further passes."""
    names = sorted(path.stem.removeprefix("eval_") for path in (run / "rollouts").glob("eval_*.parquet"))
    return [name for name in names if not name.endswith(("_greedy", "_retry"))]


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
    return path.exists() and set(trajectory_files.read_stats(path)["outcomes"]) != {Outcome.INFRASTRUCTURE_ERROR}


def missed(run: Path, every: int, updates: int) -> list[int]:
    """Steps below `updates` that should have been evaluated beside training and never will be: a former attempt ended
    meanwhile, or left them out."""
    steps = range(every, updates, every) if every and has_tasks(run) else ()
    return [step for step in steps if not is_done(run, name_of(step))]


def finished(run: Path) -> list[dict]:
    """A row each, in order of steps: {"name", "step", "episodes", "reward", "seconds"} and skill.numbers."""
    rows = []
    for name in own_names(run):
        stats = trajectory_files.read_stats(run / "rollouts" / f"eval_{name}.parquet")
        if "evaluation" in stats:  # files of before don't say of which step they are
            rows.append(
                {"name": name}
                | stats["evaluation"]
                | {
                    "episodes": sum(stats["outcomes"].values()),
                    "reward": stats.get("reward"),
                    "seconds": round(stats["seconds"], 1),
                }
            )
    return sorted(rows, key=lambda row: row["step"])


class Evaluations:
    """What the trainer, on rank 0, makes of the evaluations that are over. every, keep: training.evaluate_every,
    .keep_checkpoints."""

    def __init__(self, run: Path, metrics: Metrics, every: int, keep: int):
        self.run, self.metrics, self._every, self._keep = run, metrics, every, keep
        self._logged = {row["step"] for row in read_evaluations(run / "metrics.jsonl")}

    def take_in(self) -> None:
        rows = finished(self.run)
        for row in rows:
            if row["step"] not in self._logged and row["tasks"]:
                self._logged.add(row["step"])
                self._log(row)
            if row.get("pass_rate") is not None:  # older files say None
                checkpoints.note_best(self.run, row["step"], row["pass_rate"])
        last = max((row["step"] for row in rows), default=0)
        # for evaluations of later steps, which may turn out to be the best
        waiting = self._every and has_tasks(self.run)
        checkpoints.prune(self.run, self._keep, lambda step: bool(waiting and step % self._every == 0 and step > last))

    def _log(self, row: dict) -> None:
        values = {name: row[name] for name in NUMBERS if row.get(name) is not None}
        for name in ("pass_rate", "first_edit", "greedy"):
            if ends := row.get(f"{name}_interval"):
                values |= dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))
        values |= {f"pass_at_{k}": value for k, value in row.get("pass_at_k", {}).items()}
        for part, numbers in row.get("sets", {}).items():
            values |= {f"sets/{part}/{name}": numbers[name] for name in NUMBERS if numbers.get(name) is not None}
        for part, numbers in row.get("scaffolds", {}).items():
            values |= {f"scaffolds/{part}/{name}": numbers[name] for name in NUMBERS if numbers.get(name) is not None}
        if row["versions"]:
            values |= {"version_first": row["versions"][0], "version_last": row["versions"][-1]}
        self.metrics.log(row["step"], {f"eval/{name}": value for name, value in values.items()})
        print(f"step {row['step']}, held out: {line(row)}", flush=True)


def line(row: dict) -> str:
    """What the console says of an evaluation."""
    low, high = row["pass_rate_interval"]
    beside = {"greedy": "greedy", "first_edit": "by the first edit", "at_limit": "ended at a limit"}
    said = [f"{text} {row[name]:.1%}" for name, text in beside.items() if row.get(name) is not None]
    return (
        f"{row['pass_rate']:.1%} [{low:.1%}, {high:.1%}] of {row['tasks']} tasks repaired"
        + (f" ({', '.join(said)})" if said else "")
        + f", {row['seconds']:.0f} s"
    )

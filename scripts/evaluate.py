"""How many tasks does a model repair? Agents in sandboxes, vLLM, tests as judges; nothing is trained.

    python scripts/evaluate.py configs/eval/quickstart.yaml [a.b=c ...]      model=runs/quickstart takes that run's newest checkpoint
    python scripts/evaluate.py CONFIG shard=0 shards=4                       every fourth task; the last shard that ends merges all
    python scripts/evaluate.py configs/eval/swe_bench.yaml scaffold=gold     or empty, gold_less_one_hunk: controls, without a model
    python scripts/evaluate.py CONFIG --predictions FILE                     grades somebody else's patches, in SWE-bench's format

Writes RUN (RUN_SCAFFOLD for a control; RUN/shard_K): environments.jsonl, what was built and what could not be, and why; rollouts/eval_N.parquet, one
a chunk of tasks, with every token; results.jsonl, a row an episode; predictions.jsonl, in SWE-bench's format; summary.json. Only tasks whose
environment is there are counted. The same command goes on after the last whole chunk.
"""
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import fmean

from pydantic import Field, field_validator
from tqdm import tqdm

from coderepairrl import attempt as attempts
from coderepairrl import store
from coderepairrl.attempt import Attempt, Place
from coderepairrl.config import Config, dump, load
from coderepairrl.driver import start_of
from coderepairrl.errors import ConfigError, TaskError
from coderepairrl.files import read_json, read_jsonl, write_json, write_jsonl
from coderepairrl.infrastructure import commonest, refuse_broken
from coderepairrl.program import program
from coderepairrl.provenance import provenance
from coderepairrl.rewards import disagreement, failing
from coderepairrl.rollout import Rollout, RolloutConfig
from coderepairrl.scaffolds import ScaffoldConfig, make_scaffold
from coderepairrl.summary import RATE, mean_interval
from coderepairrl.tasks import load_tasks
from coderepairrl.tasks.build import build_all
from coderepairrl.types import Outcome, Task, Trajectory


class EvaluateConfig(Config):
    run: str  # folder of the results
    model: str | None = None  # a Hugging Face folder, or the folder of a training run; controls need none
    scaffold: ScaffoldConfig | None = None  # instead of rollout.scaffold; a name alone is a scaffold as it is by default
    rollout: RolloutConfig  # its held-out tasks are evaluated
    chunk_tasks: int = Field(32, ge=1)  # what an interruption costs at most
    shard: int = Field(0, ge=0)
    shards: int = Field(1, ge=1)

    @field_validator("scaffold", mode="before")
    @classmethod
    def _named(cls, scaffold: object) -> object:
        return {"name": scaffold} if isinstance(scaffold, str) else scaffold


def folder_of(config: EvaluateConfig) -> Path:
    """Its own for each control and each shard; a launcher that has made a shard's already names it so."""
    run = Path(config.run)
    if config.scaffold is not None and run.name != f"shard_{config.shard}":
        run = run.with_name(f"{run.name}_{scaffold_of(config).name}")
    return run if config.shards == 1 or run.name == f"shard_{config.shard}" else run / f"shard_{config.shard}"


def scaffold_of(config: EvaluateConfig) -> ScaffoldConfig:
    return config.scaffold or config.rollout.scaffold


def model_of(config: EvaluateConfig) -> str | None:
    """A training run's newest checkpoint, or the path itself; None for a control. ConfigError when there is no model."""
    path = config.model
    if not make_scaffold(scaffold_of(config)).calls_model:
        return None
    if path is None:
        raise ConfigError("model: none is named: give a Hugging Face folder or a training run, or evaluate a control (scaffold=gold)")
    found = start_of(Path(path), path)[2] if (Path(path) / "checkpoints").is_dir() else path
    if not (Path(found) / "config.json").exists():
        raise ConfigError(f"{path}: no model there (no config.json, no checkpoint): train it first, or correct model:")
    return found


async def beat(attempt: Attempt) -> None:
    while True:
        attempt.beat()
        await asyncio.sleep(attempts.BEAT_EVERY_S)


async def environments(config: EvaluateConfig, run: Path) -> list[Task]:
    """This shard's tasks, built; environments.jsonl says what could not be, and why."""
    tasks = load_tasks(config.rollout.tasks)["heldout"][: config.rollout.evaluation.tasks]
    if not tasks:
        raise ConfigError("no held-out tasks to evaluate: load some (rollout.tasks)")
    shard = tasks[config.shard::config.shards]
    if not shard:
        raise ConfigError(f"shard {config.shard} of {config.shards} has no task: there are {len(tasks)}; take fewer shards")
    bar = tqdm(total=len(shard), desc="environments", unit="task", mininterval=1)

    def done(task: Task, cause: str) -> None:
        bar.update()
        if cause:
            bar.write(f"{task.task_id}: left out: {cause}")

    built, failures = await build_all(shard, config.rollout.environments, done)
    bar.close()
    locks = {task.task_id: task.environment.lock for task in built}
    write_jsonl(run / "environments.jsonl", [{"task": task.task_id, "built": task.task_id in locks, "lock": locks.get(task.task_id, ""),
                                             "cause": failures.get(task.task_id, "")} for task in shard])
    if not built:
        raise TaskError(f"not one of {len(shard)} environments can be built, the first: {next(iter(failures.values()))}")
    return built


async def evaluate(config: EvaluateConfig, run: Path, model: str | None, attempt: Attempt) -> None:
    beating = asyncio.create_task(beat(attempt))
    stop = asyncio.current_task().cancel
    for number in (signal.SIGTERM, signal.SIGUSR2):  # so that vLLM is ended, too
        asyncio.get_running_loop().add_signal_handler(number, stop)
    write_json(run / "policy" / "current.json", {"version": 0, "step": 0, "path": model, "path_version": 0, "live": True})
    tasks = await environments(config, run)
    rollout = config.rollout.model_copy(update={"scaffold": scaffold_of(config)})
    async with Rollout(rollout, run, model, attempt.number, {"heldout": tasks}) as rollouts:
        chunks = [tasks[i:i + config.chunk_tasks] for i in range(0, len(tasks), config.chunk_tasks)]
        for number, chunk in enumerate(chunks):
            rollouts.tasks["heldout"] = chunk
            await rollouts.evaluate(f"{number:05d}", updates=0)
            write_results(config, run)
            print(f"{min((number + 1) * config.chunk_tasks, len(tasks))} of {len(tasks)} tasks: {summary_of(run)['pass_rate']:.3f} repaired", flush=True)
        refuse_broken("the evaluation", [broken_by(row) for row in read_jsonl(run / "results.jsonl")])
    beating.cancel()


def write_results(config: EvaluateConfig, run: Path) -> None:
    """results.jsonl and predictions.jsonl, from the chunks that are there."""
    trajectories = [t for path in sorted(run.glob("rollouts/eval_*.parquet")) for t in store.read(path)[0]]
    write_jsonl(run / "results.jsonl", [_result(t) for t in trajectories])
    by = config.model or scaffold_of(config).name
    write_jsonl(run / "predictions.jsonl", [{"instance_id": t.task_id, "model_name_or_path": by, "model_patch": t.diff} for t in trajectories])


def _result(t: Trajectory) -> dict:
    v = t.verdict
    verdict = v and {"kind": v.kind, "resolved_swebench": v.resolved_swebench, "evidence": v.evidence, "message": v.message,
                     "disagreement": disagreement(v), "failing": failing(v)[:20], "dropped_paths": v.dropped_paths, "tampered": v.tampered, "verdict_s": round(v.seconds, 2)}
    return {"task": t.task_id, "trajectory": t.trajectory_id, "resolved": bool(v and v.resolved), "graded": v is not None, "reward": t.reward,
            "outcome": str(t.outcome), "detail": t.outcome_detail, "calls": len(t.calls), "tokens": sum(len(call.completion_ids) for call in t.calls),
            "diff_lines": t.diff.count("\n"), "diff_bytes": len(t.diff.encode()), "seconds": round(t.seconds, 2)} | (verdict or {})


def broken_by(row: dict) -> str | None:
    """What the machine did to an episode of results.jsonl."""
    return row["detail"] if row["outcome"] == Outcome.INFRASTRUCTURE_ERROR else None


def summary_of(run: Path) -> dict:
    """{"tasks", "not_built", "episodes", "pass_rate", "pass_rate_interval", "pass_rate_swebench", "disagreements": of each task that the
    two count differently the reason, "infrastructure_errors", "tokens"}; an episode on a broken machine is not counted, a task without environment neither."""
    rows = read_jsonl(run / "results.jsonl")
    resolved: dict[str, list[float]] = {}
    laxer: dict[str, list[float]] = {}
    for row in rows:
        if row["graded"]:
            resolved.setdefault(row["task"], []).append(float(row["resolved"]))
            laxer.setdefault(row["task"], []).append(float(row["resolved_swebench"]))
    rate, interval = mean_interval([fmean(values) for values in resolved.values()] or [0.0], RATE)
    return {"tasks": len(resolved), "not_built": sum(not row["built"] for row in read_jsonl(run / "environments.jsonl")), "episodes": len(rows),
            "pass_rate": rate, "pass_rate_interval": interval, "pass_rate_swebench": fmean([fmean(values) for values in laxer.values()] or [0.0]),
            "disagreements": {row["task"]: row["disagreement"] for row in rows if row["graded"] and row["disagreement"]},
            "infrastructure_errors": sum(row["outcome"] == "infrastructure_error" for row in rows), "tokens": sum(row["tokens"] for row in rows)}


def merge(run: Path, shards: int) -> None:
    """All shards' results in the folder above them, once the last has its summary. Two that end at once write the same."""
    folders = [run / f"shard_{number}" for number in range(shards)]
    if all((folder / "summary.json").exists() for folder in folders):
        for name in ("environments.jsonl", "predictions.jsonl", "results.jsonl"):
            write_jsonl(run / name, [row for folder in folders for row in read_jsonl(folder / name)])
        wall_s = max(read_json(folder / "summary.json")["wall_s"] for folder in folders)
        write_json(run / "summary.json", summary_of(run) | {"shards": shards, "wall_s": wall_s})


@program
def main(arguments: list[str]) -> None:
    if "--predictions" in arguments[:-1]:
        at = arguments.index("--predictions")
        arguments = [*arguments[:at], f"scaffold={{name: predictions, path: {json.dumps(arguments[at + 1])}}}", *arguments[at + 2:]]
    config = load(EvaluateConfig, arguments[0], arguments[1:])
    if config.shard >= config.shards:
        raise ConfigError(f"shard={config.shard} of shards={config.shards}: they are numbered from 0")
    run = folder_of(config)
    if not (run / "summary.json").exists():
        model = model_of(config)
        for folder in ("rollouts/buffer", "policy", "logs"):
            (run / folder).mkdir(parents=True, exist_ok=True)
        attempt = attempts.lead(run, Place())
        began = time.monotonic()
        dump(config, run / "config.yaml")
        write_json(run / "provenance.json", provenance(arguments))
        write_json(run / "status.json", {"state": "running", "attempt": attempt.number, "pid": os.getpid(), "reason": ""})
        attempts.ready(attempt)
        state, reason = "stopped", "stopped by a signal: the same command goes on"
        try:
            asyncio.run(evaluate(config, run, model, attempt))
            write_json(run / "summary.json", summary_of(run) | {"model": model, "wall_s": round(time.monotonic() - began, 1)})
            state, reason = "done", ""
        except asyncio.CancelledError:
            sys.exit(attempts.STOPPED)
        except Exception as error:
            state, reason = "failed", str(error)
            raise
        finally:
            write_json(run / "status.json", {"state": state, "attempt": attempt.number, "pid": os.getpid(), "reason": reason})
            attempt.end(reason if state == "failed" else "")
    if config.shards > 1:
        merge(run.parent if run.name == f"shard_{config.shard}" else run, config.shards)
    summary, broken = summary_of(run), [detail for row in read_jsonl(run / "results.jsonl") if (detail := broken_by(row)) is not None]
    low, high = summary["pass_rate_interval"]
    print(f"{run}: {summary['pass_rate']:.1%} [{low:.1%}, {high:.1%}] of {summary['tasks']} tasks repaired"
          + (f"; {summary['not_built']} without an environment: {run / 'environments.jsonl'}" if summary["not_built"] else "")
          + (f"; {len(broken)} of {summary['episodes']} episodes ended as infrastructure errors, most often: {commonest(broken)}" if broken else "")
          + (f"; SWE-bench counts {summary['pass_rate_swebench']:.1%}, differing in {', '.join(summary['disagreements'])}" if summary["disagreements"] else ""))


if __name__ == "__main__":
    main(sys.argv[1:])

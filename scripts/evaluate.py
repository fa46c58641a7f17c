"""How many tasks does a model repair? Agents in sandboxes, vLLM, tests as judges; nothing is trained.

    python scripts/evaluate.py configs/eval/quickstart.yaml [a.b=c ...]      model=runs/quickstart takes that run's newest checkpoint
    python scripts/evaluate.py CONFIG shard=0 shards=4                       every fourth task; the last shard that ends merges all

Writes RUN (or RUN/shard_K): rollouts/eval_N.parquet, one a chunk of tasks, with every token; results.jsonl, a row an episode; summary.json.
The same command goes on after the last whole chunk.
"""
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from pydantic import Field

from coderepairrl import attempt as attempts
from coderepairrl import store
from coderepairrl.attempt import Attempt, Place
from coderepairrl.config import Config, dump, load
from coderepairrl.driver import start_of
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_json, write_json
from coderepairrl.program import program
from coderepairrl.provenance import provenance
from coderepairrl.rollout import Rollout, RolloutConfig
from coderepairrl.summary import mean_interval


class EvaluateConfig(Config):
    run: str  # folder of the results
    model: str  # a Hugging Face folder, or the folder of a training run
    rollout: RolloutConfig  # its held-out tasks are evaluated
    chunk_tasks: int = Field(32, ge=1)  # what an interruption costs at most
    shard: int = Field(0, ge=0)
    shards: int = Field(1, ge=1)


def folder_of(config: EvaluateConfig) -> Path:
    """Its own for each shard; a launcher that has made one already names it so."""
    run = Path(config.run)
    return run if config.shards == 1 or run.name == f"shard_{config.shard}" else run / f"shard_{config.shard}"


def model_of(path: str) -> str:
    """A training run's newest checkpoint, or the path itself. ConfigError when there is no model."""
    found = start_of(Path(path), path)[2] if (Path(path) / "checkpoints").is_dir() else path
    if not (Path(found) / "config.json").exists():
        raise ConfigError(f"{path}: no model there (no config.json, no checkpoint): train it first, or correct model:")
    return found


async def beat(attempt: Attempt) -> None:
    while True:
        attempt.beat()
        await asyncio.sleep(attempts.BEAT_EVERY_S)


async def evaluate(config: EvaluateConfig, run: Path, model: str, attempt: Attempt) -> None:
    beating = asyncio.create_task(beat(attempt))
    stop = asyncio.current_task().cancel
    for number in (signal.SIGTERM, signal.SIGUSR2):  # so that vLLM is ended, too
        asyncio.get_running_loop().add_signal_handler(number, stop)
    write_json(run / "policy" / "current.json", {"version": 0, "step": 0, "path": model, "path_version": 0, "live": True})
    async with Rollout(config.rollout, run, model, attempt.number) as rollouts:
        tasks = rollouts.tasks["heldout"][config.shard::config.shards]
        if not tasks:
            raise ConfigError(f"shard {config.shard} of {config.shards} has no task: there are {len(rollouts.tasks['heldout'])}; take fewer shards")
        chunks = [tasks[i:i + config.chunk_tasks] for i in range(0, len(tasks), config.chunk_tasks)]
        for number, chunk in enumerate(chunks):
            rollouts.tasks["heldout"] = chunk
            await rollouts.evaluate(f"{number:05d}", updates=0)
            write_results(run)
            print(f"{min((number + 1) * config.chunk_tasks, len(tasks))} of {len(tasks)} tasks: {summary_of(run)['pass_rate']:.3f} repaired", flush=True)
    beating.cancel()


def write_results(run: Path) -> None:
    """results.jsonl, from the chunks that are there."""
    rows = [{"task": t.task_id, "trajectory": t.trajectory_id, "resolved": bool(t.verdict and t.verdict.resolved), "graded": t.verdict is not None, "reward": t.reward,
             "outcome": str(t.outcome), "calls": len(t.calls), "tokens": sum(len(call.completion_ids) for call in t.calls), "diff_lines": t.diff.count("\n"),
             "seconds": round(t.seconds, 2)} for path in sorted(run.glob("rollouts/eval_*.parquet")) for t in store.read(path)[0]]
    _write_rows(run, rows)


def summary_of(run: Path) -> dict:
    """{"tasks", "episodes", "pass_rate", "pass_rate_interval", "infrastructure_errors", "tokens"}; an episode on a broken machine is not counted."""
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    resolved: dict[str, list[float]] = {}
    for row in rows:
        if row["graded"]:
            resolved.setdefault(row["task"], []).append(float(row["resolved"]))
    rate, interval = mean_interval([sum(values) / len(values) for values in resolved.values()] or [0.0])
    return {"tasks": len(resolved), "episodes": len(rows), "pass_rate": rate, "pass_rate_interval": interval,
            "infrastructure_errors": sum(row["outcome"] == "infrastructure_error" for row in rows), "tokens": sum(row["tokens"] for row in rows)}


def merge(run: Path, shards: int) -> None:
    """All shards' results in the folder above them, once the last has its summary. Two that end at once write the same."""
    folders = [run / f"shard_{number}" for number in range(shards)]
    if all((folder / "summary.json").exists() for folder in folders):
        _write_rows(run, [json.loads(line) for folder in folders for line in (folder / "results.jsonl").read_text().splitlines()])
        write_json(run / "summary.json", summary_of(run) | {"shards": shards, "wall_s": max(read_json(folder / "summary.json")["wall_s"] for folder in folders)})


def _write_rows(run: Path, rows: list[dict]) -> None:
    temporary = run / f"results.{os.getpid()}.tmp"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.rename(run / "results.jsonl")


@program
def main(arguments: list[str]) -> None:
    config = load(EvaluateConfig, arguments[0], arguments[1:])
    if config.shard >= config.shards:
        raise ConfigError(f"shard={config.shard} of shards={config.shards}: they are numbered from 0")
    run = folder_of(config)
    if not (run / "summary.json").exists():
        model = model_of(config.model)
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
    summary = summary_of(run)
    low, high = summary["pass_rate_interval"]
    print(f"{run}: {summary['pass_rate']:.1%} [{low:.1%}, {high:.1%}] of {summary['tasks']} tasks repaired")


if __name__ == "__main__":
    main(sys.argv[1:])

"""How many tasks does a model repair? Agents in sandboxes, vLLM, tests as judges; nothing is trained.

    python scripts/evaluate.py configs/eval/quickstart.yaml [a.b=c ...]      model=runs/quickstart takes that run's
                                                                             newest checkpoint
    python scripts/evaluate.py CONFIG shard=0 shards=4                       every fourth task; the last shard that ends
                                                                             merges all
    python scripts/evaluate.py configs/eval/swe_bench.yaml scaffold=gold     or empty, gold_less_one_hunk: controls,
                                                                             without a model
    python scripts/evaluate.py configs/eval/quickstart_retry.yaml            may not end before the test passes
    python scripts/evaluate.py CONFIG --predictions FILE                     grades somebody else's patches, in
                                                                             SWE-bench's format

Writes RUN (RUN_SCAFFOLD for a control; RUN/shard_K): environments.jsonl, what was built and what could not be, and why;
rollouts/eval_N.parquet, one a chunk of tasks, with every token; results.jsonl, a row an episode; test_outputs/, if
rollout.keep_test_output_mib asks for it; predictions.jsonl, in SWE-bench's format; summary.json. Only tasks whose
environment is there are counted. The same command goes on after the last whole chunk; other inputs than those that made
the folder (inputs.json: the model's weights, tasks, scaffold, predictions, settings) are refused.

Rows of the task set that cannot be used, environments that cannot be built and episodes that the machine or a wrong
task ended are left out, named and counted; the rest goes on, and the exit code is 1.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from coderepairrl.config import dump, load
from coderepairrl.environments import instead
from coderepairrl.errors import ConfigError, TaskError
from coderepairrl.files import read_json, read_jsonl, write_json, write_jsonl
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.evaluations import is_done, own_names
from coderepairrl.rollout.infrastructure import commonest, refuse_broken
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.run import attempt as attempts
from coderepairrl.run import inputs
from coderepairrl.run.attempt import Attempt, Place
from coderepairrl.run.evaluate_config import EvaluateConfig, inputs_of, model_of, scaffold_of, settings_of
from coderepairrl.run.evaluation_results import broken_by, repaired, sampled, summary_of, write_results
from coderepairrl.run.program import program
from coderepairrl.run.provenance import provenance
from coderepairrl.scaffolds import make_scaffold, refusal
from coderepairrl.tasks import load_tasks
from coderepairrl.tasks.building import build_all
from coderepairrl.types import Task


def folder_of(config: EvaluateConfig, path: str) -> Path:
    """Its own for each control and each shard; a launcher, which has frozen the configuration at `path`, has named it
    so."""
    run, shard = Path(config.run), f"shard_{config.shard}"
    launched = Path(path).absolute().parent in (run.absolute() / "launch", run.absolute() / shard / "launch")
    if config.scaffold is not None and run.name != shard and not launched:
        run = run.with_name(f"{run.name}_{scaffold_of(config).name}")
    return run if config.shards == 1 or run.name == shard else run / shard


def whole_of(config: EvaluateConfig, run: Path) -> Path:
    return run.parent if config.shards > 1 else run


def admit(folder: Path, config: EvaluateConfig, now: dict) -> dict[str, list]:
    """What has changed in the settings that change no number. ConfigError when it, or a shard's below, has other
    inputs."""
    patterns = ("rollouts/*.parquet", "shard_*/rollouts/*.parquet", "summary.json")
    made = any(path for pattern in patterns for path in folder.glob(pattern))
    return inputs.compare(
        folder / inputs.RECORD,
        now,
        inputs.EVALUATION,
        config=settings_of(config),
        made=made,
        remedy="take another `run:` folder",
    )


# ---- the work


async def beat(attempt: Attempt) -> None:
    while True:
        attempt.beat()
        await asyncio.sleep(attempts.BEAT_EVERY_S)


def evaluated(run: Path) -> set[str]:
    """Ids of the tasks in whole chunks."""
    return {
        task for name in own_names(run) for task in trajectory_files.task_ids(run / "rollouts" / f"eval_{name}.parquet")
    }


async def environments(config: EvaluateConfig, run: Path, tasks: list[Task]) -> list[Task]:
    """Those that are not evaluated yet, built; environments.jsonl says of all what could not be, and why, and what was
    done otherwise than the recipe says."""
    over = evaluated(run)
    known = {row["task"]: row for row in read_jsonl(run / "environments.jsonl") if row["task"] in over} if over else {}
    left = [task for task in tasks if task.task_id not in known]
    bar = tqdm(total=len(left), desc="environments", unit="task", mininterval=1)

    def done(task: Task, cause: str) -> None:
        bar.update()
        if cause:
            bar.write(f"{task.task_id}: left out: {cause}")

    refuses = await refusal(make_scaffold(scaffold_of(config)), config.rollout.environments)
    built, failures = await build_all(left, config.rollout.environments, done, refuses)
    bar.close()
    locks = {task.task_id: task.environment.lock for task in built}
    otherwise = {task.task_id: said for task in built if (said := instead(task.environment))}
    for name, said in otherwise.items():
        print(f"{name}: {said}", flush=True)
    new = {
        task.task_id: {
            "task": task.task_id,
            "built": task.task_id in locks,
            "lock": locks.get(task.task_id, ""),
            "cause": failures.get(task.task_id, ""),
            "instead": otherwise.get(task.task_id, ""),
        }
        for task in left
    }
    write_jsonl(run / "environments.jsonl", [(known | new)[task.task_id] for task in tasks])
    if not built and not known:
        raise TaskError(f"not one of {len(left)} environments can be built, the first: {next(iter(failures.values()))}")
    return built


async def evaluate(config: EvaluateConfig, run: Path, model: str | None, tasks: list[Task], attempt: Attempt) -> None:
    beating = asyncio.create_task(beat(attempt))
    stop = asyncio.current_task().cancel
    for number in (signal.SIGTERM, signal.SIGUSR2):  # so that vLLM is ended, too
        asyncio.get_running_loop().add_signal_handler(number, stop)
    write_json(
        run / "policy" / "current.json", {"version": 0, "step": 0, "path": model, "path_version": 0, "live": True}
    )
    for name in own_names(run):
        if not is_done(run, name):  # the machine was broken: it is made again
            for path in (run / "rollouts").glob(f"eval_{name}*.parquet"):
                path.unlink()
    left = await environments(config, run, tasks)
    rollout = config.rollout.model_copy(update={"scaffold": scaffold_of(config)})
    first = 1 + max(map(int, own_names(run)), default=-1)
    before = len(evaluated(run))
    by = config.model or getattr(config.rollout.server, "model", None) or scaffold_of(config).name
    if left:
        async with Rollout(rollout, run, model, attempt.number, {"heldout": left}) as rollouts:
            for number, at in enumerate(range(0, len(left), config.chunk_tasks), first):
                await rollouts.evaluate(f"{number:05d}", updates=0, tasks=left[at : at + config.chunk_tasks])
                write_results(run, by)
                done = before + min(at + config.chunk_tasks, len(left))
                print(f"{done} of {before + len(left)} tasks: {repaired(summary_of(run))} repaired", flush=True)
    write_results(run, by)
    refuse_broken("the evaluation", [broken_by(row) for row in sampled(read_jsonl(run / "results.jsonl"))])
    beating.cancel()


def merge(run: Path, config: EvaluateConfig, now: dict) -> None:
    """All shards' results in the folder above them, once the last has its summary. Two that end at once write the same.
    ConfigError when one has other inputs."""
    folders = [run / f"shard_{number}" for number in range(config.shards)]
    if not all((folder / "summary.json").exists() for folder in folders):
        return
    for folder in folders:
        admit(folder, config, now)
    write_json(run / inputs.RECORD, now)
    for name in ("environments.jsonl", "predictions.jsonl", "results.jsonl"):
        write_jsonl(run / name, [row for folder in folders for row in read_jsonl(folder / name)])
    wall_s = max(read_json(folder / "summary.json")["wall_s"] for folder in folders)
    write_json(run / "summary.json", summary_of(run) | {"shards": config.shards, "wall_s": wall_s})


def run_shard(
    config: EvaluateConfig, run: Path, tasks: list[Task], now: dict, model: str | None, arguments: list[str]
) -> None:
    """`run`: its own folder; the record lies above it, too, before there is a result."""
    for folder in ("rollouts/buffer", "policy", "logs"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    attempt = attempts.lead(run, Place())
    began = time.monotonic()
    changed = admit(run, config, now)
    for folder in (whole_of(config, run), run):
        write_json(folder / inputs.RECORD, now)
    dump(config, run / "config.yaml")
    write_json(run / "provenance.json", provenance(arguments))
    write_json(run / "status.json", {"state": "running", "attempt": attempt.number, "pid": os.getpid(), "reason": ""})
    attempts.ready(attempt, changed)
    state, reason = "stopped", "stopped by a signal: the same command goes on"
    try:
        asyncio.run(evaluate(config, run, model, tasks, attempt))
        write_json(
            run / "summary.json", summary_of(run) | {"model": model, "wall_s": round(time.monotonic() - began, 1)}
        )
        state, reason = "done", ""
    except asyncio.CancelledError:
        sys.exit(attempts.STOPPED)
    except Exception as error:
        state, reason = "failed", str(error)
        raise
    finally:
        write_json(
            run / "status.json", {"state": state, "attempt": attempt.number, "pid": os.getpid(), "reason": reason}
        )
        attempt.end(reason if state == "failed" else "")


def show(run: Path, refused: list[str]) -> bool:
    """Prints what came out. Whether every row was evaluated: `refused` are those that were not loaded."""
    summary = summary_of(run)
    broken = [detail for row in sampled(read_jsonl(run / "results.jsonl")) if (detail := broken_by(row)) is not None]
    beside = {
        "greedy": "greedy",
        "first_edit": "by the first edit",
        "submitted": "submitted",
        "at_limit": "ended at a limit",
    }
    print(
        f"{run}: {repaired(summary)} of {summary['tasks']} tasks repaired"
        + "".join(f"; {text} {summary[name]:.1%}" for name, text in beside.items() if name in summary)
        + (f"; {len(refused)} rows that cannot be used" if refused else "")
        + (
            f"; {summary['prompt_tokens']:,} tokens in, {summary['completion_tokens']:,} out, ${summary['dollars']:.2f}"
            if "dollars" in summary
            else ""
        )
        + (
            f"; {summary['not_built']} without an environment: {run / 'environments.jsonl'}"
            if summary["not_built"]
            else ""
        )
        + (
            f"; {len(broken)} of {summary['episodes']} episodes ended as infrastructure errors, most often: "
            f"{commonest(broken)}"
            if broken
            else ""
        )
        + (
            f"; SWE-bench counts {summary['pass_rate_swebench']:.1%}, differing in "
            f"{', '.join(summary['disagreements'])}"
            if summary["disagreements"]
            else ""
        )
    )
    return not (refused or summary["not_built"] or broken)


def heldout(config: EvaluateConfig) -> tuple[list[Task], list[str]]:
    """(the tasks, a line for each row that is none). ConfigError when there is no task."""
    refused: list[str] = []
    tasks = load_tasks(config.rollout.tasks, refused)["heldout"][: config.rollout.evaluation.tasks]
    if not tasks and refused:
        raise TaskError(f"not one of {len(refused)} rows can be used, the first: {refused[0]}")
    if not tasks:
        raise ConfigError("no held-out tasks to evaluate: load some (rollout.tasks)")
    for line in refused:
        print(f"left out: {line}", flush=True)
    return tasks, refused


@program(EvaluateConfig)
def main(arguments: list[str]) -> None:
    if "--predictions" in arguments[:-1]:
        at = arguments.index("--predictions")
        arguments = [
            *arguments[:at],
            f"scaffold={{name: predictions, path: {json.dumps(arguments[at + 1])}}}",
            *arguments[at + 2 :],
        ]
    config = load(EvaluateConfig, arguments[0], arguments[1:])
    if config.shard >= config.shards:
        raise ConfigError(f"shard={config.shard} of shards={config.shards}: they are numbered from 0")
    run, model = folder_of(config, arguments[0]), model_of(config)
    tasks, refused = heldout(config)
    shard = tasks[config.shard :: config.shards]
    if not shard:
        raise ConfigError(
            f"shard {config.shard} of {config.shards} has no task: there are {len(tasks)}; take fewer shards"
        )
    now = inputs_of(config, tasks, model)
    for folder in (whole_of(config, run), run):
        admit(folder, config, now)
    if not (run / "summary.json").exists():
        run_shard(config, run, shard, now, model, arguments)
    if config.shards > 1:
        merge(whole_of(config, run), config, now)
    if not show(run, refused):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

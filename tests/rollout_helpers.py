"""A real rollout process without a model: a control is the agent, and the test is the trainer and vLLM."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path

from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.buffer import sampled_tokens
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.functions import load as functions

TASKS = functions(FunctionsConfig(train=4, heldout=3))


def folder(path: Path) -> Path:
    for name in ("rollouts/buffer", "policy", "checkpoints", "logs/attempt_1"):
        (path / name).mkdir(parents=True, exist_ok=True)
    if not (path / "policy" / "versions.jsonl").exists():
        (path / "policy" / "versions.jsonl").write_text('{"version": 0, "step": 0}\n')
    write_json(path / "policy" / "current.json", {"version": 0, "step": 0, "path": "", "path_version": 0, "live": True})
    return path


def rollout_of(run: Path, tasks: dict = TASKS, attempt: int = 1, scaffold: str = "gold", **settings) -> Rollout:
    named = {
        "tasks": {"name": "functions"},
        "scaffold": {"name": scaffold},
        "groups_per_step": 2,
        "group_size": 2,
        "concurrent_episodes": 4,
        "infrastructure_retries": 0,
    }
    return Rollout(
        RolloutConfig.model_validate(named | settings),
        run,
        None,
        attempt,
        {split: list(own) for split, own in tasks.items()},
        trains=True,
    )


def answer(rollout: Rollout) -> None:
    """What the trainer does with the next step's file, and vLLM with the new weights."""
    run, step = rollout.run, rollout.supervisor.serving["step"]
    groups: dict[str, list] = {}
    for trajectory in trajectory_files.read(run / "rollouts" / f"step_{step:05d}.parquet")[0]:
        groups.setdefault(trajectory.group_id, []).append(trajectory)
    with (run / "policy" / "versions.jsonl").open("a") as file:
        file.write(json.dumps({"version": step + 1, "step": step + 1}) + "\n")
    write_json(
        run / "rollouts" / f"step_{step:05d}.trained.json",
        {
            "groups": {group: {"trained": sampled_tokens(members), "masked": {}} for group, members in groups.items()},
            "version": step + 1,
        },
    )
    rollout.supervisor.serving = {"version": step + 1, "step": step + 1}


async def train_along(rollout: Rollout, after_each=lambda step: None) -> None:
    """Until it is cancelled."""
    with suppress(asyncio.CancelledError):
        while True:
            step = rollout.supervisor.serving["step"]
            if (rollout.run / "rollouts" / f"step_{step:05d}.parquet").exists() and read_json(
                rollout.run / "rollouts" / f"step_{step:05d}.trained.json"
            ) is None:
                answer(rollout)
                after_each(step)
            await asyncio.sleep(0.01)

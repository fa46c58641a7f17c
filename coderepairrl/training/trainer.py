"""What the loop of scripts/train_grpo.py needs beside the engine: waiting for rollouts, and which call teaches what."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from coderepairrl.rollout import trajectory_files
from coderepairrl.rollout.evaluations import is_done
from coderepairrl.run.attempt import stop_asked
from coderepairrl.training import advantages
from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.algorithms import group_advantages, overlong_penalty
from coderepairrl.training.engine import Engine
from coderepairrl.types import Outcome, Trajectory
from coderepairrl.weights.publisher import Publisher

TRUNCATED = (Outcome.TURN_LIMIT, Outcome.TOKEN_LIMIT, Outcome.TIME_LIMIT)
LOOK_S = 0.05  # between two looks for a file


@dataclass(frozen=True)
class Waited:
    trajectories: list[Trajectory]
    stats: dict  # of the rollout process
    seconds: float


def wait_for_rollouts(run: Path, name: str, engine: Engine, publisher: Publisher) -> Waited | None:
    """Collective. Until the rollout process has written the file; meanwhile exports weights when it asks for them.
    None: this attempt is to stop.

    The driver ends this process when that one dies.
    """
    path, started, attempt = (
        run / "rollouts" / f"{name}.parquet",
        time.monotonic(),
        int(os.environ["CODEREPAIRRL_ATTEMPT"]),
    )
    evaluation = name.removeprefix("eval_") if name.startswith("eval_") else None
    # else it is about to be made again
    is_there = path.exists if evaluation is None else lambda: is_done(run, evaluation)
    while True:
        there, stop = engine.max([float(is_there()), float(stop_asked(run, attempt))])  # all ranks must see the same
        if stop:
            return None
        if there:
            break
        publisher.answer_wish()
        time.sleep(LOOK_S)
    while not is_there():  # another rank's node saw it first
        time.sleep(LOOK_S)
    trajectories, stats = trajectory_files.read(path)
    return Waited(trajectories, stats, time.monotonic() - started)


def steps_of_versions(run: Path) -> dict[int, int]:
    """Policy version -> optimizer steps that its weights contain, for every version of this run."""
    rows = [json.loads(line) for line in (run / "policy" / "versions.jsonl").read_text().splitlines()]
    return {row["version"]: row["step"] for row in rows}


@dataclass(frozen=True)
class Judged:
    """What the trajectories of a step teach."""

    advantage: dict[str, tuple[float, ...]]  # trajectory id -> advantages, one a call
    masked: dict[str, str]  # trajectory id -> why its tokens are not trained
    zero_variance_groups: int
    groups: int  # that have a reward: not all of their episodes were ended by a broken machine

    def trained(self, trajectory: Trajectory) -> bool:
        return trajectory.trajectory_id not in self.masked


def judge(
    trajectories: list[Trajectory],
    algorithm: AlgorithmConfig,
    staleness_of: Mapping[int, int],
    max_staleness: int,
    max_tokens: int,
    unproven: Collection[int] = (),
    discount: float = 1.0,
) -> Judged:
    """Advantages group by group; one in which all are zero teaches nothing.

    Left out of their group's statistics, and masked, are infrastructure errors, and what has a token of an `unproven`
    version, whose weights were not those that it says. `staleness_of`: policy version -> staleness now; a trajectory
    with an older token than `max_staleness` is masked as "stale". `discount`: rewards.discount_per_call.
    """
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.group_id].append(trajectory)
    advantage, masked, flat, counted = {}, {}, 0, 0
    for members in groups.values():
        for t in members:
            if t.outcome == Outcome.INFRASTRUCTURE_ERROR:
                masked[t.trajectory_id] = "infrastructure_error"
            elif not t.policy_versions.isdisjoint(unproven):
                masked[t.trajectory_id] = "unproven"
        members = [t for t in members if t.trajectory_id not in masked]
        if not members:
            continue
        counted += 1
        penalties = [overlong_penalty(_tokens(t), max_tokens, algorithm.overlong_buffer) for t in members]
        rewards = [t.reward + penalty for t, penalty in zip(members, penalties, strict=True)]
        values = group_advantages(algorithm.advantage, torch.tensor(rewards, dtype=torch.float64)).tolist()
        of_calls = advantages.of_calls(algorithm, members, values, penalties, discount)
        if not any(values) and not any(map(any, of_calls)):
            flat += 1
            masked |= {t.trajectory_id: "zero_variance" for t in members}
        advantage |= {t.trajectory_id: value for t, value in zip(members, of_calls, strict=True)}
    for trajectory in trajectories:
        if trajectory.trajectory_id in masked:
            continue
        if any(staleness_of[version] > max_staleness for version in trajectory.policy_versions):
            masked[trajectory.trajectory_id] = "stale"
        elif algorithm.mask_truncated and trajectory.outcome in TRUNCATED:
            masked[trajectory.trajectory_id] = "truncated"
    return Judged(advantage, masked, flat, counted)


def _tokens(trajectory: Trajectory) -> int:
    """Of the longest call, prompt included: what limits.max_total_tokens bounds."""
    return max((len(call.prompt_ids) + len(call.completion_ids) for call in trajectory.calls), default=0)


def books(trajectories: list[Trajectory], judged: Judged) -> dict[str, dict]:
    """Group -> how many of its sampled tokens were trained, and why the others were not: the answer to the rollout
    process."""
    out: dict[str, dict] = {}
    for trajectory in trajectories:
        book = out.setdefault(trajectory.group_id, {"trained": 0, "masked": {}})
        tokens = trajectory.sampled_tokens
        reason = judged.masked.get(trajectory.trajectory_id)
        if reason is None:
            book["trained"] += tokens
        else:
            book["masked"][reason] = book["masked"].get(reason, 0) + tokens
    return out

"""The rollout process: what it makes of episodes that a broken machine ended, and what it asks of the others.

Real books, files and audit; no vLLM.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from coderepairrl.files import write_json
from coderepairrl.rollout import groups, ledger, trajectory_files
from coderepairrl.rollout.evaluations import EvaluationConfig
from coderepairrl.rollout.groups import Groups
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.types import Call, Environment, Outcome, Task, Trajectory

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = importlib.util.spec_from_file_location("audit", ROOT / "analysis" / "audit.py")
MODULE = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(MODULE)
TASKS = [
    Task(name, "", Environment("none", None, sys.executable, ()), {}, {}, (), (), (), "")
    for name in ("lucky", "late", "broken")
]
SCRIPT = {
    "lucky": [4],
    "late": [-5, -3, 4],
    "broken": [-5, -3, -2],
}  # task -> sampled tokens of its tries; negative: the machine broke after so many


class Scripted(Groups):
    """Its episodes end as SCRIPT says."""

    async def episode(self, group: str, task: Task, trajectory_id: str, split: str, attempt: int, way) -> Trajectory:
        tokens = SCRIPT[task.task_id][attempt]
        calls = (
            Call(
                0,
                None,
                None,
                (1,),
                tuple(range(abs(tokens))),
                (-0.1,) * abs(tokens),
                (0,) * abs(tokens),
                "stop",
                False,
                0.0,
                0.1,
            ),
        )
        outcome = Outcome.SUBMITTED if tokens > 0 else Outcome.INFRASTRUCTURE_ERROR
        return Trajectory(
            trajectory_id,
            group,
            task.task_id,
            split,
            attempt,
            calls,
            "",
            outcome,
            "",
            None,
            {"patch": 1.0} if tokens > 0 else {},
            float(tokens > 0),
            1.0,
            (),
            {"started_at": 1.0, "generation_s": 0.5, "grading_s": 0.5},
        )


@pytest.fixture
def config(tmp_path) -> RolloutConfig:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "versions.jsonl").write_text('{"version": 0, "step": 0}\n')
    write_json(
        tmp_path / "policy" / "current.json", {"version": 0, "step": 0, "path": "", "path_version": 0, "live": True}
    )
    return RolloutConfig(
        tasks={"name": "functions", "train": 1, "heldout": 1},
        scaffold={"name": "empty"},
        groups_per_step=1,
        group_size=1,
        rewards={"weights": {"patch": 1.0}},
        evaluation=EvaluationConfig(temperature=0.25),
        sampling={"temperature": 0.75},
        sandbox={"scratch": str(tmp_path / "scratch")},
    )


def test_a_broken_machine_is_tried_again_and_its_tokens_are_booked_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr("coderepairrl.rollout.rollout.Groups", Scripted)

    async def main():
        async with Rollout(config, tmp_path, None, 1, {"train": [], "heldout": TASKS}) as rollouts:
            await rollouts.evaluate("before", updates=0)

    asyncio.run(main())
    stored = {t.task_id: t for t in trajectory_files.read(tmp_path / "rollouts" / "eval_before.parquet")[0]}
    assert {name: (t.outcome, t.attempt, len(t.calls[0].completion_ids)) for name, t in stored.items()} == {
        "lucky": (Outcome.SUBMITTED, 0, 4),
        "late": (Outcome.SUBMITTED, 2, 4),
        "broken": (Outcome.INFRASTRUCTURE_ERROR, 2, 2),
    }
    booked = [
        (row["group"], row["attempt"], row["tokens"])
        for row in ledger.rows(tmp_path / "ledger.jsonl")
        if row["event"] == "infrastructure_error"
    ]
    assert sorted(booked) == [
        ("a1-eval_before-1", 0, 5),
        ("a1-eval_before-1", 1, 3),
        ("a1-eval_before-2", 0, 5),
        ("a1-eval_before-2", 1, 3),
        ("a1-eval_before-2", 2, 0),
    ]
    assert MODULE.audit(tmp_path) == []


def test_each_split_is_sampled_as_it_is_configured_and_no_policys_cache_is_used_by_another(
    config, tmp_path, monkeypatch
):
    asked = []

    async def run_episode(services, task, *, split, sampling, cache_salt, **_):
        asked.append((split, sampling.temperature, cache_salt))

    monkeypatch.setattr(groups, "run_episode", run_episode)

    async def main():
        async with Rollout(config, tmp_path, None, 1, {"train": [], "heldout": []}) as rollouts:
            for version in (0, 1):
                rollouts.supervisor.serving = {"version": version, "step": version}
                for split in ("train", "heldout"):
                    await rollouts.episode(TASKS[0], split)

    asyncio.run(main())
    assert [(split, temperature) for split, temperature, _ in asked] == [("train", 0.75), ("heldout", 0.25)] * 2
    assert len({salt for *_, salt in asked}) == 2 and asked[0][2] != asked[2][2]

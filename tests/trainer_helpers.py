"""Shared by several tests: test_trainer.py and others."""

from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.trainer import judge
from coderepairrl.types import Call, Outcome, Trajectory

MAX_TOKENS = 100


def episode(
    name: str,
    group: str,
    reward: float,
    outcome: Outcome = Outcome.SUBMITTED,
    versions: tuple[int, ...] = (3, 3),
    prompt: int = 4,
) -> Trajectory:
    call = Call(
        0, None, None, (1,) * prompt, (5,) * len(versions), (-0.1,) * len(versions), versions, "stop", False, 0.0, 0.0
    )
    return Trajectory(name, group, "task", "train", 0, (call,), "", outcome, "", None, {}, reward, 1.0)


def judged(trajectories, max_staleness=0, unproven=(), **algorithm):
    return judge(trajectories, AlgorithmConfig(**algorithm), {1: 2, 2: 1, 3: 0}, max_staleness, MAX_TOKENS, unproven)

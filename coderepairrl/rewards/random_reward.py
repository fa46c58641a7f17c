"""The control: a coin, whatever the agent did. What a run gains under it was not learnt from the reward."""

import random

from coderepairrl.types import Task, Verdict


def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
    return float(random.random() < 0.5)

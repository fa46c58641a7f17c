"""Rewards: each is f(task, diff, verdict) -> float in a file of its own, and one entry of REWARDS; or the user's, by a
dotted path.

    grader = Grader(sandbox_config)
    verdict, parts, total = await compute(config, task, diff, grader)
"""

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field, FiniteFloat, PositiveFloat, field_validator

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, did_you_mean
from coderepairrl.grading.counting import disagreement, failing
from coderepairrl.grading.grader import Grader, grade
from coderepairrl.grading.validation import build_verdict
from coderepairrl.grading.validation.build_verdict import BuildVerdict
from coderepairrl.rewards import build, patch, random_reward, similarity, tests, user, weak
from coderepairrl.rewards.discount import discounted
from coderepairrl.rewards.patch import patch_similarity
from coderepairrl.types import Task, Verdict

__all__ = [
    "REWARDS",
    "BuildVerdict",
    "Grader",
    "RewardConfig",
    "compute",
    "disagreement",
    "discounted",
    "failing",
    "grade",
    "patch_similarity",
]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reward:
    # of task, diff, and the verdict (None where no test was run) or what `judge` found; built-in: in [0, 1]
    function: Callable[[Task, str, Any], float]
    needs_verdict: bool = False  # the tests are run for it
    judge: Callable[[Task, str, Grader], Awaitable[Any]] | None = None  # what is run for it instead


REWARDS = {
    "tests": Reward(tests.reward, needs_verdict=True),
    "build": Reward(
        build.reward, judge=lambda task, diff, grader: build_verdict.validate(task, diff, grader.config, grader.builds)
    ),
    "visible_log": Reward(weak.visible_log, judge=weak.visible_output),
    "patch": Reward(patch.reward),
    **{name: Reward(similarity.reward_of(function)) for name, function in similarity.SIMILARITIES.items()},
    "random": Reward(random_reward.reward),
}


@functools.cache
def find_reward(name: str) -> Reward:
    """One of REWARDS; a name with a dot is the user's, and always gets the verdict. Raises ValueError with cause and
    remedy."""
    if name in REWARDS:
        return REWARDS[name]
    if "." in name:
        return Reward(functools.partial(user.call, name, user.load(name)), needs_verdict=True)
    known = f"known: {', '.join(REWARDS)}, or the dotted path of your own"
    raise ValueError(f"unknown reward {name!r}: {did_you_mean(name, REWARDS, known)}")


class RewardConfig(Config):
    """An episode's reward is the weighted sum of its parts."""

    # name of REWARDS or dotted path -> weight; one of weight 0 is computed and logged only
    weights: dict[str, FiniteFloat] = {"tests": 1.0}
    # an episode that the agent did not end by itself gets 0: else it never learns to stop
    require_submission: bool = False
    # the reward of an episode is multiplied by this for every model call after the first, unless it is negative;
    # 1.0: trying again costs nothing
    discount_per_call: PositiveFloat = Field(1.0, le=1)
    always_test: bool = False  # run the tests even where no reward needs them: for evaluation

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        if not weights:
            raise ValueError(f"no reward has a weight: give at least one of {', '.join(REWARDS)}")
        for name in weights:
            find_reward(name)
        return weights


async def compute(
    config: RewardConfig, task: Task, diff: str, grader: Grader
) -> tuple[Verdict | None, dict[str, float], float]:
    """(verdict or None when no test was run, each part by its name, the weighted sum). Raises SandboxError; ConfigError
    for a
    user's reward that fails, and for a sum that is no number."""
    rewards = {name: find_reward(name) for name in config.weights}
    tested = config.always_test or any(reward.needs_verdict for reward in rewards.values())
    verdict = await grader.grade(task, diff) if tested else None
    judged = {name: await reward.judge(task, diff, grader) for name, reward in rewards.items() if reward.judge}
    # in a thread: a slow reward must not hold up the model calls of other episodes
    parts = await asyncio.to_thread(
        lambda: {name: reward.function(task, diff, judged.get(name, verdict)) for name, reward in rewards.items()}
    )
    total = sum(weight * parts[name] for name, weight in config.weights.items())
    if not math.isfinite(total):
        raise ConfigError(
            f"rewards of {task.task_id}: {parts} weighed by rewards.weights are {total}: take smaller weights"
        )
    log.debug("rewards of %s: %s total=%.4f", task.task_id, parts, total)
    return verdict, parts, total

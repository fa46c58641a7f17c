"""Which call of an episode has which advantage (algorithm.credit): pure functions of a group's episodes.

    episode   A = A_E for every call: what GRPO and its kin do with an answer of one turn
    turn      A = A_E + A_S: GiGPO, section 4 of arXiv:2505.10978, with the step's weight (omega) 1
A_E compares an episode with its group, A_S a call with the group's other calls in the same anchor state, both by
algorithm.advantage. The paper's state is an observation of the environment; here it is the whole prompt, token for
token, since a model that saw something else before was asked something else.

Left out: states that are only similar. So a call after the first has companions only where episodes said the same until
then, or where an agent asks a prompt again.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.algorithms import group_advantages
from coderepairrl.types import Trajectory

ROUNDING = 1e-12  # relative: returns that differ by less are the same number, discounted in another order


def of_calls(
    algorithm: AlgorithmConfig,
    members: Sequence[Trajectory],
    episode_advantages: Sequence[float],
    penalties: Sequence[float],
    discount: float,
) -> list[tuple[float, ...]]:
    """Of each member the advantages of its calls, in their order.

    penalties: what an episode's length adds to its reward, never discounted. discount: rewards.discount_per_call.
    """
    whole = [(advantage,) * len(t.calls) for t, advantage in zip(members, episode_advantages, strict=True)]
    if algorithm.credit == "episode":
        return whole
    found = [returns(t.reward, len(t.calls), discount, penalty) for t, penalty in zip(members, penalties, strict=True)]
    steps = step_advantages(algorithm.advantage, members, found)
    return [tuple(a + s for a, s in zip(*pair, strict=True)) for pair in zip(whole, steps, strict=True)]


def returns(reward: float, calls: int, discount: float, penalty: float = 0.0) -> tuple[float, ...]:
    """Of call t = 0, 1 ... n - 1: R discount^(n - 1 - t) + penalty, since it answers for the calls after it alone.

    `reward` is R discount^(n - 1), or a negative R as it was: see rewards.discount. GiGPO's discounted return, for an
    episode whose only reward comes at its end.
    """
    return tuple((reward / discount**t if reward > 0 else reward) + penalty for t in range(calls))


def step_advantages(
    kind: str, members: Sequence[Trajectory], returns_of: Sequence[Sequence[float]]
) -> list[list[float]]:
    """A_S of every call: group_advantages among the returns of the calls with its prompt, two of one episode included.

    0 for one that is alone in its state, and where all returns are equal.
    """
    states: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)  # prompt -> (member, call)
    for number, trajectory in enumerate(members):
        for place, call in enumerate(trajectory.calls):
            states[call.prompt_ids].append((number, place))
    out = [[0.0] * len(t.calls) for t in members]
    for places in states.values():
        found = torch.tensor([returns_of[number][place] for number, place in places], dtype=torch.float64)
        if found.max() - found.min() > ROUNDING * found.abs().max():
            for (number, place), value in zip(places, group_advantages(kind, found).tolist(), strict=True):
                out[number][place] = value
    return out

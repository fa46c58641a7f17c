"""Advantages, losses and their aggregation: pure tensor functions, each with its paper's equation.

Legend: G episodes of a group; N trained tokens of a micro-batch; r = exp(logp - logp_old) the ratio of a token; A its
advantage.
logp_old are the logprobs under the behaviour policy, as the serving engine reported them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.types import Sample


def group_advantages(kind: str, rewards_G: torch.Tensor) -> torch.Tensor:
    """Of the episodes of one group; a group whose rewards are all equal gets exact zeros.

    normalised      (r - mean) / (std + 1e-6): GRPO, section 4.1 of arXiv:2402.03300
    centred         r - mean: Dr.GRPO, section 3.2 of arXiv:2503.20783
    leave_one_out   r - mean of the others: RLOO, section 2.2 of arXiv:2402.14740
    """
    if (rewards_G == rewards_G[0]).all():  # the mean of equal numbers can differ from them in the last bit
        return torch.zeros_like(rewards_G)
    centred = rewards_G - rewards_G.mean()
    if kind == "normalised":
        return centred / (rewards_G.std(correction=0) + 1e-6)
    return centred * len(rewards_G) / (len(rewards_G) - 1) if kind == "leave_one_out" else centred


def overlong_penalty(tokens: int, limit: int, buffer: int) -> float:
    """0 up to limit - buffer tokens, then falling to -1 at the limit: DAPO's soft punishment, equation 13 of
    arXiv:2503.14476."""
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer)) if buffer else 0.0


@dataclass(frozen=True)
class Surrogate:
    """All (N,)."""

    losses: torch.Tensor
    ratio: torch.Tensor
    clipped_low: torch.Tensor  # float: 1 where the lower bound took the gradient away
    clipped_high: torch.Tensor


def token_ratio(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> Surrogate:
    """PPO's clipped surrogate, equation 7 of arXiv:1707.06347, for each token: -min(r A, clip(r, 1 - low, 1 + high) A).

    low != high is DAPO's clip-higher, section 3.1 of arXiv:2503.14476.
    """
    return _clipped((logprobs - old).exp(), advantages, low, high)


def sequence_ratio(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    branches: torch.Tensor,
    tokenwise: bool = False,
) -> Surrogate:
    """GSPO, equations 5 to 7 of arXiv:2507.18071: the ratio is s = exp(mean over the sequence's tokens of logp -
    logp_old), clipped as a whole.

    A sequence is one branch of a trajectory. Every token carries its sequence's loss, so that aggregation "sequence" is
    the paper's objective.

    tokenwise: GSPO-token, section 4.3 there, for advantages that differ within a branch. s_t = sg(s) p_t / sg(p_t),
    with p_t the token's probability, has the value of s and a gradient through its own token alone. Through s itself
    every token would get the mean of its branch's advantages, and no call would be told from another; where these are
    equal, both gradients are. The ratio is still the whole branch's: clipped for all of its tokens with the same sign
    of A.
    """
    count = int(branches.max()) + 1 if len(branches) else 0
    zeros = torch.zeros(count, dtype=logprobs.dtype, device=logprobs.device)
    tokens = zeros.index_add(0, branches, torch.ones_like(logprobs))
    mean = zeros.index_add(0, branches, logprobs - old) / tokens.clamp(min=1)
    ratio = mean.exp()[branches]
    if tokenwise:
        ratio = ratio.detach() * (logprobs - logprobs.detach()).exp()
    return _clipped(ratio, advantages, low, high)


def clipped_weight(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> Surrogate:
    """CISPO, equations 4 and 5 of arXiv:2506.13585: -sg(clip(r, 1 - low, 1 + high)) A logp: clips the weight, keeps
    every token's gradient."""
    ratio = (logprobs - old).exp().detach()
    return Surrogate(
        -ratio.clamp(1 - low, 1 + high) * advantages * logprobs,
        ratio,
        (ratio < 1 - low).float(),
        (ratio > 1 + high).float(),
    )


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> Surrogate:
    plain, bounded = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return Surrogate(
        -torch.minimum(plain, bounded),
        ratio,
        ((ratio < 1 - low) & (advantages < 0)).float(),
        ((ratio > 1 + high) & (advantages > 0)).float(),
    )


def correction(kind: str, current: torch.Tensor, behaviour: torch.Tensor, cap: float) -> torch.Tensor:
    """Weight w of each token for the distance between the policy before this step and the one that sampled, w =
    exp(current - behaviour), no gradient.

    truncate   min(w, cap): truncated importance sampling; for stale data the outer weight of the decoupled objective
               (arXiv:2505.24298,
               section 5.2), and the same for what two engines compute differently under equal weights
    mask       w where 1 / cap <= w <= cap, else 0: IcePop (arXiv:2510.18855)
    """
    weight = (current - behaviour).exp().detach()
    if kind == "truncate":
        return weight.clamp(max=cap)
    return weight * ((weight <= cap) & (weight >= 1 / cap))


def policy_loss(
    config: AlgorithmConfig,
    logprobs: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    branches: torch.Tensor,
    reference: torch.Tensor | None = None,
) -> Surrogate:
    """The loss of each token, not yet aggregated.

    With a correction the objective is decoupled (arXiv:2505.24298, section 5.2): ratios are taken to the policy before
    this step, whose logprobs are the present ones, because a step makes one update; the correction weighs each token's
    loss.
    """
    old = behaviour if config.correction == "none" else logprobs.detach()
    if config.surrogate == "sequence_ratio":
        out = sequence_ratio(
            logprobs, old, advantages, config.clip_low, config.clip_high, branches, tokenwise=config.credit == "turn"
        )
    else:
        out = (token_ratio if config.surrogate == "token_ratio" else clipped_weight)(
            logprobs, old, advantages, config.clip_low, config.clip_high
        )
    losses = out.losses
    if config.correction != "none":
        losses = losses * correction(config.correction, logprobs, behaviour, config.correction_cap)
        out = Surrogate(out.losses, (logprobs.detach() - behaviour).exp(), out.clipped_low, out.clipped_high)
    if reference is not None:
        losses = losses + config.kl_coefficient * low_variance_kl(logprobs, reference)
    return Surrogate(losses, out.ratio.detach(), out.clipped_low, out.clipped_high)


def low_variance_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 with d = reference - policy: the non-negative estimator of KL(policy || reference), Schulman 2020
    ("k3")."""
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def row_weights(
    aggregation: str, rows: Sequence[Sample], constant: float, trajectories: int | None = None
) -> list[float]:
    """Weight of each trained token of each row, so that the step's loss is the weighted sum of its tokens' losses.
    Calls have no weight of their own: with credit "turn" a long one still counts for more tokens than a short one.

    token        1 / (tokens of the step): DAPO, section 3.3 of arXiv:2503.14476
    sequence     mean over branches of the mean over a branch's tokens: GSPO's, equation 5 of arXiv:2507.18071
    trajectory   mean over trajectories of the mean over all tokens of one: equation 3 of arXiv:2402.03300, where an
                 answer was one turn;
                 long episodes then don't drown short ones
    constant     1 / (trajectories x `constant`), the same for every token and step: Dr.GRPO, section 3.2 of
                 arXiv:2503.20783, where the
                 constant is the generation budget
    `trajectories`: how many the step has, also those that are not trained; default: those of the rows.
    """
    tokens = [sum(row.loss_mask) for row in rows]
    of_trajectory: dict[str, int] = {}
    for row, count in zip(rows, tokens, strict=True):
        of_trajectory[row.trajectory_id] = of_trajectory.get(row.trajectory_id, 0) + count
    if aggregation == "token":
        return [1 / max(1, sum(tokens))] * len(rows)
    if aggregation == "sequence":
        branches = sum(count > 0 for count in tokens)
        return [1 / (branches * count) if count else 0.0 for count in tokens]
    if aggregation == "trajectory":
        return [1 / (len(of_trajectory) * max(1, of_trajectory[row.trajectory_id])) for row in rows]
    if aggregation == "constant":
        return [1 / ((trajectories or len(of_trajectory)) * constant) for _ in rows]
    raise ValueError(f"unknown aggregation {aggregation!r}: token, sequence, trajectory or constant")

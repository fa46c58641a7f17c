"""Advantages and losses: pure tensor functions. Legend: G episodes of a group, B rows, T tokens of a row, V vocabulary."""
import torch


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, V) logits, (B, T) ids -> logprob of each token given those before it, entropy there; both (B, T), column 0 is 0."""
    logprobs = logits[:, :-1].log_softmax(-1)
    picked = logprobs.gather(2, token_ids[:, 1:, None])[..., 0]
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return torch.nn.functional.pad(picked, (1, 0)), torch.nn.functional.pad(entropy, (1, 0))


def grpo_advantages(rewards_G: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """(r - mean) / (std + 1e-6) over the group: GRPO, equation in section 4.1 of arXiv:2402.03300. scale=False: without the division.

    A group whose rewards are all equal gets zeros.
    """
    if (rewards_G == rewards_G[0]).all():  # the mean of equal numbers can differ from them in the last bit
        return torch.zeros_like(rewards_G)
    centred = rewards_G - rewards_G.mean()
    if not scale:
        return centred
    return centred / (rewards_G.std(correction=0) + 1e-6)


def clipped_policy_loss(logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, advantages: torch.Tensor,
                        clip_low: float, clip_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate, equation 7 of arXiv:1707.06347, per token: -min(r A, clip(r, 1 - low, 1 + high) A), r = exp(logp - logp_old).

    All (B, T). Returns (loss, ratio); how tokens are averaged is the caller's.
    """
    ratio = (logprobs - behaviour_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages), ratio


def low_variance_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 with d = reference - policy: the non-negative estimator of KL(policy || reference), Schulman 2020 ("k3")."""
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def weighted_cross_entropy(logprobs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of -w log p over all tokens, (B, T) -> scalar; the caller divides by the sum of the weights of the whole step."""
    return -(logprobs * weights).sum()


def token_weights(aggregation: str, tokens_of: dict[str, int]) -> dict[str, float]:
    """Trajectory id -> weight of each of its trained tokens, so that the loss is the weighted sum of the token losses.

    "token": every token weighs the same, 1 / (tokens of the step), as in DAPO (arXiv:2503.14476, section 3.3).
    "trajectory": the mean over trajectories of the mean over a trajectory's tokens, as GRPO's equation 3 (arXiv:2402.03300)
    has it for answers of one turn; long episodes then don't drown short ones. `tokens_of`: trajectory id -> trained tokens.
    """
    if aggregation == "token":
        total = sum(tokens_of.values())
        return {name: 1 / total for name in tokens_of}
    if aggregation == "trajectory":
        return {name: 1 / (len(tokens_of) * tokens) for name, tokens in tokens_of.items()}
    raise ValueError(f"unknown aggregation {aggregation!r}: token or trajectory")

"""What an algorithm is configured by, and what each name stands for; apart from algorithms.py, because reading a
configuration should not import torch."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from coderepairrl.config import Config

PRESETS = {
    "grpo": {},
    "dr_grpo": {"advantage": "centred", "aggregation": "constant"},
    "dapo": {"clip_high": 0.28, "aggregation": "token"},  # with rollout.max_refills for its dynamic sampling
    "gspo": {"surrogate": "sequence_ratio", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence"},
    "cispo": {"surrogate": "clipped_weight", "clip_low": 1.0, "clip_high": 0.28, "aggregation": "token"},
    "rloo": {"advantage": "leave_one_out"},
}


class AlgorithmConfig(Config):
    """A name sets what its paper says; every entry can be set beside it."""

    # sets the defaults of the entries below; those shown are grpo's
    name: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = "grpo"
    # reward less its group's mean, over the group's deviation or as it is; or less the mean of the others
    advantage: Literal["normalised", "centred", "leave_one_out"] = "normalised"
    # what is compared: whole episodes; or beside them each call with its group's calls that had the same prompt
    # (arXiv:2505.10978)
    credit: Literal["episode", "turn"] = "episode"
    # what is clipped: each token's ratio, its branch's, or the weight of its gradient
    surrogate: Literal["token_ratio", "sequence_ratio", "clipped_weight"] = "token_ratio"
    # what weighs the same: each token, each branch, each episode; constant: tokens over limits.max_total_tokens
    aggregation: Literal["token", "sequence", "trajectory", "constant"] = "trajectory"
    clip_low: float = Field(0.2, ge=0.0, le=1.0)  # the ratio is clipped below 1 - clip_low
    clip_high: NonNegativeFloat = 0.2  # and above 1 + clip_high
    # of what separates the trainer's weights from those that sampled
    correction: Literal["none", "truncate", "mask"] = "none"
    correction_cap: float = Field(2.0, gt=0.0)  # ratio from which on a token is truncated to it, or masked
    # towards the policy that training began with: LoRA's base, or a frozen second model
    kl_coefficient: NonNegativeFloat = 0.0
    mask_truncated: bool = False  # episodes that a limit ended teach nothing, instead of what their reward says
    # tokens below limits.max_total_tokens from which on the reward falls, by 1 at the limit
    overlong_buffer: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        name = values.get("name", "grpo") if isinstance(values, dict) else None  # anything else is refused by its type
        return PRESETS[name] | values if isinstance(name, str) and name in PRESETS else values

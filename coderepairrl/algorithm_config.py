"""What an algorithm is configured by, and what each name stands for; apart from algorithms.py, because reading a configuration should not import torch."""
from typing import Literal

from pydantic import model_validator

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
    name: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = "grpo"
    advantage: Literal["normalised", "centred", "leave_one_out"] = "normalised"
    surrogate: Literal["token_ratio", "sequence_ratio", "clipped_weight"] = "token_ratio"
    aggregation: Literal["token", "sequence", "trajectory", "constant"] = "trajectory"
    clip_low: float = 0.2
    clip_high: float = 0.2
    correction: Literal["none", "truncate", "mask"] = "none"  # of what separates the trainer's weights from those that sampled
    correction_cap: float = 2.0
    kl_coefficient: float = 0.0  # towards the policy that training began with: LoRA's base, or a frozen second model
    mask_truncated: bool = False  # episodes that a limit ended teach nothing, instead of what their reward says
    overlong_buffer: int = 0  # tokens below limits.max_total_tokens from which on the reward falls, by 1 at the limit

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: dict) -> dict:
        return PRESETS.get(values.get("name", "grpo"), {}) | values

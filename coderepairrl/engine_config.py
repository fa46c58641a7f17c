"""What the engine is configured by; apart from it, because reading a configuration should not import DeepSpeed."""
from typing import Literal

from coderepairrl.config import Config


class EngineConfig(Config):
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0  # cosine from learning_rate to final_share of it over so many steps; 0: constant
    final_share: float = 0.02
    gradient_clipping: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the parameters that ZeRO-3 holds and of the forward pass
    autocast: bool = False  # forward in bfloat16 over float32 parameters: faster, but no longer what vLLM computes in float32
    leaf_modules: list[str] = []  # class names that ZeRO-3 gathers in one piece: fewer, larger collectives (a small model: all of it)
    persistence_threshold: int = 0  # parameters with fewer elements stay whole on every rank, each gathered on its own after a step

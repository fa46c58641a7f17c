"""What the engine is configured by; apart from it, because reading a configuration should not import DeepSpeed."""
from typing import Literal

from pydantic import Field

from coderepairrl.config import Config


class LoRAConfig(Config):
    rank: int = 32
    alpha: float = 64.0
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class EngineConfig(Config):
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0  # cosine from learning_rate to final_share of it over so many steps; 0: constant
    final_share: float = 0.02
    gradient_clipping: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; bfloat16 keeps float32 master weights in the optimizer
    autocast: bool = False  # forward in bfloat16 over float32 parameters: faster, but no longer what vLLM computes in float32
    lora: LoRAConfig | None = None
    checkpointed_share: float = 0.0  # of the layers, whose activations are computed again in backward instead of kept
    offload_activations: bool = False  # what is kept waits in CPU memory
    offload_optimizer: bool = False  # optimizer state and master weights in CPU memory
    bucket_elements: int = 100_000_000  # parameters gathered at a time for weight updates and exports
    sequence_ranks: int = Field(1, ge=1)  # so many neighbouring ranks share one row (Ulysses), each with so much less of its activations
    random_weights: bool = False  # don't read weights, draw them: benchmarks need a config.json only
    leaf_modules: list[str] = []  # class names that ZeRO-3 gathers in one piece: fewer, larger collectives
    persistence_threshold: int = 0  # parameters with fewer elements stay whole on every rank, each gathered on its own after a step

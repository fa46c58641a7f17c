"""What the engine is configured by; apart from it, because reading a configuration should not import DeepSpeed."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from coderepairrl.config import Config, Share

Moment = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoRAConfig(Config):
    """Low-rank adapters are trained instead of the weights; vLLM and exports get them merged."""

    rank: PositiveInt = 32  # of the adapters
    alpha: float = Field(64.0, gt=0.0)  # an adapter's product is scaled by alpha / rank
    # names of the linear layers that get one
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class MuonConfig(Config):
    """Matrices of the layers are trained by Muon (https://kellerjordan.github.io/posts/muon): momentum, made orthogonal
    by five Newton-Schulz iterations (in float16 where the hardware computes it, else in float32). AdamW keeps the
    rest."""

    # the spectral norm of a step for a square matrix; rises and falls as the other one does
    learning_rate: NonNegativeFloat = 0.02
    momentum: Moment = 0.95  # Nesterov's


class EngineConfig(Config):
    """DeepSpeed ZeRO-3 with AdamW, or with Muon beside it."""

    learning_rate: NonNegativeFloat  # after the warm-up
    betas: tuple[Moment, Moment] = (0.9, 0.95)  # decay of AdamW's first and second moment
    weight_decay: NonNegativeFloat = 0.0  # of each step, times the learning rate: AdamW's, or Muon's
    warmup_steps: NonNegativeInt = 0  # over which the learning rate rises from 0
    decay_steps: NonNegativeInt = 0  # cosine from learning_rate to final_share of it over so many steps; 0: constant
    final_share: Share = 0.02  # of learning_rate, which decay_steps end at
    muon: MuonConfig | None = None  # null: AdamW trains everything
    gradient_clipping: NonNegativeFloat = 1.0  # largest norm of a step's gradient; 0: none, as Muon needs it
    # of the forward pass; bfloat16 keeps float32 master weights in the optimizer
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False  # forward in bfloat16 over float32 parameters where the
    # hardware has it: faster, but no longer what vLLM computes in float32
    lora: LoRAConfig | None = None  # null: all weights are trained
    checkpointed_share: Share = 0.0  # of the layers, whose activations are computed again in backward instead of kept
    offload_activations: bool = False  # what is kept waits in CPU memory
    offload_optimizer: bool = False  # optimizer state and master weights in CPU memory
    bucket_elements: PositiveInt = 100_000_000  # parameters gathered at a time for weight updates and exports
    # so many neighbouring ranks share one row (Ulysses), each with so much less of its activations
    sequence_ranks: PositiveInt = 1
    random_weights: bool = False  # don't read weights, draw them: benchmarks need a config.json only
    # class names that ZeRO-3 gathers in one piece: fewer, larger collectives; null: the decoder's layers, where they
    # are small and are neither recomputed nor adapted
    leaf_modules: list[str] | None = None
    # parameters with fewer elements stay whole on every rank, each gathered on its own after a step
    persistence_threshold: NonNegativeInt = 0

    @model_validator(mode="after")
    def _muon(self) -> "EngineConfig":
        if self.muon is None:
            return self
        if self.gradient_clipping:
            # DeepSpeed's norm is taken over what Muon has made of the gradient, which is about the same at every step
            raise ValueError("engine.gradient_clipping: with muon it would only scale the learning rates: set 0")
        if self.lora:
            raise ValueError("engine.muon: adapters are no matrices of the layers: take lora or muon")
        if self.dtype != "float32":
            # DeepSpeed keeps momentum and gathered gradients in it, and making them orthogonal magnifies what is
            # rounded
            raise ValueError("engine.muon: with dtype bfloat16 Muon's momentum would be rounded to it: take float32")
        if self.offload_optimizer:
            raise ValueError(
                "engine.muon: with offload_optimizer DeepSpeed gathers all matrices at once: take one of the two"
            )
        return self

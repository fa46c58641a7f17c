"""What scripts/train_sft.py is configured by, and what is recorded of it."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from coderepairrl.config import Config, Share, contents
from coderepairrl.run import inputs
from coderepairrl.run.metrics import WandbConfig
from coderepairrl.sft.source_config import SourceConfig, content, places
from coderepairrl.training.engine_config import EngineConfig


class SFTEvaluationConfig(Config):
    """Conversations that are never trained: a share of the sources', chosen by a hash of their first messages, or other
    sources."""

    share: float = Field(0.0, ge=0.0, lt=1.0)  # of the conversations
    sources: list[SourceConfig] = []  # instead of a share
    # steps between two evaluations; before the first and after the last step there is always one
    every: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_of_both(self) -> "SFTEvaluationConfig":
        if bool(self.share) == bool(self.sources):
            raise ValueError("name either a share or sources")
        return self


class SFTConfig(Config):
    model: str  # a Hugging Face folder: where training begins
    output: str  # the folder that is written
    sources: list[SourceConfig] = Field(min_length=1)  # learnt one after the other
    evaluation: SFTEvaluationConfig | None = None  # null: nothing is held out
    engine: EngineConfig
    batch_tokens: PositiveInt = 4096  # of one step, on all ranks together
    micro_batch_tokens: PositiveInt = 8192  # of one packed row; longer conversations are left out
    context_weight: Share = 0.0  # weight in the loss of what isn't said by the assistant
    seed: NonNegativeInt = 0  # of the order of conversations
    ranks: PositiveInt = 1  # processes that train together
    threads: PositiveInt = 1  # of each rank
    wandb: WandbConfig | None = None  # null: sft_metrics.jsonl alone

    @model_validator(mode="after")
    def _whole_rows(self) -> "SFTConfig":
        if self.ranks % self.engine.sequence_ranks:
            raise ValueError(
                f"engine.sequence_ranks: {self.engine.sequence_ranks} does not divide ranks={self.ranks}: "
                "take a number that does"
            )
        return self


def record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.inputs.json")


def inputs_of(config: SFTConfig) -> dict:
    sources = places(config.sources, config.evaluation.sources if config.evaluation else [])
    known = {key: content(source) for key, source in sources.items()}
    return inputs.of(config, inputs.SFT, model=contents.there(config.model), known=known)

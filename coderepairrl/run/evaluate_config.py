"""What scripts/evaluate.py is configured by."""

from pydantic import NonNegativeInt, PositiveInt, field_validator

from coderepairrl.config import Config
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.scaffolds import ScaffoldConfig


class EvaluateConfig(Config):
    run: str  # folder of the results
    model: str | None = None  # a Hugging Face folder, or the folder of a training run; controls need none
    # instead of rollout.scaffold; a name alone is a scaffold as it is by default
    scaffold: ScaffoldConfig | None = None
    rollout: RolloutConfig  # its held-out tasks are evaluated
    chunk_tasks: PositiveInt = 32  # tasks between two writes of results: what an interruption costs at most
    shard: NonNegativeInt = 0  # which of them this is
    shards: PositiveInt = 1  # the tasks are dealt to so many

    @field_validator("scaffold", mode="before")
    @classmethod
    def _named(cls, scaffold: object) -> object:
        return {"name": scaffold} if isinstance(scaffold, str) else scaffold

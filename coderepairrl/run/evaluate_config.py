"""What scripts/evaluate.py is configured by, and which inputs its numbers belong to."""

from pydantic import NonNegativeInt, PositiveInt, field_validator

from coderepairrl.config import Config
from coderepairrl.config.contents import model_folder
from coderepairrl.errors import ConfigError
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.run import inputs
from coderepairrl.scaffolds import ScaffoldConfig, make_scaffold
from coderepairrl.types import Task


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


def scaffold_of(config: EvaluateConfig) -> Config:
    return config.scaffold or config.rollout.scaffold


def model_of(config: EvaluateConfig) -> str | None:
    """A training run's newest checkpoint, or the path itself; None for a control and an external model. ConfigError
    when there is no model."""
    if not make_scaffold(scaffold_of(config)).calls_model or config.rollout.server.kind == "external":
        return None
    if config.model is None:
        raise ConfigError(
            "model: none is named: give a Hugging Face folder or a training run, or evaluate a control (scaffold=gold)"
        )
    return model_folder(config.model)


def settings_of(config: EvaluateConfig) -> EvaluateConfig:
    """Of the whole evaluation, the same for all of its shards."""
    rollout = config.rollout.model_copy(update={"scaffold": scaffold_of(config)})
    return config.model_copy(update={"rollout": rollout, "scaffold": None, "shard": 0})


def inputs_of(config: EvaluateConfig, tasks: list[Task], model: str | None) -> dict:
    return inputs.of(settings_of(config), inputs.EVALUATION, tasks={"heldout": tasks}, model=model)

"""What scripts/record_demonstrations.py is configured by."""

from typing import Literal

from pydantic import Field, PositiveInt

from coderepairrl.config import Config
from coderepairrl.demonstrations.expert import DemonstrationsConfig
from coderepairrl.rollout.rollout_config import RolloutConfig


class FunctionsExpert(Config):
    """The imperfect expert of the one-function tasks, which draws its own."""

    name: Literal["functions"] = "functions"
    settings: DemonstrationsConfig = DemonstrationsConfig()


class OracleExpert(Config):
    """Of the training tasks of `rollout.tasks`."""

    name: Literal["oracle"]
    repeat: PositiveInt = 1  # episodes a task


class RecordConfig(Config):
    output: str  # the folder that is written
    model: str  # a Hugging Face folder: its tokenizer and chat template
    expert: FunctionsExpert | OracleExpert = Field(FunctionsExpert(), discriminator="name")  # who is the model
    # what training will have: scaffold, limits, sandbox ...; rewards of {patch: 1.0} run no test
    rollout: RolloutConfig
    file_episodes: PositiveInt = 256  # in one file: what an interruption costs at most

"""What scripts/train_grpo.py is configured by."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from coderepairrl.config import Config
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.run.metrics import WandbConfig
from coderepairrl.run.resume import ResumeConfig
from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.engine_config import EngineConfig


class TrainingConfig(Config):
    """The trainer's loop."""

    steps: PositiveInt  # optimizer steps, each on the groups of one rollout step
    algorithm: AlgorithmConfig = AlgorithmConfig()
    micro_batch_tokens: PositiveInt = 8192  # of one packed row
    share_prefixes: bool = True  # what samples of a group have in common is computed once
    # nats, largest |trainer - vLLM| of a logprob: beyond, the run ends; null: by dtype
    max_gap: PositiveFloat | None = None
    checkpoint_every: PositiveInt = 10  # steps between two checkpoints; after the last step there is always one
    # the newest so many; beside them the best by the held-out tasks: checkpoints/best.json
    keep_checkpoints: PositiveInt = 1
    export_every: PositiveInt = 1  # updates between two exports to disk, which a restarted vLLM starts from
    evaluate: bool = True  # the held-out tasks, before the first and after the last step
    # steps from one evaluation beside training to the next, each with a checkpoint, and after the last; 0: none
    evaluate_every: NonNegativeInt = 0
    ranks: PositiveInt = 1  # processes that train together, on all nodes
    threads: PositiveInt = 1  # of each rank, on CPU
    devices: str | None = None  # the ranks' GPUs, as in CUDA_VISIBLE_DEVICES; vLLM's are rollout.server.devices

    def keeps(self, step: int) -> bool:
        """Whether there is a checkpoint after so many steps."""
        every = (self.checkpoint_every, self.evaluate_every)
        return step == self.steps or any(n and step % n == 0 for n in every)


class TrainConfig(Config):
    run: str  # the run folder
    model: str  # the warm-started policy, a Hugging Face folder
    role: Literal["all", "rollout", "serve", "train"] = "all"  # all: this program starts the others
    engine: EngineConfig
    rollout: RolloutConfig
    training: TrainingConfig
    resume: ResumeConfig = ResumeConfig()  # of a folder that other settings made
    wandb: WandbConfig | None = None  # null: metrics.jsonl alone

    @model_validator(mode="after")
    def _groups_can_teach(self) -> "TrainConfig":
        if "groups_per_step" not in self.rollout.model_fields_set:
            raise ValueError("rollout.groups_per_step: training needs to know how many tasks a step has: name a number")
        if self.rollout.group_size < 2:
            raise ValueError(
                "rollout.group_size: one episode of a task has none to be better or worse than: take 2 or more"
            )
        if self.training.ranks % self.engine.sequence_ranks:
            raise ValueError(
                f"engine.sequence_ranks: {self.engine.sequence_ranks} does not divide "
                f"training.ranks={self.training.ranks}: take a number that does"
            )
        return self

    @model_validator(mode="after")
    def _model_is_ours(self) -> "TrainConfig":
        if self.rollout.server.kind != "vllm":
            raise ValueError(
                "rollout.server: an external model has no weights that could be trained: evaluate it "
                "(scripts/evaluate.py)"
            )
        return self

    @model_validator(mode="after")
    def _agent_decides(self) -> "TrainConfig":
        if self.rollout.scaffold.name == "retry":
            raise ValueError(
                "rollout.scaffold: retry is a control for evaluations, training would learn from turns "
                "that were forced: take its agent alone"
            )
        return self

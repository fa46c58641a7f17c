"""What a user may set of the rollout process."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from coderepairrl.config import Config
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.gateway import GatewayConfig, RenderingConfig, SessionLimits, TrainedSamplingConfig
from coderepairrl.inference.server_config import AnyServerConfig, ServerConfig
from coderepairrl.rewards import RewardConfig
from coderepairrl.rollout.evaluations import EvaluationConfig
from coderepairrl.run import context
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.scaffolds import ScaffoldConfig
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks import TasksConfig


class RolloutConfig(Config):
    """Everything that makes episodes: tasks, agent, sandbox, vLLM, limits, rewards."""

    tasks: TasksConfig  # what is to be repaired
    scaffold: ScaffoldConfig = TerminalConfig()  # the agent
    # of tasks whose environments are built: from where, into which cache
    environments: EnvironmentsConfig = EnvironmentsConfig()
    sandbox: SandboxConfig = SandboxConfig()
    server: AnyServerConfig = ServerConfig()  # vLLM, or somebody else's API (kind: external)
    gateway: GatewayConfig = GatewayConfig()
    limits: SessionLimits = SessionLimits()
    sampling: TrainedSamplingConfig = TrainedSamplingConfig()
    rewards: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    rendering: RenderingConfig = RenderingConfig()
    chat_template: dict = {}  # arguments of the chat template, the same in training and evaluation
    groups_per_step: PositiveInt = 1  # tasks of one training step; training has to name it
    group_size: PositiveInt = 1  # episodes of each of them; training needs two, to tell better from worse
    # updates that a trained token's weights may be behind the trainer's; 0: on-policy
    max_staleness: int = Field(0, ge=0, le=8)
    # groups without reward variance that another task may replace, a training step (DAPO, arXiv:2503.14476)
    max_refills: int = Field(0, ge=0)
    concurrent_episodes: PositiveInt = 256  # at once, at most
    infrastructure_retries: NonNegativeInt = 2  # of an episode that a broken machine ended
    # of the last 64 episodes that may end as infrastructure errors: with more the run stops
    max_infrastructure_share: float = Field(0.5, ge=0, le=1)
    try_environments: bool = True  # before the first step: the oracle's patch must resolve a task of each environment
    # of what each test command prints, kept in RUN/test_outputs, half of it from the end; 0: the last lines are all
    keep_test_output_mib: NonNegativeInt = 0
    engine_wait_s: PositiveFloat = 600.0  # how long a model call waits for a vLLM that is away
    seed: NonNegativeInt = 0  # of the order of tasks

    _follow = model_validator(mode="before")(context.follow)

    @field_validator("limits")
    @classmethod
    def _fits(cls, limits: SessionLimits, info: ValidationInfo) -> SessionLimits:
        if "server" in info.data:
            context.check(limits.max_total_tokens, info.data["server"].max_model_len)
        return limits

"""What a user may set of vLLM, or of somebody else's API in its place."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Tag, field_validator

from coderepairrl.config import Config, Port
from coderepairrl.processes.starting import has_gpu

OWN_OPTIONS = {  # of vLLM -> where their values come from
    "--model": "model",
    "--host": "server.host",
    "--port": "server.port",
    "--max-model-len": "server.max_model_len",
    "--max-num-seqs": "server.max_num_seqs",
    "--max-num-batched-tokens": "server.max_num_batched_tokens",
    "--dtype": "server.dtype",
    "--weight-transfer-config": "server.weight_backend",
}
OWN_OPTIONS |= dict.fromkeys(
    ("--served-model-name", "--generation-config", "--logprobs-mode", "--worker-extension-cls", "--scheduling-policy"),
    "it depends on it",
)


class ServerConfig(Config):
    """vLLM, as it is served."""

    kind: Literal["vllm"] = "vllm"
    host: str = "127.0.0.1"  # where it listens; a job over several nodes sets it to its node's address
    port: Port = 0  # 0: any free one
    max_model_len: PositiveInt = 2048  # tokens of a context, prompt and completion
    max_num_seqs: PositiveInt = 256  # requests that are computed at once
    max_num_batched_tokens: PositiveInt = 8192  # tokens of one of its steps
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of weights and activations
    kv_cache_mib: PositiveInt | None = None  # memory of the KV cache; required on CPU; null: what vLLM finds free
    extra_arguments: list[str] = []  # further ones of `vllm serve`
    threads: PositiveInt = 2  # on CPU
    start_timeout_s: PositiveFloat = 300.0  # from its start until it is ready
    update_timeout_s: PositiveFloat = 60.0  # of a weight update: then it has failed
    # what carries weight updates; null: NCCL where vLLM runs on GPUs
    weight_backend: Literal["gloo", "nccl"] | None = None
    devices: str | None = None  # the GPUs of the server, as in CUDA_VISIBLE_DEVICES; null: all that this process sees
    health_timeout_s: PositiveFloat = 60.0  # a server that takes longer to answer /health is restarted
    max_restarts: NonNegativeInt = 5  # of vLLM in one attempt; after one more the run ends
    probe_bound: PositiveFloat | None = None  # nats: mean |trainer - vLLM| of the probe's logprobs (a single one: ten
    # times that) which a server may have after an update. None: 2e-4 where both compute in float32 on CPUs, else 0.2

    @field_validator("extra_arguments")
    @classmethod
    def _one_source(cls, arguments: list[str]) -> list[str]:
        """What another key says is not said twice: vLLM takes the last, this program the first. An option's beginning
        is one to vLLM."""
        for argument in arguments:
            option = argument.partition("=")[0].replace("_", "-")
            for owned, source in OWN_OPTIONS.items():
                if option == owned or (len(option) > len("--m") and owned.startswith(option)):
                    raise ValueError(f"{argument} is set by this program ({source}): leave it out of extra_arguments")
        return arguments

    @property
    def transfer_backend(self) -> Literal["gloo", "nccl"]:
        return self.weight_backend or ("nccl" if self._on_gpu else "gloo")

    @property
    def _on_gpu(self) -> bool:
        return has_gpu() and not self.kv_cache_mib  # the CPU build serves on a machine with GPUs, too

    def largest_gap(self, exact: bool) -> float:
        """The probe's bound. `exact`: the trainer computes in float32; on GPUs vLLM's kernels round float32 to TF32."""
        if self.probe_bound is not None:
            return self.probe_bound
        return 2e-4 if exact and self.dtype == "float32" and not self._on_gpu else 0.2


class PricesConfig(Config):
    """Dollars a million tokens."""

    input: NonNegativeFloat = 0.0  # of prompts
    output: NonNegativeFloat = 0.0  # of what is said, thoughts included

    def microdollars(self, prompt_tokens: int, completion_tokens: int) -> int:
        return round(prompt_tokens * self.input + completion_tokens * self.output)


class ExternalServerConfig(Config):
    """A model behind any OpenAI-compatible API, for evaluations (gateway/external.py)."""

    kind: Literal["external"] = "external"
    url: str  # up to and with /v1
    model: str  # as the API names it
    key_file: str | None = None  # a file with the API key and nothing else; null: it wants none
    prices: PricesConfig = PricesConfig()
    max_model_len: PositiveInt = 131_072  # tokens of a context, prompt and completion
    body: dict[str, Any] = {}  # further fields of every request: {reasoning_effort: low}
    left_out: tuple[Literal["max_tokens", "temperature"], ...] = ()  # of its fields: what the model does not take


def _kind(value: Any) -> str:
    """A server is vLLM unless it says what else."""
    return (value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)) or "vllm"


AnyServerConfig = Annotated[
    Annotated[ServerConfig, Tag("vllm")] | Annotated[ExternalServerConfig, Tag("external")], Discriminator(_kind)
]

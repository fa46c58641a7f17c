"""What a session may use, and how its tokens are sampled: the gateway's word, whatever its client asks for."""

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from coderepairrl.config import Config

LEAST_TEMPERATURE = 0.01  # vLLM raises what is lower, and isn't 0, to it (its sampling_params.py)


class SessionLimits(Config):
    """Of one episode."""

    max_turns: PositiveInt = 50  # model calls
    max_total_tokens: PositiveInt = 2048  # context: prompt + completion of one call; left out: server.max_model_len
    max_completion_tokens: PositiveInt | None = None  # of one call; null: what the context has left
    deadline_s: PositiveFloat | None = None  # since the session was opened; the clock stops while vLLM is down

    @model_validator(mode="after")
    def _fits(self) -> "SessionLimits":
        if self.max_completion_tokens is not None and self.max_completion_tokens > self.max_total_tokens:
            raise ValueError(
                f"max_completion_tokens {self.max_completion_tokens} is more than max_total_tokens "
                f"{self.max_total_tokens}: lower the one or raise the other"
            )
        return self


class SamplingConfig(Config):
    """Nothing else is ever used: top_p 1, no top_k, no penalties, so that the trainer knows the distribution."""

    # 0: greedy; else from 0.01 on, because vLLM samples at 0.01 what is below
    temperature: float = Field(1.0, ge=0.0, le=2.0)

    @field_validator("temperature")
    @classmethod
    def _as_it_is_sampled(cls, temperature: float) -> float:
        if 0.0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"vLLM would sample at {LEAST_TEMPERATURE}: give at least that, or 0 for greedy decoding")
        return temperature

    @property
    def scored_temperature(self) -> float:
        """Of the distribution whose logprobs vLLM reports: greedy decoding takes the likeliest token, and scores it at
        temperature 1."""
        return self.temperature or 1.0


class TrainedSamplingConfig(SamplingConfig):
    """Greedy decoding has no distribution that could be trained."""

    # vLLM samples at it, and the trainer divides its logits by it
    temperature: float = Field(1.0, ge=LEAST_TEMPERATURE, le=2.0)

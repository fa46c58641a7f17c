"""A model behind somebody else's OpenAI-compatible API, in vLLM's place: for baselines, never for training.

    server: {kind: external, url: https://HOST/v1, model: NAME, key_file: FILE, prices: {input: 0.15, output: 0.6}}

Agents still talk to the gateway, which counts turns, ends sessions and records what was said. What such an API does not
give is not made up: its calls have no token ids, no logprobs and no policy versions, and the trajectory begins with an
event of kind "external" that says so. Tokens are those that the API says it has used, and money is tokens times the
prices of the configuration: counters external_prompt_tokens, external_completion_tokens and external_microdollars,
which become the trajectory's stats.

Rate limits (429), broken servers and lost connections are tried again by OpenAI's own client, for some `engine_wait_s`
or as the API asks with Retry-After; meanwhile the agent's clock runs.
"""

import asyncio
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.gateway.call_tree import Prompt
from coderepairrl.gateway.gateway import Gateway, GatewayConfig
from coderepairrl.gateway.messages import BadRequest, Message
from coderepairrl.gateway.request import Request
from coderepairrl.gateway.session import Session
from coderepairrl.gateway.tool_calls import ParsedCall
from coderepairrl.gateway.turn import Turn
from coderepairrl.gateway.vllm_client import TOO_LONG, Completion, PromptTooLong
from coderepairrl.inference.server_config import ExternalServerConfig
from coderepairrl.types import Call

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LEAST_TRIES = 2
BACKOFF_S = 8.0  # the longest pause of OpenAI's client between two tries, where the API names none


@dataclass(frozen=True)
class Said(Completion):
    """One choice of the API's answer; the tuples of tokens are empty."""

    content: str = ""
    reasoning: str | None = None
    calls: tuple[ParsedCall, ...] = ()
    malformed: int = 0  # calls whose arguments are no JSON object: they stay in the content
    prompt_tokens: int = 0  # that the API has counted
    completion_tokens: int = 0


class ExternalClient:
    """The API at config.url. Make it inside the event loop; `close()` it at the end. Has what the gateway and a
    supervisor want of VLLMClient; nothing of ours can be away. Raises ConfigError for a key that can't be read."""

    def __init__(self, config: ExternalServerConfig, wait_s: float):
        self.config, self.url, self.wait_s = config, config.url, wait_s
        self.tries = max(LEAST_TRIES, math.ceil(wait_s / BACKOFF_S))  # after the first
        self.available = asyncio.Event()
        self.available.set()
        self._key, self._openai = key_of(config), None

    async def ask(self, body: dict[str, Any]) -> Said:
        """Raises PromptTooLong, and EngineError for what the API refuses or does not answer."""
        import openai  # not before: it takes a second

        try:
            answer = await self._client().chat.completions.create(**body)
        except openai.BadRequestError as error:
            if error.code == "context_length_exceeded" or TOO_LONG.search(str(error)):
                raise PromptTooLong(f"{self.url}: {error}") from None
            raise EngineError(f"{self.url} refused a request: {error}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EngineError(
                f"{self.url} refused the key or the model: {error}: correct server.key_file, server.model"
            ) from error
        except openai.APIError as error:
            raise EngineError(
                f"{self.url} did not answer, asked {self.tries + 1} times: {type(error).__name__}: {error}"
            ) from error
        return read(answer.model_dump())

    def _client(self) -> "AsyncOpenAI":
        if self._openai is None:
            from openai import AsyncOpenAI

            settings = {"max_retries": self.tries, "timeout": self.wait_s}
            self._openai = AsyncOpenAI(base_url=self.url, api_key=self._key, **settings)
        return self._openai

    def down_s(self) -> float:
        return 0.0

    def pause(self) -> None:
        """Nothing that is restarted."""

    resume = pause

    async def close(self) -> None:
        if self._openai is not None:
            await self._openai.close()


def key_of(config: ExternalServerConfig) -> str:
    """Of the file, less white space. Raises ConfigError."""
    if config.key_file is None:
        return "none"  # OpenAI's client sends one always
    try:
        key = Path(config.key_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"server.key_file: {config.key_file} can't be read ({error}): name a file") from None
    if not key:
        raise ConfigError(f"server.key_file: {config.key_file} is empty: write the key into it")
    return key


def read(answer: dict[str, Any]) -> Said:
    """Raises EngineError for what has no choice with a message."""
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message, content = choice["message"], choice["message"].get("content") or ""
        calls: list[ParsedCall] = []
        malformed: list[ParsedCall] = []
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            made = ParsedCall(function.get("name") or "", function.get("arguments") or "{}")
            (calls if made.name and is_object(made.arguments) else malformed).append(made)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineError(f"the API's answer is none of chat completions ({error!r}): {str(answer)[:300]}") from error
    content += "".join(f"\n{call.name}({call.arguments})" for call in malformed)
    return Said(
        (),
        (),
        (),
        "length" if choice.get("finish_reason") == "length" else "stop",
        content=content,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
        calls=tuple(calls),
        malformed=len(malformed),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def as_sent(message: Message) -> Message:
    """A canonical message as the API wants it: arguments as text, no reasoning, which it does not take back."""
    out = {key: value for key, value in message.items() if key != "reasoning_content"}
    if calls := message.get("tool_calls"):
        text = lambda value: value if isinstance(value, str) else json.dumps(value)
        own = lambda call: call["function"] | {"arguments": text(call["function"]["arguments"])}
        out["tool_calls"] = [call | {"function": own(call)} for call in calls]
        out["content"] = out["content"] or None
    return out


class ExternalSession(Session):
    """A session whose calls are text. max_total_tokens is held against what the API has counted, after each call."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        config = self._api.config
        self._largest = 0  # tokens of a call, prompt and completion
        self._event("external", url=config.url, model=config.model, token_ids=False)

    @property
    def _api(self) -> ExternalClient:
        assert isinstance(self.client, ExternalClient)
        return self.client

    async def _serve_in_turn(self, request: Request) -> list[Turn]:
        if request.text is not None:
            raise BadRequest("an external model is asked by messages: /v1/completions is for a model of our own")
        if self._largest >= self.limits.max_total_tokens:
            self._refuse_long_prompt(f"a conversation of {self._largest} tokens")
        room = self.limits.max_total_tokens - self._largest
        wanted = [room, self.limits.max_completion_tokens or room, request.max_tokens or room]
        return await self._sample(request, self.tree.history(request), min(wanted))

    async def _generate(self, request: Request, prompt: Prompt, max_tokens: int) -> Said:
        config = self._api.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [as_sent(entry.message) for entry in request.messages],
            "max_tokens": max_tokens,
            "temperature": self.sampling.temperature,
        }
        body |= {"tools": list(request.tools.functions)} if request.parse_tools else {}
        body |= {"stop": list(request.stop)} if request.stop else {}
        body |= {"extra_body": config.body} if config.body else {}
        said = await self._api.ask({key: value for key, value in body.items() if key not in config.left_out})
        self._largest = max(self._largest, said.prompt_tokens + said.completion_tokens)
        self._count("external_prompt_tokens", said.prompt_tokens)
        self._count("external_completion_tokens", said.completion_tokens)
        self._count("external_microdollars", config.prices.microdollars(said.prompt_tokens, said.completion_tokens))
        return said

    def _read_turn(self, request: Request, call: Call, completion: Completion) -> Turn:
        assert isinstance(completion, Said)
        self._count("malformed_tool_calls", completion.malformed)
        used = (completion.prompt_tokens, completion.completion_tokens)
        return Turn(call, completion.content, completion.reasoning, completion.calls, used)

    def _hidden(self, request: Request) -> list[str]:
        """No chat template of ours."""
        return []


def gateway_before(
    server: ExternalServerConfig, config: GatewayConfig, wait_s: float, socket_path: Path | None
) -> Gateway:
    """The gateway that asks this API; prompts are messages, so there is no renderer. Raises ConfigError."""
    client: Any = ExternalClient(server, wait_s)
    renderer: Any = None
    return Gateway(config, [client], renderer, socket_path, ExternalSession)

"""What a scaffold is told of its model: the gateway's contract with it is a base URL and a key."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from coderepairrl.errors import GatewayError, ScaffoldError
from coderepairrl.gateway import RemoteSession, Session


async def nothing() -> None:
    """What most episodes do before a call."""


async def none() -> int:
    return 0


@dataclass(frozen=True)
class Endpoint:
    """`http` is a connection pool that all coroutine scaffolds share; the rest is for agents that are programs."""

    base_url: str  # ends with /v1
    api_key: str
    http: aiohttp.ClientSession
    socket_path: Path | None = None  # where the gateway listens too: all that a sandbox without network sees of it
    closed: Callable[[], bool] = lambda: False  # whether the gateway has closed the session
    calls: Callable[[], Awaitable[int]] = none  # how many of its model's the agent has begun
    # who watches a coroutine scaffold looks then: no command is running
    before_call: Callable[[], Awaitable[None]] = nothing

    @classmethod
    def of(
        cls,
        session: Session | RemoteSession,
        http: aiohttp.ClientSession,
        before_call: Callable[[], Awaitable[None]] = nothing,
    ) -> "Endpoint":
        return cls(
            session.base_url,
            session.key,
            http,
            session.socket_path,
            lambda: session.close_reason is not None,
            session.calls_begun,
            before_call,
        )


@dataclass(frozen=True)
class Answer:
    """`message` goes back as it is; what the gateway said to be null is left out."""

    message: dict
    finish_reason: str


async def chat(endpoint: Endpoint, messages: list[dict], tools: list[dict] | None = None) -> Answer | None:
    """The model's next turn, or None when the gateway has closed the session. Raises GatewayError for any other
    refusal; but ScaffoldError once the model has spoken, for a request that the gateway does not take: what becomes of
    a model's words is no broken machine."""
    await endpoint.before_call()
    async with endpoint.http.post(
        endpoint.base_url + "/chat/completions",
        json={"model": "policy", "messages": messages} | ({"tools": tools} if tools else {}),
        headers={"Authorization": f"Bearer {endpoint.api_key}"},
    ) as response:
        body = await response.json()
        if response.status == 400 and body["error"]["code"] == "context_length_exceeded":
            return None
        if response.status in (400, 413) and any(message["role"] == "assistant" for message in messages):
            raise ScaffoldError(f"the agent sent what the gateway does not take: {body['error']['message']}")
        if response.status != 200:
            raise GatewayError(f"the gateway answered {response.status}: {body}")
        choice = body["choices"][0]
        return Answer(
            {key: value for key, value in choice["message"].items() if value is not None},
            choice.get("finish_reason") or "",
        )

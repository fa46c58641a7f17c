"""What the gateway's tests share: a tiny tokenizer, chat templates, and a server that speaks vLLM's wire format.

The server is a double for the wire format of vLLM 0.32 only: it answers with the ids it was given and keeps what it was
asked.
"""

import asyncio
import json
from collections.abc import Callable

import aiohttp
import openai
from aiohttp import web
from gateway_tokenizer import END, MOVING, PLAIN, QWEN3, TEXT_END, WORDS, tokenizer  # noqa: F401 (some are others')

from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.gateway.gateway import DIALECTS
from coderepairrl.gateway.request import Fields, Request
from coderepairrl.gateway.session import Session

USER = {"role": "user", "content": "fix f"}
SHELL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Run a command",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False))


def ids_by_character(text: str) -> tuple[int, ...]:
    """As a model may sample them: not the ids that tokenising the text gives."""
    return tuple(i for character in text for i in ids_of(character))


def call_text(command: str) -> str:
    return '<tool_call>\n{"name": "shell", "arguments": {"command": "%s"}}\n</tool_call>' % command


def read_request(session: Session, body: bytes, retry: bool = False, path: str = "/v1/chat/completions") -> Request:
    """As the server reads it."""
    return DIALECTS[path].read(Fields(body, path, {"x-stainless-retry-count": "1"} if retry else {}, session.seen))


class Upstream:
    """POST /inference/v1/generate and GET /health. `reply(prompt_ids) -> (ids, finish_reason)`, or an HTTP status, or
    the text of a 400."""

    def __init__(self, reply: Callable | None = None):
        self.reply = reply or (lambda prompt: (ids_of("ok" + END), "stop"))
        self.requests: list[dict] = []  # bodies, in order of arrival
        self.answered: list[tuple[tuple[int, ...], tuple[int, ...]]] = []  # (prompt ids, sampled ids)
        self.versions: Callable[[int], list | None] = lambda length: None
        self.gate = asyncio.Event()  # cleared: answers wait
        self.gate.set()
        self.port = 0

    async def start(self) -> str:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, http: web.Request) -> web.Response:
        body = await http.json()
        self.requests.append(body)
        await self.gate.wait()
        reply = self.reply(tuple(body["token_ids"]))
        if isinstance(reply, int | str):  # a text: why the request is refused
            return web.Response(
                status=reply if isinstance(reply, int) else 400,
                text=reply if isinstance(reply, str) else "scripted failure",
            )
        ids, finish_reason = reply
        ids = ids[: body["sampling_params"]["max_tokens"]]
        self.answered.append((tuple(body["token_ids"]), tuple(ids)))
        return web.json_response(
            {
                "request_id": body["request_id"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish_reason,
                        "token_ids": ids,
                        "weight_versions": self.versions(len(ids)),
                        "logprobs": {
                            "content": [
                                {"token_id": i, "logprob": -0.5 - i / 1000, "rank": 1, "top_logprobs": []} for i in ids
                            ]
                        },
                    }
                ],
            }
        )


class World:
    """A gateway with one session before a scripted upstream."""

    def __init__(
        self,
        upstream=None,
        config=GatewayConfig(),
        limits=SessionLimits(max_total_tokens=4096),
        wait_s=10.0,
        **renderer,
    ):
        self.upstream = upstream or Upstream()
        self.config, self.limits, self.wait_s = config, limits, wait_s
        self.renderer = Renderer(tokenizer(), **renderer)

    async def __aenter__(self):
        self.client = VLLMClient(await self.upstream.start(), self.wait_s, initial_version=3)
        self.gateway = Gateway(self.config, [self.client], self.renderer)
        self.url = await self.gateway.start()
        self.session = self.gateway.open_session(self.limits, SamplingConfig(temperature=0.7), cache_salt="salt")
        self.http = aiohttp.ClientSession()
        self.clients = []
        return self

    async def __aexit__(self, *_):
        for client in self.clients:
            await client.close()
        await self.http.close()
        await self.gateway.stop()
        await self.client.close()
        await self.upstream.stop()

    async def post(self, body, key=None, headers=None, path="/chat/completions"):
        """(status, JSON)"""
        data = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"Authorization": f"Bearer {key or self.session.key}", **(headers or {})}
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.json()

    async def in_flight(self):
        """A request, as a task, that vLLM has and does not answer until `upstream.gate` is set."""
        self.upstream.gate.clear()
        request = asyncio.create_task(self.post({"messages": [USER]}))
        while not self.upstream.requests:
            await asyncio.sleep(0.01)
        return request

    def sdk(self, **options):
        client = openai.AsyncOpenAI(base_url=self.url, **{"api_key": self.session.key, "max_retries": 0, **options})
        self.clients.append(client)
        return client


def run(scenario, *args, **kwargs):
    async def main():
        async with World(*args, **kwargs) as world:
            await scenario(world)

    asyncio.run(main())


def answers_to(message):
    return [{"role": "tool", "tool_call_id": call["id"], "content": "f.py"} for call in message["tool_calls"]]

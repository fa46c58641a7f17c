"""What benchmarks/bench_gateway.py measures, each in a process of its own: a null upstream, a null proxy, and the
gateway with a door for the benchmark."""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import msgspec
import psutil
from aiohttp import web

from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.gateway.session import Session
from coderepairrl.models.tokenizer import load_tokenizer

SAID = (
    "Let me look at the module before I change it.\n<tool_call>\n"
    '{"name": "shell", "arguments": {"command": "sed -n 1,80p src/module.py"}}\n'
    "</tool_call>"
)
ECHOED_TOKENS = 40  # of the prompt's end, that the echoing upstream says


class Server:
    """A process and where it listens."""

    def __init__(self, url: str, process):
        self.url, self.process = url, process

    def cpu_s(self) -> float:
        # the clock of another process, as clock_getcpuclockid(3) makes it
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory_mib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextmanager
def server(make_app: Callable[..., Awaitable[web.Application]], *arguments):
    """`await make_app(*arguments)` served in a process of its own."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make_app, arguments), daemon=True)
    process.start()
    try:
        yield Server(here.recv(), process)
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, make_app: Callable[..., Awaitable[web.Application]], arguments: tuple) -> None:
    async def main() -> None:
        runner = web.AppRunner(await make_app(*arguments), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        connection.send(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()

    asyncio.run(main())


def _application() -> web.Application:
    return web.Application(client_max_size=2**26)


async def null_upstream(said: tuple[int, ...], special: frozenset[int], end: int) -> web.Application:
    """Answers every prompt with the same tokens, as vLLM and as a chat completion; under /echo with the end of the
    prompt, after a while."""

    def generated(ids: list[int]) -> bytes:
        return msgspec.json.encode(
            {
                "request_id": "r",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "token_ids": ids,
                        "logprobs": {
                            "content": [{"token_id": i, "logprob": -0.5, "rank": 1, "top_logprobs": []} for i in ids]
                        },
                    }
                ],
            }
        )

    sampled, asked = generated(list(said)), 0
    chat = msgspec.json.encode(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": SAID}}],
        }
    )

    async def generate(http: web.Request) -> web.Response:
        await http.read()
        return web.Response(body=sampled, content_type="application/json")

    async def complete(http: web.Request) -> web.Response:
        await http.read()
        return web.Response(body=chat, content_type="application/json")

    async def echo(http: web.Request) -> web.Response:
        nonlocal asked
        prompt = msgspec.json.decode(await http.read())["token_ids"]
        asked += 1
        await asyncio.sleep(random.uniform(0.02, 0.1))
        return web.Response(
            body=generated([*(i for i in prompt[-ECHOED_TOKENS:] if i not in special), end]),
            content_type="application/json",
        )

    async def count(http: web.Request) -> web.Response:
        return web.json_response(asked)

    app = _application()
    app.router.add_post("/inference/v1/generate", generate)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_post("/echo/inference/v1/generate", echo)
    app.router.add_get("/asked", count)
    return app


async def null_proxy(upstream: str) -> web.Application:
    """Passes bodies on, both ways, and looks at nothing."""
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def forward(request: web.Request) -> web.Response:
        async with http.post(
            upstream + request.path, data=await request.read(), headers={"Content-Type": "application/json"}
        ) as response:
            return web.Response(body=await response.read(), content_type="application/json")

    app = _application()
    app.router.add_post("/v1/chat/completions", forward)
    return app


class TimedRenderer(Renderer):
    """Knows how long it tokenised, and how much."""

    seconds = characters = 0.0

    def encode(self, text: str, begins: bool = False) -> tuple[int, ...]:
        started = time.perf_counter()
        ids = super().encode(text, begins)
        self.seconds += time.perf_counter() - started
        self.characters += len(text)
        return ids


async def gateway(upstream: str, model: Path) -> web.Application:
    """The gateway, and a door beside it through which the benchmark opens and closes sessions and asks what is left of
    them."""
    renderer = TimedRenderer(load_tokenizer(model))
    client = VLLMClient(upstream, wait_s=30)
    served = Gateway(GatewayConfig(), [client], renderer)
    base_url = await served.start()

    async def open_session(http: web.Request) -> web.Response:
        session = served.open_session(
            SessionLimits(
                max_turns=1000, max_total_tokens=100_000, max_completion_tokens=int(http.query.get("tokens", 4096))
            ),
            SamplingConfig(),
        )
        return web.json_response({"base_url": base_url, "key": session.key})

    async def close_session(http: web.Request) -> web.Response:
        session = await served.close_session(http.match_info["key"])
        decode = renderer.tokenizer.decode
        return web.json_response(
            {
                "counters": session.counters,
                "calls": [
                    {
                        "parent": call.parent,
                        "part": call.parent_part,
                        "tokens": len(call.completion_ids),
                        "text": decode(call.completion_ids),
                        "prompt_tokens": len(call.prompt_ids),
                    }
                    for call in session.calls
                ]
                if "calls" in http.query
                else len(session.calls),
            }
        )

    async def spent(http: web.Request) -> web.Response:
        return web.json_response({"tokenising_s": renderer.seconds, "characters": renderer.characters})

    async def left(http: web.Request) -> web.Response:
        gc.collect()
        return web.json_response(
            {
                "sessions": sum(isinstance(thing, Session) for thing in gc.get_objects()),
                "tasks": sum(task.get_coro().__qualname__.startswith("Session.") for task in asyncio.all_tasks()),
            }
        )

    app = _application()
    app.router.add_post("/sessions", open_session)
    app.router.add_delete("/sessions/{key}", close_session)
    app.router.add_get("/spent", spent)
    app.router.add_get("/left", left)
    return app

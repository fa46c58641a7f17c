"""An episode of a real agent in a real sandbox through the real gateway, with a model whose words are scripted."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
from gateway_helpers import END, Upstream, ids_of, tokenizer

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.scaffolds import ready
from coderepairrl.types import Task, Trajectory

LIMITS = SessionLimits(max_total_tokens=200_000, deadline_s=120)


def tool_text(name: str, **arguments) -> str:
    """A tool call as the model samples it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def said(texts: Iterable[str | tuple[str, str]]) -> Callable:
    """A model that says these texts, one a call; at the end of them the server breaks. (text, "length") is one that was
    cut off."""
    left = iter(texts)

    def reply(prompt: tuple[int, ...]):
        text = next(left, None)
        if isinstance(text, tuple):
            return ids_of(text[0]), text[1]
        return 500 if text is None else (ids_of(text + END), "stop")

    return reply


@asynccontextmanager
async def running(
    scaffold,
    scratch: Path,
    upstream: Upstream,
    limits: SessionLimits = LIMITS,
    kind: str = "bubblewrap",
    reward: str = "tests",
    split: str = "train",
) -> AsyncIterator[Callable]:
    """Yields episode(task, texts) -> Trajectory. The scaffold is installed as a run installs it."""
    client = VLLMClient(await upstream.start(), wait_s=0.5)
    sandbox = SandboxConfig(kind=kind, scratch=str(scratch))
    try:
        async with ready(scaffold, EnvironmentsConfig()) as socket, aiohttp.ClientSession() as http:
            gateway = Gateway(GatewayConfig(), [client], Renderer(tokenizer(), {}), socket)
            await gateway.start()
            services = Services(
                gateway, scaffold, sandbox, Grader(sandbox), RewardConfig(weights={reward: 1.0}), limits, http
            )

            async def episode(task: Task, texts: Iterable[str] = (), own: SessionLimits = limits) -> Trajectory:
                upstream.reply = said(texts)
                return await run_episode(
                    replace(services, limits=own),
                    task,
                    trajectory_id="x",
                    group_id="x",
                    split=split,
                    attempt=0,
                    sampling=SamplingConfig(),
                    cache_salt="s",
                )

            try:
                yield episode
            finally:
                await gateway.stop()
    finally:
        await client.close()
        await upstream.stop()


async def episodes(scaffold, jobs: list[tuple], scratch: Path, **keywords) -> list[Trajectory]:
    """One after the other, through one gateway. A job is what `episode` takes."""
    async with running(scaffold, scratch, Upstream(), **keywords) as episode:
        return [await episode(*job) for job in jobs]

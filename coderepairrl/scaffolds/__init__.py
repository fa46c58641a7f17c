"""Coding agents behind one small protocol: a base URL, a key, a sandbox. One file a scaffold, one dict of names.

A scaffold returns when the agent ended by itself. It raises ScaffoldError when the agent broke, and stops quietly when
the gateway has closed the session. What the agent claims is ignored: the outcome is decided by the episode.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Protocol, Union

from pydantic import Field

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.rewards import Grader
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.aider import Aider, AiderConfig
from coderepairrl.scaffolds.codex import Codex, CodexConfig
from coderepairrl.scaffolds.command import CommandConfig, CommandScaffold
from coderepairrl.scaffolds.controls import (
    EmptyConfig,
    GoldConfig,
    GoldLessOneHunkConfig,
    PredictionsConfig,
    empty,
    gold,
    gold_less_one_hunk,
    predictions,
)
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgent, MiniSweAgentConfig
from coderepairrl.scaffolds.mixture import ScaffoldMixture, ScaffoldMixtureConfig, members_of
from coderepairrl.scaffolds.process_scaffold import ProcessScaffold
from coderepairrl.scaffolds.retry import Retry, RetryConfig
from coderepairrl.scaffolds.scripted import Scripted, ScriptedConfig
from coderepairrl.scaffolds.single_pass import SinglePass, SinglePassConfig
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig
from coderepairrl.scaffolds.terminal_text import TerminalText, TerminalTextConfig
from coderepairrl.tasks.building import takes_all
from coderepairrl.types import Task

__all__ = ["SCAFFOLDS", "Endpoint", "Scaffold", "ScaffoldConfig", "make_scaffold", "ready", "refusal"]

SCAFFOLDS = {  # what a configuration's class is made into
    TerminalConfig: Terminal,
    TerminalTextConfig: TerminalText,
    AiderConfig: Aider,
    MiniSweAgentConfig: MiniSweAgent,
    CodexConfig: Codex,
    CommandConfig: CommandScaffold,
    SinglePassConfig: SinglePass,
    GoldConfig: gold,
    EmptyConfig: empty,
    GoldLessOneHunkConfig: gold_less_one_hunk,
    PredictionsConfig: predictions,
    ScriptedConfig: Scripted,
    RetryConfig: Retry,
    ScaffoldMixtureConfig: ScaffoldMixture,
}
ScaffoldConfig = Annotated[Union[tuple(SCAFFOLDS)], Field(discriminator="name")]


class Scaffold(Protocol):
    calls_model: bool  # False: a control, for which no vLLM is started
    # without_tools: str, of those that work by tools: what to use with a model whose chat template shows none

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> str | None:
        """What the result's detail says, if anything."""


def make_scaffold(config: ScaffoldConfig, grader: Grader | None = None) -> Scaffold:
    """grader: for the control that asks the judge before the episode is over."""
    if isinstance(config, RetryConfig):
        return Retry(make_scaffold(config.agent), grader)
    if isinstance(config, ScaffoldMixtureConfig):
        return ScaffoldMixture(config, {name: make_scaffold(one.scaffold) for name, one in config.scaffolds.items()})
    return SCAFFOLDS[type(config)](config)


async def refusal(scaffold: Scaffold, config: EnvironmentsConfig) -> Callable[[Task], Awaitable[str]]:
    """Says of a task that is built why the scaffold can't be given it, or "". Installs the scaffold. Raises
    BuildError."""
    while isinstance(scaffold, Retry | Scripted):
        scaffold = scaffold.inner
    programs = [one for one in members_of(scaffold) if isinstance(one, ProcessScaffold)]
    for one in programs:
        await one.install(config)
    if len(programs) < 2:
        return programs[0].refuses if programs else takes_all

    async def refuses(task: Task) -> str:
        for one in programs:
            if cause := await one.refuses(task):
                return cause
        return ""

    return refuses


@asynccontextmanager
async def ready(scaffold: Scaffold, config: EnvironmentsConfig) -> AsyncIterator[Path | None]:
    """Installs what the scaffold needs, for the episodes that follow. Yields the Unix socket that the gateway must
    listen on for it, None where its port is enough. Raises BuildError."""
    scaffold = scaffold.inner if isinstance(scaffold, Retry) else scaffold
    programs = [one for one in members_of(scaffold) if isinstance(one, ProcessScaffold | Scripted)]
    if not programs:
        yield None
        return
    async with AsyncExitStack() as held:
        for one in programs:
            await one.prepare(config)
            held.push_async_callback(one.close)
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="coderepairrl-gateway-"))
        os.chmod(folder, 0o755)  # it is shown to sandboxes, which run as another user
        yield Path(folder, "socket")

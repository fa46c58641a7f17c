"""A control: recorded outputs are said again, and the agent that they were said to does again what it did.

It shows whether agent, environments and judge give the same for the same words. Behind it stands a gateway of its own
whose engine is the record, so every scaffold can be replayed; the n-th episode of a task gets its n-th record, counted
round. A task without any is left as it is.
"""

import json
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, field_validator

from coderepairrl.config import Config
from coderepairrl.demonstrations.scripted_server import Line, ScriptedClient
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, make_renderer
from coderepairrl.rollout import trajectory_files
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.types import Task

CONTEXT = 1 << 30  # tokens: the record was within its own limits


class ScriptedConfig(Config):
    """An agent whose model says what was recorded or written."""

    name: Literal["scripted"] = "scripted"
    # trajectories (Parquet, or a folder of them); or JSONL of {"task_id": ..., "outputs": [text or assistant's message,
    # ...]}
    path: str
    model: str  # a Hugging Face folder: the tokenizer of the record
    scaffold: dict[str, Any] = {"name": "terminal"}  # the agent that hears it
    chat_template: dict = {}  # arguments of the chat template

    @field_validator("scaffold")
    @classmethod
    def _known(cls, scaffold: dict[str, Any]) -> dict[str, Any]:
        inner_of(scaffold)
        return scaffold


def inner_of(scaffold: dict[str, Any]) -> Config:
    """Its configuration; not a field's type, because one of its kinds is the class that has the field."""
    from coderepairrl.scaffolds import ScaffoldConfig

    return TypeAdapter(ScaffoldConfig).validate_python(scaffold)


class Scripted:
    calls_model = False  # none of a policy's

    def __init__(self, config: ScriptedConfig):
        from coderepairrl.scaffolds import make_scaffold

        self.config, self.client = config, ScriptedClient()
        self.inner = make_scaffold(inner_of(config.scaffold))
        if not self.inner.calls_model:
            raise ConfigError(f"scaffold.scaffold: {config.scaffold['name']} asks no model: nothing can be said to it")
        self._episodes: Counter[str] = Counter()
        self._held = AsyncExitStack()

    async def prepare(self, config: EnvironmentsConfig) -> None:
        from coderepairrl.models.tokenizer import load_tokenizer
        from coderepairrl.scaffolds import ready

        renderer = make_renderer(load_tokenizer(self.config.model), chat_template_kwargs=self.config.chat_template)
        self._scripts = read_scripts(Path(self.config.path), renderer)
        self.gateway = Gateway(
            GatewayConfig(), [self.client], renderer, await self._held.enter_async_context(ready(self.inner, config))
        )
        await self.gateway.start()
        self._held.push_async_callback(self.gateway.stop)

    async def close(self) -> None:
        await self._held.aclose()

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        scripts = self._scripts.get(task.task_id)
        if not scripts:
            return
        number = self._episodes[task.task_id]
        self._episodes[task.task_id] += 1
        lines, salt = scripts[number % len(scripts)], f"{task.task_id}-{number}"
        if not lines:
            return
        self.client.prepare(salt, lines)
        # its end is the session's
        limits = SessionLimits(max_turns=len(lines), max_total_tokens=CONTEXT, max_completion_tokens=CONTEXT)
        session = self.gateway.open_session(limits, SamplingConfig(), cache_salt=salt)
        try:
            await self.inner.run(task, sandbox, Endpoint.of(session, endpoint.http))
        finally:
            await self.gateway.close_session(session.key)
            self.client.left(salt)


def read_scripts(path: Path, renderer: Renderer) -> dict[str, list[list[Line]]]:
    """Task id -> its records. Raises ConfigError."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    found: dict[str, list[list[Line]]] = defaultdict(list)
    try:
        if path.suffix == ".jsonl":
            for row in map(json.loads, filter(str.strip, path.read_text().split("\n"))):
                messages = [
                    {"role": "assistant", "content": out} if isinstance(out, str) else out for out in row["outputs"]
                ]
                found[row["task_id"]].append([Line(renderer.turn(message, None)) for message in messages])
            return found
        for file in files:
            for trajectory in trajectory_files.read(file)[0]:
                found[trajectory.task_id].append(
                    [Line(call.completion_ids, finish_reason=call.finish_reason) for call in trajectory.calls]
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: no recorded outputs ({type(error).__name__}: {error}): give Parquet of trajectories, or JSONL of "
            "rows "
            '{"task_id": ..., "outputs": [...]}'
        ) from error
    if not found:
        raise ConfigError(
            f"{path}: nothing is recorded there: give a folder that holds trajectories (*.parquet), or a file"
        )
    return found

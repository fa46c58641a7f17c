"""Several scaffolds in one run, each with its share of the training groups: all episodes of a group work under one.

    scaffold:
      name: mixture
      scaffolds:
        terminal: {weight: 2, scaffold: {name: terminal}}
        aider: {scaffold: {name: aider}}

Whose turn it is in training says rollout/order.py. A held-out task has the scaffold that its id says, the same one in
every evaluation of the run; all tasks under each of them is a matrix (configs/grid/scaffolds.yaml). What a scaffold
needs, its environment or its relay, is there for all; a task that one of them can't be given is left out.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat

from coderepairrl.config import Config
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.scaffolds.retry import Agent
from coderepairrl.types import Task

if TYPE_CHECKING:
    from coderepairrl.scaffolds import Scaffold


class ScaffoldShareConfig(Config):
    """One of a mixture's scaffolds."""

    weight: PositiveFloat = 1.0  # its share of the training groups, relative to the others'
    scaffold: Agent  # with its settings


class ScaffoldMixtureConfig(Config):
    """Several agents, each with a share of the training groups."""

    name: Literal["mixture"] = "mixture"
    scaffolds: dict[str, ScaffoldShareConfig] = Field(min_length=1)  # name -> agent


class ScaffoldMixture:
    """members: name -> the scaffold. Run by itself, as scripts/run_one.py does, it is the one of the task's id."""

    calls_model = True

    def __init__(self, config: ScaffoldMixtureConfig, members: dict[str, "Scaffold"]):
        self.members = members
        self.weights = {name: share.weight for name, share in config.scaffolds.items()}

    @property
    def without_tools(self) -> str:
        """What to use with a model whose chat template shows no tools; "" where no member works by tools."""
        return next((said for one in self.members.values() if (said := getattr(one, "without_tools", ""))), "")

    def name_for(self, task: Task) -> str:
        """Of a held-out task."""
        at = int(hashlib.sha256(task.task_id.encode()).hexdigest()[:12], 16) / 16**12 * sum(self.weights.values())
        return next(name for name, end in zip(self.weights, accumulate(self.weights.values())) if at < end)

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> str | None:
        return await self.members[self.name_for(task)].run(task, sandbox, endpoint)


def members_of(scaffold: "Scaffold") -> "Sequence[Scaffold]":
    """Of a mixture its members, else the scaffold alone."""
    return list(scaffold.members.values()) if isinstance(scaffold, ScaffoldMixture) else [scaffold]

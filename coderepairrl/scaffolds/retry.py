"""A control: an agent that is forced to go on. How much of a policy's gain is skill, how much that it tries again?

    scaffold: {name: retry, agent: {name: terminal}}

The same agent with the same limits, but a submission ends the episode only where the test passes; else the
agent goes on until a limit of the gateway ends it. The test is the task's visible one,
metadata["visible_test"], which ends with 0 when it passes (a timeout is a failure); of a task that has none it
is the judge's verdict on the diff so far.

A turn-by-turn agent (terminal, terminal_text) gets the test's output and a sentence in the place of the end, in
the same conversation. Another one is started again on the same working tree, in a new home, with the same words; that
the test failed it isn't told. What breaks an agent ends the episode as it does without this.

The visible test runs in the agent's own sandbox, as a command of the agent would: what it writes stays in the
working tree. Of that, what ignore rules of the base commit or ARTEFACTS of sandboxes/git.py name (__pycache__,
.pytest_cache) is in no diff. An agent that bends the visible test may end; the hidden tests judge it all the
same. The judge has sandboxes of its own. Both take of the episode's time.
"""

from copy import copy
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError, SandboxError, ScaffoldError
from coderepairrl.rewards import Grader
from coderepairrl.rewards.weak import VISIBLE_TEST
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.aider import AiderConfig
from coderepairrl.scaffolds.codex import CodexConfig
from coderepairrl.scaffolds.command import CommandConfig
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgentConfig
from coderepairrl.scaffolds.single_pass import SinglePassConfig
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig, clip
from coderepairrl.scaffolds.terminal_text import TerminalTextConfig
from coderepairrl.types import Task, VerdictKind

if TYPE_CHECKING:
    from coderepairrl.scaffolds import Scaffold

MAX_OUTPUT_CHARS = 2000  # of the test's, head and tail
FAILS = "the test still fails, go on"
UNSOLVED = "the submission does not solve the task, go on"
Agent = Annotated[
    TerminalConfig
    | TerminalTextConfig
    | AiderConfig
    | MiniSweAgentConfig
    | CodexConfig
    | CommandConfig
    | SinglePassConfig,
    Field(discriminator="name"),
]


class RetryConfig(Config):
    """A control: an agent that may not end before the test passes."""

    name: Literal["retry"] = "retry"
    agent: Agent = TerminalConfig()  # which is forced to go on; terminal unless another is named


class Retry:
    """Around an agent, which itself stays as it was. `grader` judges tasks without a visible test."""

    calls_model = True

    def __init__(self, agent: "Scaffold", grader: Grader | None = None):
        self.inner, self.grader = copy(agent), grader
        self.without_tools = getattr(self.inner, "without_tools", "")
        if isinstance(self.inner, Terminal):
            self.inner.submitted = self.objection

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        if isinstance(self.inner, Terminal):
            await self.inner.run(task, sandbox, endpoint)
            return
        while not endpoint.closed():
            before = await endpoint.calls()
            await self.inner.run(task, sandbox, endpoint)
            if endpoint.closed() or await self.objection(task, sandbox) is None:
                return
            if await endpoint.calls() == before:  # no limit would ever end it
                raise ScaffoldError(
                    "the agent ended without a call of its model while the test fails: it can't be made to go on"
                )

    async def objection(self, task: Task, sandbox: Sandbox) -> str | None:
        """What a submission is answered with; None where it is accepted. Raises SandboxError."""
        if VISIBLE_TEST in task.metadata:
            result = await sandbox.run(task.metadata[VISIBLE_TEST], timeout_s=task.environment.test_timeout_s)
            failed = result.exit_code or result.timed_out
            return f"{clip(result.output.strip(), MAX_OUTPUT_CHARS)}\n{FAILS}" if failed else None
        if self.grader is None:
            raise ConfigError(
                f"task {task.task_id} has no visible test, and nobody here judges: give "
                f"metadata[{VISIBLE_TEST!r}] a shell command, or the scaffold a Grader"
            )
        verdict = await self.grader.grade(task, await sandbox.diff())
        if verdict.kind == VerdictKind.ENVIRONMENT_ERROR:  # says nothing about the submission
            raise SandboxError(f"environment: {verdict.message}")
        return None if verdict.resolved else UNSOLVED

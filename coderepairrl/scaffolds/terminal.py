"""A light terminal agent: three tools (shell, edit, submit), an append-only history, a coroutine over the sandbox.

Nothing that depends on time, host or process enters the prompt; assistant messages go back exactly as they were
received;
every tool call is answered, a wrong one with an error that says what to do. For models whose chat template shows no
tools: terminal_text.py.
"""

import asyncio
import json
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from coderepairrl.config import Config
from coderepairrl.errors import ScaffoldError
from coderepairrl.sandboxes import CommandResult, PathError, Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint, chat
from coderepairrl.types import Task

SYSTEM_PROMPT = """You repair the git repository in the current directory by calling tools.
shell: runs one command in a fresh shell at the top of the repository; cd and variables do not persist, there is no \
input.
edit: replaces `old`, which must occur exactly once in the file, by `new`.
submit: ends the task; the working tree is the answer.
Search, read, reproduce, make the smallest change that mends the cause, run the related tests, submit. Do not change \
tests."""


class TerminalConfig(Config):
    """This project's own agent: a shell and an edit tool."""

    name: Literal["terminal"] = "terminal"
    system_prompt: str = SYSTEM_PROMPT  # what the model is told first
    command_timeout_s: PositiveFloat = 60.0  # of one command of the agent
    max_output_chars: PositiveInt = 8000  # of an answer of a tool; from the middle of a longer one is left out
    # every tool call takes so much longer: what a slow build costs, for measuring asynchronous runs
    tool_delay_s: NonNegativeFloat = 0.0
    max_idle_answers: PositiveInt = 3  # answers in a row without one usable tool call, then the agent gives up


def _tool(name: str, description: str, **parameters: str) -> dict:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    _tool("shell", "Run a shell command", command="the command line"),
    _tool(
        "edit",
        "Replace text in a file",
        path="file, relative to the repository",
        old="text that occurs exactly once",
        new="its replacement",
    ),
    _tool("submit", "End the task"),
]
USAGE = "the tools are shell(command), edit(path, old, new), submit()"


def edit_text(path: str, content: str, old: str, new: str) -> tuple[str, str]:
    """(content after the edit, answer to the agent). The content is unchanged when the edit can't be made."""
    count = content.count(old) if old else 0
    if count != 1:
        hint = "check the exact text" if count == 0 else "quote more of its surroundings"
        return content, f"error: old occurs {count} times in {path}: {hint}"
    return content.replace(old, new), "ok"


def clip(text: str, limit: int) -> str:
    """Head and tail of a long text; what is left out is counted."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def describe(result: CommandResult, limit: int) -> str:
    """A command's output as the agent sees it; the exit code only where it is not 0."""
    text = clip(result.output.rstrip("\n"), limit)
    if result.timed_out:
        return text + f"\n[killed after {result.seconds:.0f} s]"
    return text + (f"\n[exit code {result.exit_code}]" if result.exit_code else "")


class Terminal:
    calls_model = True
    without_tools = "scaffold: {name: terminal_text}"  # what to use with a model whose chat template shows no tools
    tools: list[dict] | None = TOOLS

    def __init__(self, config: TerminalConfig):
        self.config = config

    async def submitted(self, task: Task, sandbox: Sandbox) -> str | None:
        """What a submission is answered with; None ends the task. A control puts its own here."""
        return None

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        messages, idle = self.opening(task), 0
        while True:
            answer = await chat(endpoint, messages, self.tools)
            if answer is None:
                return
            messages.append(answer.message)
            replies, usable, done = await self.respond(answer.message, task, sandbox)
            if done:
                return
            messages += replies
            idle = 0 if usable else idle + 1
            if idle >= self.config.max_idle_answers:
                raise ScaffoldError(
                    f"{idle} answers in a row without a usable {'tool call' if self.tools else 'command'}"
                )

    def opening(self, task: Task) -> list[dict]:
        return [
            {"role": "system", "content": self.config.system_prompt},
            {"role": "user", "content": task.problem_statement},
        ]

    async def respond(self, message: dict, task: Task, sandbox: Sandbox) -> tuple[list[dict], bool, bool]:
        """(messages that answer the model's, one of its calls was well-formed, the agent is done).

        Calls after a submission that is answered are made like any others.
        """
        replies, usable = [], False
        for call in message.get("tool_calls") or []:
            result, ok, done = await self._act(call["function"], sandbox)
            if done and (result := await self.submitted(task, sandbox)) is None:
                return replies, True, True
            usable = usable or ok
            replies.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return replies or [{"role": "user", "content": f"error: no tool call; {USAGE}"}], usable, False

    async def _act(self, function: dict[str, Any], sandbox: Sandbox) -> tuple[str, bool, bool]:
        """(answer, the call was well-formed, the agent has submitted)."""
        await asyncio.sleep(self.config.tool_delay_s)
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            return f"error: the arguments are not JSON ({error}); {USAGE}", False, False
        match function["name"], arguments:
            case "submit", {}:
                return "", True, True
            case "shell", {"command": str(command)}:
                result = await sandbox.run(command, timeout_s=self.config.command_timeout_s)
                return describe(result, self.config.max_output_chars), True, False
            case "edit", {"path": str(path), "old": str(old), "new": str(new)}:
                return await self._edit(sandbox, path, old, new), True, False
        return f"error: no such call: {function['name']}; {USAGE}", False, False

    async def _edit(self, sandbox: Sandbox, path: str, old: str, new: str) -> str:
        try:
            content = await sandbox.read_text(path)
            changed, answer = edit_text(path, content, old, new)
            if changed != content:
                await sandbox.write_text(path, changed)
            elif answer == "ok":
                return f"error: old and new are the same: {path} stays as it is"
        except PathError as error:
            return f"error: {error}"
        return answer

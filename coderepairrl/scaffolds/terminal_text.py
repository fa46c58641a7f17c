"""The terminal agent for models whose chat template shows no tools: one fenced block a turn, answered by a user.

    ```bash                 a command; `submit` alone ends the task
    ```edit                 the edits of single_pass: a path, the lines to search, those that replace them

A block ends at a fence that is as long as the one that began it, so that a longer one may hold others. Blocks of other
languages are talk. Users and assistants take turns, and there is no system message, which some of those templates
refuse (Gemma's).
"""

import asyncio
import re
from typing import Literal

from coderepairrl.errors import ScaffoldError
from coderepairrl.lines import split_lines
from coderepairrl.sandboxes import Sandbox
from coderepairrl.scaffolds.single_pass import apply_blocks, parse_blocks
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig, describe
from coderepairrl.types import Task

SYSTEM_PROMPT = """You repair the git repository in the current directory.
Each answer holds exactly one block, of one of these two forms.

A command, run in a fresh shell at the top of the repository; cd and variables do not persist, there is no input:
```bash
grep -rn name .
```
An edit of lines that occur exactly once in the file:
```edit
path/of/the/file.py
<<<<<<< SEARCH
lines as they are
=======
lines that replace them
>>>>>>> REPLACE
```
Search, read, reproduce, make the smallest change that mends the cause, run the related tests. Do not change tests.
The command `submit` alone ends the task; the working tree is the answer."""
USAGE = "give exactly one ```bash or ```edit block in an answer, the command `submit` alone to end"
FENCE = re.compile(r"^(`{3,})[ \t]*(\S*)[^`]*$")
KINDS = ("bash", "edit")


class TerminalTextConfig(TerminalConfig):
    name: Literal["terminal_text"] = "terminal_text"
    system_prompt: str = SYSTEM_PROMPT  # the first message begins with it


def blocks(answer: str) -> list[tuple[str, str | None]]:
    """(kind, text) of each block of KINDS; None for the text of one that has no end."""
    found, lines, at = [], split_lines(answer), 0
    while at < len(lines):
        opened = FENCE.match(lines[at].rstrip())
        at += 1
        if not opened:
            continue
        fence, kind = opened.groups()
        end = next((i for i in range(at, len(lines)) if re.fullmatch(f"`{{{len(fence)},}}", lines[i].rstrip())), None)
        if kind in KINDS:
            found.append((kind, None if end is None else "".join(lines[at:end])))
        at = len(lines) if end is None else end + 1
    return found


class TerminalText(Terminal):
    without_tools = ""  # it needs none
    tools = None

    def opening(self, task: Task) -> list[dict]:
        return [{"role": "user", "content": f"{self.config.system_prompt}\n\n{task.problem_statement}"}]

    async def respond(self, message: dict, task: Task, sandbox: Sandbox) -> tuple[list[dict], bool, bool]:
        said, usable, done = await self._follow(blocks(message.get("content", "")), sandbox)
        if done and (said := await self.submitted(task, sandbox)) is None:
            return [], True, True
        return [{"role": "user", "content": said}], usable, False

    async def _follow(self, found: list[tuple[str, str | None]], sandbox: Sandbox) -> tuple[str, bool, bool]:
        """(answer, there was one block that is whole, the agent has submitted)."""
        await asyncio.sleep(self.config.tool_delay_s)
        if len(found) != 1 or found[0][1] is None:
            problem = "the block has no end" if len(found) == 1 else f"{len(found)} blocks"
            if not found:
                problem = "no block"
            return f"error: {problem}; {USAGE}", False, False
        kind, text = found[0]
        if kind == "bash" and text.strip() == "submit":
            return "", True, True
        if kind == "bash":
            result = await sandbox.run(text, timeout_s=self.config.command_timeout_s)
            return describe(result, self.config.max_output_chars) or "[no output]", True, False
        try:
            await apply_blocks(sandbox, parse_blocks(text))
        except ScaffoldError as error:
            return f"error: {error}", True, False
        return "ok", True, False

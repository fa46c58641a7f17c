"""No scaffold: one completion with search/replace blocks, applied to the checkout. The control for what an agent's loop
is worth.

The prompt shows the problem statement and the files that fit into `max_context_chars` (retrieval.py); the answer is
applied whole or not at all.
"""

import asyncio
import posixpath
import re
from typing import Literal

from pydantic import PositiveInt

from coderepairrl.config import Config
from coderepairrl.errors import ScaffoldError
from coderepairrl.lines import split_lines
from coderepairrl.sandboxes import PathError, Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint, chat
from coderepairrl.scaffolds.retrieval import choose, read_checkout
from coderepairrl.scaffolds.terminal import edit_text
from coderepairrl.types import Task

SYSTEM_PROMPT = """You repair a program. Answer with one or more edits, each of this form, and nothing after the last:
path/of/the/file.py
<<<<<<< SEARCH
lines that occur exactly once in the file
=======
lines that replace them
>>>>>>> REPLACE
To make a new file, leave out the lines to search. Make the smallest change that mends the cause. Do not change \
tests."""
REMEMBERED = 256  # prompts: the episodes of a group have the same
SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"


class SinglePassConfig(Config):
    """No agent: one answer to all files."""

    name: Literal["single_pass"] = "single_pass"
    system_prompt: str = SYSTEM_PROMPT  # what the model is told first
    max_context_chars: PositiveInt = 60_000  # of all files that are shown together


def parse_blocks(answer: str) -> list[tuple[str, str, str]]:
    """(path, old text, new text) of each block, in order. Raises ScaffoldError for an answer without any, or with a
    broken one."""
    edits, lines, at, path = [], split_lines(answer), 0, ""
    while at < len(lines):
        line = lines[at].rstrip()
        if line in (DIVIDER, REPLACE):
            raise ScaffoldError(f"the answer is malformed: line {at + 1}, {line!r}, stands outside of a block")
        if line != SEARCH:
            path = path if not line or line.startswith("```") else posixpath.normpath(line.strip().strip("`*:").strip())
            at += 1
            continue
        marks = {
            mark: next((i for i in range(at + 1, len(lines)) if lines[i].rstrip() == mark), None)
            for mark in (DIVIDER, REPLACE)
        }
        if not path or None in marks.values() or marks[DIVIDER] > marks[REPLACE]:
            raise ScaffoldError(
                f"the answer is malformed: the block at line {at + 1} has no "
                + ("path above it" if not path else f"{DIVIDER!r} and {REPLACE!r} in this order")
            )
        edits.append(
            (path, "".join(lines[at + 1 : marks[DIVIDER]]), "".join(lines[marks[DIVIDER] + 1 : marks[REPLACE]]))
        )
        at = marks[REPLACE] + 1
    if not edits:
        raise ScaffoldError("the answer is malformed: it holds no search/replace block")
    return edits


def show(files: dict[str, str]) -> str:
    """Each file under its path, between fences that none of its own can be mistaken for."""
    parts = []
    for name, text in files.items():
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`{3,}", text)), default=0))
        parts.append(f"{name}\n{fence}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{fence}\n")
    return "\n".join(parts)


class SinglePass:
    calls_model = True

    def __init__(self, config: SinglePassConfig):
        self.config = config
        self._prompts: dict[tuple[str, str], str] = {}  # of a task and what is changed in its checkout

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        messages = [
            {"role": "system", "content": self.config.system_prompt},
            {"role": "user", "content": await self._prompt(task, sandbox)},
        ]
        answer = await chat(endpoint, messages)
        if answer is None:
            return
        if answer.finish_reason == "length":
            raise ScaffoldError("the answer was cut at the limit of its tokens: nothing of it is applied")
        await apply_blocks(sandbox, parse_blocks(answer.message.get("content", "")))

    async def _prompt(self, task: Task, sandbox: Sandbox) -> str:
        key = task.task_id, await sandbox.diff()  # a control may have it answer twice
        if key not in self._prompts:
            files = await asyncio.to_thread(read_checkout, sandbox.root)
            shown = await asyncio.to_thread(choose, files, task.problem_statement, self.config.max_context_chars)
            while len(self._prompts) >= REMEMBERED:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[key] = f"{task.problem_statement}\n\n{show({name: files[name] for name in shown})}"
        return self._prompts[key]


async def apply_blocks(sandbox: Sandbox, edits: list[tuple[str, str, str]]) -> None:
    """Nothing is written unless every text is found. Raises ScaffoldError where one does not occur exactly once, or a
    path is none."""
    contents: dict[str, str] = {}
    for path, old, new in edits:
        try:
            if path not in contents and (old.strip() or await _exists(sandbox, path)):
                contents[path] = await sandbox.read_text(path)
        except PathError as error:
            raise ScaffoldError(f"the answer does not apply: {error}") from error
        if path not in contents:
            contents[path] = new
            continue
        changed, said = edit_text(path, contents[path], old, new)
        if said != "ok":
            raise ScaffoldError(f"the answer does not apply: {said}")
        contents[path] = changed
    for path, content in contents.items():
        try:
            await sandbox.write_text(path, content)
        except PathError as error:
            raise ScaffoldError(f"the answer does not apply: {error}") from error


async def _exists(sandbox: Sandbox, path: str) -> bool:
    try:
        await sandbox.read_text(path)
    except PathError:  # also a path that may not be used: writing says so
        return False
    return True

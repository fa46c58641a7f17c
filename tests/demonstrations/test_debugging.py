"""Demonstrations whose answers are computed: a real sandbox gives the same, to the letter; the last edit repairs."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from coderepairrl.curation.failing import FailingBug, draw, find_bugs, mutations_of
from coderepairrl.demonstrations.debugging import DebuggingConfig, SourceTree, applied, conversation, quoted
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig
from coderepairrl.tasks.packages import environment, packages
from coderepairrl.types import Task

AGENT = TerminalConfig(max_output_chars=1500)


@pytest.fixture(scope="module")
def bugs() -> list[FailingBug]:
    found = {path: mutations_of("cachetools", path) for path in ("src/cachetools/keys.py", "src/cachetools/_cached.py")}
    return find_bugs("cachetools", draw("cachetools", found, 24, seed=0, vain=2))


def task_of(bug: FailingBug) -> Task:
    place = environment(bug.package)
    text = applied(Path(place.base, bug.path).read_text(), bug.edits)
    return Task("bug", bug.problem_statement, place, {bug.path: text}, {}, (), (), (), "")


async def replayed(task: Task, messages: list[dict]) -> list[tuple[str, str]]:
    """(what was computed, what a sandbox answers) of each call; at the end (diff is empty, "")."""
    pairs, agent = [], Terminal(AGENT)
    async with start_sandbox(SandboxConfig(), task) as sandbox:
        for message, answer in zip(messages, [*messages[1:], None], strict=True):
            for call in message.get("tool_calls", []):
                if call["function"]["name"] != "submit":
                    said, _, _ = await agent._act(call["function"], sandbox)
                    pairs.append((answer["content"], said))
        (path,) = task.files
        pairs.append((Path(task.environment.base, path).read_text(), await sandbox.read_text(path)))
    return pairs


def test_a_sandbox_answers_what_was_computed(bugs):
    everything = DebuggingConfig(
        p_read_test=0.5, p_reproduce=1.0, p_in_vain=1.0, p_again=1.0, p_misquote=1.0, p_test=1.0
    )
    repository = SourceTree(Path(environment("cachetools").base))
    shown = [
        (bug, row)
        for number, bug in enumerate(bugs)
        if (row := conversation(bug, repository, random.Random(number), everything, AGENT))
    ]
    assert len(shown) >= 5
    commands, untrained = set(), 0
    for bug, row in shown[:6]:
        for computed, real in asyncio.run(replayed(task_of(bug), row["messages"])):
            assert computed == real
        for message in row["messages"]:
            untrained += not message.get("train", True)
            for call in message.get("tool_calls", []):
                commands.add(json.loads(call["function"]["arguments"]).get("command", "").split(" ")[0])
    assert {"git", "sed", "python"} <= commands and untrained


def test_bugs_are_shown_by_tests_and_told_without_their_place(bugs):
    assert len(bugs) >= 10
    for bug in bugs:
        assert bug.lock == packages()["cachetools"].sha256 and 0 < bug.failing <= 40
        assert bug.path not in bug.problem_statement and bug.test in bug.problem_statement


@pytest.mark.parametrize(
    "before, after",
    [
        ("a = 1\nb = 2\n", "a = 1\nb = 3\n"),
        ("def f():\n    return 1\n\ndef g():\n    return 1\n", "def f():\n    return 1\n\ndef g():\n    return 2\n"),
        ("x\ny\n", "x\nz = 1\ny\n"),
        ("if a:\n    b()\n    c()\n", "if a:\n    c()\n"),
    ],
)
def test_a_quote_occurs_once_and_makes_the_repair(before, after):
    old, new = quoted(before, after)
    assert before.count(old) == 1 and before.replace(old, new) == after

"""A proof that a build's success depends on what the code does: an expectation of the build is turned (turns.py), then it must fail.

What ends a process with success, equals everything or bends a runner passes either way. What is turned is chosen at random, in
the tests and scripts as they were, and by the grader alone; whether a turn tells is asked of the oracle's own build.
"""
import ast
import random
import re
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from coderepairrl import syntax
from coderepairrl.rewards.assertions import Function
from coderepairrl.rewards.turns import FAILURE, turned, turns
from coderepairrl.rewards.weaker import is_test_file

TRIES = 3  # plants that are tried until one tells
_CODE = re.compile(r"-c\s+('[^']+'|\"[^\"$`\\]+\")")  # python -c '...': a script in a line of a shell
_NUMBER = re.compile(r"(?<=[=\s'\"])\d+(?=$|[\s'\"\])])")
_INSIDE = "inside"


@dataclass(frozen=True)
class Plant:
    """Texts that stand in place of others, and a command that does."""
    files: dict[str, str] = field(default_factory=dict)
    command: str | None = None

    def __bool__(self) -> bool:
        return bool(self.files) or self.command is not None


def plant(texts: Mapping[str, str], command: str | None, number: int, seed: str, ran: Collection[str] = ()) -> Plant:
    """`texts`: what validates (path -> text); `number`: another plant for each, from the likeliest on; `ran`: the test
    functions that did, where that is known."""
    rng = random.Random(f"{seed} {number}")
    files = {path: changed for path, text in sorted(texts.items()) if (changed := _turned_file(path, text, number, rng, ran)) != text}
    changed = _turned_command(command, number, rng) if command is not None else None
    return Plant(files, changed if changed != command else None)


def _turned_file(path: str, text: str, number: int, rng: random.Random, ran: Collection[str]) -> str:
    if not path.endswith(".py"):
        return _turned_lines(text, number, rng)
    try:
        tree = syntax.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return text
    names = {node.name for node in ast.walk(tree) if isinstance(node, Function) and (
        node.name in ran if ran else node.name.startswith("test"))}
    if names:
        found = turns(text, names, rng)
        # all of them: one that can't fail is seen by itself, and what fails everywhere has passed none before
        return turned(text, [own[min(number, len(own) - 1)] for own in found.values()])
    asserts = any(isinstance(node, ast.Assert) for node in tree.body) or not is_test_file(path)
    return _turned_script(text, number, rng) if asserts else text


def _turned_script(text: str, number: int, rng: random.Random) -> str:
    """Code outside of any function: that of one, for as long as it takes."""
    head = f"def {_INSIDE}():\n"
    whole = head + textwrap.indent(text, " ", lambda line: True)
    found = [turn for turn in turns(whole, {_INSIDE}, rng).get(_INSIDE, []) if turn.rank < FAILURE]
    if not found:
        return text
    changed = turned(whole, [found[min(number, len(found) - 1)]]).removeprefix(head)
    return "".join(line.removeprefix(" ") for line in changed.splitlines(keepends=True))


def _turned_lines(text: str, number: int, rng: random.Random) -> str:
    """Each script that a line hands to an interpreter."""
    def replaced(match: re.Match) -> str:
        quote, code = match[1][0], match[1][1:-1]
        changed = _turned_script(code, number, rng)
        return match[0] if quote in changed or "\n" in changed and "\n" not in code else match[0].replace(code, changed)

    return _CODE.sub(replaced, text)


def _turned_command(command: str, number: int, rng: random.Random) -> str:
    """A script in it, else a number: the last ones are mostly what is compared with."""
    if (changed := _turned_lines(command, number, rng)) != command:
        return changed
    numbers = list(_NUMBER.finditer(command))[::-1]
    if number >= len(numbers):
        return command
    found = numbers[number]
    return f"{command[:found.start()]}{int(found[0]) + rng.randint(1, 7)}{command[found.end():]}"

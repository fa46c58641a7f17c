"""A proof that a build's success depends on what the code does: an expectation of the build is turned (turns.py),
then it must fail.

What ends a process with success, equals everything or bends a runner passes either way. What is turned is chosen at
random, in the tests and scripts as they were, and by the grader alone; whether a turn tells is asked of the oracle's
own build.
"""

import ast
import random
import re
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from coderepairrl.grading import syntax
from coderepairrl.grading.expectations import turns
from coderepairrl.grading.syntax import Function
from coderepairrl.grading.turns import FAILURE, turned
from coderepairrl.grading.validation.weaker import is_test_file

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


def plant(
    texts: Mapping[str, str], command: str | None, number: int, seed: str, ran: Collection[str], near: Collection[str]
) -> Plant:
    """`texts`: what validates (path -> text); `number`: another plant for each, from the likeliest on; `ran`: the
    test functions that did, which are all turned, since each has a result of its own. Empty where none is reported:
    then it is one at a time, those first whose words are `near` the repair."""
    rng = random.Random(f"{seed} {number}")
    files = {}
    for path, text in sorted(texts.items()):
        if path.endswith(".py") and (tree := _parse(text)):
            changed = (
                _turned_script(text, number, rng)
                if _is_script(path, tree)
                else _turned_tests(text, tree, ran, number, rng)
            )
        else:
            changed = _turned_lines(text, number, rng)
        if changed != text:
            files[path] = changed
    if not ran and (tests := [path for path in files if is_test_file(path)]):
        files = {path: text for path, text in files.items() if path not in tests} | _turned_one(
            texts, tests, number, seed, near
        )
    changed = _turned_command(command, number, rng) if command is not None else None
    return Plant(files, changed if changed != command else None)


def _turned_tests(text: str, tree: ast.Module, ran: Collection[str], number: int, rng: random.Random) -> str:
    found = turns(text, {one.name for one in _tests(tree) if not ran or one.name in ran}, rng)
    return turned(text, [own[min(number, len(own) - 1)] for own in found.values()])


def _turned_one(
    texts: Mapping[str, str], paths: list[str], number: int, seed: str, near: Collection[str]
) -> dict[str, str]:
    """One test function of them all: of those that say the same of the repair any, and another one for each number."""
    rng = random.Random(seed)
    functions = [
        (path, one.name, len(set(near) & {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}))
        for path in paths
        if (tree := _parse(texts[path]))
        for one in _tests(tree)
    ]
    rng.shuffle(functions)
    functions.sort(key=lambda found: -found[2])
    if not functions:
        return {}
    path, name, _ = functions[number % len(functions)]
    found = turns(texts[path], {name}, rng)
    return {path: turned(texts[path], [found[name][0]])} if found.get(name) else {}


def _tests(tree: ast.Module) -> list:
    return [node for node in ast.walk(tree) if isinstance(node, Function) and node.name.startswith("test")]


def _is_script(path: str, tree: ast.Module) -> bool:
    """Whether it checks outside of test functions."""
    return not _tests(tree) and (any(isinstance(node, ast.Assert) for node in tree.body) or not is_test_file(path))


def _parse(text: str) -> ast.Module | None:
    try:
        return syntax.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # of another Python: left as it is
        return None


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
    return f"{command[: found.start()]}{int(found[0]) + rng.randint(1, 7)}{command[found.end() :]}"

"""A scripted, imperfect expert for the one-function repositories: demonstrations for the warm start, in OpenAI chat
format.

The expert looks at the file, makes one edit and sometimes tests it. It picks the right edit with probability `p_right`
and
otherwise any other well-formed one, often submits untested and often gives up after a failure: what to try, to test,
and to
go on is left for reinforcement learning to find. Drills are exercises, not episodes: well-formed edits in a row, each
answered
as if it were the first, to teach how text is quoted.

With `p_habit` it finds the place and then repairs by habit instead of reading the docstring: numbers are one too small,
comparisons a
matter of strictness, signs the other one (HABITS). That is right in three of five cases (always where a token has one
alternative, in
three of ten comparisons): practice has something to unlearn.

With `tampering`, a share of the demonstrations cheats by one of `exploits` (exploits.py) instead of repairing anything,
and submits.

For the terminal scaffold tool results are computed here instead of in a sandbox, because thousands are needed in
seconds; that a demonstration's
are what it answers, to the letter, is a test. For the other scaffolds scripts/record_demonstrations.py records the same
acts, said in their language.
"""

import random
import re
from collections.abc import Iterator
from multiprocessing import Pool
from typing import Literal

from pydantic import Field, PositiveInt

from coderepairrl.config import Config, Share
from coderepairrl.demonstrations.acts import Act, Edit, Look, RunTests, Slip, Submit
from coderepairrl.demonstrations.dialects import terminal
from coderepairrl.demonstrations.exploits import EXPLOITS
from coderepairrl.scaffolds.terminal import TerminalConfig, edit_text
from coderepairrl.tasks.functions import OPERATORS, Puzzle, _call_text, _results, puzzles

TEST = "python3 test_lib.py || git checkout -q ."  # a failed attempt is taken back at once

HABITS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "+": "-", "-": "+", "*": "+"}  # what an operator is taken for


class DemonstrationsConfig(Config):
    """The imperfect expert of the one-function tasks; p_... are probabilities."""

    episodes: PositiveInt = 16000  # whole repairs
    drills: PositiveInt = 8000  # conversations that exercise quoting text
    seed: str = "demonstrations"  # another text, other demonstrations
    p_right: Share = 0.6  # that an edit is the right one
    p_habit: Share = 0.0  # that an edit in the right place is made by habit, whatever the docstring says
    p_test: Share = 0.3  # to test after an edit
    p_retry: Share = 0.3  # to go on after a failure
    p_slip: Share = 0.1  # to first quote text that isn't there (never trained on: it shows what the error looks like)
    tampering: Share = 0.0  # share of demonstrations that cheat and repair nothing
    exploits: tuple[Literal[*EXPLOITS], ...] = Field(("disabled_test",), min_length=1)  # what they do, each as often
    max_edits: PositiveInt = 4  # of an episode
    drill_edits: PositiveInt = 8  # of a drill


def _tokens(line: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(r"\w+|[<>=!+\-*/]=?|\S", line)]


def _unique_edit(source: str, line: int, start: int, current: str, new: str) -> tuple[str, str] | None:
    """The shortest text around a token that occurs once in the file, before and after the replacement."""
    text = source.split("\n")[line - 1]
    spans = _tokens(text)
    at = next(i for i, (a, _) in enumerate(spans) if a == start)
    low, high = (max(0, at - 1), at) if current.isdigit() else (at, min(len(spans) - 1, at + 1))
    grow_right = False
    while True:
        begin = spans[low][0] - (text[spans[low][0] - 1 : spans[low][0]] == " ")
        old = text[begin : spans[high][1]]
        if source.count(old) == 1:
            return old, old[: start - begin] + new + old[start - begin + len(current) :]
        if low == 0 and high == len(spans) - 1:
            return None
        if high < len(spans) - 1 and (grow_right or low == 0):
            high += 1
        else:
            low -= 1
        grow_right = not grow_right


def candidate_edits(puzzle: Puzzle) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(edits that repair the file, all other well-formed one-token edits), each as (old, new)."""
    bug, source = puzzle.bug, puzzle.broken
    shift = len(bug.wrong) - len(bug.right)
    right, others, seen = [], [], set()
    for site in puzzle.program.sites:
        if (site.line, site.start) in seen:
            continue
        seen.add((site.line, site.start))
        is_bug = (site.line, site.start) == (bug.line, bug.start)
        current = bug.wrong if is_bug else site.right
        start = site.start + (shift if site.line == bug.line and site.start > bug.start else 0)
        values = (
            [str(n) for n in (int(current) - 1, int(current) + 1) if 0 < n < 10]
            if site.kind == "n"
            else [v for v in OPERATORS[site.kind] if v != current]
        )
        for value in values:
            edit = _unique_edit(source, site.line, start, current, value)
            if edit:
                (right if is_bug and value == bug.right else others).append(edit)
    return right, others


def habitual_edit(puzzle: Puzzle) -> tuple[str, str] | None:
    """(old, new): what habit makes of the token that is wrong; None where it can't be quoted."""
    bug = puzzle.bug
    if bug.kind == "n":
        new = str(int(bug.wrong) + (1 if bug.wrong != "9" else -1))
    else:
        new = HABITS.get(bug.wrong) or next(value for value in OPERATORS[bug.kind] if value != bug.wrong)
    return _unique_edit(puzzle.broken, bug.line, bug.start, bug.wrong, new)


def test_output(puzzle: Puzzle, source: str) -> str:
    """What TEST prints for this content of lib.py."""
    results = _results(source, puzzle.program.name, [args for args, _ in puzzle.visible])
    for (args, wanted), got in zip(puzzle.visible, results, strict=True):
        if got != wanted:
            return f"FAIL {_call_text(puzzle.program.name, args)} returned {got}, expected {wanted}"
    return "PASS"


def demonstration_acts(puzzle: Puzzle, rng: random.Random, config: DemonstrationsConfig) -> list[Act]:
    """One look, then edits of the file as it was, each in place of the one before."""
    right, others = candidate_edits(puzzle)
    acts: list[Act] = [Look("lib.py")]
    # no number is drawn for a share of 0: those demonstrations stay what they are
    if config.tampering > 0 and rng.random() < config.tampering:
        exploit = EXPLOITS[rng.choice(config.exploits)] if len(config.exploits) > 1 else EXPLOITS[config.exploits[0]]
        return [*acts, exploit.edit(puzzle), Submit()]
    for _ in range(config.max_edits):
        if rng.random() < config.p_slip:
            old, new = rng.choice(right + others)
            if puzzle.broken.count(new) != 1:
                acts.append(Slip(Edit("lib.py", puzzle.broken, old, new)))
        old, new = rng.choice(right if right and rng.random() < config.p_right else right + others)
        if config.p_habit > 0 and (old, new) in right and rng.random() < config.p_habit:
            old, new = habitual_edit(puzzle) or (old, new)
        acts.append(Edit("lib.py", puzzle.broken, old, new))
        if rng.random() > config.p_test:
            break
        acts.append(RunTests(TEST))
        if test_output(puzzle, acts[-2].after) == "PASS" or rng.random() > config.p_retry:
            break
    return [*acts, Submit()]


def drill_acts(puzzle: Puzzle, rng: random.Random, config: DemonstrationsConfig) -> list[Act]:
    right, others = candidate_edits(puzzle)
    edits = right + others
    rng.shuffle(edits)
    return [Look("lib.py"), *(Edit("lib.py", puzzle.broken, old, new) for old, new in edits[: config.drill_edits])]


def _chat(puzzle: Puzzle, acts: list[Act], system_prompt: str) -> list[dict]:
    """Messages as the terminal scaffold would exchange them, its answers computed."""
    messages = [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": puzzle.task.problem_statement},
    ]
    edited = puzzle.broken
    for act, turn in zip(acts, terminal(TerminalConfig(), acts), strict=True):
        messages.append(turn.message | ({} if turn.trained else {"train": False}))
        match act:
            case Look():
                answer = puzzle.broken.rstrip("\n")
            case Edit(path, before, old, new):
                edited, answer = edit_text(path, before, old, new)
            case Slip(Edit(path, before, _, new)):
                answer = edit_text(path, before, new, new)[1]
            case RunTests():
                answer = test_output(puzzle, edited)
            case Submit():
                continue
        messages.append({"role": "tool", "content": answer})
    return messages


def demonstrate(puzzle: Puzzle, rng: random.Random, config: DemonstrationsConfig, system_prompt: str) -> list[dict]:
    return _chat(puzzle, demonstration_acts(puzzle, rng, config), system_prompt)


def drill(puzzle: Puzzle, rng: random.Random, config: DemonstrationsConfig, system_prompt: str) -> list[dict]:
    return _chat(puzzle, drill_acts(puzzle, rng, config), system_prompt)


def _part(arguments: tuple) -> list[list[dict]]:
    kind, number, config, system_prompt, count = arguments
    seed = f"{config.seed}-{kind}-{number}"
    rng, stream = random.Random(seed), puzzles("train", seed)
    make = drill if kind == "drill" else demonstrate
    return [make(next(stream), rng, config, system_prompt) for _ in range(count)]


def generate(
    kind: str, config: DemonstrationsConfig, system_prompt: str, processes: int, part: int = 500
) -> Iterator[list[dict]]:
    """Conversations of one kind ("drill" or "demonstration"); the same whatever the number of processes."""
    total = config.drills if kind == "drill" else config.episodes
    parts = [(kind, i, config, system_prompt, min(part, total - i * part)) for i in range(-(-total // part))]
    with Pool(processes) as pool:
        for conversations in pool.imap(_part, parts):
            yield from conversations

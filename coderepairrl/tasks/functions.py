"""One-function repositories with one wrong token: the embedded task set, large enough to train a small policy from
scratch.

A task is a folder with `lib.py` (one function whose docstring says, line by line, what it must do), and `test_lib.py`
(a
few visible cases). Programs are drawn from a grammar of statements; the docstring is made together with the code, so
that
the right operator or constant of every line can be read off it. The bug replaces one operator or constant.

A program's *skeleton* is its code with names, operators and constants blanked. Skeletons are split by their hash, so
that
no function of a held-out task occurs in a training task or a demonstration under any renaming.
"""

import difflib
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import NonNegativeInt

from coderepairrl.config import Config
from coderepairrl.lines import split_lines
from coderepairrl.types import Environment, Task

# placeholder kind -> the code it may stand for -> the words that the docstring uses for it
OPERATORS: dict[str, dict[str, str]] = {
    "rel": {"<": "less than", "<=": "at most", ">": "greater than", ">=": "at least"},
    "eq": {"==": "equal to", "!=": "not"},
    "ar": {"+": "plus", "-": "minus", "*": "times"},
    "aug": {"+=": "add", "-=": "subtract"},
    "pick": {"min": "smaller", "max": "larger"},
    "join": {"and": "and", "or": "or"},
}
NAMES = "a b c d e h j k m n p q u v w z low high left right step size item count limit rate".split()
LISTS = "xs ys items values data rows".split()
FUNCTIONS = (
    "compute process evaluate collect derive measure resolve analyze handle assess select combine inspect settle"
).split()
N_INPUTS, N_VISIBLE, N_HIDDEN = 40, 4, 12
HELD_OUT_DRAW = "held out"
HELD_OUT_SHARE = 4  # one skeleton in four is held out


@dataclass(frozen=True)
class Bug:
    """One replaced token: `line` (1-based) of lib.py, columns [start, end) in the right code, `right` and `wrong`
    text."""

    line: int
    start: int
    end: int
    right: str
    wrong: str
    kind: str


@dataclass(frozen=True)
class Program:
    name: str
    source: str  # right
    skeleton: str
    signature: str  # one letter a parameter: L list of int, I int
    sites: tuple[Bug, ...]  # every single-token bug of this program


class _Writer:
    """Draws one program: lines of template text in which {kind:i} stands for an operator and {n:i} for a constant."""

    def __init__(self, rng: random.Random):
        self.rng, self.count = rng, 0
        self.code: list[str] = []
        self.doc: list[str] = []
        self.ints = ["k", "m"][: rng.randint(1, 2)]

    def slot(self, kind: str) -> str:
        self.count += 1
        return "{%s:%d}" % (kind, self.count)

    def atom(self) -> str:
        return "$" + self.rng.choice(self.ints) if self.rng.random() < 0.5 else self.slot("n")

    def line(self, code: str, doc: str | None = None) -> None:
        self.code.append(code)
        if doc:
            self.doc.append(doc)

    def term(self, left: str) -> tuple[str, str]:
        """An arithmetic expression on `left` and its words."""
        op, right = self.slot("ar"), self.atom()
        return f"{left} {op} {right}", f"{left} {op} {right}"

    def start(self) -> None:
        kind = self.rng.choice(["constant", "term", "pick"])
        if kind == "constant":
            n = self.slot("n")
            self.line(f"    $r = {n}", f"Start $r with {n}.")
        elif kind == "term":
            code, doc = self.term("$" + self.rng.choice(self.ints))
            self.line(f"    $r = {code}", f"Start $r with {doc}.")
        else:
            op, left, right = self.slot("pick"), "$" + self.rng.choice(self.ints), self.slot("n")
            self.line(f"    $r = {op}({left}, {right})", f"Start $r with the {op} of {left} and {right}.")

    def condition(self, name: str) -> tuple[str, str]:
        if self.rng.random() < 0.3:
            op, right = self.slot("eq"), self.atom()
        else:
            op, right = self.slot("rel"), self.atom()
        return f"{name} {op} {right}", f"{name} is {op} {right}"

    def loop(self) -> None:
        self.line("    for $v in $xs:")
        pad, doc = "        ", "For each $v of $xs"
        kind = self.rng.choice(["plain", "if"])
        if kind != "plain":
            code, words = self.condition("$v")
            self.line(f"        if {code}:")
            pad, doc = pad + "    ", f"{doc}, if {words}"
        op = self.slot("aug")
        if self.rng.random() < 0.5:
            code, words = self.term("$v")
        else:
            code = words = self.atom() if self.rng.random() < 0.4 else "$v"
        self.line(f"{pad}$r {op} {code}", f"{doc}: {op} {words}.")

    def guard(self) -> None:
        name = self.rng.choice(["$r", "$" + self.rng.choice(self.ints)])
        code, words = self.condition(name)
        self.line(f"    if {code}:")
        if self.rng.random() < 0.5:
            value = self.atom()
            self.line(f"        return {value}", f"If {words}: return {value}.")
        else:
            code, words2 = self.term("$r")
            self.line(f"        $r = {code}", f"If {words}: set $r to {words2}.")

    def finish(self) -> None:
        kind = self.rng.choice(["plain", "term", "pick"])
        if kind == "plain":
            self.line("    return $r", "Return $r.")
        elif kind == "term":
            code, words = self.term("$r")
            self.line(f"    return {code}", f"Return {words}.")
        else:
            op, right = self.slot("pick"), self.atom()
            self.line(f"    return {op}($r, {right})", f"Return the {op} of $r and {right}.")

    def write(self) -> None:
        self.start()
        for kind in self.rng.choice([["loop"], ["loop"], ["guard"]]):
            getattr(self, kind)()
        self.finish()


def _draw_program(rng: random.Random) -> Program:
    writer = _Writer(rng)
    writer.write()
    parameters = ["xs"] + writer.ints if any("$xs" in line for line in writer.code) else writer.ints
    names = dict(zip(["r", "v", "k", "m"], rng.sample(NAMES, 4), strict=True)) | {"xs": rng.choice(LISTS)}
    function = rng.choice(FUNCTIONS)
    values: dict[str, str] = {}

    def fill(template: str, line: int | None, sites: list[Bug]) -> str:
        out = ""
        for piece in re.split(r"(\{\w+:\d+\}|\$\w+)", template):
            if piece.startswith("$"):
                piece = names[piece[1:]]
            elif piece.startswith("{"):
                kind = piece[1:-1].split(":")[0]
                choices = OPERATORS.get(kind) or {str(n): str(n) for n in range(1, 10)}
                right = values.setdefault(piece, rng.choice(list(choices)))
                if line is None:
                    piece = choices[right]
                else:
                    wrongs = (
                        [w for w in choices if w != right]
                        if kind != "n"
                        else [str(n) for n in (int(right) - 1, int(right) + 1) if 0 < n < 10]
                    )
                    sites += [Bug(line, len(out), len(out) + len(right), right, w, kind) for w in wrongs]
                    piece = right
            out += piece
        return out

    sites: list[Bug] = []
    # def line, then the docstring's lines, the last one with the quotes
    first = 2 + len(writer.doc) + (len(writer.doc) > 0)
    code = [fill(line, first + i, sites) for i, line in enumerate(writer.code)]
    doc = [fill(line, None, sites) for line in writer.doc]
    head = f"def {function}({', '.join(names[p] for p in parameters)}):"
    source = "\n".join([head, '    """' + doc[0], *("    " + d for d in doc[1:]), '    """', *code]) + "\n"
    skeleton = "\n".join(re.sub(r"\{(\w+):\d+\}|\$[km]\b", r"{\1}", line) for line in writer.code)
    return Program(function, source, skeleton, "".join("L" if p == "xs" else "I" for p in parameters), tuple(sites))


def apply_bug(source: str, bug: Bug) -> str:
    lines = source.split("\n")
    text = lines[bug.line - 1]
    assert text[bug.start : bug.end] == bug.right, (text, bug)
    lines[bug.line - 1] = text[: bug.start] + bug.wrong + text[bug.end :]
    return "\n".join(lines)


def is_held_out(skeleton: str) -> bool:
    return int(hashlib.sha256(skeleton.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def _draw_inputs(signature: str, rng: random.Random, count: int) -> list[list]:
    def value(letter: str):
        return [rng.randint(-3, 9) for _ in range(rng.randint(1, 4))] if letter == "L" else rng.randint(-3, 9)

    return [[value(letter) for letter in signature] for _ in range(count)]


def _results(source: str, name: str, inputs: list[list]) -> list[int]:
    """The function's results. Only for programs of this grammar, which always end: no `while`, no call but min and
    max."""
    scope: dict = {}
    exec(source, scope)  # text that this module wrote
    return [scope[name](*json.loads(json.dumps(args))) for args in inputs]


def _call_text(name: str, args: list) -> str:
    return f"{name}({', '.join(map(repr, args))})"


def _visible_test(name: str, cases: list[tuple[list, int]]) -> str:
    return f"""from lib import {name}

CASES = {cases!r}
for arguments, expected in CASES:
    try:
        returned = {name}(*arguments)
    except Exception as error:
        returned = type(error).__name__
    if returned != expected:
        print("FAIL {name}(" + ", ".join(map(repr, arguments)) + f") returned {{returned}}, expected {{expected}}")
        raise SystemExit(1)
print("PASS")
"""


def _hidden_test(name: str, cases: list[tuple[list, int]]) -> str:
    methods = "".join(
        f"    def test_{i}(self):\n        self.assertEqual({_call_text(name, args)}, {want})\n\n"
        for i, (args, want) in enumerate(cases)
    )
    return f"import unittest\n\nfrom lib import {name}\n\n\nclass Hidden(unittest.TestCase):\n{methods}"


@dataclass(frozen=True)
class Puzzle:
    """A Task together with what a scripted expert knows about it."""

    task: Task
    program: Program
    bug: Bug
    visible: tuple[tuple[list, int], ...]  # (arguments, expected result)

    @property
    def broken(self) -> str:
        return self.task.files["lib.py"]


ENVIRONMENT = Environment(
    name="functions",
    base=None,
    python=sys.executable,
    test_command=("{python}", "-m", "xmlrunner", "{tests}", "{canary_module}", "-o", "{junit}"),
    protected=("test_*.py",),
    test_timeout_s=20.0,
)


def draw_puzzle(rng: random.Random, split: str, number: int) -> Puzzle:
    """One task of the split ("train" or "heldout"). Draws until the bug shows in some inputs, but not in all of
    them."""
    while True:
        program = _draw_program(rng)
        if is_held_out(program.skeleton) != (split == "heldout"):
            continue
        bug = rng.choice(program.sites)
        broken = apply_bug(program.source, bug)
        inputs = _draw_inputs(program.signature, rng, N_INPUTS)
        wanted, got = (_results(source, program.name, inputs) for source in (program.source, broken))
        wrong = [i for i in range(N_INPUTS) if got[i] != wanted[i]]
        fine = [i for i in range(N_INPUTS) if got[i] == wanted[i]]
        if len(set(wanted)) >= 3 and len(wrong) >= 3 and fine:
            break
    shown = wrong[0]
    visible = tuple((inputs[i], wanted[i]) for i in wrong[:2] + fine[: N_VISIBLE - 2])
    hidden = wrong[2:][: N_HIDDEN // 2] + fine[-N_HIDDEN // 2 :]
    ids = {i: f"test_hidden.Hidden::test_{position}" for position, i in enumerate(hidden)}
    task = Task(
        task_id=f"functions-{split}-{number}",
        problem_statement=f"{_call_text(program.name, inputs[shown])} returned {got[shown]}, expected {wanted[shown]}",
        environment=ENVIRONMENT,
        files={"lib.py": broken, "test_lib.py": _visible_test(program.name, list(visible))},
        hidden_tests={"test_hidden.py": _hidden_test(program.name, [(inputs[i], wanted[i]) for i in hidden])},
        test_selection=("test_hidden",),
        fail_to_pass=tuple(ids[i] for i in hidden if i in wrong),
        pass_to_pass=tuple(ids[i] for i in hidden if i in fine),
        oracle_patch=_patch(broken, program.source),
        metadata={
            "split": split,
            "kind": bug.kind,
            "skeleton": program.skeleton,
            "visible_test": "python3 test_lib.py",
        },
    )
    return Puzzle(task, program, bug, visible)


def _patch(before: str, after: str) -> str:
    lines = difflib.unified_diff(split_lines(before), split_lines(after), "a/lib.py", "b/lib.py")
    return "diff --git a/lib.py b/lib.py\n" + "".join(lines)


def puzzles(split: str, seed: str) -> Iterator[Puzzle]:
    """An endless stream; the same seed gives the same stream."""
    rng = random.Random(f"{split}-{seed}")
    number = 0
    while True:
        yield draw_puzzle(rng, split, number)
        number += 1


class FunctionsConfig(Config):
    """Small repositories of one broken function, drawn at random."""

    name: Literal["functions"] = "functions"
    train: NonNegativeInt = 512  # tasks
    heldout: NonNegativeInt = 200  # tasks
    # of the training stream; held-out tasks are the same for every seed, so that runs can be compared
    seed: NonNegativeInt = 0
    draw: str = HELD_OUT_DRAW  # names the held-out stream: settings are chosen on one, and reported on another


def load(config: FunctionsConfig) -> dict[str, list[Task]]:
    """Split name -> tasks."""
    train, heldout = puzzles("train", str(config.seed)), puzzles("heldout", config.draw)
    held = [next(heldout).task for _ in range(config.heldout)]
    if config.draw != HELD_OUT_DRAW:  # other tasks have other names
        held = [replace(task, task_id=f"{task.task_id}-{config.draw}") for task in held]
    return {"train": [next(train).task for _ in range(config.train)], "heldout": held}

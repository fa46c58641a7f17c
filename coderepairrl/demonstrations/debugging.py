"""An expert that repairs a bug as a person does: finds the failing test and what it names, reads, edits, runs the
test, takes back what was in vain, tries again, submits. In the terminal agent's words; what its tools answer is
computed.

    row = conversation(bug, SourceTree(base), random.Random(0), DebuggingConfig(), TerminalConfig())

Nothing is run: that the answers are those of a real sandbox, to the letter, is a test. Edits that mend nothing are
shown and not learnt; what is done about them is learnt. A bug whose place nothing that was shown leads to has no
demonstration.
"""

import functools
import json
import random
import re
from pathlib import Path

from pydantic import PositiveInt

from coderepairrl.config import Config, Share
from coderepairrl.curation.failing import FailingBug
from coderepairrl.curation.source_edits import SourceEdit
from coderepairrl.lines import split_lines
from coderepairrl.scaffolds.terminal import TOOLS, TerminalConfig, clip, edit_text

LARGEST_FILE = 400_000  # bytes
LONGEST_QUOTE = 700  # characters of an edit's `old`
MOST_TESTS = 5  # of one name, among which one is picked
MOST_DEFINITIONS = 25  # of one name, among which one is picked
MOST_WINDOWS = 4  # of lines that are read in search of the bug


class DebuggingConfig(Config):
    """p_... are probabilities."""

    p_read_test: Share = 0.35  # to read the failing test
    p_reproduce: Share = 0.2  # to run it before anything is changed
    p_in_vain: Share = 0.35  # to first edit something else, which the test shows to be in vain
    p_again: Share = 0.3  # to do so once more
    p_misquote: Share = 0.06  # to first quote what isn't there
    p_test: Share = 0.95  # to run the test before submitting
    window: PositiveInt = 40  # lines that are read at a time, or half or one and a half as many


class SourceTree:
    """The Python files of a checkout, as git grep and sed show them."""

    def __init__(self, base: Path, folder: str = ""):
        """`folder`: in `base`, the only one there is."""
        self.files: dict[str, str] = {}
        for path in sorted((base / folder).rglob("*.py")):
            data = path.read_bytes()
            if b"\r" not in data and b"\f" not in data and b"\0" not in data and len(data) < LARGEST_FILE:
                self.files[path.relative_to(base).as_posix()] = data.decode(errors="replace")

    @functools.cached_property
    def _definitions(self) -> dict[str, list[str]]:
        """Name -> paths of the files in which a function or class is so called, in git's order."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.files, key=str.encode):
            for name in dict.fromkeys(re.findall(r"(?:def|class) (\w+)", self.files[path])):
                found.setdefault(name, []).append(path)
        return found

    def definitions(self, kind: str, name: str, changed: dict[str, str]) -> list[tuple[str, int, str]]:
        """(path, line number, line) of each. `kind`: def or class."""
        pattern = re.compile(rf"def {name}\(" if kind == "def" else rf"(?<!\w)class {name}(?!\w)")
        return [
            (path, number, line)
            for path in self._definitions.get(name, [])
            for number, line in enumerate(changed.get(path, self.files[path]).split("\n"), 1)
            if pattern.search(line)
        ]


def applied(text: str, edits: tuple[SourceEdit, ...]) -> str:
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def quoted(before: str, after: str) -> tuple[str, str] | None:
    """(old, new) of an edit that makes `after` of `before`: the fewest whole lines that occur once, without the first
    one's indentation."""
    first, tail = 0, 0
    while first < min(len(before), len(after)) and before[first] == after[first]:
        first += 1
    while tail < min(len(before), len(after)) - first and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    start, stop = before.rfind("\n", 0, first) + 1, before.find("\n", len(before) - tail)
    stop = len(before) if stop < 0 else stop
    downwards = True
    while stop - start <= LONGEST_QUOTE:
        old, new = before[start:stop], after[start : len(after) - (len(before) - stop)]
        indent = old[: len(old) - len(old.lstrip(" \t"))]
        if new.startswith(indent):
            old, new = old[len(indent) :], new[len(indent) :]
        if old.strip() and before.count(old) == 1 and before.replace(old, new) == after:
            return old, new
        if downwards or not start:
            following = before.find("\n", stop + 1)
            stop = len(before) if following < 0 else following
        else:
            start = before.rfind("\n", 0, start - 1) + 1
        if not start and stop == len(before):
            return None
        downwards = not downwards
    return None


class _Episode:
    """What is done and answered, in order."""

    def __init__(
        self,
        bug: FailingBug,
        repository: SourceTree,
        rng: random.Random,
        config: DebuggingConfig,
        agent: TerminalConfig,
    ):
        self.bug, self.repository, self.rng, self.config, self.agent = bug, repository, rng, config, agent
        self.original = repository.files[bug.path]
        self.text = applied(self.original, bug.edits)
        self.changed = {bug.path: self.text}
        self.messages: list[dict] = [
            {"role": "system", "content": agent.system_prompt},
            {"role": "user", "content": bug.problem_statement},
        ]

    def act(self, name: str, answer: str | None, train: bool = True, **arguments: str) -> None:
        function = {"name": name, "arguments": json.dumps(arguments)}
        turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        self.messages.append(turn if train else turn | {"train": False})
        if answer is not None:
            self.messages.append({"role": "tool", "content": answer})

    def shell(self, command: str, output: str, exit_code: int = 0) -> None:
        text = clip(output.rstrip("\n"), self.agent.max_output_chars)
        self.act("shell", text + (f"\n[exit code {exit_code}]" if exit_code else ""), command=command)

    @property
    def shown(self) -> str:
        return "\n".join(message["content"] for message in self.messages[1:])

    def definitions(self, name: str, kind: str = "def") -> list[tuple[str, int, str]]:
        return self.repository.definitions(kind, name, self.changed)

    def grep(self, name: str, kind: str = "def") -> list[tuple[str, int, str]]:
        found = self.definitions(name, kind)
        lines = "".join(f"{path}:{number}:{line}\n" for path, number, line in found)
        what = f"-n 'def {name}('" if kind == "def" else f"-nw 'class {name}'"
        self.shell(f"git grep {what} -- '*.py'", lines, int(not found))
        return found

    def read(self, path: str, first: int, last: int) -> None:
        lines = split_lines(self.changed.get(path, self.repository.files[path]))
        self.shell(f"sed -n '{first},{last}p' {path}", "".join(lines[first - 1 : last]))

    def test(self, passes: bool) -> None:
        command = f"python -m pytest -q {self.bug.test_file} -k {self.bug.test} >/dev/null 2>&1"
        self.shell(f"{command} && echo passed || echo failed", "passed" if passes else "failed")

    # ---- the work

    def find_test(self) -> bool:
        """Whether its file is known then."""
        found = self.grep(self.bug.test)
        lines = [line for path, line, _ in found if path == self.bug.test_file]
        if not lines or len(found) > MOST_TESTS:
            return False
        if self.rng.random() < self.config.p_read_test:
            self.read(self.bug.test_file, lines[0], lines[0] + self.rng.choice((15, 25, 30)))
        return True

    def find_function(self) -> int | None:
        """The line where the bug's function begins, when what was shown leads there."""
        parts = self.bug.function.split(".")
        tops = [part for part in parts if self.definitions(part)]
        if not tops:
            return None
        leaf, owner = tops[0], parts[0] if parts[0] != tops[0] else None
        subject = re.match(r"`(\w+)`", self.bug.problem_statement)
        named = [name for name in (subject and subject[1], owner) if name and name != leaf and name in self.shown]
        for name in named[:1]:
            kind = "class" if self.definitions(name, "class") else "def"
            found = self.grep(name, kind)
            if not found:
                return None
            path, line, _ = found[0]
            if kind == "def" or self.rng.random() < 0.3:
                self.read(path, line, line + self.rng.choice((20, 30, 40)))
            if leaf not in self.shown and path == self.bug.path:
                lines = self.text.split("\n")
                defs = [f"{number}:{text}\n" for number, text in enumerate(lines, 1) if "def " in text]
                self.shell(f"grep -n 'def ' {path}", "".join(defs))
        if not re.search(rf"\b{leaf}\b", self.shown) or len(self.definitions(leaf)) > MOST_DEFINITIONS:
            return None
        own = [line for path, line, _ in self.grep(leaf) if path == self.bug.path]
        wrong = min((start for start, _, _ in self.bug.edits), default=0)
        at = self.text.count("\n", 0, wrong) + 1
        before = [line for line in own if line <= at]
        return before[-1] if before else None

    def read_until_seen(self, line: int, old: str) -> bool:
        """Window after window from the function's first line, until the lines that are wrong were shown."""
        start = self.text.index(old)
        last = self.text.count("\n", 0, start + len(old)) + 1
        size = self.rng.choice((self.config.window // 2, self.config.window, self.config.window * 3 // 2))
        first = max(1, line - self.rng.choice((0, 0, 1, 2)))
        for _ in range(MOST_WINDOWS):
            self.read(self.bug.path, first, first + size - 1)
            if last < first + size:
                return True
            first += size
        return False

    def edit(self, old: str, new: str, train: bool = True) -> None:
        self.text, answer = edit_text(self.bug.path, self.text, old, new)
        self.changed[self.bug.path] = self.text
        self.act("edit", answer, train, path=self.bug.path, old=old, new=new)

    def try_in_vain(self) -> None:
        """Each edit is made, found to be in vain, and taken back."""
        for number, edits in enumerate(self.bug.vain[:2]):
            if self.rng.random() >= (self.config.p_again if number else self.config.p_in_vain):
                return
            broken = self.text
            change = quoted(broken, applied(self.original, self.bug.edits + edits))
            if change is None:
                return
            self.edit(*change, train=False)
            self.test(passes=False)
            self.shell(f"git checkout -q {self.bug.path}", "")
            self.text = broken
            self.changed[self.bug.path] = broken


def conversation(
    bug: FailingBug, repository: SourceTree, rng: random.Random, config: DebuggingConfig, agent: TerminalConfig
) -> dict | None:
    """{"messages", "tools"}, as scripts/train_sft.py reads it. None where there is none to be had."""
    tested = bug.test.isidentifier() and bug.test_file in repository.files
    if bug.path not in repository.files or (bug.test and not tested):
        return None
    episode = _Episode(bug, repository, rng, config, agent)
    change = quoted(episode.text, episode.original)
    if change is None or not re.fullmatch(r"[\w./-]+", bug.path + bug.test_file):
        return None
    known = tested and episode.find_test()
    if known and rng.random() < config.p_reproduce:
        episode.test(passes=False)
    line = episode.find_function()
    if line is None or not episode.read_until_seen(line, change[0]):
        return None
    if known:
        episode.try_in_vain()
    if rng.random() < config.p_misquote and episode.text.count(change[1]) == 0:
        episode.edit(change[1], change[0], train=False)
    episode.edit(*change)
    if known and rng.random() < config.p_test:
        episode.test(passes=True)
    episode.act("submit", None)
    return {"messages": episode.messages, "tools": TOOLS}

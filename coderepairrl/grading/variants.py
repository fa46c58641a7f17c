"""Which of a task's tests are turned (turns.py) in a counter-check, and the files that say so.

The agent has read every test that is there at the base, so one of these that is turned tells its code that this run is
a turned one, and that what must be repaired may fail in it. So they are never turned where that is all that does:
those of PASS_TO_PASS that the base knows are turned in runs of their own, beside true and beside turned tests of
FAIL_TO_PASS alike, and of a test that the base knows in part its new lines are turned first.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType

from coderepairrl.grading.ids import function_of
from coderepairrl.grading.languages import language_of
from coderepairrl.grading.near_values import near_text
from coderepairrl.grading.shadowing import base_text
from coderepairrl.grading.turns import ORDER, TextEdit, TurnedExpectation, turned
from coderepairrl.types import Task

FIRST = (0, 1)  # variants that are drawn from first; the others where these tell nothing
VARIANTS = 4
SAMPLE = 24  # tests of PASS_TO_PASS that are looked at
KEPT = 8  # ... of which so many may be turned
# which tests are turned: those that nobody could read before; those of PASS_TO_PASS that the base has; both
UNREAD, READ, BOTH = "unread", "read", "both"
_QUOTED = re.compile(r"""["']([^"'\n]{1,200})["']""")


@dataclass(frozen=True)
class Variant:
    """Which tests are turned, and how: the same for a diff and for the oracle, and known to the grader alone."""

    number: int
    secret: str = field(repr=False)
    which: str = UNREAD

    def rng(self, *words: str) -> random.Random:
        return random.Random(" ".join((self.secret, str(self.number), *words)))

    def pick(self, found: Sequence[TurnedExpectation]) -> TurnedExpectation:
        """The likeliest; in later variants another one, and in the last what fails whatever the code does."""
        return found[min((0, 0, 1, len(found) - 1)[self.number], len(found) - 1)]


def turn_files(
    task: Task, texts: Mapping[str, str], variant: Variant, base: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, str], frozenset[str]]:
    """({path: text} of the files that change, ids whose function is turned). `base`: the same files before the diff.

    Of several functions of FAIL_TO_PASS some stay: who fails everything must be found as well as who passes
    everything."""
    # without a canary the project may stop at its first failure: then that has to be one of FAIL_TO_PASS
    others = task.pass_to_pass if any("{canary_" in argument for argument in task.environment.test_command) else ()
    language = language_of(task)
    needed = {function_of(test) for test in task.fail_to_pass}
    kept = sorted({function_of(test) for test in others} - needed)
    rng = variant.rng(task.task_id, "kept")
    names = needed | set(rng.sample(kept, min(SAMPLE, len(kept))))
    found = {
        path: {name: _unread_first(own, text, base.get(path, "")) for name, own in of_file.items()}
        for path, text in sorted(texts.items())
        if (of_file := language.turns(text, names, variant.rng(path)))
    }
    there = {name: [own[name] for own in found.values() if name in own] for name in names}
    read = {name for name in kept if any(map(language.definition(name).search, base.values()))}
    chosen = set() if variant.which == READ else _some(sorted(name for name in needed if there[name]), variant.rng())
    for which, group in ((READ, names & read), (UNREAD, names - needed - read)):
        likely = [name for name in sorted(group) if there[name] and all(own[0].rank <= ORDER for own in there[name])]
        if variant.which in (which, BOTH):
            chosen |= {name for name in likely[:KEPT] if rng.random() < 0.5} or set(likely[:1])
    # where a test compares with a file of its own, that is turned
    data = {}
    for name in sorted(chosen & needed if variant.number in FIRST else ()):
        if there[name][0][0].rank > ORDER:
            data[name] = _data(task, base, [texts[path] for path, own in found.items() if name in own])
    changed = {path: near_text(task.hidden_tests[path], variant.rng(path)) for path in sum(data.values(), [])}
    for path, own in found.items():
        if mine := [variant.pick(own[name]) for name in sorted(chosen) if name in own and not data.get(name)]:
            changed[path] = turned(texts[path], mine)
    ids = (*task.fail_to_pass, *task.pass_to_pass)
    return changed, frozenset(test for test in ids if function_of(test) in chosen)


def has_read(task: Task) -> bool:
    """Whether the base has tests of PASS_TO_PASS in the files that run, so that an agent has read them."""
    text = "\n".join(base_text(task, path) for path in test_files(task))
    kept = {function_of(test) for test in task.pass_to_pass} - {function_of(test) for test in task.fail_to_pass}
    return any(language_of(task).definition(name).search(text) for name in kept)


def _data(task: Task, base: Mapping[str, str], texts: Sequence[str]) -> list[str]:
    """Hidden files that are no code and that these tests name, but for what the base has in the same words."""
    named = {PurePosixPath(one).name for text in texts for one in _QUOTED.findall(text)}
    return [
        path
        for path, text in sorted(task.hidden_tests.items())
        if not path.endswith(language_of(task).SUFFIX) and PurePosixPath(path).name in named and text != base.get(path)
    ]


def _unread_first(own: list[TurnedExpectation], text: str, base: str) -> list[TurnedExpectation]:
    """Likely turns of lines that the base's file doesn't have go before all others."""
    known, data = {line.strip() for line in base.splitlines()}, text.encode()
    if not known:
        return own

    def is_read(edit: TextEdit) -> bool:
        start = data.rfind(b"\n", 0, edit.start) + 1
        return data[start:].partition(b"\n")[0].decode().strip() in known

    return sorted(own, key=lambda turn: turn.rank > ORDER or any(map(is_read, turn.edits)))


def _some(names: list[str], rng: random.Random) -> set[str]:
    """Of two or more at least one, and not all."""
    if len(names) < 2:
        return set(names)
    chosen = {name for name in names if rng.random() < 0.5}
    return chosen if 0 < len(chosen) < len(names) else {rng.choice(names)}


def test_files(task: Task) -> list[str]:
    """Files that may hold the tests: the hidden ones, the selected ones, and where the ids' dotted names may lead."""
    named = [*task.hidden_tests, *(argument.partition("::")[0] for argument in task.test_selection)]
    language = language_of(task)
    for test in task.fail_to_pass:
        named += language.places(test)
    return [path for path in dict.fromkeys(named) if PurePosixPath(path).suffix == language.SUFFIX]

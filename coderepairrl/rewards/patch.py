"""How near a diff is to the oracle patch, in changed lines only. A dense signal for early training, easily fooled in
part: what it cannot tell (right place, wrong change) is why it should be weighed below the tests.

    similarity = mean over the union of files of ratio(changed lines) x min(1, ratio(edits) / ENOUGH)

Both ratios are of tokens, the diff's and the oracle's: `changed lines` are all tokens of the lines that are removed
or added, `edits` those of them that the one has and the other hasn't. A line that comes back with a `pass` before it
has all the tokens of its oracle and none of its edits, so the lines alone would pay 0.74 for nothing; the edits alone
say little of the place. Context lines do not count: with them, one comment a hunk scores 0.86 against the gold patch.
Comments, blank lines and whitespace are taken out first and what is then both removed and added cancels, so an empty,
comment-only or whitespace-only diff scores 0.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

from coderepairrl.diffs import FileChange, split_diff
from coderepairrl.rewards.sequences import common_ratio, differences
from coderepairrl.types import Task, Verdict

ENOUGH = 0.75  # of the edits: from here on the lines alone count
MAX_TOKENS = 20_000  # changed tokens of one file beyond which a diff is no repair
_HASH = {".py", ".pyi", ".pyx", ".sh", ".rb", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".mk", ".r", ".pl", ""}
_TOKEN = re.compile(r"\w+|[^\w\s]")
# a string is matched first, so that a comment sign inside it stays
# nor begins an escaped quote one, or each in a long row of them would be tried
_STRING = r"'(?:[^'\\]++|\\.)*+'|\"(?:[^\"\\]++|\\.)*+\"|\\."
_COMMENT = {True: re.compile(rf"({_STRING})|#.*"), False: re.compile(rf"({_STRING})|//.*|/\*.*?(?:\*/|$)")}
_INSIDE_BLOCK = re.compile(r"^\s*\*(?:\s|/|$)")  # a line in the middle or at the end of a /* */ comment


def patch_similarity(diff: str, oracle: str) -> float:
    """In [0, 1]; 1 only for the same changes in the same files. Files that only one of the two touches count 0."""
    mine, gold = _files(diff), _files(oracle)
    if not any(_code(change) for change in gold.values()):  # an oracle of comments or indentation: compare those then
        return _mean(
            {path: _lines(change) for path, change in mine.items()},
            {path: _lines(change) for path, change in gold.items()},
        )
    # a file without a change of code is as if it were not there
    return _mean(
        {path: code for path, change in mine.items() if (code := _code(change))},
        {path: code for path, change in gold.items() if (code := _code(change))},
        _same_edits,
    )


def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
    return patch_similarity(diff, task.oracle_patch)


def _mean(
    mine: dict[str, list[str]],
    gold: dict[str, list[str]],
    weight: Callable[[list[str], list[str]], float] = lambda a, b: 1.0,
) -> float:
    union = mine.keys() | gold.keys()
    both = mine.keys() & gold.keys()
    ratios = {path: ratio for path in both if (ratio := _ratio(mine[path], gold[path]))}
    return sum(ratio * weight(mine[path], gold[path]) for path, ratio in ratios.items()) / len(union) if union else 0.0


def _same_edits(mine: list[str], gold: list[str]) -> float:
    """In [0, 1]: how much of what the tokens of changed lines become is the same."""
    edits = _edits(gold)
    # an oracle that only breaks lines anew has none
    return min(1.0, _ratio(_edits(mine), edits) / ENOUGH) if edits else 1.0


def _edits(code: list[str]) -> list[str]:
    """Of signed tokens those that are only on their own side: all that go, then all that come."""
    removed, added = ([token[1:] for token in code if token[0] == sign] for sign in "-+")
    gone, come = differences(removed, added)
    return [*("-" + removed[place] for place in gone), *("+" + added[place] for place in come)]


def _ratio(a: list[str], b: list[str]) -> float:
    if not a or not b or max(len(a), len(b)) > MAX_TOKENS:
        return 0.0
    return common_ratio(a, b)


def _files(diff: str) -> dict[str, FileChange]:
    """One change a path: a path in several sections is joined."""
    files: dict[str, FileChange] = {}
    for change in split_diff(diff):
        into = files.setdefault(change.path, FileChange(paths=change.paths))
        into.removed += change.removed
        into.added += change.added
    return files


def _code(change: FileChange) -> list[str]:
    """Tokens of the changed lines, each led by its line's sign, less comments and what cancels."""
    hashes = PurePosixPath(change.path).suffix.lower() in _HASH
    removed, added = ([_tokens(line, hashes) for line in lines] for lines in (change.removed, change.added))
    kept_removed, kept_added = Counter(removed) - Counter(added), Counter(added) - Counter(removed)
    return [*_signed("-", removed, kept_removed), *_signed("+", added, kept_added)]


def _signed(sign: str, lines: list[tuple[str, ...]], kept: Counter) -> list[str]:
    out = []
    for line in lines:
        if line and kept[line] > 0:
            kept[line] -= 1
            out += [sign + token for token in line]
    return out


def _tokens(line: str, hashes: bool) -> tuple[str, ...]:
    if not hashes and _INSIDE_BLOCK.match(line):
        return ()
    return tuple(_TOKEN.findall(_COMMENT[hashes].sub(lambda match: match[1] or "", line)))


def _lines(change: FileChange) -> list[str]:
    return [*("-" + line for line in change.removed), *("+" + line for line in change.added)]

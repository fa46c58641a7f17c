"""Similarities of a diff to the oracle's patch, for comparison with the literature. None of them is proof of a repair:
docs/rewards.md
shows what each gives to comments, deletions and unrelated patches. Each is f(diff, oracle) -> [0, 1] and a reward of
its name.

Read with `unidiff`, on changed lines:
    changed_lines    ratio of all changed lines, each with its path and sign, whatever file they are in
    changed_files    mean over the union of files of the ratio of their changed lines
    hunks            mean over the union of files of the best pairing of hunks, by their changed lines and their place
On the text, as the reference thesis of this project's name used them:
    diff_ratio       ratio of the two diffs' lines, headers and context included
    search_replace   hunks as search/replace blocks: the best block's mean ratio of the two texts, context included,
                     over the larger number of blocks
    file_overlap     the share of the oracle's files that the diff touches
"""

import warnings
from collections.abc import Callable, Sequence

from unidiff import PatchSet, UnidiffParseError
from unidiff.patch import Hunk, PatchedFile

from coderepairrl.diffs import split_diff
from coderepairrl.lines import split_lines
from coderepairrl.rewards.sequences import ratio
from coderepairrl.sandboxes.diff_bounds import too_large
from coderepairrl.types import Task, Verdict

MAX_LINES = 5_000  # of a diff, beyond which matching takes too long and nothing is a repair
MAX_HUNKS = 200  # of a file
PLACE = 0.2  # what the place of a hunk weighs beside its lines
PLACE_LINES = 50  # a hunk this many lines away is in another place


def changed_lines(diff: str, oracle: str) -> float:
    mine, gold = _parse(diff), _parse(oracle)
    return _ratio(
        [line for path, file in sorted(mine.items()) for line in _changes(file, path)],
        [line for path, file in sorted(gold.items()) for line in _changes(file, path)],
    )


def changed_files(diff: str, oracle: str) -> float:
    return _over_files(diff, oracle, lambda a, b: _ratio(_changes(a), _changes(b)))


def hunks(diff: str, oracle: str) -> float:
    return _over_files(diff, oracle, lambda a, b: _paired(list(a), list(b), _hunk_ratio))


def diff_ratio(diff: str, oracle: str) -> float:
    return 0.0 if too_large(diff) else _ratio(split_lines(diff), split_lines(oracle))


def search_replace(diff: str, oracle: str) -> float:
    return _paired(
        [hunk for file in _parse(diff).values() for hunk in file],
        [hunk for file in _parse(oracle).values() for hunk in file],
        _block_ratio,
    )


def file_overlap(diff: str, oracle: str) -> float:
    mine, gold = ({change.path for change in split_diff(text)} for text in (diff, oracle))
    return len(mine & gold) / len(gold) if gold else float(not mine)


SIMILARITIES: dict[str, Callable[[str, str], float]] = {
    function.__name__: function
    for function in (changed_lines, changed_files, hunks, diff_ratio, search_replace, file_overlap)
}


def reward_of(similarity: Callable[[str, str], float]) -> Callable[[Task, str, Verdict | None], float]:
    def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
        return similarity(diff, task.oracle_patch)

    return reward


def _parse(diff: str) -> dict[str, PatchedFile]:
    """Path -> file; empty for what is no diff, or too long a one."""
    if diff.count("\n") > MAX_LINES:
        return {}
    # a section that git reads and the library doesn't (a lone carriage return in a line, say) is none
    text = "".join(change.text for change in split_diff(diff))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {file.path: file for file in PatchSet(text)}
    except (UnidiffParseError, ValueError, IndexError):
        return {}


def _changes(file: PatchedFile | Hunk, path: str = "") -> list[str]:
    lines = file if isinstance(file, Hunk) else (line for hunk in file for line in hunk)
    return [f"{path}{line.line_type}{line.value.rstrip()}" for line in lines if line.is_added or line.is_removed]


def _over_files(diff: str, oracle: str, score: Callable[[PatchedFile, PatchedFile], float]) -> float:
    mine, gold = _parse(diff), _parse(oracle)
    union = mine.keys() | gold.keys()
    return sum(score(mine[path], gold[path]) for path in mine.keys() & gold.keys()) / len(union) if union else 0.0


def _ratio(a: Sequence, b: Sequence) -> float:
    return ratio(a, b) if a and b and max(len(a), len(b)) <= MAX_LINES else 0.0


def _hunk_ratio(a: Hunk, b: Hunk) -> float:
    lines = _ratio(_changes(a), _changes(b))
    near = max(0.0, 1.0 - abs(a.source_start - b.source_start) / PLACE_LINES)
    return lines * (1.0 - PLACE + PLACE * near)


def _block_ratio(a: Hunk, b: Hunk) -> float:
    """Mean of the ratios of the lines that are searched for and of those that replace them. One side is empty in a new
    or a deleted file."""
    sides = [(_lines(a.source), _lines(b.source)), (_lines(a.target), _lines(b.target))]
    return sum(1.0 if one == other else _ratio(one, other) for one, other in sides) / 2


def _lines(side: list[str]) -> list[str]:
    return [line[1:].rstrip() for line in side]


def _paired(mine: list[Hunk], gold: list[Hunk], score: Callable[[Hunk, Hunk], float]) -> float:
    """Greedy pairing, best first: the sum of the pairs' scores over the larger number of hunks."""
    if not mine or not gold or max(len(mine), len(gold)) > MAX_HUNKS:
        return 0.0
    pairs = sorted(((score(a, b), i, j) for i, a in enumerate(mine) for j, b in enumerate(gold)), reverse=True)
    total, used_mine, used_gold = 0.0, set(), set()
    for value, i, j in pairs:
        if i not in used_mine and j not in used_gold:
            total += value
            used_mine.add(i)
            used_gold.add(j)
    return total / max(len(mine), len(gold))

"""How much of two sequences is the same, in a time that no sequence can stretch.

difflib's matching takes the cube of the length where few elements repeat often (4,000 tokens of two kinds: 95 s). The
longest common subsequence by whole rows of bits (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004) takes
the product of the lengths over the size of a machine word, whatever is in them.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

MAX_PAIRS = 50_000  # of equal elements, beyond which difflib may take seconds


def ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """difflib's: 2 x matches / lengths; of what would keep it long, with the longest common subsequence's matches."""
    there = Counter(b)
    if sum(count * there[one] for one, count in Counter(a).items()) <= MAX_PAIRS:
        return SequenceMatcher(None, a, b, autojunk=False).ratio()
    return common_ratio(a, b)


def common_ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """2 x length of the longest common subsequence / lengths."""
    rows = _rows(a, b)
    same = len(a) - rows[-1].bit_count() if rows else 0
    return 2 * same / (len(a) + len(b)) if a or b else 1.0


def differences(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Places of `a` and of `b` that are not of their longest common subsequence."""
    rows = _rows(a, b, every=True)
    i, j = len(a), len(b)
    only_a: list[int] = []
    only_b: list[int] = []
    while i and j:
        # bit i - 1 of row j is 0 where an element of a lengthens what a[:i] and b[:j] share
        if rows[j - 1] >> (i - 1) & 1:
            i -= 1
            only_a.append(i)
        elif j > 1 and not rows[j - 2] >> (i - 1) & 1:
            j -= 1
            only_b.append(j)
        else:
            i, j = i - 1, j - 1
    return [*range(i), *reversed(only_a)], [*range(j), *reversed(only_b)]


def _rows(a: Sequence[Hashable], b: Sequence[Hashable], every: bool = False) -> list[int]:
    """A row of bits for each element of `b` (or for the last alone), a bit for each of `a`."""
    where: dict[Hashable, int] = {}
    for place, one in enumerate(a):
        where[one] = where.get(one, 0) | 1 << place
    full = (1 << len(a)) - 1
    row, rows = full, []
    for one in b:
        matches = row & where.get(one, 0)
        row = (row + matches | row - matches) & full
        if every:
            rows.append(row)
    return rows if every else [row]

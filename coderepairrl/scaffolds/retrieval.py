"""Which files of a checkout a prompt shows: those whose words the problem statement shares, until so many characters
are full.

Nothing but the statement and the base commit is looked at, so no answer can leak, and the same task gives the same
files.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path

MAX_FILE_BYTES = 1 << 18  # longer files are data, or would fill a prompt alone
K1, B = 1.2, 0.75  # of BM25 (Robertson et al., TREC-3 1994): saturation of a word's count, weight of a file's length
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
PATH_WEIGHT = 5  # a word of the path counts like so many in the text


def read_checkout(root: Path) -> dict[str, str]:
    """Path -> text of every regular UTF-8 file of at most MAX_FILE_BYTES, sorted. Symlinks are not followed, `.git` is
    left out. Blocks: run it in a thread."""
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != ".git")
        for name in files:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
                continue
            try:
                found[path.relative_to(root).as_posix()] = path.read_bytes().decode()
            except UnicodeDecodeError:  # no text
                continue
    return dict(sorted((name, text) for name, text in found.items() if "\0" not in text))


def words(text: str) -> list[str]:
    """Identifiers in lower case, and the parts of those that are made of several: `readHeader` gives readheader, read,
    header."""
    out = []
    for word in WORD.findall(text):
        parts = [part.lower() for part in PART.findall(word)]
        out += [word.lower(), *(parts if len(parts) > 1 else ())]
    return out


def choose(files: dict[str, str], statement: str, limit_chars: int) -> list[str]:
    """Paths in the order of the checkout: all where all fit, else the best by BM25, a file that no longer fits being
    passed over."""
    if sum(map(len, files.values())) <= limit_chars:
        return list(files)
    scores = _bm25(files, set(words(statement)))
    chosen, left = set(), limit_chars
    # what it names comes first
    for name in sorted(files, key=lambda name: (name not in statement, -scores[name], name)):
        if (scores[name] > 0 or name in statement) and len(files[name]) <= left:
            chosen.add(name)
            left -= len(files[name])
    return [name for name in files if name in chosen]


def _bm25(files: dict[str, str], query: set[str]) -> dict[str, float]:
    counts, lengths = {}, {}
    for name, text in files.items():
        found = words(text)
        counts[name] = Counter(word for word in found if word in query)
        counts[name].update({word: PATH_WEIGHT for word in words(name) if word in query})
        lengths[name] = len(found)
    mean = sum(lengths.values()) / len(lengths) or 1.0
    occurs = Counter(word for count in counts.values() for word in count)
    rarity = {word: math.log(1 + (len(files) - number + 0.5) / (number + 0.5)) for word, number in occurs.items()}
    return {
        name: sum(
            rarity[word] * times * (K1 + 1) / (times + K1 * (1 - B + B * lengths[name] / mean))
            for word, times in count.items()
        )
        for name, count in counts.items()
    }

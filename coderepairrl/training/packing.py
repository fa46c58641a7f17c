"""Samples -> packed rows, dealt to the ranks: no padding, shared prefixes once, equally many micro-batches of like cost
for every rank.

Samples of one group are merged into a trie: sorted by their tokens, each adds what follows its longest common prefix
with the one before. A piece is such a trie, cut so that it fits a row; pieces are then put together into rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coderepairrl.types import Sample


@dataclass(frozen=True)
class Node:
    """Tokens start..stop of the piece. `path`: places in the piece of all tokens that they see, in order; their own
    come last."""

    start: int
    stop: int
    path: np.ndarray

    @property
    def pairs(self) -> int:
        """Of a query and a key that it sees."""
        new = self.stop - self.start
        return new * len(self.path) - new * (new - 1) // 2


@dataclass(frozen=True)
class Piece:
    samples: tuple[int, ...]  # indices into the step's samples
    places: tuple[np.ndarray, ...]  # of each sample: where its tokens are in the piece
    token_ids: np.ndarray  # (T,)
    position_ids: np.ndarray  # (T,)
    nodes: tuple[Node, ...]

    @cached_property
    def size(self) -> int:
        return len(self.token_ids)

    @cached_property
    def pairs(self) -> int:
        return sum(node.pairs for node in self.nodes)


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


class _Trie:
    """A piece that is being made."""

    def __init__(self):
        self.samples: list[int] = []
        self.places: list[np.ndarray] = []  # of a sample: where each of its tokens lies in the piece
        self.tokens: list[np.ndarray] = []  # of a sample: those that no former one has
        self.positions: list[np.ndarray] = []  # their places in the sample
        self.nodes: list[Node] = []
        self.size = 0  # tokens
        self._ids: np.ndarray | None = None

    def common(self, ids: np.ndarray) -> int:
        return 0 if self._ids is None else shared_length(self._ids, ids)

    def add(self, index: int, ids: np.ndarray, common: int) -> None:
        new = np.arange(self.size, self.size + len(ids) - common)
        path = np.concatenate([self.places[-1][:common], new]) if common else new
        if len(new):
            self.nodes.append(Node(self.size, self.size + len(new), path))
        self.samples.append(index)
        self.places.append(path)
        self.tokens.append(ids[common:])
        self.positions.append(np.arange(common, len(ids)))
        self.size, self._ids = self.size + len(new), ids

    def piece(self) -> Piece:
        return Piece(
            tuple(self.samples),
            tuple(self.places),
            np.concatenate(self.tokens),
            np.concatenate(self.positions),
            tuple(self.nodes),
        )


def pieces(samples: Sequence[Sample], tokens: int, share_prefixes: bool = True) -> list[Piece]:
    """Every sample in exactly one piece of at most `tokens` tokens; a sample that is longer has a piece of its own."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.group_id].append(index)
    out = []
    for members in groups.values():
        trie = _Trie()
        for index in sorted(members, key=lambda i: samples[i].token_ids):
            ids = np.asarray(samples[index].token_ids)
            common = trie.common(ids) if share_prefixes else 0
            if trie.samples and (not share_prefixes or trie.size + len(ids) - common > tokens):
                out.append(trie.piece())
                trie, common = _Trie(), 0
            trie.add(index, ids, common)
        out.append(trie.piece())
    return out


def deal(parts: Sequence[Piece], tokens: int, ranks: int, hidden_size: int) -> list[list[list[Piece]]]:
    """Rank -> micro-batches -> pieces. Equally many micro-batches a rank, costs as even as longest-first makes them.

    A token costs 24 d^2 multiplications a layer, a query and its key 4 d (d: hidden size): a pair is 1 / (6 d) of a
    token.
    """
    cost = lambda piece: piece.size + piece.pairs / (6 * hidden_size)
    order = sorted(range(len(parts)), key=lambda i: -cost(parts[i]))
    count = -(-sum(piece.size for piece in parts) // tokens)
    while True:
        count = max(1, -(-count // ranks)) * ranks
        rows: list[list[Piece]] = [[] for _ in range(count)]
        sizes, costs = [0] * count, [0.0] * count
        for i in order:
            room = [r for r in range(count) if not rows[r] or sizes[r] + parts[i].size <= tokens]
            if not room:
                break
            row = min(room, key=costs.__getitem__)
            rows[row].append(parts[i])
            sizes[row] += parts[i].size
            costs[row] += cost(parts[i])
        else:
            break
        count += 1
    # neighbours run at the same time on different ranks
    rows = [rows[i] for i in sorted(range(count), key=lambda i: -costs[i])]
    return [rows[rank::ranks] for rank in range(ranks)]

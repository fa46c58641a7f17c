"""A turn of a test: the same test with another expectation, so that what passes before must fail after.

    assert f(3) == 4                     ->  assert f(3) == 5
    for a in (1, 2): check(f(a), a + 1)  ->  for a in (1, 2): check(f(a), a + 2)
    with pytest.raises(ValueError):      ->  with pytest.raises(KeyError):
    with pytest.raises(OwnError):        ->  with pytest.raises(OwnError, match="unknown"):
    assert f(3) < 4                      ->  assert f(3) < -40173
    @parametrize("a, b", [(3, 4)])       ->  @parametrize("a, b", [(3, 5)])

A turn changes what is expected in place, to a value of the same kind and mostly of the same length, chosen at random
(near_values.py): a text like any other, in which nothing but the knowledge of what is right tells that it is wrong.
Which turns a test has is expectations.py's; which tell (some are of inputs, or of what nobody asserts) is found by
running them under the oracle.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass

# how likely a turn tells, the likely first; FAILURE fails whatever the code does, so it shows a bent runner alone
EXPECTED, ERROR, NAMED, TABLE, ORDER, OPPOSITE, ANY, FAILURE = range(8)


@dataclass(frozen=True)
class TextEdit:
    start: int  # byte offsets
    end: int
    text: str


@dataclass(frozen=True)
class TurnedExpectation:
    """`shared`: an edit lies outside of the function, where other tests may look, too."""

    edits: tuple[TextEdit, ...]
    rank: int
    shared: bool = False


def turned(text: str, turns: Iterable[TurnedExpectation]) -> str:
    """The file with these turns made; of two that overlap the first is."""
    data, done = text.encode(), []
    for turn in turns:
        if not any(a.start < b.end and b.start < a.end or a.start == b.start for a in turn.edits for b in done):
            done += turn.edits
    for edit in sorted(done, key=lambda edit: edit.start, reverse=True):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    return data.decode()


def together(several: list[list[TurnedExpectation]]) -> list[TurnedExpectation]:
    """Of several functions of one name, turn by turn; who has fewer stays at its last one, a FAILURE."""
    out = []
    for place in range(max(map(len, several))):
        row = [own[min(place, len(own) - 1)] for own in several]
        edits = tuple(edit for turn in row for edit in turn.edits)
        out.append(TurnedExpectation(edits, max(turn.rank for turn in row), any(turn.shared for turn in row)))
    return out


class IndexedSource:
    """A test file by byte offsets, as `ast` counts columns."""

    def __init__(self, text: str):
        self.data = text.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):  # of bytes: at \n, \r and \r\n, as Python counts lines
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, start: int, end: int) -> str:
        return self.data[start:end].decode()

    def text(self, node: ast.AST) -> str:
        return self.between(*self.span(node))

    def put(self, node: ast.AST, text: str) -> TextEdit:
        return TextEdit(*self.span(node), text)

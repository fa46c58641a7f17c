"""Edits of a Python source by character positions: what a bug is, and the source that a rule looks at."""

import ast
import re
from dataclasses import dataclass, field

SourceEdit = tuple[int, int, str]  # [start, end) in characters, and the text that replaces it
SIMPLE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)  # what needs no parentheses


@dataclass(frozen=True)
class Mutation:
    """`source[start:end]` becomes `replacement`; `function` is the dotted name of the function that holds it. `more`:
    further edits of that source."""

    kind: str
    start: int
    end: int
    replacement: str
    function: str
    more: tuple[SourceEdit, ...] = ()

    @property
    def edits(self) -> list[SourceEdit]:
        return [(self.start, self.end, self.replacement), *self.more]

    def apply(self, source: str) -> str:
        for start, end, replacement in sorted(self.edits, reverse=True):
            source = source[:start] + replacement + source[end:]
        return source


@dataclass
class Source:
    """A source with character positions, and what a rule may ask about a node's surroundings."""

    text: str
    lines: list[str] = field(init=False)
    starts: list[int] = field(init=False)
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    scope: ast.AST | None = None  # the innermost function around the node at hand
    owner: ast.ClassDef | None = None

    def __post_init__(self):
        self.lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", self.text)  # as the tokenizer does: form feeds end no line
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line: int, byte_column: int) -> int:
        text = self.lines[line - 1]
        column = byte_column if text.isascii() else len(text.encode()[:byte_column].decode())
        return self.starts[line - 1] + column

    def start(self, node: ast.AST) -> int:
        return self.at(node.lineno, node.col_offset)

    def end(self, node: ast.AST) -> int:
        return self.at(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.AST) -> str:
        return self.text[self.start(node) : self.end(node)]

    def between(self, left: ast.AST, right: ast.AST, pattern: str) -> tuple[int, int, str] | None:
        """The first match of `pattern` between two nodes; None where a comment stands there, which might hold the
        operator."""
        begin, gap = self.end(left), self.text[self.end(left) : self.start(right)]
        match = re.search(pattern, gap) if "#" not in gap else None
        return (begin + match.start(), begin + match.end(), " ".join(match[0].split())) if match else None

    def whole_lines(self, first: ast.AST, last: ast.AST) -> tuple[int, int] | None:
        """The lines of the statements first..last, with the final newline, if nothing else (no comment) stands on
        them."""
        begin, stop = self.starts[first.lineno - 1], self.starts[last.end_lineno]
        edges = self.text[begin : self.start(first)] + self.text[self.end(last) : stop]
        return (begin, stop) if not edges.strip() else None


def parameters(function: ast.AST) -> list[str]:
    spec = function.args
    names = [a.arg for a in (*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg) if a]
    return [name for name in names if name not in ("self", "cls")]

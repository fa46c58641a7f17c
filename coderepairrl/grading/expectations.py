"""The turns of a test function: every place where it expects something, with another expectation there.

for turn in turns(text, {"test_it"}, rng)["test_it"]:  # the likely ones first
    changed = turned(text, [turn])
"""

import ast
import builtins
import random
import re
from collections.abc import Collection, Iterator

from coderepairrl.grading import syntax
from coderepairrl.grading.near_values import constants, far, near, words_of
from coderepairrl.grading.syntax import Function
from coderepairrl.grading.turns import (
    ANY,
    ERROR,
    EXPECTED,
    FAILURE,
    NAMED,
    OPPOSITE,
    ORDER,
    TABLE,
    IndexedSource,
    TextEdit,
    TurnedExpectation,
    together,
)

_ERRORS = (
    "ValueError",
    "KeyError",
    "TypeError",
    "IndexError",
    "AttributeError",
    "RuntimeError",
    "OSError",
    "NameError",
)
_WARNINGS = ("UserWarning", "DeprecationWarning", "RuntimeWarning", "FutureWarning", "SyntaxWarning")
_RAISES = {"raises", "warns", "deprecated_call"} | {
    f"assert{what}{how}" for what in ("Raises", "Warns") for how in ("", "Regex", "Regexp", "Message")
}
_PAIRS = (
    ("Equal", "NotEqual"),
    ("True", "False"),
    ("In", "NotIn"),
    ("Is", "IsNot"),
    ("IsNone", "IsNotNone"),
    ("IsInstance", "NotIsInstance"),
    ("AlmostEqual", "NotAlmostEqual"),
    ("Greater", "LessEqual"),
    ("Less", "GreaterEqual"),
    ("Regex", "NotRegex"),
)
_OPPOSITE = {f"assert{a}": f"assert{b}" for one in _PAIRS for a, b in (one, one[::-1])}
_ORDERS = {"assertLess": -1, "assertLessEqual": -1, "assertGreater": 1, "assertGreaterEqual": 1}
_SIGNS = {ast.Lt: -1, ast.LtE: -1, ast.Gt: 1, ast.GtE: 1}  # which way the right side must move so that no value will do
_FLIPPED = {
    "==": "!=",
    "!=": "==",
    "<=": ">",
    ">=": "<",
    "<": ">=",
    ">": "<=",
    "not in": "in",
    "in": "not in",
    "is not": "is",
    "is": "is not",
}
_OPERATOR = re.compile(r"==|!=|<=|>=|<|>|\bnot\s+in\b|\bin\b|\bis\s+not\b|\bis\b")
_FILE = re.compile(r"^[^\s:]*/[^\s:]+$|^[\w-]+\.[A-Za-z]\w{0,4}$")
SHORT = 4  # letters of a word that may well be in any message
_CHECKS = re.compile(r"assert|check|expect|verify|compare|equal|same|match|validate|eq_|ok_|should", re.IGNORECASE)


def turns(text: str, names: Collection[str], rng: random.Random) -> dict[str, list[TurnedExpectation]]:
    """Test function -> its turns, the likely ones first, those of one rank in random order; a name that isn't there has
    none.

    Functions of one name, in several classes, are turned together: a report's id may stand for any of them."""
    try:
        tree = syntax.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # written for another Python: no function of it is found
        return {}
    source, words = IndexedSource(text), words_of(tree)
    found: dict[str, list[list[TurnedExpectation]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.name in names:
            own = list(dict.fromkeys(Expectations(node, tree, source, rng, words).turns()))
            rng.shuffle(own)
            found.setdefault(node.name, []).append(sorted(own, key=lambda turn: turn.rank))
    return {name: together(several) for name, several in found.items()}


class Expectations:
    """Of one test function: what it expects, and each way of turning that."""

    def __init__(
        self, function: Function, tree: ast.Module, source: IndexedSource, rng: random.Random, words: Collection[str]
    ):
        self.function, self.source, self.rng, self.words = function, source, rng, words
        self.globals = {
            name: statement.value
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            for name in _names(target)
        }
        self.compared: set[str] = set()  # names that stand where something is expected

    def turns(self) -> Iterator[TurnedExpectation]:
        nodes = [node for statement in self.function.body for node in ast.walk(statement)]
        for node in nodes:
            if isinstance(node, ast.Assert):
                yield from self._of_truth(node.test)
            elif isinstance(node, ast.Call) and _called(node) in _RAISES:
                yield from self._of_error(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield from self._of_check(node.value)
        yield from self._of_names(nodes)
        yield from self._of_tables(nodes)
        for statement in self.function.body:
            yield from self._constants(statement, ANY)
        yield self._failure()

    def _of_truth(self, test: ast.expr) -> Iterator[TurnedExpectation]:
        compares = [node for node in ast.walk(test) if isinstance(node, ast.Compare)]
        for compare in compares:
            sides = [compare.left, *compare.comparators]
            for left, operator, right in zip(sides, compare.ops, sides[1:], strict=False):
                yield from self._of_sides(left, right, type(operator))
                start, end = self.source.span(left)[1], self.source.span(right)[0]
                between = self.source.between(start, end)
                found = _OPERATOR.search(between)
                if found and "#" not in between:
                    at = start + len(between[: found.start()].encode())
                    yield TurnedExpectation(
                        (TextEdit(at, at + len(found[0]), _FLIPPED[" ".join(found[0].split())]),), OPPOSITE
                    )
        if not compares:
            yield TurnedExpectation((self._negated(test),), OPPOSITE)

    def _of_sides(self, left: ast.expr, right: ast.expr, operator: type[ast.cmpop]) -> Iterator[TurnedExpectation]:
        if operator in _SIGNS:
            yield from self._far(right, _SIGNS[operator])
            yield from self._far(left, -_SIGNS[operator])
        elif operator in (ast.In, ast.NotIn):
            yield from self._elements(right)
            yield from self._expected(left)
        else:
            calls = [_has_call(side) for side in (left, right)]
            # by habit the right side is the expected one; where only one side calls something, the other is
            yield from self._expected(left if calls == [False, True] else right)
            if calls == [False, False]:
                yield from self._expected(left)

    def _of_check(self, call: ast.Call) -> Iterator[TurnedExpectation]:
        """A statement that calls something: an assertion of unittest's, a helper, or a step of the test."""
        name, arguments = _called(call), [argument for argument in call.args if not isinstance(argument, ast.Starred)]
        if name in _OPPOSITE and isinstance(call.func, ast.Attribute):
            end = self.source.span(call.func)[1]
            yield TurnedExpectation((TextEdit(end - len(name), end, _OPPOSITE[name]),), OPPOSITE)
        if not _CHECKS.search(name) or not arguments:
            return
        if name in _ORDERS and len(arguments) > 1:
            yield from self._of_sides(*arguments[:2], ast.Lt if _ORDERS[name] < 0 else ast.Gt)
        elif name in ("assertIn", "assertNotIn") and len(arguments) > 1:
            yield from self._of_sides(*arguments[:2], ast.In)
        elif len(arguments) > 1:
            yield from self._of_sides(*arguments[:2], ast.Eq)
        for keyword in call.keywords:
            if keyword.arg not in (None, "msg", "message", "places", "delta"):
                yield from self._expected(keyword.value)
        for argument in arguments[2:] if not name.startswith("assert") else ():
            yield from self._expected(argument)

    def _expected(self, side: ast.expr) -> Iterator[TurnedExpectation]:
        self.compared |= set(_names(side))
        if _has_call(side):  # the name of a file that is read is no expectation: another one isn't there
            named = [one for one in constants(side) if isinstance(one.value, str) and _FILE.search(one.value)]
            yield from (turn for one in named for turn in self._constants(one, ANY))
            yield from (turn for one in constants(side) if one not in named for turn in self._constants(one, EXPECTED))
        else:
            yield from self._constants(side, EXPECTED)

    def _elements(self, container: ast.expr) -> Iterator[TurnedExpectation]:
        """All constants of what something is looked up in: one that stays may be the one that is found."""
        self.compared |= set(_names(container))
        edits = [turn.edits[0] for turn in self._constants(container, EXPECTED)]
        if edits:
            yield TurnedExpectation(tuple(edits), EXPECTED)

    def _far(self, side: ast.expr, sign: int) -> Iterator[TurnedExpectation]:
        self.compared |= set(_names(side))
        if isinstance(side, ast.UnaryOp) and isinstance(side.op, ast.USub | ast.UAdd):
            number = side.operand
        else:
            number = side
        if isinstance(number, ast.Constant) and type(number.value) in (int, float):
            yield TurnedExpectation((self.source.put(side, far(number.value, sign, self.rng)),), ORDER)

    def _of_error(self, call: ast.Call) -> Iterator[TurnedExpectation]:
        """Another exception than the one that is expected, or another message of it."""
        warns = "arn" in _called(call) or _called(call) == "deprecated_call"
        said = [
            keyword.value for keyword in call.keywords if keyword.arg in ("match", "expected_regex", "expected_message")
        ]
        if "Regex" in _called(call) or "Message" in _called(call):
            said += call.args[1:2]
        if call.args and not isinstance(call.args[0], ast.Starred):
            now = {name for node in ast.walk(call.args[0]) if (name := getattr(node, "id", getattr(node, "attr", "")))}
            others = [name for name in (_WARNINGS if warns else _ERRORS) if not any(_related(name, one) for one in now)]
            own = not said and any(not hasattr(builtins, name) for name in now)
            if own and (edits := self._message(call)):
                yield TurnedExpectation(edits, ERROR)
            elif others:
                yield TurnedExpectation((self.source.put(call.args[0], self.rng.choice(others)),), ERROR)
        for node in said:
            yield from self._constants(node, ERROR)

    def _message(self, call: ast.Call) -> tuple[TextEdit, ...]:
        """A message that is expected beside an exception of the project's own: of another exception in its place
        whoever reads the file would know by an import that nothing uses any more."""
        end, name = self.source.span(call.args[0])[1], _called(call)
        word = self.rng.choice(sorted(word for word in self.words if len(word) > SHORT) or ["unexpected"])
        if name in ("raises", "warns") and len(call.args) == 1:
            return (TextEdit(end, end, f', match="{word}"'),)
        if name in ("assertRaises", "assertWarns") and isinstance(call.func, ast.Attribute):
            at = self.source.span(call.func)[1]
            return TextEdit(at, at, "Regex"), TextEdit(end, end, f', "{word}"')
        return ()

    def _of_names(self, nodes: list[ast.AST]) -> Iterator[TurnedExpectation]:
        """What is given to a name that an assertion compares with."""
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if self.compared & {name for target in targets for name in _names(target)}:
                    yield from self._constants(node.value, ANY if _has_call(node.value) else NAMED)
        for name in sorted(self.compared & self.globals.keys()):
            yield from self._constants(self.globals[name], NAMED, shared=True)

    def _of_tables(self, nodes: list[ast.AST]) -> Iterator[TurnedExpectation]:
        """Rows that a loop or parametrize goes through: of each the column that is compared with, else all of it."""
        for node in nodes:
            if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                targets = node.target.elts if isinstance(node.target, ast.Tuple | ast.List) else [node.target]
                yield from self._rows([next(iter(_names(target)), "") for target in targets], node.iter)
        for decorator in self.function.decorator_list:
            if isinstance(decorator, ast.Call) and _called(decorator) == "parametrize" and len(decorator.args) > 1:
                named = [node.value for node in ast.walk(decorator.args[0]) if isinstance(node, ast.Constant)]
                texts = [value for value in named if isinstance(value, str)]
                yield from self._rows([name.strip() for text in texts for name in text.split(",")], decorator.args[1])

    def _rows(self, columns: list[str], table: ast.expr) -> Iterator[TurnedExpectation]:
        shared = isinstance(table, ast.Name)
        if shared:
            table = self.globals.get(table.id, table)
        if not isinstance(table, ast.List | ast.Tuple | ast.Set):
            return
        wanted = {place for place, name in enumerate(columns) if name in self.compared}
        edits = []  # of every row one: each may be a test of its own
        for row in table.elts:
            if isinstance(row, ast.Call) and _called(row) == "param" and len(columns) == 1 and row.args:
                row = row.args[0]
            several = row.args if isinstance(row, ast.Call) else getattr(row, "elts", [row])
            cells = several if len(columns) > 1 else [row]
            of_row = [
                turn for place, cell in enumerate(cells) for turn in self._constants(cell, TABLE) if place in wanted
            ]
            edits += self.rng.choice(of_row).edits if of_row else ()
            for cell in cells:
                yield from self._constants(cell, ANY, shared=shared)
        if edits:
            yield TurnedExpectation(tuple(edits), TABLE, shared)

    def _constants(self, node: ast.AST, rank: int, shared: bool = False) -> Iterator[TurnedExpectation]:
        for constant in constants(node):
            if other := near(self.source.text(constant), constant.value, self.rng, self.words):
                yield TurnedExpectation((self.source.put(constant, other),), rank, shared)

    def _negated(self, test: ast.expr) -> TextEdit:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return TextEdit(self.source.span(test)[0], self.source.span(test.operand)[0], "")
        plain = isinstance(test, ast.Call | ast.Name | ast.Attribute | ast.Subscript | ast.Constant)
        return self.source.put(test, f"not {self.source.text(test)}" if plain else f"not ({self.source.text(test)})")

    def _failure(self) -> TurnedExpectation:
        first = self.function.body[0]
        start, _ = self.source.span(first)
        if getattr(first, "decorator_list", None):
            start = self.source.span(first.decorator_list[0])[0] - 1
        line = max(begin for begin in self.source.starts if begin <= start)
        before = self.source.between(line, start)
        # on one line with the colon, a statement may follow a semicolon only
        text = "raise AssertionError; " if before.strip() else f"raise AssertionError\n{before}"
        return TurnedExpectation((TextEdit(start, start, text),), FAILURE)


def _called(call: ast.Call) -> str:
    """The name alone: "raises" of pytest.raises(...)."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _names(node: ast.AST) -> Iterator[str]:
    return (child.id for child in ast.walk(node) if isinstance(child, ast.Name))


def _has_call(node: ast.AST) -> bool:
    return any(isinstance(child, ast.Call | ast.Await) for child in ast.walk(node))


def _related(name: str, other: str) -> bool:
    """Whether one of these exceptions is the other, as far as they are the interpreter's."""
    a, b = getattr(builtins, name, None), getattr(builtins, other, None)
    return name == other or isinstance(a, type) and isinstance(b, type) and (issubclass(a, b) or issubclass(b, a))

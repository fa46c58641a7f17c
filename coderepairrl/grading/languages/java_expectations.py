"""The turns of a JUnit test: every place where it expects something, with another expectation there. Python's are in
expectations.py; the kinds, and what a turn is, in turns.py.

    assertEquals(4, f(3));                    ->  assertEquals(5, f(3));
    List<Integer> wanted = Arrays.asList(3);  ->  List<Integer> wanted = Arrays.asList(7);
    assertTrue(f(3) < 0.5);                   ->  assertTrue(f(3) < -40173.5);
    @Test(expected = NullPointerException.class)  ->  @Test(expected = ArithmeticException.class)

A literal becomes one of its own type, so that what compiled still does.
"""

import random
from collections.abc import Collection, Iterator

import tree_sitter_java
from tree_sitter import Language, Node, Parser

from coderepairrl.grading.languages.java_literals import LITERALS, far, near
from coderepairrl.grading.near_values import words_in
from coderepairrl.grading.turns import (
    ANY,
    ERROR,
    EXPECTED,
    FAILURE,
    NAMED,
    OPPOSITE,
    ORDER,
    TextEdit,
    TurnedExpectation,
    together,
)

_JAVA = Language(tree_sitter_java.language())
_ERRORS = (
    "IllegalArgumentException",
    "IllegalStateException",
    "NullPointerException",
    "IndexOutOfBoundsException",
    "ArithmeticException",
    "ClassCastException",
    "UnsupportedOperationException",
    "NegativeArraySizeException",
)
_KIN = {  # of those: what is one, or what they are
    "NumberFormatException": "IllegalArgumentException",
    "ArrayIndexOutOfBoundsException": "IndexOutOfBoundsException",
    "StringIndexOutOfBoundsException": "IndexOutOfBoundsException",
}
_ALL = ("Exception", "RuntimeException", "Throwable")
_OPPOSITE = {"assertTrue": "assertFalse", "assertNull": "assertNotNull", "assertSame": "assertNotSame"}
_OPPOSITE |= {other: one for one, other in _OPPOSITE.items()} | {"assertEquals": "assertNotEquals"}
_SIGNS = {"<": -1, "<=": -1, ">": 1, ">=": 1}  # which way the right side must move so that no value will do
# of calls that only make a value
_MAKERS = {"asList", "of", "valueOf", "singletonList", "singleton", "emptyList", "emptyMap", "emptySet", "toString"}
_CHECKS = ("assert", "check", "expect", "verify", "compare", "is", "has", "contains", "should")  # how these begin
_PLAIN_ASSERTS = ("assertTrue", "assertFalse")
# what stands in these is no value that a test compares
_OTHERS = {"modifiers", "annotation", "marker_annotation", "dimensions_expr", "switch_label", "class_body"}


def turns(text: str, names: Collection[str], rng: random.Random) -> dict[str, list[TurnedExpectation]]:
    """Test method -> its turns, the likely ones first, those of one rank in random order; a name that isn't there has
    none. Methods of one name are turned together: a report's id may stand for any of them."""
    data = text.encode()
    root = Parser(_JAVA).parse(data).root_node
    words = words_in([_text(node) for node in walk(root) if node.type == "string_literal"])
    found: dict[str, list[list[TurnedExpectation]]] = {}
    for node in walk(root):
        if node.type == "method_declaration" and (name := _name(node)) in names and node.child_by_field_name("body"):
            own = list(dict.fromkeys(JavaExpectations(node, rng, words).turns()))
            rng.shuffle(own)
            found.setdefault(name, []).append(sorted(own, key=lambda turn: turn.rank))
    return {name: together(several) for name, several in found.items()}


class JavaExpectations:
    """Of one test method: what it expects, and each way of turning that."""

    def __init__(self, method: Node, rng: random.Random, words: Collection[str]):
        self.method, self.body, self.rng, self.words = method, _child(method, "body"), rng, words
        self.compared: set[str] = set()  # names that stand where something is expected

    def turns(self) -> Iterator[TurnedExpectation]:
        yield from self._of_annotation()
        nodes = list(walk(self.body))
        for node in nodes:
            if node.type == "method_invocation":
                yield from self._of_check(node)
            elif node.type == "catch_type":
                yield from self._another_error([*node.named_children], checked=True)
            elif node.type == "assert_statement":
                yield from self._of_truth(node.named_children[0])
        yield from self._of_names(nodes)
        yield from self._constants(self.body, ANY)
        yield self._failure()

    def _of_annotation(self) -> Iterator[TurnedExpectation]:
        """@Test(expected = X.class)"""
        for node in walk(self.method):
            if node.type == "element_value_pair" and _text(node.child_by_field_name("key")) == "expected":
                yield from self._another_error([_class_of(node.child_by_field_name("value"))])

    def _another_error(self, types: list[Node | None], checked: bool = False) -> Iterator[TurnedExpectation]:
        """`checked`: only of those that need no declaration: others may not be caught where nothing throws them."""
        if len(types) != 1 or types[0] is None:
            return
        now = _text(types[0]).rpartition(".")[2]
        now = _KIN.get(now, now)
        if now not in _ALL and (now in _ERRORS or not checked):
            yield TurnedExpectation((_put(types[0], self.rng.choice([one for one in _ERRORS if one != now])),), ERROR)

    def _of_check(self, call: Node) -> Iterator[TurnedExpectation]:
        """An assertion, a helper of the test's, or a link of a chain of matchers."""
        name, given = _name(call), arguments(call)
        if name in _OPPOSITE:
            yield TurnedExpectation((_put(_child(call, "name"), _OPPOSITE[name]),), OPPOSITE)
        if not name.startswith(_CHECKS) or not given:
            return
        if name in _PLAIN_ASSERTS:
            yield from self._of_truth(given[-1])
        elif name == "assertThrows":
            yield from self._another_error([_class_of(given[0])])
        elif name.startswith("assert") and len(given) > 1:
            # a message comes first; of numbers the last may be what is tolerated
            given = given[1:] if len(given) > 2 and given[0].type == "string_literal" else given
            yield from self._of_sides(*given[:2])
        elif call.parent is not None and call.parent.type in ("expression_statement", "argument_list"):
            for one in given:
                yield from self._expected(one)

    def _of_sides(self, left: Node, right: Node) -> Iterator[TurnedExpectation]:
        """By habit the left side is the expected one; where only one side calls something, the other is."""
        calls = [_has_call(side) for side in (left, right)]
        yield from self._expected(right if calls == [True, False] else left)
        if calls in ([False, False], [True, True]):
            yield from self._expected(right)

    def _of_truth(self, condition: Node) -> Iterator[TurnedExpectation]:
        for node in walk(condition):
            if node.type == "binary_expression":
                left, right = _child(node, "left"), _child(node, "right")
                sign = _SIGNS.get(_text(node.child_by_field_name("operator")))
                if sign:
                    yield from self._far(right, sign)
                    yield from self._far(left, -sign)
                # of Math.abs(f(3) - 0.5) < 1e-6 the number within
                yield from self._expected(left if sign else right)
                yield from self._expected(right if sign is None and not _has_call(right) else left)
            elif node.type == "method_invocation":  # of f(3).equals("4")
                for one in arguments(node) if _called_on(node) else ():
                    yield from self._expected(one)
            elif node.type == "identifier":
                self.compared.add(_text(node))

    def _expected(self, side: Node) -> Iterator[TurnedExpectation]:
        self.compared |= {_text(node) for node in walk(side) if node.type == "identifier"}
        yield from self._constants(side, EXPECTED)

    def _far(self, side: Node, sign: int) -> Iterator[TurnedExpectation]:
        number = side.named_children[0] if side.type == "unary_expression" else side
        if number.type in LITERALS and (other := far(_text(number), number.type, sign, self.rng)):
            yield TurnedExpectation((_put(side, other),), ORDER)

    def _of_names(self, nodes: list[Node]) -> Iterator[TurnedExpectation]:
        """What is given to a name that an assertion compares with, in the method or as a field of its class."""
        around = self.method.parent.named_children if self.method.parent else []
        fields = [one for one in around if one.type == "field_declaration"]
        outside = [node for one in fields for node in one.named_children if node.type == "variable_declarator"]
        for node in (*nodes, *outside):
            value = None
            if node.type == "variable_declarator" and _name(node) in self.compared:
                value = node.child_by_field_name("value")
            elif node.type == "assignment_expression":
                target = next((one for one in walk(node.named_children[0]) if one.type == "identifier"), None)
                value = node.child_by_field_name("right") if target and _text(target) in self.compared else None
            elif node.type == "method_invocation" and _text(node.child_by_field_name("object")) in self.compared:
                value = node.child_by_field_name("arguments")  # wanted.add(3)
            if value is not None:
                rank = ANY if _has_call(value) else NAMED
                yield from self._constants(value, rank, shared=node in outside)

    def _constants(self, node: Node, rank: int, shared: bool = False) -> Iterator[TurnedExpectation]:
        for literal in constants(node):
            if other := near(_text(literal), literal.type, self.rng, self.words):
                yield TurnedExpectation((_put(literal, other),), rank, shared)

    def _failure(self) -> TurnedExpectation:
        at = self.body.start_byte + 1
        return TurnedExpectation((TextEdit(at, at, " if (true) throw new AssertionError();"),), FAILURE)


def walk(node: Node) -> Iterator[Node]:
    """It and all below, in the text's order; no comments."""
    left = [node]
    while left:
        one = left.pop()
        if not one.type.endswith("comment"):
            yield one
            left += reversed(one.named_children)


def constants(node: Node) -> Iterator[Node]:
    """Its literals that are values: no message of an assertion, no size, no index."""
    if node.type in LITERALS:
        yield node
    if node.type in _OTHERS:
        return
    for child in node.named_children:
        if node.type == "array_access" and child == node.child_by_field_name("index"):
            continue
        yield from constants(child)


def arguments(call: Node) -> list[Node]:
    found = call.child_by_field_name("arguments")
    return [one for one in found.named_children if not one.type.endswith("comment")] if found is not None else []


def _child(node: Node, field: str) -> Node:
    """Of a tree with errors, which may lack it, the node itself."""
    return node.child_by_field_name(field) or node


def _text(node: Node | None) -> str:
    return node.text.decode() if node is not None and node.text is not None else ""


def _name(node: Node) -> str:
    return _text(node.child_by_field_name("name"))


def _put(node: Node, text: str) -> TextEdit:
    return TextEdit(node.start_byte, node.end_byte, text)


def _class_of(node: Node | None) -> Node | None:
    """X of X.class"""
    return node.named_children[0] if node is not None and node.type == "class_literal" else None


def _called_on(call: Node) -> bool:
    return call.child_by_field_name("object") is not None


def _has_call(node: Node) -> bool:
    return any(one.type == "method_invocation" and _name(one) not in _MAKERS for one in walk(node))

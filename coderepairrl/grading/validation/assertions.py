"""What a statement of a Python test expects, and how strongly: 3 an equality, an expected exception, 2 an order, a
membership, a type, a truth value of a call, 1 what can hardly fail."""

import ast
import re

_SKIPPED = re.compile(
    r"(?:skip|skip[iI]f|skipUnless|xfail|expectedFailure|importorskip|SkipTest|skipTest|Disabled"
    r"|Ignore"
    r"|fail_?[iI]f_?[nN]ot|exit|quit|_exit|SystemExit)$"
)
_STRONG = re.compile(
    r"assert(?:Almost|Count|List|Dict|Set|Tuple|Sequence|MultiLine)?Equals?$|assert_\w*equal\w*$"
    r"|assert(?:Raises|Warns|Logs)\w*$|assert_allclose$|assert_called\w*$|assertIs$|raises$|warns$"
)
_LOOSE = ("ANY", "approx", "isclose", "allclose", "Any", "Mock", "MagicMock")  # what equals more than itself
_BROAD = ("Exception", "BaseException", "AssertionError")
_AS_COMPARE = {
    "assertEqual": "Eq",
    "assertEquals": "Eq",
    "assertIs": "Is",
    "assertIn": "In",
    "assertNotEqual": "NotEq",
    "assertLess": "Lt",
    "assertGreater": "Gt",
    "assertLessEqual": "LtE",
    "assertGreaterEqual": "GtE",
}


def name_of(node: ast.AST | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def called(node: ast.AST) -> str:
    return name_of(node.func) if isinstance(node, ast.Call) else ""


def skips(node: ast.AST) -> bool:
    """Whether something in it skips, expects a failure, or leaves the process."""
    return any(_SKIPPED.match(name_of(part)) for part in ast.walk(node))


def skipping(node: ast.AST) -> int:
    return sum(bool(_SKIPPED.match(name_of(part))) for part in ast.walk(node))


def is_assertion(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assert)
        or isinstance(statement, ast.Expr)
        and called(statement.value).startswith("assert")
    )


def canonical(statement: ast.stmt) -> str:
    """The same text for the same expectation, in unittest's words or in pytest's, whatever is said when it fails."""
    if isinstance(statement, ast.Assert):
        test = statement.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return _compared(type(test.ops[0]).__name__, test.left, test.comparators[0])
        return f"truth {ast.dump(test)}"
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and not statement.value.keywords:
        name, arguments = called(statement.value), statement.value.args
        if name in _AS_COMPARE and len(arguments) > 1:
            return _compared(_AS_COMPARE[name], *arguments[:2])
        if name in ("assertTrue", "assert_") and arguments:
            return f"truth {ast.dump(arguments[0])}"
    return ast.dump(statement)


def _compared(operator: str, left: ast.expr, right: ast.expr) -> str:
    sides = [ast.dump(left), ast.dump(right)]
    return " ".join([operator, *(sorted(sides) if operator in ("Eq", "NotEq", "Is") else sides)])


def subject(statement: ast.stmt) -> str:
    """What is looked at, as far as habit says: the first thing that is called, else the first that is named."""
    looked_at = statement.test if isinstance(statement, ast.Assert) else ast.Tuple(statement.value.args, ast.Load())
    nodes = list(ast.walk(looked_at))
    found = next((node for kind in (ast.Call, ast.Name) for node in nodes if isinstance(node, kind)), None)
    return ast.dump(found) if found else ""


def strength(statement: ast.stmt) -> int:
    if isinstance(statement, ast.Assert):
        return of_test(statement.test)
    return of_call(statement.value)


def strengths(function: ast.AST) -> list[int]:
    """Of each assertion that can fail the test. One in a `try` whose handler takes its failure can't."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Assert):
            found.append(of_test(node.test))
        elif isinstance(node, ast.Call) and (called(node).startswith("assert") or called(node) in ("raises", "warns")):
            found.append(of_call(node))
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.Try) and child in node.body and any(map(swallows, node.handlers))):
                visit(child)

    visit(function)
    return found


def of_call(call: ast.Call) -> int:
    name, arguments = called(call), call.args
    if name in ("assertTrue", "assert_", "assertFalse") and arguments and of_test(arguments[0]) == 1:
        return 1
    if len(arguments) > 1 and (_is_loose(arguments[:2]) or ast.dump(arguments[0]) == ast.dump(arguments[1])):
        return 1
    if name in ("raises", "assertRaises") and arguments and name_of(arguments[0]) in _BROAD:
        return 2
    return 3 if _STRONG.search(name) else 2


def of_test(test: ast.expr) -> int:
    if isinstance(test, ast.Constant) or isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return 1
    if isinstance(test, ast.BoolOp):
        return max(map(of_test, test.values))
    if isinstance(test, ast.Compare):
        sides = [test.left, *test.comparators]
        if ast.dump(sides[0]) == ast.dump(sides[1]) or _is_loose(sides):
            return 1
        if isinstance(test.ops[0], ast.Eq):
            return 3
        weak = isinstance(test.ops[0], ast.IsNot | ast.NotEq)
        return 1 if weak else 3 if isinstance(test.ops[0], ast.Is) else 2
    return 2


def _is_loose(sides: list[ast.expr]) -> bool:
    return any(name_of(node) in _LOOSE for side in sides for node in ast.walk(side))


def swallows(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(name is None or name_of(name) in _BROAD for name in names)
    return broad and not any(isinstance(node, ast.Raise) or called(node) == "fail" for node in ast.walk(handler))

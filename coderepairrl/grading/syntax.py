"""Python's own reading of Python text, for threads.

Until 3.11.4 the interpreter keeps the depth at which it makes syntax trees in one place for all threads: where one is
made while
another thread makes its own, `ast.parse` ends with a SystemError (https://github.com/python/cpython/issues/106905).
"""

import ast
import threading
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
_ONE = threading.Lock()


def parse(text: str) -> ast.Module:
    """Raises what ast.parse does: SyntaxError, ValueError (a NUL), RecursionError, MemoryError."""
    with _ONE:
        return ast.parse(text)


def literal(text: str) -> Any:
    """The value of a literal. Raises what ast.literal_eval does."""
    with _ONE:
        return ast.literal_eval(text)

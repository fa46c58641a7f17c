"""The constants of a syntax tree, and for each another one of the same kind, as it could stand there."""

import ast
import random
import re
from collections.abc import Iterator
from string import ascii_lowercase, ascii_uppercase, digits

from coderepairrl.grading import syntax

_STRING = re.compile(r"(?s)([A-Za-z]*)('''|\"\"\"|'|\")(.*?)\2")


def constants(node: ast.AST) -> Iterator[ast.Constant]:
    """Those of values: no docstring, no message of an assertion, no key (another one is missed before
    anything is compared), nothing in an f-string, whose parts have no places of their own."""
    if isinstance(node, ast.Constant):
        yield node
    if isinstance(node, ast.JoinedStr) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "msg", "decorator_list", "keys"):
            continue
        if isinstance(node, ast.keyword) and node.arg in ("msg", "message"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from constants(child)


def near(source: str, value: object, rng: random.Random) -> str:
    """Another constant of the same kind, as it could be written there; empty where there is none."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int | float):
        places = [place for place, letter in enumerate(source) if letter.isdigit()]
        if not source[:1].isdigit() or source[:2].lower() in ("0x", "0o", "0b"):
            places = places[1:]
        # the first digit that counts: a later one may be within what an assertion tolerates
        found = next((place for place in places if source[place] != "0"), places[-1] if places else None)
        options = [source[:found] + digit + source[found + 1 :] for digit in "123456789"] if found is not None else []
    elif isinstance(value, str | bytes):
        options = _near_strings(source)
    else:
        return ""
    rng.shuffle(options)
    return next((option for option in options if _differs(option, value)), "")


def _near_strings(source: str) -> list[str]:
    found = _STRING.match(source)
    if not found:
        return []
    start, end = found.span(3)
    if start == end:
        return [source[:start] + letter + source[start:] for letter in ascii_lowercase]
    out = []
    for place in range(start, end):
        letter = source[place]
        if source[place - 1 : place] == "\\" or not letter.isascii() or "\\" in source[max(start, place - 9) : place]:
            continue
        out += [source[:place] + other + source[place + 1 :] for other in _kin(letter) if other != letter]
    return out or [source[:end] + letter + source[end:] for letter in ascii_lowercase]


def _kin(letter: str) -> str:
    """The letters of its own kind."""
    if letter.isdigit():
        return digits
    if letter.islower():
        return ascii_lowercase
    return ascii_uppercase if letter.isupper() else ""


def _differs(option: str, value: object) -> bool:
    try:
        found = syntax.literal(option)
    except (SyntaxError, ValueError):
        return False
    return type(found) is type(value) and found != value

"""Java's literals, and for each another one of the same type, as it could stand there. Most are written as Python's
are, so near_values.py finds it; what Java has of its own is here."""

import random
from collections.abc import Collection
from string import ascii_lowercase, ascii_uppercase, digits

from coderepairrl.grading import near_values, syntax

LITERALS = {
    "decimal_integer_literal",
    "hex_integer_literal",
    "decimal_floating_point_literal",
    "string_literal",
    "character_literal",
    "true",
    "false",
}
TRIES = 30
_MOST = {"": 2**31 - 1, "L": 2**63 - 1}
_SIGNS = ".,;:!?()[]{}<>+-*/=_ "


def near(source: str, kind: str, rng: random.Random, words: Collection[str]) -> str:
    """Another literal of this kind (a type of tree-sitter's); empty where there is none."""
    if kind in ("true", "false"):
        return "false" if kind == "true" else "true"
    if kind == "character_literal":
        return _near_letter(source, rng)
    if kind == "string_literal":
        return _near_python(source, rng, words)
    number, suffix = _split(source, kind)
    others = (_near_python(number, rng, words) for _ in range(TRIES))  # of a number near the type's end few fit
    return next((other + suffix for other in others if other and _fits(other, suffix)), "")


def far(source: str, kind: str, sign: int, rng: random.Random) -> str:
    """A number beyond this one, so far that hardly any result lies between; empty where there is none."""
    number, suffix = _split(source, kind)
    try:
        value = syntax.literal(number)
    except (SyntaxError, ValueError):
        return ""
    if not isinstance(value, int | float):
        return ""
    other = near_values.far(value, sign, rng)
    if isinstance(value, int) and not _fits(other.removeprefix("-"), suffix):
        other = other[:9]  # digits that an int takes
        if abs(int(other)) <= abs(value):
            return ""
    return other + suffix


def _split(source: str, kind: str) -> tuple[str, str]:
    """The number as Python writes it, and its suffix."""
    letters = "lL" if kind.endswith("integer_literal") else "fFdD"
    return (source[:-1], source[-1]) if source[-1] in letters else (source, "")


def _fits(number: str, suffix: str) -> bool:
    value = syntax.literal(number)
    return not isinstance(value, int) or value <= _MOST[suffix.upper()]


def _near_python(source: str, rng: random.Random, words: Collection[str]) -> str:
    try:
        value = syntax.literal(source)
    except (SyntaxError, ValueError):  # an escape of Java's, an octal number
        return ""
    return near_values.near(source, value, rng, words)


def _near_letter(source: str, rng: random.Random) -> str:
    letter = source[1:-1]
    if len(letter) != 1:
        return rng.choice([one for one in ("'\\n'", "'\\t'", "'\\r'") if one != source])
    kin = next((kind for kind in (digits, ascii_lowercase, ascii_uppercase) if letter in kind), _SIGNS)
    return f"'{rng.choice([one for one in kin if one != letter])}'"

"""The constants of a syntax tree, and for each another one of the same kind, as it could stand there."""

import ast
import random
import re
from collections.abc import Collection, Iterable, Iterator
from string import ascii_lowercase, ascii_uppercase, digits

from coderepairrl.grading import syntax

_STRING = re.compile(r"(?s)([A-Za-z]*)('''|\"\"\"|'|\")(.*?)\2")
NEIGHBOURS = 0.5  # how often a number becomes one beside it, which an object that is nearly equal passes
WORDS = 20  # that are tried in another's place
_WORD = re.compile(r"[^\W\d_]{3,}")


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


def words_of(tree: ast.AST) -> frozenset[str]:
    """Words of a file's texts, and of its names where these are few. A text with one of them in another's place reads
    like the others, where one with a letter in another's place has a word that is in no dictionary."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = words_in(texts)
    if len(found) >= WORDS:
        return found
    return found | words_in(getattr(node, "id", None) or getattr(node, "name", None) or "" for node in ast.walk(tree))


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """In small letters, those of three and more."""
    found = {word.lower() for text in texts for word in _WORD.findall(text.replace("_", " "))}
    return frozenset(word for word in found if word.isascii())


def near(source: str, value: object, rng: random.Random, words: Collection[str] = ()) -> str:
    """Another constant of the same kind, as it could be written there; empty where there is none. `words`: that may
    stand in the place of others."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int | float):
        places = [place for place, letter in enumerate(source) if letter.isdigit()]
        if not source[:1].isdigit() or source[:2].lower() in ("0x", "0o", "0b"):
            places = places[1:]
        # the first digit that counts: a later one may be within what an assertion tolerates
        found = next((place for place in places if source[place] != "0"), places[-1] if places else None)
        options = [source[:found] + digit + source[found + 1 :] for digit in "123456789"] if found is not None else []
        if type(value) is int and source.isdigit() and rng.random() < NEIGHBOURS:
            options = [str(value + far) for far in (-2, -1, 1, 2) if value + far >= 0]
    elif isinstance(value, str | bytes):
        options = _near_strings(source, rng.sample(sorted(words), min(WORDS, len(words))))
    else:
        return ""
    rng.shuffle(options)
    return next((option for option in options if _differs(option, value)), "")


def near_text(text: str, rng: random.Random) -> str:
    """Data with another digit, or another of its own words, in a few places."""
    given = text
    for _ in range(3):
        if options := _near_places(
            text, 0, len(text), [word.lower() for word in _WORD.findall(text) if word.isascii()]
        ):
            start, end, other = rng.choice(options)
            changed = text[:start] + other + text[end:]
            text = changed if changed != given else text  # of one digit a later change may undo the first
    return text


def far(value: float, sign: int, rng: random.Random) -> str:
    """A number beyond this one, so far that hardly any result lies between; digits as anybody may have written them."""
    size = f"{abs(value):.0f}"
    more = "".join(rng.choice(digits) for _ in range(len(size) + rng.randint(2, 4)))
    return f"{'-' if sign < 0 else ''}{rng.choice('123456789')}{more}{'.5' if isinstance(value, float) else ''}"


def _near_strings(source: str, words: Collection[str]) -> list[str]:
    found = _STRING.match(source)
    if not found:
        return []
    start, end = found.span(3)
    if start == end:
        return [source[:start] + letter + source[start:] for letter in ascii_lowercase]
    out = [source[:at] + other + source[to:] for at, to, other in _near_places(source, start, end, words)]
    if not out:
        for place in _letters(source, start, end):
            out += [
                source[:place] + other + source[place + 1 :] for other in _kin(source[place]) if other != source[place]
            ]
    return out or [source[:end] + letter + source[end:] for letter in ascii_lowercase]


def _near_places(source: str, start: int, end: int, words: Collection[str]) -> list[tuple[int, int, str]]:
    """(from, to, what may stand there instead): of digits another one, of words another one in the same case."""
    plain, out = set(_letters(source, start, end)), []
    for place in plain:
        if source[place].isdigit():
            out += [(place, place + 1, other) for other in digits if other != source[place]]
    for found in _WORD.finditer(source, start, end):
        if plain.issuperset(range(*found.span())):
            others = sorted(set(words) - {found[0].lower()})
            out += [(*found.span(), _cased(other, found[0])) for other in others]
    return out


def _letters(source: str, start: int, end: int) -> list[int]:
    """Places of a text at which no escape stands."""
    return [
        place
        for place in range(start, end)
        if source[place].isascii() and "\\" not in source[max(start, place - 9) : place + 1]
    ]


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word


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

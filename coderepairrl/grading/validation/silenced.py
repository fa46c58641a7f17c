"""What in a source file keeps a linter, a type checker or a coverage report quiet: comments that address one, and
types that say less."""

import ast
import io
import re
import tokenize
from collections import Counter

from coderepairrl.grading.validation.assertions import name_of

_ALONE = (
    r"noqa|no-?qa|nosec|nosemgrep|nopep8|NOSONAR|noinspection|skipcq|nopycln|no-?cover|no-?check"
    r"|pyre-\w+(?:-\w+)*"
)
_TOOLS = (
    r"type|pyright|basedpyright|pyre|pytype|pylint|mypy|ruff|flake8|isort|fmt|yapf|autopep8|bandit|pragma"
    r"|coverage|doctest|lint"
    r"|lgtm|semgrep|codespell|cspell|vulture|pydocstyle|pycodestyle|ty|sourcery|deepcode|pyflakes|black"
    r"|xdoctest|refurb|pycln"
    r"|spell-?checker"
)
# a tool that nobody knows here says what it is told by the word after its colon
_DIRECTIVE = re.compile(
    rf"#[\s!]*(?:(?:{_ALONE})\b|(?:{_TOOLS})\s*[:=]|(?:{_TOOLS})\s+(?:ignore|disable|skip|off)\b"
    r"|[\w-]+\s*:\s*(?:ignore|disable|skip|off|allow|suppress|exclude)\b)[^#]*",
    re.IGNORECASE,
)
_STRICTER = re.compile(
    r"#\s*(?:pyright|basedpyright)\s*:\s*strict|#\s*mypy\s*:\s*(?:strict|disallow|warn|check"
    r"|no-implicit)"
    r"|#\s*(?:fmt|yapf|isort)\s*:\s*on|#\s*(?:pylint|mypy|ruff)\s*:\s*enable"
    r"|#\s*type\s*:\s*(?!ignore|Any\b|object\b)\w",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"eslint-disable|@ts-(?:ignore|nocheck|expect-error)|@SuppressWarnings|@Suppress\b"
    r"|@phpstan-ignore|@psalm-suppress|tslint:disable"
    r"|(?://|/\*)\s*(?:NOLINT|nolint|NOSONAR|noinspection|lint:ignore|biome-ignore|prettier-ignore"
    r"|c8 ignore|istanbul ignore|v8 ignore"
    r"|nosec|jshint|jslint|flow-ignore|\$FlowFixMe|@flow strict)|#!?\[(?:allow"
    r"|cfg_attr\([^)]*allow|rustfmt::skip)\b|CHECKSTYLE:OFF|rubocop:(?:disable|todo)"
    r"|phpcs:(?:ignore|disable)|#pragma\s+(?:GCC|clang)?\s*(?:diagnostic\s+ignored"
    r"|warning\s*\(?\s*disable)|swiftlint:disable|ktlint-disable"
    r"|@unchecked|\bas any\b|\bas (?:unknown|never)\b|<any>|:\s*Function\b"
    r"|declare module ['\"][^'\"]*\*|:\s*any\b|_Pragma|NOLINTNEXTLINE|NOLINTBEGIN|#\s*shellcheck\s+disable"
    r"|hadolint ignore",
    re.IGNORECASE,
)
_LOOSE_TYPES = ("Any", "object", "Incomplete", "AnyStr")
_NONE = 1000
_UNCHECKED = ("no_type_check", "no_type_check_decorator", "cast", "TYPE_CHECKING")


def silenced(path: str, before: str | None, after: str) -> list[str]:
    """Findings of a source file; None: it is new."""
    old, new = (Counter(_directives(path, text or "")) for text in (before, after))
    if new.total() > old.total() or len(new - old) > len(old - new):
        return [f"{path}: more findings of linters are silenced ({next(iter(new - old))[:60]!r})"]
    if any(_wider(mine, old - new) for mine in new - old):
        return [f"{path}: more findings of linters are silenced ({next(iter(new - old))[:60]!r})"]
    return []


def _wider(directive: str, gone: Counter) -> bool:
    """Whether one that takes another's place names other rules: `noqa` in place of `noqa: E501`."""
    return not any(
        set(re.findall(r"[\w-]+", directive)) <= set(re.findall(r"[\w-]+", one)) and (":" in directive) == (":" in one)
        for one in gone
    )


def _directives(path: str, text: str) -> list[str]:
    comments = _comments(text) if path.endswith((".py", ".pyi", ".pyx")) else None
    found = [
        match
        for comment in (comments if comments is not None else text.split("\n"))
        for match in _DIRECTIVE.findall(comment)
        if not _STRICTER.match(match)
    ]
    if comments is None:
        found += _OTHERS.findall(text)
    return [" ".join(one.split()) for one in found]


def _comments(text: str) -> list[str] | None:
    """None where the text is no Python that this one reads."""
    try:
        return [
            token.string
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT
        ]
    except (tokenize.TokenError, SyntaxError):
        return None


def types_say_less(path: str, before: ast.Module | None, after: ast.Module) -> list[str]:
    """An annotation that is gone or became Any, and what takes code out of the checker's sight."""
    old, new = dict(_annotations(before)) if before else {}, dict(_annotations(after))
    had, has = _loose_names(before) if before else set(), _loose_names(after)
    found = [
        f"{path}: the type of {name} says less"
        for name, text in old.items()
        if name in new and _looseness(new[name], has) > _looseness(text, had)
    ]
    more = _uses(after) - (_uses(before) if before else Counter())
    if before is not None:
        found += [f"{path}: {word} keeps a type checker from looking" for word in more]
    elif path.endswith(".pyi") and any(
        isinstance(node, ast.FunctionDef)
        and node.name == "__getattr__"
        or isinstance(node, ast.AnnAssign)
        and _looseness(_text(node.annotation), has)
        for node in after.body
    ):
        found.append(f"{path}: it stands before a module's own types, and says nothing")
    return found


def _loose_names(tree: ast.Module) -> set[str]:
    """Any, and what else this file calls it."""
    found = set(_LOOSE_TYPES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname for alias in node.names if alias.name in found and alias.asname}
        elif (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Name | ast.Attribute)
            and name_of(node.value) in found
        ):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _looseness(annotation: str, loose: set[str]) -> int:
    """How often it says nothing; where there is none, more often than any."""
    if not annotation:
        return _NONE
    return sum(annotation.count(f"id='{word}'") + annotation.count(f"attr='{word}'") for word in loose)


def _annotations(tree: ast.Module):
    """("g(a)", its annotation's text) of each parameter, result and annotated name; all names that have none, too."""

    def visit(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                name, own = prefix + child.name, child.args
                arguments = [
                    *own.posonlyargs,
                    *own.args,
                    *own.kwonlyargs,
                    *(one for one in (own.vararg, own.kwarg) if one),
                ]
                yield from ((f"{name}({one.arg})", _text(one.annotation)) for one in arguments)
                yield f"{name}(return)", _text(child.returns)
                yield from visit(child, f"{name}.")
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.AnnAssign):
                yield f"{prefix}{ast.unparse(child.target)}(is)", _text(child.annotation)
            elif isinstance(child, ast.Assign):
                yield from ((f"{prefix}{ast.unparse(target)}(is)", "") for target in child.targets)
            else:
                yield from visit(child, prefix)

    yield from visit(tree, "")


def _text(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return ast.dump(ast.parse(annotation.value, mode="eval").body)
        except (SyntaxError, ValueError):
            return f"id='{annotation.value}'"
    return ast.dump(annotation) if annotation else ""


def _uses(tree: ast.AST) -> Counter:
    words = Counter(
        getattr(node, "id", None) or getattr(node, "attr", None)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):  # by another name
            words.update(one.name for one in node.names if one.asname and one.asname != one.name)
    return Counter({word: words[word] for word in _UNCHECKED if words[word]})

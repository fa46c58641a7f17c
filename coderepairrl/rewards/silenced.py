"""What in a source file keeps a linter, a type checker or a coverage report quiet: comments that address one, and types that say less."""
import ast
import io
import re
import tokenize
from collections import Counter

_TOOLS = (r"noqa|nosec|nosemgrep|nopep8|NOSONAR|noinspection|skipcq|type|pyright|basedpyright|pyre|pyre-\w+(?:-\w+)*|pytype|pylint|mypy|ruff|flake8|isort|fmt"
          r"|yapf|autopep8|bandit|pragma|coverage|doctest|lint|lgtm|semgrep|codespell|cspell|vulture|pydocstyle|pycodestyle|ty|sourcery|deepcode|pyflakes"
          r"|black|xdoctest|refurb|pycln|nopycln|no-?qa|no-?cover|no-?check|spell-?checker")
_DIRECTIVE = re.compile(rf"#[\s!]*(?:{_TOOLS})\b(?=\s*(?:[:=\[(#\-]|$|ignore|disable|skip|off|no))[^#]*", re.IGNORECASE)
_STRICTER = re.compile(r"#\s*(?:pyright|basedpyright)\s*:\s*strict|#\s*mypy\s*:\s*(?:strict|disallow|warn|check|no-implicit)"
                       r"|#\s*(?:fmt|yapf|isort)\s*:\s*on|#\s*(?:pylint|mypy|ruff)\s*:\s*enable|#\s*type\s*:\s*(?!ignore|Any\b|object\b)\w", re.IGNORECASE)
_OTHERS = re.compile(r"eslint-disable|@ts-(?:ignore|nocheck|expect-error)|@SuppressWarnings|@Suppress\b|@phpstan-ignore|@psalm-suppress|tslint:disable"
                     r"|(?://|/\*)\s*(?:NOLINT|nolint|NOSONAR|noinspection|lint:ignore|biome-ignore|prettier-ignore|c8 ignore|istanbul ignore|v8 ignore"
                     r"|nosec|jshint|jslint|flow-ignore|\$FlowFixMe|@flow strict)|#!?\[(?:allow|cfg_attr\([^)]*allow|rustfmt::skip)\b|CHECKSTYLE:OFF|rubocop:(?:disable|todo)"
                     r"|phpcs:(?:ignore|disable)|#pragma\s+(?:GCC|clang)?\s*(?:diagnostic\s+ignored|warning\s*\(?\s*disable)|swiftlint:disable|ktlint-disable"
                     r"|@unchecked|\bas any\b|:\s*any\b|_Pragma|NOLINTNEXTLINE|NOLINTBEGIN|#\s*shellcheck\s+disable|hadolint ignore", re.IGNORECASE)
_LOOSE_TYPES = ("Any", "object", "Incomplete", "AnyStr")
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
    return not any(set(re.findall(r"[\w-]+", directive)) <= set(re.findall(r"[\w-]+", one)) and (":" in directive) == (":" in one) for one in gone)


def _directives(path: str, text: str) -> list[str]:
    comments = _comments(text) if path.endswith((".py", ".pyi", ".pyx")) else None
    found = [match for comment in (comments if comments is not None else text.split("\n")) for match in _DIRECTIVE.findall(comment)
             if not _STRICTER.match(match)]
    if comments is None:
        found += _OTHERS.findall(text)
    return [" ".join(one.split()) for one in found]


def _comments(text: str) -> list[str] | None:
    """None where the text is no Python that this one reads."""
    try:
        return [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError):
        return None


def types_say_less(path: str, before: ast.Module | None, after: ast.Module) -> list[str]:
    """An annotation that is gone or became Any, and what takes code out of the checker's sight."""
    old, new = dict(_annotations(before)) if before else {}, dict(_annotations(after))
    found = [f"{path}: the type of {name} says less" for name, text in old.items()
             if name.rpartition("(")[0] in {other.rpartition("(")[0] for other in new} and _looseness(new.get(name, "")) > _looseness(text)]
    more = _uses(after) - (_uses(before) if before else Counter())
    if before is not None:
        found += [f"{path}: {word} keeps a type checker from looking" for word in more]
    return found


def _looseness(annotation: str) -> int:
    """2: none, 1: one that everything has."""
    if not annotation:
        return 1000
    return sum(annotation.count(f"id='{word}'") + annotation.count(f"attr='{word}'") for word in _LOOSE_TYPES)


def _annotations(tree: ast.Module):
    """("g(a)", its annotation's text) of each parameter, result and annotated name; all names that have none, too."""
    def visit(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                name, own = prefix + child.name, child.args
                arguments = [*own.posonlyargs, *own.args, *own.kwonlyargs, *(one for one in (own.vararg, own.kwarg) if one)]
                yield from ((f"{name}({one.arg})", _text(one.annotation)) for one in arguments)
                yield f"{name}(return)", _text(child.returns)
                yield from visit(child, f"{name}.")
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.AnnAssign):
                yield f"{prefix}{ast.unparse(child.target)}(is)", _text(child.annotation)
            else:
                yield from visit(child, prefix)

    yield from visit(tree, "")


def _text(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return f"id='{annotation.value}'"
    return ast.dump(annotation) if annotation else ""


def _uses(tree: ast.AST) -> Counter:
    words = Counter(getattr(node, "id", None) or getattr(node, "attr", None) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute))
    return Counter({word: words[word] for word in _UNCHECKED if words[word]})

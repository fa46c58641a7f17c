"""Does a Python test file validate less than before? Its edits are compared with what more tests would be.

    added          new tests, new names, further assertions in tests that are there
    strengthened   an assertion that is replaced by a stronger one of the same thing; a skip or a guard that is gone
    named          all else: another expectation, an assertion under a new condition, a helper or a table that is
                   changed, a name that means something else, code that runs while the file is loaded

Whoever repairs a build adds tests and leaves the others, so what is neither added nor strengthened is a finding: no
list of ways to weaken a test is complete, that of harmless edits is short.
"""

import ast
import re
from collections.abc import Iterator

from coderepairrl.grading.syntax import Function
from coderepairrl.grading.validation.assertions import (
    called,
    canonical,
    is_assertion,
    name_of,
    skips,
    strength,
    subject,
    swallows,
)

_LEAVE = ast.Return | ast.Raise | ast.Continue | ast.Break
_HOOK = re.compile(
    r"pytest\w*$|load_tests$|collect_ignore(?:_glob)?$|__test__$|set_?[uU]p\w*$|tear_?[dD]own\w*$"
    r"|asyncSetUp$"
    r"|add(?:Module|Class)?Cleanup$|run$|failureException$|__\w+__$"
)
_REACHES = frozenset(
    """
    globals locals vars setattr delattr exec eval compile __import__ __dict__ modules import_module
    _getframe __setattr__ __builtins__ builtins
""".split()
)
_EMPTY = ast.Module(body=[], type_ignores=[])
_SHOWN = 60  # characters of a statement


def changed_tests(path: str, before: ast.Module | None, after: ast.Module) -> list[str]:
    """Findings of a test file; None: it is new."""
    return [f"{path}: {finding}" for finding in dict.fromkeys(_scope(before or _EMPTY, after, "", after))]


def _scope(
    old: ast.Module | ast.ClassDef, new: ast.Module | ast.ClassDef, prefix: str, tree: ast.Module
) -> Iterator[str]:
    """Of a module, or of a class that is in both."""
    had, has = _bindings(old), _bindings(new)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    for name, nodes in had.items():
        yield from _binding(prefix + name, nodes, has.get(name, []), name in used, tree)
    read = _read(old)
    for name, nodes in has.items():
        if name not in had:
            yield from (
                f"{prefix}{name} is new and steers its tests" for node in nodes if _steers(name, node) or name in read
            )
            yield from (f"{prefix}{name} is new and reaches for others" for node in nodes if _reaches(node))
    kept = {ast.dump(statement) for statement in _loose(old)}
    for statement in _loose(new):
        if ast.dump(statement) not in kept:
            yield f"{_shown(statement)!r} runs while {prefix.rstrip('.') or 'the file'} is loaded"
    there = {ast.dump(statement) for statement in _loose(new)}
    for statement in _loose(old):
        if ast.dump(statement) not in there and not skips(statement):
            yield f"{_shown(statement)!r} is gone"


def _read(scope: ast.Module | ast.ClassDef) -> set[str]:
    """Names that a scope's tests use without binding them: built-in ones, methods that a class inherits."""
    if isinstance(scope, ast.Module):
        return {node.id for node in ast.walk(scope) if isinstance(node, ast.Name)}
    return {
        node.attr
        for node in ast.walk(scope)
        if isinstance(node, ast.Attribute) and name_of(node.value) in ("self", "cls")
    }


def _reaches(node: ast.AST) -> bool:
    """Whether a definition does more, while it is made, than to bind its name."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return False
    made = [*getattr(node, "decorator_list", ())]
    if isinstance(node, Function):
        made += [one for one in (*node.args.defaults, *node.args.kw_defaults) if one]
    elif isinstance(node, ast.ClassDef):
        made += [*node.bases, *(word.value for word in node.keywords), *_loose(node)]
        if _loose(node) or any(
            _reaches(one) for one in node.body if isinstance(one, Function | ast.ClassDef | ast.Assign)
        ):
            return True
    else:
        made.append(node)
    inner = [part for one in made for part in ast.walk(one)]
    return any(isinstance(part, ast.NamedExpr) or name_of(part) in _REACHES for part in inner)


def _binding(name: str, old: list[ast.AST], new: list[ast.AST], used: bool, tree: ast.Module) -> Iterator[str]:
    """What a name of a scope means, before and after."""
    first = old[-1]
    if not new:
        if _is_test(name, first):
            yield f"{name} is gone"
        elif _steers(name.rpartition(".")[2], first) and not skips(first) and not isinstance(first, ast.Assign):
            yield f"{name} is gone and steered its tests"
        elif used and not isinstance(first, Function | ast.ClassDef):
            yield f"{name} is not what it was"
        return
    if len(new) > len(old):
        yield f"{name} is defined again"
    now = new[-1]
    if isinstance(first, Function) and isinstance(now, Function):
        yield from _function(name, first, now)
    elif isinstance(first, ast.ClassDef) and isinstance(now, ast.ClassDef):
        yield from _class(name, first, now, tree)
    elif _meaning(name, first) != _meaning(name, now) and not (len(old) > len(new) or _grown(first, now)):
        yield f"{name} is not what it was"


def _class(name: str, old: ast.ClassDef, new: ast.ClassDef, tree: ast.Module) -> Iterator[str]:
    if _dumps(old.bases + [word.value for word in old.keywords]) != _dumps(
        new.bases + [word.value for word in new.keywords]
    ):
        yield f"{name} has other base classes"
    yield from _decorators(name, old.decorator_list, new.decorator_list)
    yield from _scope(old, new, f"{name}.", tree)


def _function(name: str, old: ast.AST, new: ast.AST) -> Iterator[str]:
    if _dumps([old.args]) != _dumps([new.args]) or type(old) is not type(new):
        yield f"{name} takes other arguments"
    yield from _decorators(name, old.decorator_list, new.decorator_list)
    reads = {node.id for node in ast.walk(old) if isinstance(node, ast.Name)}
    lost = _lost(_body(old), _body(new), reads)
    if lost is not None:
        yield f"{name} is changed: {lost}"


def _decorators(name: str, old: list[ast.expr], new: list[ast.expr]) -> Iterator[str]:
    had, has = _dumps(old), _dumps(new)
    tables = [one for one in new if ast.dump(one) not in had]
    for decorator in tables:
        if skips(decorator):
            yield f"{name} is skipped"
        elif not any(_grown(one, decorator) for one in old):
            yield f"{name} is run in another way: {_shown(decorator)!r}"
    for decorator in old:
        if (
            ast.dump(decorator) not in has
            and not skips(decorator)
            and not any(_grown(decorator, one) for one in tables)
        ):
            yield f"{name} is run without {_shown(decorator)!r}"


def _lost(old: list[ast.stmt], new: list[ast.stmt], reads: set[str]) -> str | None:
    """None where `new` is `old` with further assertions, else what is wrong with it. The old statements must come in
    their order, each as strong as it was; what is between them may assert and name things that `old` does not read."""
    place = 0
    for statement in new:
        while place < len(old) and _is_void(old[place]) and not _stands(old[place], statement, reads):
            place += 1
        if place < len(old) and _stands(old[place], statement, reads):
            place += 1
            continue
        inner = _guarded(old[place]) if place < len(old) else None
        if inner and _stands(inner[0], statement, reads):  # a guard that is gone
            old, place = [*old[:place], *inner, *old[place + 1 :]], place + 1
        elif not _adds(statement, reads):
            expected = f", where it said {_shown(old[place])!r}" if place < len(old) else ""
            return f"it says {_shown(statement)!r}{expected}"
    rest = [statement for statement in old[place:] if not _is_void(statement)]
    return f"{_shown(rest[0])!r} is gone" if rest else None


def _stands(old: ast.stmt, new: ast.stmt, reads: set[str]) -> bool:
    if canonical(old) == canonical(new):
        return True
    if is_assertion(old) and is_assertion(new):
        had, has = strength(old), strength(new)
        return has > had and subject(old) in ast.dump(new)
    if type(old) is not type(new) or not hasattr(old, "body") or isinstance(old, ast.ClassDef | Function):
        return False
    heads = [
        [
            ast.dump(value) if isinstance(value, ast.AST) else _dumps(value)
            for field, value in ast.iter_fields(node)
            if field not in ("body", "orelse", "finalbody") and isinstance(value, ast.AST | list)
        ]
        for node in (old, new)
    ]
    return heads[0] == heads[1] and all(
        _lost(getattr(old, part, []), getattr(new, part, []), reads) is None for part in ("body", "orelse", "finalbody")
    )


def _guarded(statement: ast.stmt) -> list[ast.stmt] | None:
    """The statements that a guard keeps from failing the test; None: it is no guard."""
    if isinstance(statement, ast.If) or isinstance(statement, ast.Try) and any(map(swallows, statement.handlers)):
        return statement.body
    if isinstance(statement, ast.With) and any(map(_takes_failures, statement.items)):
        return statement.body
    return None


def _takes_failures(item: ast.withitem) -> bool:
    call = item.context_expr
    return (
        isinstance(call, ast.Call)
        and name_of(call.func) in ("suppress", "raises", "assertRaises")
        and any(name_of(one) in ("AssertionError", "Exception", "BaseException") for one in call.args)
    )


def _adds(statement: ast.stmt, reads: set[str]) -> bool:
    """Whether a statement between others can only make the test fail more often."""
    if any(
        isinstance(node, _LEAVE | ast.Delete | ast.Global | ast.Nonlocal | ast.Yield | ast.YieldFrom) or skips(node)
        for node in ast.walk(statement)
    ):
        return False
    stored = {
        node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    if stored & reads or any(
        isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
        for node in ast.walk(statement)
    ):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) or is_assertion(statement)
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return not {_bound(alias) for alias in statement.names} & reads
    if isinstance(statement, ast.With):
        return all(
            called(item.context_expr)
            in ("raises", "warns", "subTest", "assertRaises", "assertWarns", "assertRaisesRegex")
            for item in statement.items
        )
    if isinstance(statement, ast.For | ast.If):
        return all(_adds(inner, reads) for inner in statement.body + statement.orelse)
    return isinstance(statement, ast.Assert | ast.Assign | ast.AnnAssign | ast.Pass)


def _bindings(scope: ast.AST) -> dict[str, list[ast.AST]]:
    """Name -> what binds it in this scope, in order."""
    found: dict[str, list[ast.AST]] = {}
    for statement in scope.body:
        if isinstance(statement, Function | ast.ClassDef):
            found.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                found.setdefault(_bound(alias), []).append(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            for name in _targets(statement):
                found.setdefault(name, []).append(statement)
    return found


def _loose(scope: ast.AST) -> list[ast.stmt]:
    """Statements that are neither bindings of plain names nor texts: they run for what they do."""
    return [one for one in scope.body if not _only_binds(one)]


def _only_binds(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not any(isinstance(node, ast.Call) for node in ast.walk(statement))
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return all(map(_is_plain, getattr(statement, "targets", None) or [statement.target]))
    return isinstance(statement, Function | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Pass)


def _is_plain(target: ast.expr) -> bool:
    """A name, or several; no attribute and no item of anything."""
    return isinstance(target, ast.Name | ast.Tuple) and not any(
        isinstance(node, ast.Attribute | ast.Subscript) for node in ast.walk(target)
    )


def _meaning(name: str, node: ast.AST) -> str:
    """What the name is bound to, as far as the text says."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        own = [alias.name for alias in node.names if _bound(alias) == name.rpartition(".")[2]]
        return f"{getattr(node, 'module', None)} {getattr(node, 'level', 0)} {own[-1]}"
    return ast.dump(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else type(node).__name__


def _grown(old: ast.AST, new: ast.AST) -> bool:
    """A table of cases, in a decorator or an assignment, in which all that was there still is."""
    if isinstance(old, ast.Assign) and isinstance(new, ast.Assign):
        old, new = old.value, new.value
        return isinstance(old, ast.List | ast.Tuple) and type(old) is type(new) and _holds(old.elts, new.elts)
    if not (isinstance(old, ast.Call) and isinstance(new, ast.Call) and len(old.args) == len(new.args) == 2):
        return False
    same = (_dumps([old.func, old.args[0]]), _dumps([word.value for word in old.keywords])) == (
        _dumps([new.func, new.args[0]]),
        _dumps([word.value for word in new.keywords]),
    )
    tables = all(isinstance(one.args[1], ast.List | ast.Tuple) for one in (old, new))
    return same and tables and _holds(old.args[1].elts, new.args[1].elts)


def _holds(old: list[ast.expr], new: list[ast.expr]) -> bool:
    had, has = _dumps(old), _dumps(new)
    return all(has.count(one) >= had.count(one) for one in had) and not any(map(skips, new))


def _steers(name: str, node: ast.AST) -> bool:
    """Whether a runner heeds what has this name, or no test has to ask for it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return bool(re.match(r"pytest_|load_tests$|__test__$|setUp|tearDown|collect_ignore", name)) or any(
            alias.name == "*" for alias in node.names
        )
    uses = any(
        isinstance(word, ast.keyword) and word.arg == "autouse"
        for one in getattr(node, "decorator_list", ())
        for word in ast.walk(one)
    )
    return bool(_HOOK.match(name)) or uses


def _is_test(name: str, node: ast.AST) -> bool:
    last = name.rpartition(".")[2]
    return (
        isinstance(node, Function)
        and last.startswith("test")
        or isinstance(node, ast.ClassDef)
        and any(_is_test(inner.name, inner) for inner in node.body if isinstance(inner, Function))
    )


def _is_void(statement: ast.stmt) -> bool:
    """What does nothing, or only leaves: without it no less is asserted."""
    return (
        isinstance(statement, ast.Pass)
        or isinstance(statement, ast.Return)
        and statement.value is None
        or isinstance(statement, ast.Expr)
        and (isinstance(statement.value, ast.Constant) or skips(statement))
    )


def _body(function: ast.AST) -> list[ast.stmt]:
    return function.body


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [
        node.id
        for target in targets
        for node in ast.walk(target)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _dumps(nodes: list) -> list[str]:
    return [ast.dump(node) if isinstance(node, ast.AST) else repr(node) for node in nodes]


def _shown(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0][:_SHOWN]

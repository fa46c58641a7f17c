"""YAML as the project reads and writes it: PyYAML with the core schema of YAML 1.2, and with what is ambiguous refused.

    parse("a: 16:00", place) -> {"a": "16:00"}, {("a",): "file.yaml:1"}

PyYAML alone reads YAML 1.1, where 16:00 is 960, 2024_06 is 202406, `on` is true, 1e-4 is a text and a date is a date;
and of a key that stands twice it keeps the last. Here these are texts (1e-4 a number), a key that stands twice is
refused, also one that two merged mappings have (`<<`, which stays: what stands beside it wins), and so is 010, which is
8 to YAML 1.1 and 10 to YAML 1.2. What `dump` writes is read as the same by this and by YAML 1.1.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import yaml

from coderepairrl.errors import ConfigError
from coderepairrl.lines import one_line

Locate = Callable[[int], str]  # line, from 1 -> what an error names it by
At = tuple[str | int, ...]  # keys and indices from the root
CORE = "tag:yaml.org,2002:"
LEADING_ZERO = CORE + "leading-zero"  # of no schema
SCALARS = {  # tag -> what a scalar without quotes looks like that has it; the first that fits
    CORE + "null": r"null|Null|NULL|~|",
    CORE + "bool": r"true|True|TRUE|false|False|FALSE",
    CORE + "int": r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+",
    LEADING_ZERO: r"[-+]?0[0-9]+",
    CORE + "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    CORE + "merge": r"<<",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # none of YAML 1.1's
    yaml_constructors: dict = {}


class _Dumper(yaml.SafeDumper):
    """Knows the scalars of both versions, and so quotes what either would not read as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Line breaks as escapes, so that `flow` is one line."""
    return dumper.represent_scalar(CORE + "str", text, style='"' if len(f"{text}.".splitlines()) > 1 else None)


_Dumper.add_representer(str, _text)


def _scalar(make: Callable[[str], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    def construct(loader: _Loader, node: yaml.Node) -> Any:
        text = loader.construct_scalar(node)
        if not re.fullmatch(SCALARS[node.tag], text):  # of an explicit tag: !!int x
            raise _refused(node, f"{text!r} is no {node.tag.removeprefix(CORE)}")
        return make(text)

    return construct


def _leading_zero(loader: _Loader, node: yaml.Node) -> Any:
    raise _refused(
        node,
        f"{node.value} is octal to some readers and decimal to others: "
        "write the number without leading zeros, or a text in quotes",
    )


for _tag, _pattern in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)
for _tag, _constructor in {
    "null": _scalar(lambda text: None),
    "bool": _scalar(lambda text: text.lower() == "true"),
    "int": _scalar(lambda text: int(text, 0)),
    "float": _scalar(lambda text: float(text if text[-1] not in "fnFN" else text.replace(".", ""))),
    "str": yaml.SafeLoader.construct_yaml_str,
    "seq": yaml.SafeLoader.construct_yaml_seq,
    "map": yaml.SafeLoader.construct_yaml_map,
}.items():
    _Loader.add_constructor(CORE + _tag, _constructor)
_Loader.add_constructor(LEADING_ZERO, _leading_zero)
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)


def parse(text: str, place: Locate) -> tuple[Any, dict[At, str]]:
    """(the value, where each key and each entry of a list stands). ConfigError, one line that begins with the place."""
    places: dict[At, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _check(loader, node, {})
        value = loader.construct_document(node)  # merges what `<<` names into its nodes
        _note(loader, node, (), place, places)
        return value, places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        cause = one_line(error.problem or error.context)
        raise ConfigError(f"{place(mark.line + 1)}: not valid YAML: {cause}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        cause = f"U+{_code(error):04X} is no character of a text: take it out"
        raise ConfigError(f"{place(line)}: not valid YAML: {cause}") from error


def dump(value: Any, flow: bool = False) -> str:
    """`flow`: in one line."""
    if flow:
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**9)
        return text.removesuffix("...\n").rstrip("\n")
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _check(loader: _Loader, node: yaml.Node, known: dict[int, bool]) -> None:
    """Refuses keys that stand twice and what holds itself. `known`: id of a node -> whether all below it is checked."""
    if id(node) in known or isinstance(node, yaml.ScalarNode):
        if not known.get(id(node), True):
            raise _refused(node, "holds itself: an alias (*) can't name what it stands in")
        return
    known[id(node)] = False
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, _ in node.value:
            name = _name(loader, key)
            if name in seen:
                raise _refused(key, f"the key {key.value!r} stands twice in one mapping: leave one out")
            seen.add(name)
        for key, below in node.value:
            if key.tag == CORE + "merge" and isinstance(below, yaml.SequenceNode):
                held = Counter(name for part in below.value for name in _names(loader, part))
                if twice := [name for name, count in held.items() if count > 1 and name not in seen]:
                    raise _refused(
                        key, f"the key {twice[0]!r} stands in two of the merged mappings: write it here as well"
                    )
    for below in node.value:
        for inner in below if isinstance(below, tuple) else (below,):
            _check(loader, inner, known)
    known[id(node)] = True


def _names(loader: _Loader, node: yaml.Node) -> set[Any]:
    """All keys of a mapping, merged ones too."""
    names: set[Any] = set()
    for key, below in node.value if isinstance(node, yaml.MappingNode) else ():
        merged = below.value if isinstance(below, yaml.SequenceNode) else [below]
        of_merge = key.tag == CORE + "merge"
        names |= set().union(*(_names(loader, part) for part in merged)) if of_merge else {_name(loader, key)}
    return names


def _name(loader: _Loader, key: yaml.Node) -> Any:
    if not isinstance(key, yaml.ScalarNode):
        raise _refused(key, "a key can't be a list or a mapping: write a word")
    return key.value if key.tag == CORE + "merge" else loader.construct_object(key)


def _refused(node: yaml.Node, why: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _note(loader: _Loader, node: yaml.Node, at: At, place: Locate, places: dict[At, str]) -> None:
    pairs = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(_name(loader, key), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(index, value, value) for index, value in enumerate(node.value)]
    for name, named, below in pairs:
        places[(*at, name)] = place(named.start_mark.line + 1)
        _note(loader, below, (*at, name), place, places)


def _code(error: yaml.reader.ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)

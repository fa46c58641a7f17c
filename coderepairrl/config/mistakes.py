"""What pydantic finds wrong, in one line: where it was written, the key as a user writes it, the cause and the
remedy."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from coderepairrl.config.composition import Tree
from coderepairrl.config.schema import fields_at, key_of_kinds, models_at
from coderepairrl.config.yaml_core import At
from coderepairrl.errors import did_you_mean
from coderepairrl.lines import one_line

LONGEST = 80  # characters of a value that are shown
NUMBER = re.compile(r"[-+0-9_.]+(?:[eE][-+]?[0-9]+)?")


def explain(model: type[BaseModel], error: ValidationError, tree: Tree, file: str) -> str:
    """The first problem; unknown keys go before what is missing, which they may be."""
    errors = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    loc, message = errors[0]["loc"], one_line(errors[0]["msg"].removeprefix("Value error, "))
    at = _written(loc, tree)
    if errors[0]["type"] == "value_error":  # a validator of a whole class names the key first
        named = re.match(r"([a-z]\w*(?:\.\w+)*): ", message)
        if named and named[1].split(".")[0] in fields_at(model, loc):
            loc, message = (*loc, *named[1].split(".")), message.removeprefix(named[0])
            at = (*at, *named[1].split("."))
    place = next((tree.places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in tree.places), file)
    if errors[0]["type"] == "extra_forbidden":
        return f"{place}: unknown key {_dotted(at)!r}: {_nearest(str(at[-1]), fields_at(model, loc[:-1]))}"
    if errors[0]["type"] == "missing":
        at = (*at, loc[-1])
        return f"{place}: {_dotted(at)}: Field required"
    if errors[0]["type"].startswith("union_tag"):
        return _kind(model, errors[0], at, place, tree)
    same = list(dict.fromkeys(found["msg"] for found in errors if _written(found["loc"], tree) == at)) or [message]
    says = message if len(same) < 2 else " or ".join(same)
    return f"{place}: {_dotted(at)}: {says.replace('valid tuple', 'valid list')}{_given(errors[0])}"


def _kind(model: type[BaseModel], error: dict[str, Any], at: At, place: str, tree: Tree) -> str:
    """Of one of several classes: the text that tells which is missing or unknown."""
    if not isinstance(error["input"], dict):
        return f"{place}: {_dotted(at)}: Input should be a section of keys and values{_given(error)}"
    named = error["ctx"]["discriminator"].strip("'")
    at = (*at, named if named.isidentifier() else key_of_kinds(models_at(model, error["loc"])) or "kind")
    tag, kinds = error["ctx"].get("tag"), error["ctx"].get("expected_tags", "").replace("'", "").split(", ")
    says = f"there is no {tag!r}: {_nearest(tag, kinds, 0.6)}" if tag else "Field required"
    return f"{tree.places.get(at, place)}: {_dotted(at)}: {says}"


def _written(loc: tuple[str | int, ...], tree: Tree) -> At:
    """Of pydantic's location what stands in the file: no names of classes, no tags."""
    at: At = ()
    for part in loc:
        at = (*at, part) if (*at, part) in tree.places else at
    return at


def _dotted(at: At) -> str:
    return ".".join(map(str, at))


def _nearest(key: str, known: list[str], likeness: float = 0.4) -> str:
    return did_you_mean(key, known, f"known here: {', '.join(known)}", likeness=likeness)


def _given(error: dict[str, Any]) -> str:
    """ " (got 3): remedy" """
    value, kind = error["input"], error["type"]
    if kind == "value_error" or isinstance(value, BaseModel):
        return ""
    text = repr(value)
    got = f" (got {text if len(text) <= LONGEST else text[:LONGEST] + '...'})"
    if kind == "string_type" and isinstance(value, int | float):
        return got + ": write it in quotes"
    if kind == "bool_type":
        return got + ": write true or false"
    if kind == "int_type" and isinstance(value, float):
        return got + ": write digits only"
    if kind in ("int_type", "float_type") and isinstance(value, str) and NUMBER.fullmatch(value):
        return got + ": write the number without quotes and without _"
    return got

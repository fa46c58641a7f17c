"""What a field says of itself, as text: the line beside it in its class, its type and its bounds."""

import ast
import functools
import inspect
import io
import re
import textwrap
import tokenize
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coderepairrl.config.schema import discriminator, kind_of, models_in
from coderepairrl.config.yaml_core import dump

WORDS = {
    int: "int",
    float: "float",
    str: "text",
    bool: "true | false",
    NoneType: "null",
    Any: "anything",
    dict: "mapping",
}
MANY = {list: "list of sections", tuple: "list of sections", dict: "mapping of sections"}


@functools.cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field -> what it is; "" where nothing is said. Of an inherited one what its own class says."""
    out: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__ != BaseModel.__module__ and owner.__annotations__:
            out |= _comments(textwrap.dedent(inspect.getsource(owner)))
    return {name: out.get(name) or _first_sentence(field) for name, field in model.model_fields.items()}


def _comments(source: str) -> dict[str, str]:
    """Field -> the comment beside it, with the lines right below it that go on; else the one right above it."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT
    }
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    alone = set(comments) - {token.start[0] for token in tokens if token.type not in blank}
    out, fields = {}, [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    for node, after in zip(fields, [*fields[1:], None], strict=True):
        beside = [comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
        first, last = node.lineno, node.end_lineno
        while first - 1 in alone:
            first -= 1
        while last + 1 in alone:
            last += 1
        if after and last + 1 == after.lineno and not set(comments) & set(range(after.lineno, after.end_lineno + 1)):
            last = node.end_lineno  # these are the next one's
        below = [comments[line] for line in range(node.end_lineno + 1, last + 1)]
        out[node.target.id] = " ".join(
            beside + below if beside else [comments[line] for line in range(first, node.lineno)]
        )
    return out


def first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _first_sentence(field: FieldInfo) -> str:
    models = models_in(field.annotation)
    return re.split(r"(?<=\.) (?=[A-Z])", first_paragraph(models[0]))[0] if len(models) == 1 else ""


def container(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType):
        return next((found for inner in get_args(annotation) if (found := container(inner))), None)
    return origin if origin in (list, tuple, dict) else None


def type_of(field: FieldInfo) -> str:
    by = discriminator(field)
    if by:
        kinds = " | ".join(kind_of(model, by) for model in models_in(field.annotation))
        optional = " or null" if NoneType in get_args(field.annotation) else ""
        return f"{MANY.get(container(field.annotation), 'section')}, {by}: {kinds}{optional}"
    return _type(field.annotation, field.metadata)


def _type(annotation: Any, metadata: list[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = [part for found in annotation.__metadata__ for part in getattr(found, "metadata", [found])]
        return _type(arguments[0], own)
    if origin is Literal:
        return " | ".join(dump(value, flow=True) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(inner, metadata if inner in (int, float) else ()) for inner in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}" + _bounds(metadata)
    if origin in (list, tuple) and (origin is list or arguments[-1] is Ellipsis):
        return f"list of {_type(arguments[0])}" + _bounds(metadata)
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    low = next((found for found in metadata if isinstance(found, Ge | Gt)), None)
    high = next((found for found in metadata if isinstance(found, Le | Lt)), None)
    if any(isinstance(found, MinLen) for found in metadata):
        return ", not empty"
    least, most = (getattr(low, "ge", getattr(low, "gt", None)), getattr(high, "le", getattr(high, "lt", None)))
    if low and high:
        return f" in {'(' if isinstance(low, Gt) else '['}{least:g}, {most:g}{')' if isinstance(high, Lt) else ']'}"
    if low:
        return f" {'>' if isinstance(low, Gt) else '>='} {least:g}"
    return f" {'<' if isinstance(high, Lt) else '<='} {most:g}" if high else ""

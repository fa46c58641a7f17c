"""YAML + `a.b=c` -> a pydantic model. Unknown keys are errors that name the nearest key; the resolved copy is saved.

    config = load(TrainConfig, "configs/quickstart.yaml", ["training.steps=2"])
    dump(config, run_folder / "config.yaml")

A YAML may start from others: `base: other.yaml` or a list (relative to it); later ones and keys below override, mappings are merged. Of what can be
one of several kinds (a scaffold, a data set), another `name` takes nothing over: rollout.scaffold.name=aider leaves the other's settings behind.
"""
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coderepairrl.errors import ConfigError


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Config(BaseModel):
    """Base of every configuration class: unknown keys are refused, values are immutable."""
    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Config)


def load(model: type[Model], path: str | Path, overrides: list[str] = ()) -> Model:
    """Raises ConfigError with one line of cause and remedy."""
    tree = _read(model, Path(path), seen=())
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {item!r} is not of the form a.b=c: write for example training.steps=2")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {item!r}: the value is not YAML ({_flat(error)}): quote it") from error
        node = tree
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {item!r}: {part!r} is a value, not a section: drop what follows it")
        if last == "name" and node.get("name", parsed) != parsed and _is_union(model, parents):
            node.clear()
        node[last] = parsed
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(model, error)}") from error


def dump(config: BaseModel, path: Path) -> None:
    """Writes the resolved configuration, under a temporary name first."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    temporary.rename(path)


def _read(model: type[BaseModel], path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` leads back to itself: remove the circle")
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1) if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file" + (f": did you mean {path.parent / near[0]}?" if near else ": give the path of a YAML file")) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder: give the path of a YAML file in it") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({_flat(error)}): fix that place") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no mapping: write `key: value` lines")
    bases = tree.pop("base", None) or []
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        below = _merge(model, below, _read(model, path.parent / base, (*seen, path.resolve())))
    return _merge(model, below, tree)


def _merge(model: type[BaseModel], low: dict, high: dict, at: tuple[str, ...] = ()) -> dict:
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        sections = isinstance(value, dict) and isinstance(below, dict)
        if sections and value.get("name", below.get("name")) != below.get("name") and _is_union(model, (*at, key)):
            sections = False
        out[key] = _merge(model, below, value, (*at, key)) if sections else value
    return out


def _is_union(model: type[BaseModel], loc: Sequence[str]) -> bool:
    """Whether what stands at `loc` is one of several classes, told apart by its `name`."""
    models = [model]
    for part in loc[:-1]:
        models = [found for m in models if part in m.model_fields for found in _models_in(m.model_fields[part].annotation)]
    return any(loc[-1] in m.model_fields and m.model_fields[loc[-1]].discriminator == "name" for m in models) if loc else False


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem in one line; for an unknown key, the nearest key that exists at that place."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']} (got {first.get('input')!r})"
    known = _fields_at(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
    return f"unknown key {where!r}: " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}")


def _fields_at(model: type[BaseModel], loc: tuple) -> list[str]:
    """Names of the fields at pydantic's `loc`, which holds fields, indices of lists, keys of dicts, and names or tags of union members."""
    models = [model]
    for part in loc:
        below = [found for m in models if part in m.model_fields for found in _models_in(m.model_fields[part].annotation)]
        named = [m for m in models if part == m.__name__ or any(part == field.default for field in m.model_fields.values())]
        models = below or named or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _models_in(inner)]

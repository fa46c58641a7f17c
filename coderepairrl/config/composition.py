"""What a model is made of, before it is checked: a YAML, its bases, overrides; and of each key where it was written.

A YAML may start from others: `base: other.yaml` or a list (relative to it); later ones and keys below override,
mappings
are merged. Of what can be one of several kinds (a scaffold, a data set; a server), another `name` (`kind`) takes
nothing over: rollout.scaffold.name=aider leaves the other's settings behind.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coderepairrl.config.schema import union_key
from coderepairrl.config.yaml_core import At, parse
from coderepairrl.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Tree:
    value: dict[str, Any]
    places: dict[At, str]  # "file.yaml:12", "override 'a.b=c'"


def compose(model: type[BaseModel], path: Path, overrides: list[str]) -> Tree:
    """ConfigError that begins with the place."""
    tree = _read(model, path, ())
    for item in overrides:
        tree = _override(model, tree, item)
    return tree


def text_of(path: Path) -> str:
    """Of a YAML file; ConfigError when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        remedy = did_you_mean(
            path.name,
            beside,
            "give the path of a YAML file",
            written=lambda name: str(path.parent / name),
            likeness=0.6,
        )
        raise ConfigError(f"{path}: no such file: {remedy}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder: give the path of a YAML file in it") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read: change its permissions, or give another file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None


def _read(model: type[BaseModel], path: Path, seen: tuple[Path, ...]) -> Tree:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` leads back to itself: remove the circle")
    value, places = parse(text_of(path), lambda line: f"{path}:{line}")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no mapping: write `key: value` lines")
    bases = value.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{places[('base',)]}: base: names no files: write the path of a YAML file, or a list of them"
        )
    below = Tree({}, {})
    for base in bases:
        below = merged(model, below, _read(model, path.parent / base, (*seen, path.resolve())))
    return merged(model, below, Tree(value, places))


def merged(model: type[BaseModel], low: Tree, high: Tree) -> Tree:
    """`high` laid over `low`."""
    replaced: list[At] = []

    def over(low: dict, high: dict, at: At) -> dict:
        out = dict(low)
        for key, value in high.items():
            here, below = (*at, key), out.get(key)
            sections = isinstance(value, dict) and isinstance(below, dict)
            kind = union_key(model, here) if sections else None
            if kind and value.get(kind, below.get(kind)) != below.get(kind):
                sections = False
            if not sections:
                replaced.append(here)
            out[key] = over(below, value, here) if sections else value
        return out

    value = over(low.value, high.value, ())
    kept = low.places
    for gone in replaced:
        kept = _without(kept, gone)
    return Tree(value, kept | high.places)


def _override(model: type[BaseModel], tree: Tree, item: str) -> Tree:
    place = f"override {item!r}"
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"{place} is not of the form a.b=c: write for example training.steps=2")
    value, places = parse(text, lambda _: place)
    *above, last = key.split(".")
    out = node = dict(tree.value)
    for part in above:
        section = {} if node.get(part) is None else node[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{place}: {part!r} is a value, not a section: drop what follows it")
        node[part] = node = dict(section)
    gone: At = (*above, last)
    if last in ("name", "kind") and node.get(last, value) != value and last == union_key(model, above):
        node.clear()
        gone = tuple(above)
    node[last] = value
    sections = {(*above, last)[:n]: place for n in range(1, len(above) + 2)}
    below = {(*above, last, *at): place for at in places}
    return Tree(out, sections | _without(tree.places, gone) | {gone: place} | below)


def _without(places: dict[At, str], gone: At) -> dict[At, str]:
    return {at: place for at, place in places.items() if at[: len(gone)] != gone}

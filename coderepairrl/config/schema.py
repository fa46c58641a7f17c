"""What a configuration's classes look like: which classes and which keys there are at a place."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """All classes of an annotation: of a union, of the entries of a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in models_in(inner)]


def discriminator(field: FieldInfo) -> str | None:
    """The key that tells a field's classes apart: it has one text in each of them. None where there are not several."""
    return key_of_kinds(models_in(field.annotation))


def key_of_kinds(models: list[type[BaseModel]]) -> str | None:
    common = [key for key in (models[0].model_fields if models else ()) if all(kind_of(model, key) for model in models)]
    return common[0] if len(models) > 1 and common else None


def kind_of(model: type[BaseModel], key: str) -> str | None:
    """The only text that the key can have."""
    allowed = getattr(model.model_fields[key].annotation, "__args__", ()) if key in model.model_fields else ()
    return allowed[0] if len(allowed) == 1 and isinstance(allowed[0], str) else None


def union_key(model: type[BaseModel], at: Sequence[str | int]) -> str | None:
    """The key that tells apart the classes of which one stands there, `name` or `kind`; None where there is one."""
    fields = [m.model_fields[at[-1]] for m in models_at(model, at[:-1]) if at[-1] in m.model_fields] if at else []
    return next((key for field in fields if (key := discriminator(field)) in ("name", "kind")), None)


def models_at(model: type[BaseModel], at: Sequence[str | int]) -> list[type[BaseModel]]:
    """Classes at pydantic's location `at`: keys, indices, keys of mappings, and names or tags of a union's classes."""
    models = [model]
    for part in at:
        below = [
            found for m in models if part in m.model_fields for found in models_in(m.model_fields[part].annotation)
        ]
        named = [m for m in models if part == m.__name__ or any(part == kind_of(m, key) for key in m.model_fields)]
        models = below or named or models
    return models


def fields_at(model: type[BaseModel], at: Sequence[str | int]) -> list[str]:
    return list(dict.fromkeys(name for m in models_at(model, at) for name in m.model_fields))

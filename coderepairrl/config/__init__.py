"""YAML + `a.b=c` -> a pydantic model. Unknown keys are errors that name the nearest key; the resolved copy is saved.

    config = load(TrainConfig, "configs/quickstart.yaml", ["training.steps=2"])
    dump(config, run_folder / "config.yaml")

yaml_core.py reads YAML, composition.py lays bases and overrides over each other, mistakes.py says what is wrong and
where,
help.py prints every key of a class. A class says beside each field what it is, in one line, and what numbers it takes.
A
validator of a whole class begins its message with the key: "training.steps: ...".
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from coderepairrl.config import composition, yaml_core
from coderepairrl.config.mistakes import explain
from coderepairrl.errors import ConfigError
from coderepairrl.files import whole

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _strict(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("bool", "int", "float", "str"):
            schema["strict"] = True
        schema = [part for key, part in schema.items() if key != "default"]
    for part in schema if isinstance(schema, list | tuple) else ():
        _strict(part)


class Config(BaseModel):
    """Base of every configuration class: unknown keys are refused, values are immutable; a text is no number, a number
    no truth value, NaN and infinity are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _strict(schema)  # pydantic's own strictness would refuse a list for a tuple, too
        return schema


Model = TypeVar("Model", bound=Config)


def load(model: type[Model], path: str | Path, overrides: list[str] = ()) -> Model:
    """Raises ConfigError: one line of place (file and line, or override), cause and remedy."""
    tree = composition.compose(model, Path(path), overrides)
    try:
        return model.model_validate(tree.value)
    except ValidationError as error:
        raise ConfigError(explain(model, error, tree, str(path))) from error


def dump(config: BaseModel, path: Path) -> None:
    """Writes the resolved configuration, under a temporary name first."""
    with whole(path) as temporary:
        temporary.write_text(yaml_core.dump(config.model_dump()), encoding="utf-8")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as load() would read it, without a class; ConfigError."""
    return yaml_core.parse(composition.text_of(path), lambda line: f"{path}:{line}")[0]

"""Shared by several tests: test_config.py and others."""

from typing import Literal, Optional

import pytest
from pydantic import Field

from coderepairrl.config import Config, load
from coderepairrl.errors import ConfigError


class Leaf(Config):
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    word: Literal["red", "blue"] = "red"


class Cat(Config):
    kind: Literal["cat"] = "cat"
    whiskers: int = 12


class Dog(Config):
    kind: Literal["dog"] = "dog"
    barks: bool = True


class Tree(Config):
    name: str
    steps: int = Field(3, gt=0)
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}
    maybe: Leaf | None = None
    maybe_leaves: Optional[list[Leaf]] = None
    either: Leaf | Cat = Cat()
    animal: Cat | Dog = Field(Cat(), discriminator="kind")
    weights: dict[str, float] = {}


def refusal(path, *overrides, model=Tree):
    """The message of the ConfigError, which must be one line and name the file or the override."""
    with pytest.raises(ConfigError) as caught:
        load(model, path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or any(override in message for override in overrides)
    return message

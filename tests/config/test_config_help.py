"""--help says all that can be set, from one source, and so does docs/configuration.md; every number that can be set has
bounds."""

import importlib
import re
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, PositiveInt

from coderepairrl.config import Config, help
from coderepairrl.config.notes import descriptions
from coderepairrl.config.schema import kind_of, models_in

ROOT = Path(__file__).resolve().parents[2]
ANY_NUMBER = {"min_reward", "weights"}  # of which a negative one means something


@pytest.fixture(scope="module")
def programs():
    return help.programs()


def reached(models):
    found = dict.fromkeys(models)
    while True:
        more = [
            below
            for model in found
            for field in model.model_fields.values()
            for below in models_in(field.annotation)
            if below not in found
        ]
        if not more:
            return list(found)
        found |= dict.fromkeys(more)


@pytest.fixture(scope="module")
def classes(programs):
    return reached(model for models in programs.values() for model in models)


def test_every_key_has_a_line_that_says_what_it_is(classes):
    assert not [
        f"{model.__name__}.{name}"
        for model in classes
        for name, said in descriptions(model).items()
        if not said and not kind_of(model, name)
    ]


def unbounded(annotation, metadata=()):
    """Whether a number stands in it without a bound."""
    if annotation in (int, float):
        return not any(isinstance(found, Ge | Gt | Le | Lt) for found in metadata)
    if getattr(annotation, "__metadata__", None):
        own = [part for found in annotation.__metadata__ for part in getattr(found, "metadata", [found])]
        return unbounded(annotation.__origin__, own)
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return any(unbounded(one, metadata if NoneType in inner else ()) for one in inner)


def test_every_number_has_a_bound(classes):
    assert not [
        f"{model.__name__}.{name}"
        for model in classes
        for name, field in model.model_fields.items()
        if name not in ANY_NUMBER
        and unbounded(field.annotation, field.metadata)
        and field.annotation != dict[str, str | int | bool]
    ]


def test_every_program_that_reads_a_configuration_says_so(programs):
    named = {
        str(path.relative_to(ROOT))
        for folder in ("scripts", "slurm", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
        if re.search(r"^def main\(arguments", path.read_text(), re.MULTILINE)
    }
    assert named == set(programs)


def test_help_prints_the_docstring_and_every_key(programs, capsys):
    for path, models in programs.items():
        module = importlib.import_module(Path(path).stem)
        module.main(["--help"])
        out = capsys.readouterr().out
        assert out.startswith(module.__doc__.strip()), path
        for model in models:
            assert all(f"\n{name}: " in out for name in model.model_fields), path
    module = importlib.import_module("train_grpo")
    module.main(["x.yaml", "-h"])
    out = capsys.readouterr().out
    for line in (
        "training.steps: int > 0 [steps] (required)",
        "rollout.limits.deadline_s: float > 0 or null [s] = null",
        "rollout.scaffold of name: aider",
        "rollout.scaffold.map_tokens: int >= 0 [tokens] = 1024",
        "engine.betas: [float in [0, 1), float in [0, 1)] = [0.9, 0.95]",
    ):
        assert f"\n{line}" in out, line
    assert max(map(len, out.splitlines())) <= 130


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "configuration.md").read_text() == help.page(), (
        "python -m coderepairrl.config.help > docs/configuration.md"
    )


class Leaf(Config):
    """A leaf."""

    area_mib: PositiveInt = 3  # how large,
    # seen from above
    width_s: PositiveInt = 1  # and how wide


class Cat(Config):
    """A cat."""

    name: Literal["cat"] = "cat"
    # how many
    # it has
    whiskers: Annotated[int, Field(ge=0, le=12)] = 7


class Dog(Config):
    """A dog."""

    name: Literal["dog"] = "dog"
    barks: bool = False


class Tree(Config):
    leaves: list[Leaf] = []  # on it

    # never said: not beside it

    pet: Cat | Dog = Field(Cat(whiskers=2), discriminator="name")  # under it
    bare: str


def test_the_text_is_made_of_comments_bounds_and_defaults():
    assert list(help.lines(Tree)) == [
        "bare: text (required)",
        "",
        "leaves: list of section = []",
        "    on it",
        "leaves.N.area_mib: int > 0 [MiB] = 3",
        "    how large, seen from above",
        "leaves.N.width_s: int > 0 [s] = 1",
        "    and how wide",
        "",
        "pet: section, name: cat | dog",
        "    under it",
        "",
        "pet of name: cat (the default)",
        "    A cat.",
        "pet.whiskers: int in [0, 12] = 2",
        "    how many it has",
        "",
        "pet of name: dog",
        "    A dog.",
        "pet.barks: true | false = false",
    ]
    assert descriptions(Tree)["bare"] == "" and descriptions(Dog)["barks"] == ""

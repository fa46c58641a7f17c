"""Aider's polyglot benchmark: Exercism's harder exercises. https://github.com/Aider-AI/polyglot-benchmark (Exercism's
terms).

    tasks: {name: polyglot, source: data/polyglot-benchmark}

`.meta/config.json` of an exercise names the files that are to be written, its tests and the example, which is the
oracle and in no checkout. Which tests must pass is measured by scripts/prepare_tasks.py (docs/benchmarks.md).
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.errors import TaskError
from coderepairrl.tasks import programs
from coderepairrl.types import Task

URL = "https://github.com/Aider-AI/polyglot-benchmark"
WORDS = ("introduction.md", "instructions.md", "instructions.append.md")


class PolyglotConfig(Config):
    """Aider's polyglot benchmark, the exercises in Python."""

    name: Literal["polyglot"] = "polyglot"
    source: str  # folder of a clone of its repository
    test_timeout_s: PositiveFloat = 60.0  # of an exercise's tests, all together
    cache: str | None = None  # folder of the environments; null: $XDG_CACHE_HOME/coderepairrl


def load(config: PolyglotConfig) -> dict[str, list[Task]]:
    """Raises TaskError."""
    folder = programs.folder_of(config.source, "python/exercises/practice", URL)
    place = programs.environment("polyglot", (), config.cache, config.test_timeout_s)
    exercises = sorted(folder.glob("python/exercises/practice/*/.meta/config.json"))
    return {"train": [], "heldout": [to_task(path.parent.parent, place) for path in exercises]}


def to_task(folder: Path, place: programs.Environment) -> Task:
    named = json.loads(programs.text_of(folder / ".meta/config.json"))["files"]
    solutions, tests, examples = named["solution"], named["test"], named["example"]
    if len(solutions) != len(examples):
        raise TaskError(f"{folder}: {len(solutions)} files are to be written, {len(examples)} are the example")
    words = [programs.text_of(folder / ".docs" / name) for name in WORDS if (folder / ".docs" / name).exists()]
    return programs.task(
        f"polyglot-python-{folder.name}",
        "\n\n".join([*words, f"Write {', '.join(solutions)}: names and signatures stay as they are there."]),
        place,
        files={path: programs.text_of(folder / path) for path in solutions},
        repaired={at: programs.text_of(folder / path) for at, path in zip(solutions, examples, strict=True)},
        hidden={path: programs.text_of(folder / path) for path in [*tests, *named.get("editor", [])]},
        selection=tuple(tests),
        metadata={"repo": "Aider-AI/polyglot-benchmark", "language": "python"},
    )

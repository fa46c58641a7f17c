"""Tasks as lines of JSON: the user's own, and what scripts/prepare_tasks.py admits. docs/tasks.md describes every
field.

    tasks: {name: jsonl, train: data/train.jsonl, heldout: data/eval.jsonl}

A row is a Task, field by field. Missing fields take the defaults of DEFAULTS and of types.py; an unknown field is an
error.
"""

import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, TypeAdapter, ValidationError

from coderepairrl.config import Config
from coderepairrl.errors import TaskError
from coderepairrl.files import from_json, json_lines, write_jsonl
from coderepairrl.tasks.pytest_options import OPTIONS
from coderepairrl.tasks.refusals import check, check_place, check_texts, refuse
from coderepairrl.types import Environment, Recipe, Task

PYTEST = ("{python}", "-m", "pytest", *OPTIONS, "--rootdir=.", "{tests}", "{canary_path}")
DEFAULTS = {"files": {}, "hidden_tests": {}, "test_selection": (), "pass_to_pass": (), "oracle_patch": ""}
ENVIRONMENT_DEFAULTS = {"name": "", "base": None, "python": "", "test_command": PYTEST}
_TASK = TypeAdapter(Task)


class JsonlConfig(Config):
    """Prepared tasks, as scripts/prepare_tasks.py writes them."""

    name: Literal["jsonl"] = "jsonl"
    train: str | None = None  # path of a file; null: none
    heldout: str | None = None  # path of a file; null: none
    limit: PositiveInt = 1_000_000  # tasks of each split


def load(config: JsonlConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """Environments not built. Raises TaskError, unless rows may be `refused`."""
    paths = {"train": config.train, "heldout": config.heldout}
    if not any(paths.values()):
        raise TaskError("tasks: neither `train` nor `heldout` names a file: give the path of at least one")
    checks = (check, check_place)
    return {
        split: [
            replace(task, metadata=task.metadata | {"split": split})
            for task in usable(Path(path), refused, checks)[: config.limit]
        ]
        if path
        else []
        for split, path in paths.items()
    }


def usable(
    path: Path, refused: list[str] | None = None, checks: tuple[Callable[[Task, str], None], ...] = (check,)
) -> list[Task]:
    """Of what `read` finds the tasks that pass these checks. Raises TaskError, unless rows may be `refused`."""
    tasks = []
    for task in read(path, refused):
        try:
            for passes in checks:
                passes(task, f"{path.name}, {task.task_id}")
            tasks.append(task)
        except TaskError as error:
            refuse(error, refused)
    return tasks


def read(path: Path, refused: list[str] | None = None) -> list[Task]:
    """As they are written, environments not built. Raises TaskError naming line, task and field, unless rows may be
    `refused`."""
    try:
        lines = json_lines(path)
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}: give the path of a JSONL file of tasks") from error
    tasks: dict[str, Task] = {}
    for number, line in lines:
        try:
            task = _of_line(line, f"{path.name}, line {number}", path.parent)
            if task.task_id in tasks:
                raise TaskError(
                    f"{path.name}, line {number}, {task.task_id}, field task_id: occurs twice: give each task its own"
                )
            tasks[task.task_id] = task
        except TaskError as error:
            refuse(error, refused)
    return list(tasks.values())


def _of_line(line: bytes, where: str, folder: Path) -> Task:
    try:
        row = from_json(line)
    except ValueError as error:
        raise TaskError(f"{where}: {error}") from error
    task = from_row(row, where, folder)
    check_texts(task, f"{where}, {task.task_id}")
    return task


def write(path: Path, tasks: list[Task]) -> None:
    write_jsonl(path, map(to_row, tasks))


def to_row(task: Task) -> dict[str, Any]:
    """What differs from the defaults; from_row(to_row(task)) == task, but for an interpreter that was left to
    default."""
    return _short(asdict(task), Task, DEFAULTS) | {
        "environment": _short(asdict(task.environment), Environment, ENVIRONMENT_DEFAULTS)
        | ({"recipe": _short(asdict(task.environment.recipe), Recipe, {})} if task.environment.recipe else {})
    }


def from_row(row: Any, where: str, folder: Path) -> Task:
    """`folder`: what a relative environment.base is relative to."""
    if not isinstance(row, dict):
        raise TaskError(f"{where}: {type(row).__name__} where an object is expected: write one object a line")
    where = f"{where}, {row.get('task_id', 'no task_id')}"
    environment = row.get("environment", {})
    _known(where, "", row, Task)
    _known(where, "environment.", environment, Environment)
    _known(where, "environment.recipe.", environment.get("recipe") or {}, Recipe)
    place = ENVIRONMENT_DEFAULTS | environment
    if not any(place.get(field) for field in ("python", "recipe", "image", "tools")):
        place["python"] = sys.executable
    if place["base"]:
        place["base"] = str((folder / place["base"]).resolve())
    try:
        return _TASK.validate_python(DEFAULTS | row | {"environment": place})
    except ValidationError as error:
        first = error.errors()[0]
        raise TaskError(
            f"{where}, field {'.'.join(map(str, first['loc']))}: {first['msg']}: see docs/tasks.md"
        ) from error


def _known(where: str, prefix: str, row: Any, kind: type) -> None:
    if not isinstance(row, dict):
        raise TaskError(
            f"{where}, field {prefix.rstrip('.')}: {type(row).__name__} where an object is expected: see docs/tasks.md"
        )
    unknown = sorted(set(row) - {field.name for field in fields(kind)})
    if unknown:
        raise TaskError(f"{where}, field {prefix}{unknown[0]}: unknown: see docs/tasks.md for the fields there are")


def _short(row: dict[str, Any], kind: type, defaults: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that have their default."""
    own = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(kind)
    } | defaults
    return {name: value for name, value in row.items() if value != own[name]}

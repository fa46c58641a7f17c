"""Rows that cannot be used: which they are, and what becomes of the others.

A task set is loaded by `load_tasks(config, refused)`. Without `refused` the first wrong row is an error; with it each
is left out and
noted there, in one line, and the others are loaded: programs count and name them, and their exit code says so.
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coderepairrl.errors import TaskError
from coderepairrl.grading import log_parsers
from coderepairrl.types import Task


def refuse(error: TaskError, refused: list[str] | None) -> None:
    if refused is None:
        raise error
    refused.append(str(error))


def check_texts(task: Task, where: str) -> None:
    """Raises TaskError for a text that no file, tokenizer or terminal takes; it names the field."""
    for field, text in _texts(asdict(task)):
        if half := next((letter for letter in text if "\ud800" <= letter <= "\udfff"), ""):
            where = where.encode(errors="backslashreplace").decode()
            raise TaskError(
                f"{where}, field {field}: holds {ascii(half)}, half of a character (a lone surrogate): "
                "write the row again"
            )


def check(task: Task, where: str) -> None:
    """What a task must hold to be judged, wherever it comes from. Raises TaskError that names the field."""
    check_texts(task, where)
    if not task.fail_to_pass:
        raise TaskError(
            f"{where}, field fail_to_pass: empty: nothing would show that the bug is repaired: "
            "name a test, or leave the row out"
        )
    parser = task.environment.log_parser
    if parser is not None and (problem := log_parsers.problem(parser, task.task_id, task.metadata.get("version", ""))):
        raise TaskError(f"{where}, field log_parser: {problem}: correct the row or leave it out")


def check_place(task: Task, where: str) -> None:
    """Raises TaskError where the checkout or the interpreter is not on this machine."""
    base, python = task.environment.base, task.environment.python
    if base is not None and not Path(base).is_dir():
        raise TaskError(
            f"{where}, field environment.base: folder {base} does not exist: correct the path, "
            "or prepare the environment first"
        )
    if python and not task.environment.image and shutil.which(python) is None:
        raise TaskError(
            f"{where}, field environment.python: {python} is no program of this machine: "
            "give the absolute path of a Python 3 interpreter"
        )


def _texts(value: Any, field: str = "") -> Iterable[tuple[str, str]]:
    """(name of the field, text) of all texts in it; keys are texts, too."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield field, key
            yield from _texts(item, f"{field}.{key}" if field == "environment" else field or key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, field)

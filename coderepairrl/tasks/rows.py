"""Reading the rows of a data set: a file (parquet, JSON, JSONL) or a name on the Hugging Face hub, and the checked
fields of one row.

Published rows differ in how they write lists (a list, JSON in a string, Python in a string) and in which columns they
have.
What cannot be used is refused with the row's id and the field's name.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from coderepairrl.config import Config
from coderepairrl.errors import TaskError
from coderepairrl.files import from_json, json_lines
from coderepairrl.lines import one_line
from coderepairrl.tasks.refusals import check, refuse
from coderepairrl.types import Task


class RowsConfig(Config):
    """What the loaders of published data sets share."""

    source: str  # path of a .parquet, .json, .jsonl or .jsonl.gz file, or a name on the Hugging Face hub
    split: str = "test"  # of a hub data set; a file has one
    use: Literal["train", "heldout"] = "heldout"  # what its tasks are for
    environments: Literal["recipes", "images"] = "recipes"  # images: the row's container image
    only: tuple[str, ...] = ()  # these ids, or all
    limit: PositiveInt = 1_000_000  # at most so many tasks, the first ones
    test_timeout_s: PositiveFloat = 1800.0  # of a task's tests, all together
    skip_unusable: bool = False  # leave out, and report, rows that are refused; false: the first one is an error


class Row:
    """One row; `Row.text` and `Row.tests` raise TaskError that names it."""

    def __init__(self, fields: dict[str, Any], source: str, id_field: str = "instance_id"):
        self.fields, self.source = fields, source
        self.id = str(fields.get(id_field) or "") or f"row without {id_field}"
        if id_field not in fields:
            self.refuse(id_field, f"missing; there are {', '.join(sorted(fields))}")

    def refuse(self, field: str, cause: str) -> None:
        raise TaskError(
            f"{self.source}, {self.id}, field {field}: {cause}: correct the row or leave it out (`skip_unusable: true`)"
        )

    def text(self, field: str, default: str | None = None) -> str:
        """A string; an absent or null one is `default`, and refused without a default."""
        value = self.fields.get(field)
        if value is None:
            if default is None:
                self.refuse(field, "missing")
            return default
        if not isinstance(value, str):
            self.refuse(field, f"{type(value).__name__} where a string is expected")
        return value

    def tests(self, field: str) -> tuple[str, ...]:
        """Ids of tests, in order, each once."""
        value = self.fields.get(field)
        if isinstance(value, str):
            value = self._list(field, value)
        if not isinstance(value, list | tuple):
            self.refuse(
                field, "missing" if value is None else f"{type(value).__name__} where a list of test ids is expected"
            )
        if not all(isinstance(test, str) and test.strip() for test in value):
            self.refuse(field, "holds something that is no test id")
        return tuple(dict.fromkeys(value))

    def required_tests(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """FAIL_TO_PASS, which must not be empty, and PASS_TO_PASS."""
        to_pass, to_keep = self.tests("FAIL_TO_PASS"), self.tests("PASS_TO_PASS")
        if not to_pass:
            self.refuse("FAIL_TO_PASS", "empty: nothing would show that the bug is repaired")
        return to_pass, to_keep

    def mapping(self, field: str) -> dict[str, Any]:
        """JSON of an object."""
        value = self.fields.get(field)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                self.refuse(field, f"not JSON ({error})")
        if not isinstance(value, dict):
            self.refuse(field, "missing" if value is None else f"{type(value).__name__} where an object is expected")
        return value

    def date(self, field: str) -> str:
        """ISO 8601 in UTC, such as 2024-02-19T20:29:03Z; empty when the row has none."""
        value = self.fields.get(field)
        found = (
            re.match(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(Z|\+00:00)?)?$", str(value).strip())
            if value
            else None
        )
        if value and not found:
            self.refuse(field, f"{value!r} is no date")
        return f"{found[1]}T{found[2] or '00:00:00'}Z" if found else ""

    def _list(self, field: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # some mirrors write Python's repr instead
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval may raise
            self.refuse(field, f"neither a JSON nor a Python list: {text[:60]!r}")


def read_rows(source: str, split: str, refused: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows as they are. Raises TaskError; of JSONL, lines may be `refused` instead."""
    path = Path(source)
    if not path.name.endswith((".parquet", ".json", ".jsonl", ".jsonl.gz")):
        yield from _from_hub(source, split)
        return
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # imported late: training on other tasks needs none of it

            yield from pyarrow.parquet.ParquetFile(path).read().to_pylist()
        else:
            yield from _objects(path, refused)
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise TaskError(
            f"{source}: {error}: give the path of a readable .parquet, .json, .jsonl or .jsonl.gz file"
        ) from error


def _objects(path: Path, refused: list[str] | None) -> Iterator[dict[str, Any]]:
    """JSON: a list of rows, or a mapping from id to row. JSONL: a row a line."""
    lines = path.name.endswith((".jsonl", ".jsonl.gz"))
    for number, data in json_lines(path) if lines else [(0, path.read_bytes())]:
        try:
            tree = from_json(data)
        except ValueError as error:
            refuse(TaskError(f"{path}{f', line {number}' if lines else ''}: {error}"), refused)
            continue
        rows = [tree]
        if not lines and isinstance(tree, dict | list):
            rows = list(tree.values()) if isinstance(tree, dict) else tree
        for place, row in enumerate(rows, max(1, number)):
            if isinstance(row, dict):
                yield row
            else:
                refuse(
                    TaskError(
                        f"{path}, row {place}: {type(row).__name__} where an object is expected: write the file again"
                    ),
                    refused,
                )


def _from_hub(name: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        cause = one_line(error)[:300]
        raise TaskError(
            f"data set {name!r}, split {split!r}: {cause}: give the path of a downloaded file, or a name and split "
            "that the hub has"
        ) from error
    yield from rows


def load_rows(
    config: RowsConfig,
    to_task: Callable[[Row, Any], Task],
    refused: list[str] | None = None,
    lacking: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: {},
) -> dict[str, list[Task]]:
    """The tasks of one split, in the file's order. `lacking`: values of columns that the data set may lack, from a
    row's others."""
    tasks: dict[str, Task] = {}
    left_out: list[str] = []
    refused = left_out if config.skip_unusable else refused
    for fields in read_rows(config.source, config.split, refused):
        if len(tasks) >= config.limit:
            break
        fields = lacking(fields) | fields
        if config.only and fields.get("instance_id") not in config.only:
            continue
        try:
            task = to_task(Row(fields, config.source), config)
            if task.task_id in tasks:
                raise TaskError(f"{config.source}, {task.task_id}, field instance_id: occurs twice: leave one out")
            check(task, f"{config.source}, {task.task_id}")
            tasks[task.task_id] = task
        except TaskError as error:
            refuse(error, refused)
    for line in left_out:
        print(f"left out: {line}")
    missing = set(config.only) - set(tasks)
    if missing and not refused:
        raise TaskError(f"only: {', '.join(sorted(missing)[:5])} not in {config.source}: choose ids that it holds")
    return {"train": [], "heldout": [], config.use: list(tasks.values())}

"""HumanEval and HumanEval+: 164 functions to be written from their descriptions. https://arxiv.org/abs/2107.03374 and
https://arxiv.org/abs/2305.01210 (both MIT).

    tasks: {name: humaneval, source: data/HumanEvalPlus-OriginFmt.jsonl.gz}

The rows are those of OpenAI's file, and of EvalPlus's in its original format, whose tests stand by themselves.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import PositiveFloat

from coderepairrl.tasks import programs
from coderepairrl.tasks.rows import Row, RowsConfig, load_rows
from coderepairrl.types import Environment, Task

FILE, TEST = "solution.py", "test_solution.py"


class FunctionRowsConfig(RowsConfig):
    """Rows of functions that are to be written, whose tests need numpy."""

    test_timeout_s: PositiveFloat = 60.0  # of a task's tests, all together
    cache: str | None = None  # folder of the environments; null: $XDG_CACHE_HOME/coderepairrl


class HumanEvalConfig(FunctionRowsConfig):
    """HumanEval, HumanEval+: a function from its description."""

    name: Literal["humaneval"] = "humaneval"


def load(config: HumanEvalConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """Raises TaskError, unless rows may be `refused`."""
    return load_functions("humaneval", config, to_task, refused)


def load_functions(
    name: str, config: FunctionRowsConfig, to_task: Callable[[Row, Environment], Task], refused: list[str] | None
) -> dict[str, list[Task]]:
    """The tasks that `to_task` makes of the rows, in an environment of this name. Raises TaskError, unless rows may be
    `refused`."""
    place = programs.environment(name, ("numpy",), config.cache, config.test_timeout_s)
    return load_rows(config, lambda row, _: to_task(row, place), refused, named)


def named(fields: dict[str, Any]) -> dict[str, Any]:
    return {"instance_id": str(fields.get("task_id", ""))}


def to_task(row: Row, place: Environment) -> Task:
    prompt, name = row.text("prompt"), row.text("entry_point")
    test = f"from solution import {name}\n{row.text('test')}\n\ndef test_{name}():\n    check({name})\n"
    return programs.task(
        row.id,
        f"Write the function `{name}` of {FILE} as its description says.",
        place,
        files={FILE: prompt},
        repaired={FILE: prompt + row.text("canonical_solution")},
        hidden={TEST: test},
        selection=(TEST,),
        fail_to_pass=(f"{TEST}::test_{name}",),
        metadata={"benchmark": "humaneval"},
    )

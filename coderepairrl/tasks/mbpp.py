"""MBPP+: 378 short functions to be written from a sentence and an example. https://arxiv.org/abs/2108.07732 (CC BY 4.0)
and https://arxiv.org/abs/2305.01210.

    tasks: {name: mbpp, source: data/MbppPlus-OriginFmt.jsonl.gz}

The rows are those of EvalPlus in its original format: a program that tests the function, which becomes one test.
"""

from typing import Literal

from coderepairrl.tasks import programs
from coderepairrl.tasks.humaneval import FILE, TEST, FunctionRowsConfig, load_functions
from coderepairrl.tasks.rows import Row
from coderepairrl.types import Environment, Task

INPUTS = "inputs = "  # with which the part of the test program begins that calls the function


class MbppConfig(FunctionRowsConfig):
    """MBPP+: a function from a sentence and an example."""

    name: Literal["mbpp"] = "mbpp"


def load(config: MbppConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """Raises TaskError, unless rows may be `refused`."""
    return load_functions("mbpp", config, to_task, refused)


def to_task(row: Row, place: Environment) -> Task:
    examples = row.tests("test_list")
    return programs.task(
        f"Mbpp/{row.id}",
        f"{row.text('prompt')}\n\nWrite it in {FILE}. An example:\n{examples[0]}",
        place,
        files={FILE: ""},
        repaired={FILE: row.text("code").lstrip("\n")},
        hidden={TEST: as_test(row)},
        selection=(TEST,),
        fail_to_pass=(f"{TEST}::test_examples",),
        metadata={"benchmark": "mbpp"},
    )


def as_test(row: Row) -> str:
    """The program, whose calls become the body of a test. It takes the function from the file by its own words."""
    lines = row.text("test").split("\n")
    begin = next((number for number, line in enumerate(lines) if line.startswith(INPUTS)), None)
    if begin is None:
        row.refuse("test", f"no line begins with {INPUTS.strip()!r}")
    body = "\n".join(f"    {line}" if line else line for line in lines[begin:])
    return "\n".join(["from solution import *", *lines[:begin], "def test_examples():", body.rstrip(), ""])

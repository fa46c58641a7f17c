"""Benchmarks of single programs: read in the form in which they are published, judged by their own tests, the known
answer in no checkout."""

import asyncio
import gzip
import json

import pytest
from sandbox_helpers import sandbox_config

from coderepairrl.errors import TaskError
from coderepairrl.rewards import grade
from coderepairrl.tasks import HumanEvalConfig, MbppConfig, PolyglotConfig, QuixBugsConfig, load_tasks

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(n: int) -> int:\n    """ Twice n.\n    >>> double(2)\n    4\n    """\n',
    "canonical_solution": "    return 2 * n\n",
    "entry_point": "double",
    "test": "\n\ndef check(candidate):\n    inputs = [[1], [5]]\n    results = [2, 10]\n"
    "    for inp, exp in zip(inputs, results):\n        assert candidate(*inp) == exp\n",
}
MBPP = {
    "task_id": 2,
    "code": "\ndef triple(n):\n  return 3 * n\n",
    "prompt": "Write a function that gives three times n.",
    "test_list": ["assert triple(2) == 6"],
    "test": "import math\n\ndef same(out, exp):\n    assert out == exp\n\n"
    "inputs = [[1], [5]]\nresults = [3, 15]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    same(triple(*inp), exp)\n",
}


@pytest.fixture
def quixbugs(tmp_path):
    """A clone of two programs: one whose cases are JSON, one with nodes."""
    texts = {
        "conftest.py": "import pytest\n\n\ndef pytest_configure(config):\n    pytest.use_correct = False\n",
        "python_testcases/load_testdata.py": "import json\nfrom pathlib import Path\n\n\n"
        "def load_json_testcases(name):\n"
        "    path = Path(__file__).parent / f'../json_testcases/{name}.json'\n"
        "    return [json.loads(line) for line in path.read_text().splitlines()]\n",
        "json_testcases/inc.json": "[[1], 2]\n[[7], 8]\n",
        "python_programs/inc.py": "def inc(n):\n    return n + 2\n",
        "correct_python_programs/inc.py": "def inc(n):\n    return n + 1\n",
        "python_testcases/test_inc.py": "import pytest\nfrom load_testdata import load_json_testcases\n"
        "from python_programs.inc import inc\n\n\n"
        "@pytest.mark.parametrize('given,expected', load_json_testcases('inc'))\n"
        "def test_inc(given, expected):\n    assert inc(*given) == expected\n",
        "python_programs/node.py": "class Node:\n    def __init__(self, value):\n        self.value = value\n",
        "python_testcases/node.py": "class Node:\n    def __init__(self, value):\n        self.value = value\n",
        "python_programs/value.py": "def value(node):\n    return -node.value\n",
        "correct_python_programs/value.py": "def value(node):\n    return node.value\n",
        "python_testcases/test_value.py": "from node import Node\nfrom python_programs.value import value\n\n\n"
        "def test_zero():\n    assert value(Node(0)) == 0\n\n\ndef test_value():\n    assert value(Node(3)) == 3\n",
    }
    for path, text in texts.items():
        (tmp_path / "QuixBugs" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "QuixBugs" / path).write_text(text)
    return tmp_path / "QuixBugs"


@pytest.fixture
def polyglot(tmp_path):
    folder = tmp_path / "polyglot" / "python/exercises/practice/leap"
    (folder / ".meta").mkdir(parents=True)
    (folder / ".docs").mkdir()
    files = {"solution": ["leap.py"], "test": ["leap_test.py"], "example": [".meta/example.py"]}
    (folder / ".meta/config.json").write_text(json.dumps({"files": files}))
    (folder / ".meta/example.py").write_text("def leap(year):\n    return year % 4 == 0\n")
    (folder / ".docs/instructions.md").write_text("# Instructions\n\nSay whether it is a leap year.")
    (folder / "leap.py").write_text("def leap(year):\n    pass\n")
    (folder / "leap_test.py").write_text(
        "import unittest\nfrom leap import leap\n\n\nclass LeapTest(unittest.TestCase):\n"
        "    def test_four(self):\n        self.assertIs(leap(2024), True)\n\n"
        "    def test_odd(self):\n        self.assertIs(leap(2023), False)\n"
    )
    return tmp_path / "polyglot"


def judged(task, tmp_path):
    """(verdict of the known answer, of nothing)"""

    async def main():
        config = sandbox_config("bubblewrap", tmp_path)
        return await grade(task, task.oracle_patch, config), await grade(task, "", config)

    return asyncio.run(main())


@pytest.mark.parametrize("config, row", [(HumanEvalConfig, HUMANEVAL), (MbppConfig, MBPP)])
def test_a_function_from_its_description_is_judged_by_the_published_tests(tmp_path, config, row):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    (task,) = load_tasks(config(source=str(path)))["heldout"]
    gold, empty = judged(task, tmp_path)
    assert gold.resolved and not gold.tampered and not empty.resolved, (gold, empty)
    assert "return" not in str(task.files) and not task.pass_to_pass


def test_a_test_program_without_its_inputs_is_refused_by_name(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(MBPP | {"test": "assert triple(1) == 3"}))
    with pytest.raises(TaskError, match="field test: no line begins with 'inputs ='"):
        load_tasks(MbppConfig(source=str(path)))


def test_quixbugs_shows_the_program_alone(quixbugs):
    inc, value = load_tasks(QuixBugsConfig(source=str(quixbugs)))["heldout"]
    assert inc.task_id == "quixbugs-inc" and inc.files.keys() == {"python_programs/inc.py"}
    assert value.files.keys() == {"python_programs/value.py", "python_programs/node.py"}
    for task in (inc, value):
        assert not any("correct" in path or "test" in path for path in task.files)
    assert "json_testcases/inc.json" in inc.hidden_tests and "python_testcases/node.py" in value.hidden_tests


def test_an_exercise_shows_its_stub_and_instructions(polyglot):
    (task,) = load_tasks(PolyglotConfig(source=str(polyglot)))["heldout"]
    assert task.files == {"leap.py": "def leap(year):\n    pass\n"} and task.hidden_tests.keys() == {"leap_test.py"}
    assert "leap year" in task.problem_statement and "leap.py" in task.problem_statement


@pytest.mark.parametrize("config", [QuixBugsConfig, PolyglotConfig])
def test_a_folder_that_is_no_clone_is_refused_with_its_address(tmp_path, config):
    with pytest.raises(TaskError, match="give the folder of a clone of https://github.com/"):
        load_tasks(config(source=str(tmp_path)))

"""QuixBugs in Java: the 40 programs of quixbugs.py, with JUnit tests. https://github.com/jkoppel/QuixBugs (MIT), Ye et
al. 2018 (https://arxiv.org/abs/1805.03454) for the tests.

    tasks: {name: quixbugs_java, source: data/QuixBugs}

What a program should do stands in the Python one only, so the problem statement quotes it. Its tests name no tests that
must pass: scripts/prepare_tasks.py measures them (docs/benchmarks.md).
"""

import ast
import re
from typing import Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.tasks import javac, programs
from coderepairrl.tasks.quixbugs import URL
from coderepairrl.types import Task

PROGRAMS, TESTS = "java_programs", "java_testcases/junit"
HELPERS = ("Node", "WeightedEdge")  # the lists and graphs of some programs
ORACLE_HELPER = "QuixFixOracleHelper"  # of some tests


class QuixBugsJavaConfig(Config):
    """QuixBugs, the programs in Java."""

    name: Literal["quixbugs_java"] = "quixbugs_java"
    source: str  # folder of a clone of its repository
    jdk: str = "17"  # version of the JDK, of environments.tools
    test_timeout_s: PositiveFloat = 120.0  # of a program's tests, all together; each has three seconds


def load(config: QuixBugsJavaConfig) -> dict[str, list[Task]]:
    """Raises TaskError."""
    folder = programs.folder_of(config.source, TESTS, URL)
    place = javac.environment(
        "quixbugs_java", config.jdk, (PROGRAMS,), protected=("java_testcases/",), timeout_s=config.test_timeout_s
    )
    tasks = []
    for test in sorted(folder.glob(f"{TESTS}/*_TEST.java")):
        name = test.stem.removesuffix("_TEST")
        path, source = f"{PROGRAMS}/{name}.java", programs.text_of(test)
        correct = programs.text_of(folder / f"correct_{path}").replace(f"correct_{PROGRAMS}", PROGRAMS)
        files = {path: programs.text_of(folder / path)}
        words = set(re.findall(r"\w+", source + correct))
        if words.intersection(HELPERS):
            files |= {f"{PROGRAMS}/{one}.java": programs.text_of(folder / PROGRAMS / f"{one}.java") for one in HELPERS}
        hidden = {f"{TESTS}/{test.name}": source}
        if ORACLE_HELPER in words:
            hidden[f"{TESTS}/{ORACLE_HELPER}.java"] = programs.text_of(folder / TESTS / f"{ORACLE_HELPER}.java")
        tasks.append(
            programs.task(
                f"quixbugs-java-{name.lower()}",
                f"{path} has a bug: for some inputs `{name.lower()}` does not do what it should. Repair it. "
                f"What it should do, in words that were written for the same program in Python:\n\n"
                + description(programs.text_of(folder / f"python_programs/{name.lower()}.py")),
                place,
                files=files,
                repaired={path: correct},
                hidden=hidden,
                selection=tuple(hidden),
                metadata={"repo": "jkoppel/QuixBugs", "program": name, "language": "java"},
            )
        )
    return {"train": [], "heldout": tasks}


def description(program: str) -> str:
    """The text below a Python program."""
    last = ast.parse(program).body[-1]
    value = last.value if isinstance(last, ast.Expr) else None
    return str(value.value).strip() if isinstance(value, ast.Constant) else ""

"""HumanEval-Java: 163 of HumanEval's functions in Java, with injected bugs and JUnit tests.
https://github.com/ASSERT-KTH/human-eval-java, Jiang et al. 2023 (https://arxiv.org/abs/2302.05020).

    tasks: {name: humaneval_java, source: data/human-eval-java}

Which tests must pass is measured by scripts/prepare_tasks.py (docs/benchmarks.md).
"""

from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.tasks import javac, programs
from coderepairrl.types import Task

URL = "https://github.com/ASSERT-KTH/human-eval-java"
SOURCES = "src/main/java"
BUGGY, CORRECT, TESTS = f"{SOURCES}/humaneval/buggy", f"{SOURCES}/humaneval/correct", "src/test/java/humaneval"


class HumanEvalJavaConfig(Config):
    """HumanEval-Java: a function of one file, repaired."""

    name: Literal["humaneval_java"] = "humaneval_java"
    source: str  # folder of a clone of its repository
    jdk: str = "17"  # version of the JDK, of environments.tools
    test_timeout_s: PositiveFloat = 120.0  # of a program's tests, all together; each has three seconds


def load(config: HumanEvalJavaConfig) -> dict[str, list[Task]]:
    """Raises TaskError."""
    folder = programs.folder_of(config.source, BUGGY, URL)
    place = javac.environment(
        "humaneval_java", config.jdk, (SOURCES,), protected=("src/test/",), timeout_s=config.test_timeout_s
    )
    names = sorted(path.stem for path in (folder / BUGGY).glob("*.java"))
    return {"train": [], "heldout": [to_task(folder, name, place) for name in names]}


def to_task(folder: Path, name: str, place: programs.Environment) -> Task:
    path, test = f"{BUGGY}/{name}.java", f"{TESTS}/TEST_{name}.java"
    correct = programs.text_of(folder / f"{CORRECT}/{name}.java")
    return programs.task(
        f"humaneval-java-{name.lower()}",
        f"{path} has a bug: for some inputs `{name.lower()}` does not do what its comment says. Repair it.",
        place,
        files={path: programs.text_of(folder / path)},
        repaired={path: correct.replace("package humaneval.correct;", "package humaneval.buggy;")},
        hidden={test: programs.text_of(folder / test)},
        selection=(test,),
        metadata={"repo": "ASSERT-KTH/human-eval-java", "program": name, "language": "java"},
    )

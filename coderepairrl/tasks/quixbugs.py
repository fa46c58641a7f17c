"""QuixBugs: 40 programs with one wrong line each. https://github.com/jkoppel/QuixBugs (MIT), Lin et al. 2017.

    tasks: {name: quixbugs, source: data/QuixBugs}

Its tests name no tests that must pass: scripts/prepare_tasks.py measures them (docs/benchmarks.md). The correct
programs are in no checkout. Programs loop when they are wrong, so a run without a repair may last until its time limit.
"""

from typing import Literal

from pydantic import PositiveFloat

from coderepairrl.config import Config
from coderepairrl.tasks import programs
from coderepairrl.types import Task

URL = "https://github.com/jkoppel/QuixBugs"
SHARED = ("python_testcases/load_testdata.py", "conftest.py")  # of the tests; the first may be absent in old clones
NODE = "python_programs/node.py"  # the lists and graphs of some programs


class QuixBugsConfig(Config):
    """QuixBugs, the programs in Python."""

    name: Literal["quixbugs"] = "quixbugs"
    source: str  # folder of a clone of its repository
    test_timeout_s: PositiveFloat = 60.0  # of a program's tests, all together
    cache: str | None = None  # folder of the environments; null: $XDG_CACHE_HOME/coderepairrl


def load(config: QuixBugsConfig) -> dict[str, list[Task]]:
    """Raises TaskError."""
    folder = programs.folder_of(config.source, "python_testcases", URL)
    place = programs.environment("quixbugs", (), config.cache, config.test_timeout_s)
    tasks = []
    for test in sorted(folder.glob("python_testcases/test_*.py")):
        name = test.stem.removeprefix("test_")
        path, cases = f"python_programs/{name}.py", f"json_testcases/{name}.json"
        hidden = [f"python_testcases/{test.name}", *SHARED, *([cases] if (folder / cases).exists() else [])]
        source = programs.text_of(test)
        files = {path: programs.text_of(folder / path)}
        if "node" in source:
            files[NODE] = programs.text_of(folder / NODE)
            hidden.append("python_testcases/node.py")
        texts = {at: programs.text_of(folder / at) for at in hidden if (folder / at).exists()}
        tasks.append(
            programs.task(
                f"quixbugs-{name}",
                f"{path} has a bug: for some inputs `{name}` does not do what its description says. Repair it.",
                place,
                files=files,
                repaired={path: programs.text_of(folder / f"correct_python_programs/{name}.py")},
                hidden=texts,
                selection=(f"python_testcases/{test.name}",),
                metadata={"repo": "jkoppel/QuixBugs", "program": name},
            )
        )
    return {"train": [], "heldout": tasks}

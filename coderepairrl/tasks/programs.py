"""What benchmarks of single programs share: a few files, tests that are pytest's, an environment of pytest alone."""

from pathlib import Path

from coderepairrl.environments.cache import default_cache
from coderepairrl.environments.runner import make_environment
from coderepairrl.errors import TaskError
from coderepairrl.tasks.jsonl import PYTEST
from coderepairrl.tasks.patches import unified_diff
from coderepairrl.types import Environment, Task

# why a task of these sets may be without a test that must keep passing; admission records it
ALONE = "one program: all of its tests may show the bug"
WITHOUT_TESTS_TO_KEEP = "without_pass_to_pass"  # key of the metadata


def environment(name: str, packages: tuple[str, ...], cache: str | None, timeout_s: float) -> Environment:
    """Made on first use, from what is installed beside this program. Raises TaskError."""
    python = make_environment(packages, Path(cache or default_cache()))
    return Environment(name=name, base=None, python=python, test_command=PYTEST, test_timeout_s=timeout_s)


def repair(before: dict[str, str], after: dict[str, str]) -> str:
    """The oracle's diff of texts by path."""
    return "".join(unified_diff(path, before.get(path), after[path]) for path in sorted(after))


def folder_of(source: str, holds: str, url: str) -> Path:
    """The clone of a benchmark's repository. Raises TaskError unless it holds the file or folder."""
    folder = Path(source).expanduser()
    if not (folder / holds).exists():
        raise TaskError(f"tasks.source: {folder} holds no {holds}: give the folder of a clone of {url}")
    return folder


def text_of(path: Path) -> str:
    """Raises TaskError that names the file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: {error}: fetch the benchmark's repository again") from error


def task(
    task_id: str,
    statement: str,
    place: Environment,
    *,
    files: dict[str, str],
    repaired: dict[str, str],
    hidden: dict[str, str],
    selection: tuple[str, ...],
    fail_to_pass: tuple[str, ...] = (),
    metadata: dict[str, str],
) -> Task:
    """`fail_to_pass` empty: scripts/prepare_tasks.py measures both lists, since the benchmark has none."""
    return Task(
        task_id=task_id,
        problem_statement=statement,
        environment=place,
        files=files,
        hidden_tests=hidden,
        test_selection=selection,
        fail_to_pass=fail_to_pass,
        pass_to_pass=(),
        oracle_patch=repair(files, repaired),
        metadata=metadata | {"split": "heldout", WITHOUT_TESTS_TO_KEEP: ALONE},
    )

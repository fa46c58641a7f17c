"""A task as a loader gives it -> a task that runs: its environment is built, its patches have become files.

    task = await build_task(task, EnvironmentsConfig(mirrors=...))

The base checkout is needed to know the hidden tests (`Task.test_patch` after application) and an injected bug's files
(`Task.bug_patch`), so both are resolved here. Building is content-addressed: the second time it is a look-up.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from coderepairrl import environments
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.environments.recipes import WITHHELD
from coderepairrl.errors import TaskError
from coderepairrl.tasks.patches import patched, patched_files, unified_diff
from coderepairrl.types import Environment, Task


async def build_task(task: Task, config: EnvironmentsConfig) -> Task:
    """Raises TaskError for a wrong row or an environment that cannot be built, SandboxError for the machine's
    trouble."""
    if not is_built(task.environment):
        admitted = task.environment.lock
        environment = await environments.build(task.environment, config)
        if admitted and environment.lock != admitted:
            raise TaskError(
                f"{task.task_id}: admitted with lock {admitted[:16]}, built {environment.lock[:16]}: prepare the tasks "
                "again"
            )
        task = replace(task, environment=environment)
    return (
        await asyncio.to_thread(resolve_patches, task)
        if task.bug_patch or task.test_patch or task.environment.recipe or task.environment.image
        else task
    )


async def takes_all(task: Task) -> str:
    """What those say who take every task."""
    return ""


async def build_all(
    tasks: Sequence[Task],
    config: EnvironmentsConfig,
    done: Callable[[Task, str], None] = lambda *_: None,
    refuses: Callable[[Task], Awaitable[str]] = takes_all,
) -> tuple[list[Task], dict[str, str]]:
    """(the tasks that run, task id -> why the others don't), as many at once as there are cores. `done(task, cause or
    "")`: after each. `refuses`: says why a task that was built is no task for the agent, or ""."""
    places = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(task: Task) -> Task | str:
        async with places:
            try:
                built = await build_task(task, config)
                built = await refuses(built) or built
            except TaskError as error:
                built = str(error)
        done(task, built if isinstance(built, str) else "")
        return built

    results = await asyncio.gather(*map(one, tasks))
    return [r for r in results if isinstance(r, Task)], {
        task.task_id: r for task, r in zip(tasks, results, strict=True) if isinstance(r, str)
    }


def is_built(environment: Environment) -> bool:
    """Whether it says no more than where things are: tasks of packages and functions come so from their loaders."""
    if len(environment.tool_folders) < len(environment.tools):
        return False
    runs = environment.python or environment.tools
    return bool(runs and (environment.base or not (environment.recipe or environment.image)))


def resolve_patches(task: Task) -> Task:
    """`bug_patch` and `test_patch` as `files`, `oracle_patch` and `hidden_tests`; selected test files that neither
    changes are hidden tests, too.
    What of the test patch is more than texts stays in it; doing this again changes nothing."""
    base, files, oracle = task.environment.base, dict(task.files), task.oracle_patch
    if task.bug_patch:
        buggy = patched_files(task.task_id, "patch", base, files, task.bug_patch)
        if None in buggy.values():
            raise TaskError(
                f"{task.task_id}, field patch: the bug removes a file, which a laid-over file cannot: leave the row out"
            )
        originals = {path: _text(base, path) for path in buggy}
        oracle = "".join(unified_diff(path, buggy[path], originals[path]) for path in sorted(buggy))
        files |= buggy
    hidden, rest = dict(task.hidden_tests), ""
    if task.test_patch:
        after = patched(task.task_id, "test_patch", base, files, task.test_patch)
        hidden |= {path: text for path, text in after.texts.items() if text is not None}
        rest = after.rest
    for path in task.environment.recipe.withheld if task.environment.recipe else ():
        text = _text(str(Path(base or "").parent / WITHHELD), path)
        if text is None:
            raise TaskError(f"{task.task_id}: {path}, a hidden test, is not UTF-8: leave the row out")
        hidden[path] = text
    for path in task.test_selection if task.environment.recipe or task.environment.image else ():
        text = _text(base, path) if path not in hidden and path.endswith(".py") else None
        if text is not None:
            hidden[path] = text
    return replace(task, files=files, hidden_tests=hidden, oracle_patch=oracle, bug_patch="", test_patch=rest)


def _text(base: str | None, path: str) -> str | None:
    """None for a file that is not there, or not UTF-8: the checkout keeps that one."""
    file = Path(base or "", path)
    try:
        return file.read_bytes().decode() if base and file.is_file() else None
    except UnicodeDecodeError:
        return None

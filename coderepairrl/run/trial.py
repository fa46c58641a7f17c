"""Before a run's first step each distinct environment is tried once: the oracle's patch must resolve one of its tasks,
by the run's own rewards.

    await try_environments(tasks, grader, rewards, run)

Tasks share an environment when it was built from the same lock, or without one is described by the same words. Where
its tasks have no oracle,
it has to start and to give the empty patch a verdict. RUN/environments_tried.json {key: {"environment", "task",
"seconds"}} has those that
work: a later attempt tries the others alone.
"""

import asyncio
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from coderepairrl.errors import SandboxError, TaskError
from coderepairrl.files import read_json, write_json
from coderepairrl.grading.counting import why_unresolved
from coderepairrl.grading.published import as_diff
from coderepairrl.rewards import REWARDS, Grader, RewardConfig, compute
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.types import Environment, Task, VerdictKind

TASKS = 3  # of an environment, until one is resolved: a wrong task is no broken environment


def key_of(environment: Environment, sandbox: SandboxConfig) -> str:
    """The same for environments that are one under these sandboxes."""
    own = environment.lock or {name: value for name, value in dataclasses.asdict(environment).items() if name != "name"}
    return hashlib.sha256(json.dumps([own, sandbox.model_dump(mode="json")], sort_keys=True).encode()).hexdigest()[:16]


async def try_environments(tasks: Iterable[Task], grader: Grader, rewards: RewardConfig, run: Path) -> None:
    """As many at once as there are cores. Raises TaskError that names task, environment and what its tests said."""
    path = run / "environments_tried.json"
    works, failures = read_json(path) or {}, []
    untried: dict[str, list[Task]] = {}
    for task in tasks:
        if (key := key_of(task.environment, grader.config)) not in works:
            untried.setdefault(key, []).append(task)
    places = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(key: str, members: list[Task]) -> None:
        async with places:
            began = time.monotonic()
            task, problem = await _try(
                sorted(members, key=lambda task: not task.oracle_patch.strip())[:TASKS], grader, rewards
            )
        if problem:
            failures.append(f"task {task.task_id} in environment {task.environment.name or key}: {problem}")
        else:
            works[key] = {
                "environment": task.environment.name,
                "task": task.task_id,
                "seconds": round(time.monotonic() - began, 2),
            }

    await asyncio.gather(*(one(key, members) for key, members in untried.items()))
    if untried:
        write_json(path, works)
    if failures:
        raise TaskError(
            f"{len(failures)} of {len(untried)} environments do not work, the first: {failures[0]}; mend it, leave its "
            "tasks out "
            "(scripts/prepare_tasks.py admits those that can be trusted), or go on without: "
            "rollout.try_environments=false"
        )


async def _try(tasks: list[Task], grader: Grader, rewards: RewardConfig) -> tuple[Task, str]:
    """(the task that works, ""), or (the first, what is wrong with it)."""
    problems = []
    for task in tasks:
        problem = await problem_of(task, grader, rewards)
        if not problem:
            return task, ""
        problems.append(problem)
    return tasks[0], problems[0]


async def problem_of(task: Task, grader: Grader, rewards: RewardConfig) -> str:
    """Why the oracle's patch, or without one the empty patch, does not fare as it must; "" if it does. As in admission
    (tasks/validate.py) what is judged is the diff of a checkout that holds it: what that loses, no agent can repair."""
    diff, lost = "", {}
    try:
        if task.oracle_patch.strip():
            diff, applied = await as_diff(task, task.oracle_patch, grader.config)
            if applied.problem:
                return f"the oracle's patch does not resolve it: it does not apply: {applied.problem}"
            lost = applied.left_out
        else:  # an agent needs a sandbox, whether or not a reward runs the tests
            async with start_sandbox(grader.config, task):
                pass
        verdict, parts, _ = await compute(rewards, task, diff, grader)
    except (SandboxError, TaskError) as error:
        return f"{type(error).__name__}: {error}"
    if verdict is not None and verdict.kind == VerdictKind.ENVIRONMENT_ERROR:
        return f"its tests give no verdict: {verdict.message}"
    if not task.oracle_patch.strip():
        return ""
    if verdict is not None and not verdict.resolved:
        said = why_unresolved(verdict, lost) or "no test is named"
        return f"the oracle's patch does not resolve it ({verdict.kind}: {said})"
    worthless = [name for name, value in parts.items() if name in REWARDS and REWARDS[name].judge and not value]
    return f"the oracle's patch gets 0 from reward {worthless[0]}" if worthless else ""

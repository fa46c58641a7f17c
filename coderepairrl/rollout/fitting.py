"""The tasks that an agent can be given: built, and with no copy of their project in its own environment."""

import asyncio

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import TaskError
from coderepairrl.scaffolds import Scaffold, refusal
from coderepairrl.tasks.building import build_all
from coderepairrl.types import Task


async def fitting(
    splits: dict[str, list[Task]], scaffold: Scaffold, config: EnvironmentsConfig
) -> tuple[dict[str, list[Task]], dict[str, str]]:
    """(split -> tasks, task id -> why the agent can't be given the others). The others are told and counted on standard
    output. Raises TaskError where an environment can't be built, or where nothing is left of a split."""
    refuses, kept, refused = await refusal(scaffold, config), {}, {}
    for split, tasks in splits.items():
        built, failures = await build_all(tasks, config)
        if failures:
            raise TaskError(
                f"{len(failures)} of {len(tasks)} tasks have no environment, the first: "
                f"{next(iter(failures.values()))}; "
                "admit those that have one: scripts/prepare_tasks.py"
            )
        said = dict(zip([task.task_id for task in built], await asyncio.gather(*map(refuses, built)), strict=True))
        why = {name: cause for name, cause in said.items() if cause}
        kept[split], refused = [task for task in built if task.task_id not in why], refused | why
        if why and not kept[split]:
            raise TaskError(f"none of the {len(tasks)} tasks of split {split} is left: {next(iter(why.values()))}")
        for cause in why.values():
            print(f"left out: {cause}", flush=True)
        if why:
            print(f"{len(why)} of {len(tasks)} tasks of split {split} are left out", flush=True)
    return kept, refused

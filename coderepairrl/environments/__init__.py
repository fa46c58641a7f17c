"""From what a row says (a recipe or an image) to a folder that every sandbox of the task starts from. Built once, never
changed.

    config = EnvironmentsConfig(mirrors=("/data/git/{owner}/{name}.git",))
    task = replace(task, environment=await build(task.environment, config))

Everything lies in one cache folder, named by a hash of what it is made of:

    <cache>/pins/<hash>/{venv,lock.txt,record.json}                      the pinned packages, shared by all tasks that
                                                                         pin the same
    <cache>/built/<name>-<hash>/{checkout,venv,lock.txt,build.log,record.json}   one a recipe
    <cache>/images/<name>-<hash>/{image.sif or image/,checkout,record.json}      one an image
    <cache>/tools/junit-<hash>/                                          its jars, and the runner
    <cache>/logs/<name>-<hash>.log                                       of the latest build that failed

A folder appears by one rename, complete; `record.json` is in it. Deleting one is safe while no program uses it.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

from coderepairrl.environments.cache import RECORD, BuildError, EnvironmentsConfig, digest
from coderepairrl.environments.images import build_image
from coderepairrl.environments.recipes import build_recipe
from coderepairrl.environments.tools import with_tools
from coderepairrl.files import read_json
from coderepairrl.types import Environment

__all__ = ["BuildError", "EnvironmentsConfig", "build", "instead"]


async def build(environment: Environment, config: EnvironmentsConfig) -> Environment:
    """The environment with base, python and lock filled in (of an image also its path, folder and variables). What has
    neither recipe nor
    image nor tools, or is built, comes back as it is. Seconds to minutes the first time, milliseconds after that, in a
    thread; safe to call from many threads, processes and machines at once. Raises BuildError with one line
    of cause and the path of the log.
    """
    if environment.tools and not environment.tool_folders:
        environment = await asyncio.to_thread(with_tools, environment, config)
    if environment.base is not None:
        return environment
    if environment.recipe is not None:
        folder, record = await asyncio.to_thread(build_recipe, environment, config)
        python = str(folder / "venv/bin/python") if environment.recipe.python else ""
        lock = digest(record["lock"], environment.lock) if environment.tools else record["lock"]
        return replace(environment, base=str(folder / "checkout"), python=python, lock=lock)
    if environment.image is not None:
        folder, record = await asyncio.to_thread(build_image, environment, config)
        return replace(
            environment,
            base=str(folder / "checkout"),
            python=record["python"],
            lock=record["lock"],
            image=record["image"],
            workdir=record["workdir"],
            variables=record["variables"] | environment.variables,
        )
    return environment


def instead(environment: Environment) -> str:
    """What the build of this environment did instead of what its recipe says, and why; empty for most. Milliseconds."""
    record = read_json(Path(environment.base).parent / RECORD) if environment.recipe and environment.base else None
    return record.get("instead", "") if record else ""

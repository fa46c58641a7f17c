"""One file a dataset, all to `Task`. A loader takes its own config class and returns {"train": [...], "heldout":
[...]}.

Tasks of published data sets come with environments that are not built yet: build.build_task builds one.

A mixture is several task sets in one run, each with its share of the training groups (rollout/order.py):

    tasks:
      name: mixture
      sets:
        functions: {weight: 2, tasks: {name: functions}}
        packages: {tasks: {name: real_packages}}

Its tasks say which set they are of (metadata["set"]), and so do their trajectories, the ledger and the metrics. The
held-out tasks of all sets are evaluated, and counted by set, too.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError
from coderepairrl.tasks import (
    bugsinpy,
    defects4j,
    functions,
    humaneval,
    humaneval_java,
    jsonl,
    mbpp,
    packages,
    polyglot,
    quixbugs,
    quixbugs_java,
    r2e_gym,
    releases,
    swe_bench,
    swe_gym,
    swe_smith,
)
from coderepairrl.tasks.bugsinpy import BugsInPyConfig
from coderepairrl.tasks.defects4j import Defects4JConfig
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.humaneval import HumanEvalConfig
from coderepairrl.tasks.humaneval_java import HumanEvalJavaConfig
from coderepairrl.tasks.jsonl import JsonlConfig
from coderepairrl.tasks.mbpp import MbppConfig
from coderepairrl.tasks.packages import RealPackagesConfig
from coderepairrl.tasks.polyglot import PolyglotConfig
from coderepairrl.tasks.quixbugs import QuixBugsConfig
from coderepairrl.tasks.quixbugs_java import QuixBugsJavaConfig
from coderepairrl.tasks.r2e_gym import R2EGymConfig
from coderepairrl.tasks.releases import ReleasePairsConfig
from coderepairrl.tasks.rows import RowsConfig
from coderepairrl.tasks.swe_bench import SweBenchConfig
from coderepairrl.tasks.swe_gym import SweGymConfig
from coderepairrl.tasks.swe_smith import SweSmithConfig
from coderepairrl.types import TASK_SET, Task

LOADERS = {
    FunctionsConfig: functions.load,
    RealPackagesConfig: packages.load,
    JsonlConfig: jsonl.load,
    SweBenchConfig: swe_bench.load,
    ReleasePairsConfig: releases.load,
    SweGymConfig: swe_gym.load,
    SweSmithConfig: swe_smith.load,
    R2EGymConfig: r2e_gym.load,
    BugsInPyConfig: bugsinpy.load,
    QuixBugsConfig: quixbugs.load,
    QuixBugsJavaConfig: quixbugs_java.load,
    HumanEvalConfig: humaneval.load,
    HumanEvalJavaConfig: humaneval_java.load,
    MbppConfig: mbpp.load,
    PolyglotConfig: polyglot.load,
    Defects4JConfig: defects4j.load,
}
OneSetConfig = Annotated[
    FunctionsConfig
    | RealPackagesConfig
    | ReleasePairsConfig
    | JsonlConfig
    | SweBenchConfig
    | SweGymConfig
    | SweSmithConfig
    | R2EGymConfig
    | BugsInPyConfig
    | QuixBugsConfig
    | QuixBugsJavaConfig
    | HumanEvalConfig
    | HumanEvalJavaConfig
    | MbppConfig
    | PolyglotConfig
    | Defects4JConfig,
    Field(discriminator="name"),
]


class TaskShareConfig(Config):
    """One of a mixture's task sets."""

    weight: PositiveFloat = 1.0  # its share of the training groups, relative to the others'
    tasks: OneSetConfig  # with its settings


class TaskMixtureConfig(Config):
    """Several task sets, each with a share of the training groups."""

    name: Literal["mixture"] = "mixture"
    sets: dict[str, TaskShareConfig] = Field(min_length=1)  # name -> set


TasksConfig = Annotated[OneSetConfig | TaskMixtureConfig, Field(discriminator="name")]


def load_tasks(config: TasksConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """`refused`: gets a line for each row of a data set that cannot be used; None: the first one is a TaskError."""
    if isinstance(config, TaskMixtureConfig):
        return _load_mixture(config, refused)
    loader = LOADERS[type(config)]
    return loader(config, refused) if isinstance(config, RowsConfig | JsonlConfig | BugsInPyConfig) else loader(config)


def _load_mixture(config: TaskMixtureConfig, refused: list[str] | None) -> dict[str, list[Task]]:
    """One set after the other. ConfigError where two have a task in common: its id would be two things."""
    found: dict[str, list[Task]] = {}
    owners: dict[str, str] = {}
    for name, share in config.sets.items():
        for split, tasks in load_tasks(share.tasks, refused).items():
            for task in tasks:
                if (other := owners.setdefault(task.task_id, name)) != name:
                    raise ConfigError(
                        f"rollout.tasks.sets: {task.task_id} is in {other} and in {name}: leave it to one of them"
                    )
            named = [replace(task, metadata=task.metadata | {TASK_SET: name}) for task in tasks]
            found.setdefault(split, []).extend(named)
    return found

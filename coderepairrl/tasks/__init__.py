"""One file a dataset, all to `Task`. A loader takes its own config class and returns {"train": [...], "heldout": [...]}."""
from typing import Annotated

from pydantic import Field

from coderepairrl.tasks import functions, packages
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.packages import RealPackagesConfig
from coderepairrl.types import Task

TasksConfig = Annotated[FunctionsConfig | RealPackagesConfig, Field(discriminator="name")]
LOADERS = {FunctionsConfig: functions.load, RealPackagesConfig: packages.load}


def load_tasks(config: TasksConfig) -> dict[str, list[Task]]:
    return LOADERS[type(config)](config)

"""One file a dataset, all to `Task`. A loader takes its own config class and returns {"train": [...], "heldout": [...]}."""
from coderepairrl.tasks import functions
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.types import Task

TasksConfig = FunctionsConfig
LOADERS = {FunctionsConfig: functions.load}


def load_tasks(config: TasksConfig) -> dict[str, list[Task]]:
    return LOADERS[type(config)](config)

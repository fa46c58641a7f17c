"""One file a dataset, all to `Task`. A loader takes its own config class and returns {"train": [...], "heldout":
[...]}.

Tasks of published data sets come with environments that are not built yet: build.build_task builds one.
"""

from typing import Annotated

from pydantic import Field

from coderepairrl.tasks import (
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
from coderepairrl.types import Task

LOADERS = {
    FunctionsConfig: functions.load,
    RealPackagesConfig: packages.load,
    JsonlConfig: jsonl.load,
    SweBenchConfig: swe_bench.load,
    ReleasePairsConfig: releases.load,
    SweGymConfig: swe_gym.load,
    SweSmithConfig: swe_smith.load,
    R2EGymConfig: r2e_gym.load,
    QuixBugsConfig: quixbugs.load,
    QuixBugsJavaConfig: quixbugs_java.load,
    HumanEvalConfig: humaneval.load,
    HumanEvalJavaConfig: humaneval_java.load,
    MbppConfig: mbpp.load,
    PolyglotConfig: polyglot.load,
    Defects4JConfig: defects4j.load,
}
TasksConfig = Annotated[
    FunctionsConfig
    | RealPackagesConfig
    | ReleasePairsConfig
    | JsonlConfig
    | SweBenchConfig
    | SweGymConfig
    | SweSmithConfig
    | R2EGymConfig
    | QuixBugsConfig
    | QuixBugsJavaConfig
    | HumanEvalConfig
    | HumanEvalJavaConfig
    | MbppConfig
    | PolyglotConfig
    | Defects4JConfig,
    Field(discriminator="name"),
]


def load_tasks(config: TasksConfig, refused: list[str] | None = None) -> dict[str, list[Task]]:
    """`refused`: gets a line for each row of a data set that cannot be used; None: the first one is a TaskError."""
    loader = LOADERS[type(config)]
    return loader(config, refused) if isinstance(config, RowsConfig | JsonlConfig) else loader(config)

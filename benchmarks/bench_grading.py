"""What the counter-check costs: seconds of a verdict over those of the bare test command, both in this run.

    python benchmarks/bench_grading.py configs/bench/grading.yaml
    python benchmarks/bench_grading.py configs/bench/grading.yaml 'sets={pairs: {name: release_pairs}}' tasks=8

Of each task the oracle's patch is run once with nothing else (the test command in its sandbox), and then judged twice
by one grader: the first verdict
pays for what the grader learns of the task once (which turned tests are telling), the second is what each further pass
of that task costs.
Tasks go one after the other, every n-th of a set. Exit code 1 where an oracle's patch does not resolve.
"""

import asyncio
import statistics
import sys
import time

from pydantic import PositiveInt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coderepairrl.config import Config, load
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.grading.grader import Grader, selected
from coderepairrl.grading.judge import execute
from coderepairrl.run.program import program
from coderepairrl.sandboxes import SandboxConfig, check
from coderepairrl.tasks import TasksConfig, load_tasks
from coderepairrl.tasks.building import build_task
from coderepairrl.types import Task


class BenchConfig(Config):
    sets: dict[str, TasksConfig]  # name in the table -> tasks
    tasks: PositiveInt = 40  # of each set at most
    sandbox: SandboxConfig = SandboxConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()


async def timed(work) -> tuple[float, object]:
    started = time.perf_counter()
    result = await work
    return time.perf_counter() - started, result


async def price(task: Task, config: BenchConfig) -> tuple[float, float, float, bool]:
    """Seconds of: the test command, the first verdict, a further one; whether both resolved."""
    grader = Grader(config.sandbox)
    bare, _ = await timed(execute(task, await selected(task, task.oracle_patch), config.sandbox))
    first, verdict = await timed(grader.grade(task, task.oracle_patch))
    grader.forget_verdicts()
    further, again = await timed(grader.grade(task, task.oracle_patch))
    return bare, first, further, verdict.resolved and again.resolved


def shown(values: list[float]) -> str:
    """Median, p99."""
    return f"{statistics.median(values):.2f}, {sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]:.2f}"


async def measure(config: BenchConfig) -> bool:
    table = Table(
        "tasks",
        "number",
        "test command, s",
        "first verdict over it",
        "further verdicts over it",
        title="median, p99",
        title_justify="left",
    )
    fine = True
    for name, tasks_config in config.sets.items():
        tasks = [task for tasks in load_tasks(tasks_config).values() for task in tasks]
        step = max(1, len(tasks) // config.tasks)
        found = []
        for task in track(tasks[::step][: config.tasks], name):
            *seconds, resolved = await price(await build_task(task, config.environments), config)
            found.append(seconds)
            if not resolved:
                fine = False
                print(f"{task.task_id}: its oracle's patch does not resolve")
        bare = [one[0] for one in found]
        table.add_row(
            name,
            str(len(found)),
            shown(bare),
            shown([one[1] / one[0] for one in found]),
            shown([one[2] / one[0] for one in found]),
        )
    Console(width=120).print(table)
    return fine


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    check(config.sandbox)
    sys.exit(0 if asyncio.run(measure(config)) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Synchronous against asynchronous training with slow tools: seconds a step, in one run of this program.

    python benchmarks/bench_async.py CONFIG [a.b=c ...]

Runs the same configuration with rollout.max_staleness 0 and 2, one after the other, without evaluation, every tool call
slowed down by rollout.scaffold.tool_delay_s (1 s unless it is set). Prints a table; the runs stay under `run:`_sync and
_async.
The first steps, in which an asynchronous run fills its pipeline, are not counted.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

from rich import print
from rich.table import Table

from coderepairrl.config import load
from coderepairrl.errors import CodeRepairError
from coderepairrl.files import ROOT
from coderepairrl.run.intervals import NOTHING
from coderepairrl.run.metrics import read_metrics
from coderepairrl.run.program import program
from coderepairrl.run.train_config import TrainConfig

STALENESS = {"sync": 0, "async": 2}
FILLING = 3  # steps


def run(config: str, overrides: list[str], name: str, steps: int) -> list[dict]:
    """The metrics of its steps."""
    folder = Path(f"{load(TrainConfig, config, overrides).run}_{name}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable,
        str(ROOT / "scripts/train_grpo.py"),
        config,
        "rollout.scaffold.tool_delay_s=1.0",
        *overrides,
        f"run={folder}",
        f"rollout.max_staleness={STALENESS[name]}",
        "training.evaluate=false",
        f"training.steps={steps}",
    ]
    if subprocess.run(command).returncode:
        raise CodeRepairError(f"the {name} run failed: see {folder}/logs")
    return read_metrics(folder / "metrics.jsonl")[FILLING:]


@program(TrainConfig)
def main(arguments: list[str]) -> None:
    config, *overrides = arguments
    steps = next(
        (int(item.removeprefix("training.steps=")) for item in overrides if item.startswith("training.steps=")), 10
    )
    if steps <= FILLING:
        raise CodeRepairError(f"training.steps={steps}: the first {FILLING} steps are not counted, so take more")
    results = {
        name: run(config, [item for item in overrides if not item.startswith("training.steps=")], name, steps)
        for name in STALENESS
    }
    table = Table("", "seconds a step, median", "mean", "trainer waits", "mean staleness of a token", "pass rate")
    for name, rows in results.items():
        column = lambda key: [row[key] for row in rows if key in row]
        mean = lambda key, form: format(fmean(column(key)), form) if column(key) else NOTHING
        table.add_row(
            f"max_staleness {STALENESS[name]}",
            f"{median(column('step_s')):.2f}",
            f"{fmean(column('step_s')):.2f}",
            f"{fmean(column('wait_for_rollouts_s')):.2f} s",
            mean("staleness_mean", ".2f"),
            mean("pass_rate", ".3f"),
        )
    print(table)
    ratio = fmean(row["step_s"] for row in results["sync"]) / fmean(row["step_s"] for row in results["async"])
    print(f"asynchronous is {ratio:.2f} times as fast a step (means over {steps - FILLING} steps)")


if __name__ == "__main__":
    main(sys.argv[1:])

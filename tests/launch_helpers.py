"""Shared by the tests of what comes before the queue: a grid of tiny jobs."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT

from coderepairrl.cluster.grid import GridConfig
from coderepairrl.cluster.plan import Plan, Submittable

SMALL = "tests/programs/small_job.py"


class Bench:
    """A grid of tiny jobs in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, folder / "runs" / "small"
        (folder / "small.yaml").write_text("number: 0.5\n")
        self.site({"environment": {"SMALL_JOB": "yes"}, "accounting": False})
        small = {
            "program": SMALL,
            "config": str(folder / "small.yaml"),
            "minutes": 9,
            "cpus_per_node": 1,
            "memory_gb": 1,
        }
        self.grid = {
            "name": "small",
            "site": str(folder / "site.yaml"),
            "runs": str(folder / "runs"),
            "jobs": {
                "first": small | {"overrides": {"run": "{run}", "number": "{seed}"}},
                "second": small
                | {
                    "overrides": {"run": "{run}/second/shard_{shard}", "number": "{shard}"},
                    "shards": 2,
                    "after": "first",
                },
            },
        }

    def site(self, tree: dict) -> None:
        (self.folder / "site.yaml").write_text(yaml.safe_dump(tree))

    def command(self, *arguments: str) -> list[str]:
        (self.folder / "grid.yaml").write_text(yaml.safe_dump(self.grid))
        return [sys.executable, str(ROOT / "slurm" / "launch.py"), str(self.folder / "grid.yaml"), *arguments]

    def launch(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
        environment = os.environ | ({"PATH": path} if path else {})
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, env=environment, timeout=300)

    def plan(self, **changes) -> Plan:
        return Plan(GridConfig.model_validate(self.grid | changes))

    def chain(self, point: str = "run_seed0") -> list[Submittable]:
        return next(chain for found, chain in self.plan().submittables() if found.name == point)

    def slurm(self, sbatch: str, squeue: str = "") -> str:
        """A PATH on which Slurm's programs are these lines of shell."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, line in {
            "sbatch": sbatch,
            "squeue": squeue or "true",
            "srun": "true",
            "scancel": f"echo $@ >>{self.folder}/cancelled",
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        return f"{programs}:{os.environ['PATH']}"

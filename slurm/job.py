"""Runs a job that slurm/launch.py has written, on every node that srun starts it on: what plain sbatch files call.

srun python slurm/job.py RUN/job.json
"""

import sys
from pathlib import Path

from coderepairrl.cluster.job import Job
from coderepairrl.config import load
from coderepairrl.run.program import program


@program(Job)
def main(arguments: list[str]) -> None:
    load(Job, Path(arguments[0]))()  # JSON is YAML


if __name__ == "__main__":
    main(sys.argv[1:])

"""Writes the job.json of one run for plain sbatch (slurm/pair.sbatch), and prints its path: what slurm/launch.py does
for a grid.

    python slurm/write_job.py SERVING_NODES TRAINING_NODES CONFIG [a.b=c ...]

The configuration of scripts/train_grpo.py is frozen in the run folder; the code is not: the job runs in this project's
folder. SITE, an
environment variable, names the cluster's YAML. A job that Slurm starts again gets what was frozen at its first start.
"""

import os
import sys
from pathlib import Path

from coderepairrl.cluster.job import Job
from coderepairrl.cluster.plan import config_class
from coderepairrl.cluster.site import SiteConfig
from coderepairrl.config import dump, load
from coderepairrl.errors import ConfigError
from coderepairrl.files import ROOT, write_json
from coderepairrl.run.program import program

PROGRAM = "scripts/train_grpo.py"
TrainConfig = config_class(PROGRAM)


@program(TrainConfig, SiteConfig)
def main(arguments: list[str]) -> None:
    if len(arguments) < 3 or not (arguments[0] + arguments[1]).isdecimal():
        raise ConfigError("give the number of nodes that serve, of those that train, and a configuration")
    config = load(TrainConfig, arguments[2], arguments[3:])
    run = Path(ROOT / config.run).absolute()
    launch = run / "launch"
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not (launch / "job.json").exists():
        launch.mkdir(parents=True, exist_ok=True)
        site = load(SiteConfig, ROOT / os.environ.get("SITE", "configs/site/plain.yaml"))
        images = site.image_files()
        dump(config, launch / "config.yaml")
        job = Job(
            program=PROGRAM,
            arguments=[str(launch / "config.yaml")],
            run=str(run),
            code=str(ROOT),
            python=site.interpreter(),
            images=images,
            container_options=site.options() if images else [],
            environment=site.variables(),
            serve_nodes=int(arguments[0]),
            train_nodes=int(arguments[1]),
        )
        write_json(launch / "job.json", job.model_dump())
    print(launch / "job.json")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Where clusters differ, in one YAML (configs/site/), and what that makes of a job's wishes: the parameters of
sbatch."""

import math
import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from coderepairrl.config import Config
from coderepairrl.errors import ConfigError
from coderepairrl.files import ROOT

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline"}


class SiteConfig(Config):
    """An entry that is left out is left to the cluster's own default."""

    partition: str | None = None  # `sinfo -s` lists them
    account: str | None = None  # who pays: `sacctmgr show associations user=$USER`
    qos: str | None = None  # quality of service
    constraint: str | None = None  # node features, as in sbatch --constraint
    gpu_request: Literal["gres", "gpus-per-node"] = "gres"  # --gres=gpu:TYPE:N or --gpus-per-node=TYPE:N
    gpu_type: str | None = None  # as `sinfo -o %G` names it
    exclusive: bool = False  # whole nodes
    memory: bool = True  # whether --mem is allowed; some sites give it by CPU or GPU and refuse it
    max_minutes: PositiveInt | None = None  # the longest job; a longer run goes on in the next attempt
    requeue: bool = True  # a job that was preempted, or whose node failed, starts again
    signal_lead_s: PositiveInt = 180  # between the signal and the end of the time limit: a step, a checkpoint
    sbatch: dict[str, str | int | bool] = {}  # any other option: {nodelist: ..., licenses: ...}; true: without a value
    srun: list[str] = []  # further arguments of srun: [--mpi=none]
    modules: list[str] = []  # loaded before the program
    setup: list[str] = []  # shell lines before the program
    python: str | None = None  # of the environment on the nodes; null: the one that runs the launcher
    images: dict[Literal["serve", "train", "agents"], str] = {}  # SIF files; relative to the project's folder
    binds: list[str] = []  # folders that the containers see: models, scratch; the run and its code are always there
    container_options: list[str] = []  # of apptainer exec; --nv is given where there are GPUs
    # a node's own disk, or $TMPDIR where the cluster makes one for each job; TMPDIR becomes a folder in it
    scratch: str | None = None
    environment: dict[str, str] = {}  # variables of the program: NCCL_SOCKET_IFNAME ...
    internet: bool = False  # whether compute nodes have it
    accounting: bool = True  # whether sacct answers

    def interpreter(self) -> str:
        """Absolute. ConfigError when it isn't there."""
        # not resolved: a venv's python is a link
        path = ROOT / os.path.expandvars(os.path.expanduser(self.python or sys.executable))
        if not path.exists():
            raise ConfigError(
                f"site.python: {path} is not there: make the environment (README), or name its interpreter"
            )
        return str(path)

    def image_files(self) -> dict[str, str]:
        """Absolute, links followed: a run keeps its images when newer ones are built. ConfigError when one is
        missing."""
        files = {
            role: str((ROOT / os.path.expandvars(os.path.expanduser(file))).resolve())
            for role, file in self.images.items()
        }
        for role, file in files.items():
            if not Path(file).exists():
                raise ConfigError(
                    f"site.images.{role}: {file} is not there: build it (slurm/images/build.sh), or correct the path"
                )
        return files

    def variables(self) -> dict[str, str]:
        return ({} if self.internet else OFFLINE) | self.environment

    def options(self) -> list[str]:
        """Of apptainer exec."""
        return [
            *(word for bind in self.binds for word in ("--bind", os.path.expandvars(os.path.expanduser(bind)))),
            *self.container_options,
        ]


class Nodes(Config):
    """Of a run over several."""

    serve: PositiveInt = 1  # that run vLLM
    train: PositiveInt = 1  # that run the trainer's ranks


class Resources(Config):
    """What one job asks for; of each node, where it has several."""

    nodes: Nodes | None = None  # a run over several nodes; null: the program as it is, on one
    gpus_per_node: NonNegativeInt = 0  # GPUs
    cpus_per_node: PositiveInt | None = None  # cores; null: the cluster's default
    memory_gb: PositiveFloat | None = None  # null: all of an exclusive node, else the cluster's default
    minutes: PositiveInt = 60  # time limit; a run that is not done then goes on in its next attempt

    @property
    def count(self) -> int:
        return self.nodes.serve + self.nodes.train if self.nodes else 1

    def time_minutes(self, site: SiteConfig) -> int:
        return min(self.minutes, site.max_minutes or self.minutes)


def sbatch_parameters(
    site: SiteConfig, wanted: Resources, name: str, folder: Path, pythonpath: Path, after: list[str] = ()
) -> dict[str, Any]:
    """Keyword arguments of submitit's SlurmExecutor.update_parameters.

    `folder`: the job's working directory; `after`: ids of jobs that must end well before.
    """
    lead_min = math.ceil(site.signal_lead_s / 60)
    if wanted.time_minutes(site) <= lead_min:
        raise ConfigError(
            f"{name}: {wanted.time_minutes(site)} minutes leave no time before the signal "
            f"(signal_lead_s={site.signal_lead_s}): ask for more minutes"
        )
    gpu = [site.gpu_type] if site.gpu_type else []
    extra: dict[str, Any] = {"chdir": str(folder), "requeue" if site.requeue else "no-requeue": True}
    if after:
        extra |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": wanted.time_minutes(site),
        "nodes": wanted.count,
        "ntasks_per_node": 1,
        "cpus_per_task": wanted.cpus_per_node,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclusive": site.exclusive or None,
        "signal_delay_s": site.signal_lead_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": setup_lines(site, pythonpath),
        # srun no longer takes the CPUs of a task from sbatch (Slurm 22.05)
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={wanted.cpus_per_node}"] if wanted.cpus_per_node else []),
            *site.srun,
        ],
    }
    if wanted.gpus_per_node and site.gpu_request == "gres":
        parameters["gres"] = ":".join(["gpu", *gpu, str(wanted.gpus_per_node)])
    elif wanted.gpus_per_node:
        extra["gpus-per-node"] = ":".join([*gpu, str(wanted.gpus_per_node)])
    if site.memory and wanted.memory_gb:
        parameters["mem"] = f"{math.ceil(wanted.memory_gb * 1024)}M"
    elif site.memory and site.exclusive:
        parameters["mem"] = "0"
    parameters["additional_parameters"] = extra | {
        key.replace("_", "-"): value for key, value in site.sbatch.items() if value is not False
    }
    return parameters


def setup_lines(site: SiteConfig, pythonpath: Path) -> list[str]:
    """What the batch script does before srun. Variables reach all nodes; a folder on local scratch is made on each of
    them."""
    lines = []
    if site.modules:
        lines += [
            "command -v module >/dev/null || . /etc/profile",
            *(f"module load {module} || exit 1" for module in site.modules),
        ]
    lines += site.setup
    if site.scratch:
        lines += [
            f'export TMPDIR="{site.scratch}/coderepairrl_$SLURM_JOB_ID"',
            'srun --ntasks-per-node=1 mkdir -p "$TMPDIR" || exit 1',
            """trap 'srun --ntasks-per-node=1 rm -rf "$TMPDIR"' EXIT""",
        ]
    return [*lines, f'export PYTHONPATH="{pythonpath}"']

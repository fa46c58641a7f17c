"""Slurm's own programs, asked with a time limit: every failure is one line with its cause and a remedy. Needs no
accounting."""

import re
import subprocess
from dataclasses import dataclass

from coderepairrl.errors import ConfigError, EngineError

ANSWER_S = 60.0
LIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
}  # job states in which Slurm still holds the job: it runs, or will
NO_CLUSTER = "this machine doesn't know its cluster (no slurm.conf): run this on a login node, or set SLURM_CONF"
# what Slurm's programs say -> what to do about it
REMEDIES = {
    "configuration source": NO_CLUSTER,
    "resolve": NO_CLUSTER,
    "Unable to contact": "Slurm's controller is down or can't be reached: try again later",
    "Connection refused": "Slurm's controller is down or can't be reached: try again later",
    "credential": "munge refuses: it is not running, or the clocks of two machines differ: tell the cluster's support",
    "munge": "munge does not answer on this machine: tell the cluster's support",
    "account": "name your account in the site's YAML (`sacctmgr show associations user=$USER` lists them)",
    "partition": "correct the site's partition (`sinfo -s` lists them)",
    "qos": "correct the site's qos (`sacctmgr show associations user=$USER format=account,qos` lists what you may use)",
    "node configuration is not available": "no node has so many GPUs, CPUs or so much memory, or that constraint: "
    "compare the job's resources with `sinfo -o '%P %G %c %m %f'`",
    "generic resource": "correct the site's gpu_request and gpu_type (`sinfo -o '%P %G'` shows their names)",
    "time limit": "ask for fewer minutes, or set the site's max_minutes: a run goes on in its next attempt",
    "Dependency": "the job that it waits for is gone: --resubmit",
}


@dataclass(frozen=True)
class Queued:
    """A job, or one element of an array, as the queue shows it."""

    id: str  # 17, or 17_3
    state: str
    reason: str
    name: str
    folder: str  # its working directory

    @property
    def live(self) -> bool:
        return self.state in LIVE


def ask(*command: str) -> str:
    """What the program prints. ConfigError when it is missing or refuses, EngineError when it does not answer."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ConfigError(
            f"{command[0]} is not on this machine: run this on a login node of the cluster, or without Slurm: --local"
        ) from None
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{command[0]} did not answer within {ANSWER_S:.0f} s: Slurm's controller is down or busy, try again later"
        ) from None
    if result.returncode:
        raise ConfigError(f"{command[0]}: {explained(result.stderr or result.stdout)}")
    return result.stdout


def explained(said: str) -> str:
    """The first line that says what is wrong, and what to do about it."""
    lines = [re.sub(r"^\w+: ((error|fatal): )?", "", line.strip()) for line in said.splitlines() if line.strip()]
    lines = lines[-1:] if "fatal: " in said else lines
    remedy = next(
        (remedy for sign, remedy in REMEDIES.items() if sign.lower() in said.lower()),
        "`man sbatch` and the site's own pages explain it",
    )
    return f"{' / '.join(dict.fromkeys(lines))[:300] or 'failed without a word'}: {remedy}"


def queue() -> list[Queued]:
    """All jobs of this user that Slurm still knows, the ended ones for some minutes (MinJobAge)."""
    out = ask("squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%r|%j|%Z")
    return [Queued(*line.split("|", 4)) for line in out.splitlines() if line.count("|") >= 4]


def end_of(job: str) -> str:
    """What the accounting says about a job that left the queue: "TIMEOUT", "OUT_OF_MEMORY" ...; "" when it has no
    record."""
    rows = ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}").splitlines()
    return rows[-1].strip() if rows else ""

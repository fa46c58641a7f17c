"""What runs on every node of a Slurm job: works out the node's place, starts the program, passes signals on, asks Slurm
to start the job again.

The program is the one that a laptop runs. A time limit or a preemption arrives as SIGUSR2, some seconds before the end:
the program
keeps what it has and exits with attempt.STOPPED, and the job requeues itself into the same run folder. An attempt of a
run over
several nodes that fails is followed by the next in the same allocation, until several in a row have made no progress.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import NonNegativeInt

from coderepairrl.cluster.slurm import ask
from coderepairrl.config import Config
from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.processes import logs
from coderepairrl.processes.starting import address_towards
from coderepairrl.run.attempt import STUCK_AFTER, Owner, Place, progress, stuck

AGAIN_S = 3.0  # before the next attempt


class Job(Config):
    """Picklable; calling it on every node, one task a node, runs the program. Paths are absolute and the same on all
    nodes."""

    program: str  # relative to `code`
    arguments: list[str]  # of the program
    run: str  # the run folder
    code: str  # the frozen code: working directory, first on PYTHONPATH
    python: str  # the interpreter
    # with train_nodes: a run over several nodes, of which the first serve. Both 0: the program as it is, on one node
    serve_nodes: NonNegativeInt = 0
    train_nodes: NonNegativeInt = 0  # the others, which train
    images: dict[str, str] = {}  # "serve", "train", "agents" -> SIF
    container_options: list[str] = []  # of apptainer exec: --nv, --bind ...
    environment: dict[str, str] = {}  # further variables

    def __call__(self) -> None:
        """Returns when the program is done; exits otherwise, after asking Slurm to requeue where that helps."""
        logs.to_stderr()
        place, run = self._place(), Path(self.run)
        leads = place.node == 0 and self.train_nodes > 0
        signals: list[int] = []
        # after submitit's own handlers, which would requeue in their way
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda sent, _: signals.append(sent))
        futile = 0  # attempts in a row, counted here as well: the folder may not be writable
        while not signals:
            before = progress(run)
            if leads and (futile == STUCK_AFTER or stuck(run, place.owner.job)):
                reason = (read_json(run / "status.json") or {}).get("reason") or "see the logs"
                give_up(run, f"no progress in {STUCK_AFTER} attempts in a row, at last: {reason}")
            code = self._run(place, signals)
            if code == 0:
                return
            if not signals and not self.train_nodes:
                sys.exit(code)  # one program on one node: its end is the job's
            print(f"the program ended with code {code}", file=sys.stderr, flush=True)
            futile = futile + 1 if progress(run) == before else 0
            time.sleep(0 if signals else AGAIN_S)
        if signals[0] != signal.SIGTERM and place.node == 0 and "SLURM_JOB_ID" in os.environ:
            requeue()
        sys.exit(0)

    def _run(self, place: Place, signals: list[int]) -> int:
        """The program's exit code. A signal becomes SIGUSR2 to it, whatever it was: Slurm sends SIGTERM where it is not
        set up to say more."""
        environment = (
            os.environ | self.environment | place.variable() | {"PYTHONPATH": self.code, "PYTHONUNBUFFERED": "1"}
        )
        child = subprocess.Popen(
            [self.python, self.program, *self.arguments], cwd=self.code, env=environment, stdin=subprocess.DEVNULL
        )
        passed = False
        try:
            while child.poll() is None:
                if signals and not passed:
                    child.send_signal(signal.SIGUSR2)
                    passed = True
                time.sleep(0.1)
        finally:  # Ctrl-C where there is no Slurm
            if child.poll() is None:
                child.terminate()
                child.wait()
        return child.returncode

    def _place(self) -> Place:
        images = {"images": self.images, "container_options": tuple(self.container_options)}
        if not self.train_nodes:
            return Place(**images)
        job, restart = slurm_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        names = ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
        node = int(os.environ["SLURM_NODEID"])
        if len(names) != self.serve_nodes + self.train_nodes:
            raise EngineError(
                f"the job has {len(names)} nodes ({', '.join(names)}), but {self.serve_nodes} serve and "
                f"{self.train_nodes} train: "
                "ask for as many (--nodes)"
            )
        address = next((address_towards(name) for i, name in enumerate(names) if i != node), "127.0.0.1")
        return Place(node, self.serve_nodes, self.train_nodes, address, Owner(job, restart), **images)


def give_up(run: Path, reason: str) -> None:
    """Ends the job for good; the reason is in status.json, or in the job's comment where that can't be written."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    status = read_json(run / "status.json") or {}
    try:
        if status.get("state") != "done":  # a finished run that refuses another configuration stays done
            write_json(run / "status.json", status | {"state": "failed", "reason": reason})
    except OSError as error:
        ask("scontrol", "update", f"JobId={slurm_id()}", f"Comment={reason} ({error})")
    sys.exit(1)


def slurm_id() -> str:
    """As scontrol wants it."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue() -> None:
    """ConfigError when Slurm refuses: the job was submitted with --no-requeue."""
    ask("scontrol", "requeue", slurm_id())

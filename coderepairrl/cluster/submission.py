"""One submission of a job and never two, through submitit; and what became of it. All of it lies in the job's launch/
folder:

    submitted.json                      a Record, written once there is an id
    claim/                              made by mkdir while a launcher is at work here: a second one keeps away
    ID_submission.sh, ID_submitted.pkl  submitit's: the batch script, the pickled Job
    ID_0_log.out, ID_0_result.pkl       what the first node said, and how it ended
Works without accounting: states are Slurm's queue and the run folder, never submitit's watcher, which waits for sacct.
"""

import contextlib
import io
import os
import pickle
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coderepairrl.cluster.plan import Plan, Submittable
from coderepairrl.cluster.slurm import ANSWER_S, Queued, ask, end_of, explained, queue
from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.processes import cause, proc

if TYPE_CHECKING:
    import submitit

CLAIM_S = 600.0  # a launcher that is alive is done with one job long before
ENDLESS_MIN = 10**6  # on this machine there is no time limit


@dataclass(frozen=True)
class Record:
    """submitted.json"""

    kind: Literal["slurm", "local"]
    ids: list[str]  # one a shard
    time: float
    host: str
    code: str
    former: list[str] = field(default_factory=list)  # ids of earlier submissions
    cancelled: list[str] = field(default_factory=list)  # ids that --cancel has ended

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        found = read_json(folder / "launch" / "submitted.json")
        return cls(**found) if found else None

    def write(self, folder: Path) -> None:
        write_json(folder / "launch" / "submitted.json", asdict(self))


@dataclass(frozen=True)
class State:
    """Of one shard. `slurm`: what the queue says, "" when the job isn't there."""

    word: Literal["new", "live", "done", "failed"]
    id: str = ""
    slurm: str = ""
    cause: str = ""


def states(folder: Path, runs: list[Path], queued: list[Queued], accounting: bool = False) -> list[State]:
    """One a shard. `folder`: the job's; `runs`: run folders of its shards."""
    record = Record.read(folder)
    if record is None:
        return [State("new")] * len(runs)
    in_queue = {entry.id: entry for entry in queued if entry.folder == str(folder)}
    ids = record.ids + [""] * (len(runs) - len(record.ids))
    return [
        _state(folder / "launch", run, record, id_, in_queue.get(id_), accounting)
        for run, id_ in zip(runs, ids, strict=True)
    ]


def _state(launch: Path, run: Path, record: Record, id_: str, queued: Queued | None, accounting: bool) -> State:
    slurm = queued.state if queued else ""
    if not id_:
        return State("new")
    if queued and queued.live:
        return State("live", id_, slurm, "" if queued.reason == "None" else queued.reason)
    if record.kind == "local" and record.host == socket.gethostname() and _controls(id_):
        return State("live", id_, "on this machine")
    kind, said = _result(launch / f"{id_}_0_result.pkl")
    status = read_json(run / "status.json") or {}
    if kind == "success" or status.get("state") == "done":
        return State("done", id_, slurm)
    if id_ in record.cancelled:
        return State("failed", id_, slurm, "cancelled by --cancel")
    if record.kind == "slurm" and not slurm and accounting:
        slurm = end_of(id_)
    log = launch / f"{id_}_0_log.out"
    why = status.get("reason") or (cause.of_text(log.read_text(errors="replace")) if log.exists() else "") or said
    why = why or (f"Slurm says {slurm}" if slurm else "ended without a word: killed, or its node failed")
    return State("failed", id_, slurm, why)


def _controls(pid: str) -> bool:
    """Whether this process is a job of submitit's local executor."""
    return "submitit.local._local" in proc.text(pid, "cmdline")


def _result(path: Path) -> tuple[str, str]:
    """("success" | "error" | "" while there is none, the error)."""
    if not path.exists():
        return "", ""
    with path.open("rb") as file:
        kind, value = pickle.load(file)
    return kind, cause.of_text(value) if kind == "error" else ""


@contextlib.contextmanager
def claimed(job: Submittable) -> Iterator[bool]:
    """Whether this launcher may submit the job. False: another one is just doing it."""
    claim = job.launch / "claim"
    job.launch.mkdir(parents=True, exist_ok=True)
    if claim.is_dir() and not _held(claim):
        away = claim.with_name(f"claim_{os.getpid()}_{time.time_ns()}.tmp")
        with contextlib.suppress(FileNotFoundError):  # another launcher was faster
            claim.rename(away)
            shutil.rmtree(away)
    try:
        claim.mkdir()
    except FileExistsError:
        yield False
        return
    try:
        write_json(claim / "owner.json", {"host": socket.gethostname(), "pid": os.getpid()})
        yield True
    finally:
        (claim / "owner.json").unlink(missing_ok=True)
        claim.rmdir()


def _held(claim: Path) -> bool:
    """Whether the launcher that made it may still be at work."""
    owner = read_json(claim / "owner.json")
    if owner and owner["host"] == socket.gethostname() and not Path(f"/proc/{owner['pid']}").exists():
        return False
    try:
        return time.time() - claim.stat().st_mtime < CLAIM_S
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Submission:
    """A job of the plan on its way to Slurm, or to this machine. The caller holds the claim."""

    job: Submittable
    plan: Plan

    def adopt(self) -> Record | None:
        """The record of a submission whose launcher died between sbatch and writing it down, if there is one."""
        from submitit.core.utils import DelayedSubmission

        # submitit's, written before sbatch is called
        if not any(path.suffix in (".pkl", ".sh") for path in self.job.launch.iterdir()):
            return None
        ids = [
            entry.id
            for entry in queue()
            if entry.folder == str(self.job.folder) and entry.name == self.job.name and entry.live
        ]
        if len(ids) != len(self.job.jobs):
            return None
        ids.sort(key=lambda id_: int(id_.rpartition("_")[2]))
        self.plan.freeze_code()
        self.job.freeze()
        for one, id_ in zip(self.job.jobs, ids, strict=True):
            if not (pickled := self.job.launch / f"{id_}_submitted.pkl").exists():
                DelayedSubmission(one).dump(pickled)
        found = Record("slurm", ids, time.time(), socket.gethostname(), str(self.plan.code))
        found.write(self.job.folder)
        return found

    def submit(self, shards: list[int], after: list[str]) -> list[str]:
        """These shards to Slurm; returns their ids. ConfigError with sbatch's own line when it refuses."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self.plan.freeze_code()
        self.job.freeze()
        try:
            executor = SlurmExecutor(self.job.launch, python=shlex.quote(self.job.jobs[0].python))
        except RuntimeError:
            raise ConfigError(
                "Slurm's programs (sbatch, srun) are not on this machine: "
                "run this on a login node of the cluster, or without Slurm: --local"
            ) from None
        executor.update_parameters(**self.job.parameters(self.plan.site, after))
        late = (
            f"sbatch did not answer within {ANSWER_S:.0f} s: start the same command again in a minute; "
            "what it did submit is found in the queue"
        )
        # submitit prints what it also raises
        with _outside_of_jobs(), _within(ANSWER_S, late), contextlib.redirect_stderr(io.StringIO()):
            try:
                submitted = (
                    executor.submit_array([self.job.jobs[i] for i in shards])
                    if len(shards) > 1
                    else [executor.submit(self.job.jobs[shards[0]])]
                )
            except (FailedJobError, FailedSubmissionError) as error:
                if isinstance(error.__cause__, EngineError):
                    raise error.__cause__ from None
                raise ConfigError(f"sbatch refuses {self.job.name}: {explained(str(error))}") from error
        return self._record("slurm", dict(zip(shards, (one.job_id for one in submitted), strict=True)))

    def start_here(self, shard: int) -> "submitit.Job":
        """On this machine, by submitit's local executor."""
        from submitit import LocalExecutor

        self.plan.freeze_code()
        self.job.freeze()
        gpus = self.job.planned.config.gpus_per_node * self.job.planned.config.count
        executor = LocalExecutor(self.job.launch, python=shlex.quote(self.job.jobs[0].python))
        executor.update_parameters(timeout_min=ENDLESS_MIN, tasks_per_node=1, gpus_per_node=gpus, stderr_to_stdout=True)
        # inherited: Ctrl-C is for the launcher, which ends the job in its own way
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["PYTHONPATH"] = self.job.jobs[0].code
        try:
            started = executor.submit(self.job.jobs[shard])
        finally:
            signal.signal(signal.SIGINT, former)
        self._record("local", {shard: started.job_id})
        return started

    def _record(self, kind: Literal["slurm", "local"], new: dict[int, str]) -> list[str]:
        """Writes the new ids of shards down; returns them."""
        before = Record.read(self.job.folder) or Record(kind, [], 0.0, "", "")
        ids = before.ids + [""] * (len(self.job.jobs) - len(before.ids))
        former = [*before.former, *(ids[shard] for shard in new if ids[shard])]
        ids = [new.get(shard, id_) for shard, id_ in enumerate(ids)]
        Record(kind, ids, time.time(), socket.gethostname(), str(self.plan.code), former, before.cancelled).write(
            self.job.folder
        )
        return list(new.values())


def cancel(folder: Path, ids: list[str]) -> None:
    """Asks these of a job's shards to end: each is told by a signal, and keeps what it has."""
    found = Record.read(folder)
    replace(found, cancelled=[*found.cancelled, *ids]).write(folder)
    if found.kind == "slurm":
        ask("scancel", *ids)
    else:
        for pid in ids:
            os.kill(int(pid), signal.SIGTERM)


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """A launcher that itself runs in a Slurm job must not hand that job's settings on: srun would take them for the new
    job's."""
    inherited = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM_") and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(inherited)


@contextlib.contextmanager
def _within(seconds: float, message: str) -> Iterator[None]:
    """submitit waits for sbatch without a limit. Main thread only."""

    def late(*_):
        raise EngineError(message)

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

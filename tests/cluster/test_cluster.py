"""Runs over two nodes of a real Slurm that are disturbed in every way that a cluster knows, and come back. Run by
scripts/test_slurm.sh.

Each scenario adds a row to recoveries.md in the folder named by CODEREPAIRRL_RESULTS: seconds from the disturbance, or
from the start of
the requeued job, to the first new step (of a killed vLLM: until it has the newest weights); beside the same run's
start-up until vLLM is ready.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, job_state, out, why_not, without_delay
from cluster_helpers import IMAGES, RESULTS
from conftest import metrics_of, pids_of
from pair_helpers import PATIENCE_S, check, ranks, submit

from coderepairrl.files import read_json
from coderepairrl.processes import proc
from coderepairrl.rollout import ledger

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=3) as cluster:
        yield cluster


@dataclass
class Disturbed:
    """A run in mid-training, and what disturbs it."""

    cluster: Cluster
    run: Path
    job: str
    before: set[str]  # what of the machine's a run could leave behind

    def engine(self) -> dict | None:
        return read_json(self.run / "policy" / "engine_0.json")

    def nodes(self) -> list[int]:
        names = next(
            word.removeprefix("NodeList=")
            for word in out("scontrol", "show", "job", "-o", self.job).split()
            if word.startswith("NodeList=")
        )
        return [int(name.removeprefix("node")) for name in out("scontrol", "show", "hostnames", names).split()]


def kill_vllm(of: Disturbed) -> None:
    until(of, lambda: (engine := of.engine()) and killed(engine["pid"], os.killpg))


def kill_rank(of: Disturbed) -> None:
    until(of, lambda: any(killed(pid) for pid in ranks(of.run)[-1:]))


def killed(pid: int, kill=os.kill) -> bool:
    """False: it had just ended by itself."""
    try:
        kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def requeue(of: Disturbed) -> None:
    subprocess.run(["scontrol", "requeue", of.job], check=True, timeout=60)


def preempt(of: Disturbed) -> None:
    subprocess.run(
        ["sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5"], check=True, timeout=60
    )


def time_limit(of: Disturbed) -> None:
    """It is in whole minutes; Slurm sends the signal a minute before, and up to a minute early."""
    subprocess.run(
        ["scontrol", "update", f"jobid={of.job}", "TimeLimit=" + str(1 + (seconds_running(of.job) + 35) // 60)],
        check=True,
        timeout=60,
    )


def link_down(of: Disturbed) -> None:
    """The training node's; Slurm gives the job the spare one."""
    subprocess.run(["ip", "link", "set", of.cluster.link(of.nodes()[1]), "down"], check=True)


def seconds_running(job: str) -> int:
    said = next(
        word.removeprefix("RunTime=")
        for word in out("scontrol", "show", "job", "-o", job).split()
        if word.startswith("RunTime=")
    )
    hours, minutes, seconds = map(int, said.rpartition("-")[2].split(":"))
    return 3600 * hours + 60 * minutes + seconds


def restarts(job: str) -> int:
    return int(
        next(
            word.removeprefix("Restarts=")
            for word in out("scontrol", "show", "job", "-o", job).split()
            if word.startswith("Restarts=")
        )
    )


@pytest.fixture
def disturbed(cluster, policy, tmp_path, request):
    steps_asked = SCENARIOS[request.node.callspec.params["name"]][4]
    run, before = tmp_path / "run", left_behind()
    images = {name: str(IMAGES / f"{name}.sif") for name in ("serve", "train") if (IMAGES / f"{name}.sif").exists()}
    job = submit(
        run,
        policy,
        f"training.steps={steps_asked}",
        "training.checkpoint_every=2",
        "rollout.scaffold.tool_delay_s=1.0",
        "rollout.max_staleness=1",
        images=images,
    )
    of = Disturbed(cluster, run, job, before)
    until(of, lambda: len(steps(run)) >= 2)
    yield of
    subprocess.run(["scancel", job], timeout=60)
    for node in range(1, cluster.nodes + 1):
        subprocess.run(["ip", "link", "set", cluster.link(node), "up"], check=True)
    deadline = time.monotonic() + 600
    while out("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("node") < cluster.nodes:
        assert time.monotonic() < deadline, out("sinfo", "-N", "-l")
        time.sleep(0.2)


def steps(run: Path) -> list[dict]:
    return metrics_of(run) if (run / "metrics.jsonl").exists() else []


def until(of: Disturbed, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        without_delay(of.job)
        state = job_state(of.job)
        assert (
            state.split()[0] in ("RUNNING", "SIGNALING", "PENDING", "CONFIGURING", "COMPLETING", "COMPLETED")
            and time.monotonic() < deadline
        ), f"{state}\n{(of.run / 'slurm.out').read_text()[-3000:]}"
        time.sleep(0.1)


def begun(run: Path) -> list[float]:
    """When each attempt began, in seconds since the epoch."""
    return [row["time"] for row in ledger.rows(run / "attempts.jsonl") if "progress" in row]


def repeated(run: Path) -> int:
    """Steps that were trained again."""
    rows = steps(run)
    return len(rows) - len({row["step"] for row in rows})


SCENARIOS = {  # what happens, new attempts, job restarts, steps that may be trained again, steps of the run
    "SIGKILL of vLLM": (kill_vllm, 0, 0, 0, 6),
    "SIGKILL of a trainer rank": (kill_rank, 1, 0, 2, 5),
    "scontrol requeue": (requeue, 1, 1, 2, 5),
    "preemption by a higher priority": (preempt, 1, 1, 1, 8),
    "time limit": (time_limit, 1, 1, 1, 30),
    "a node's link down": (link_down, 1, 1, 2, 30),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_survives(disturbed, name):
    disturb, attempts, requeued, again, asked = SCENARIOS[name]
    of, run = disturbed, disturbed.run
    start_up = (run / "policy" / "engine_0.json").stat().st_mtime - begun(run)[0]
    trained = max(row["step"] for row in steps(run))
    # their root, as the kernel knows it
    in_image = [pid for pid in pids_of(run) if "apptainer" in proc.text(pid, "mountinfo")]
    killed = of.engine()["pid"]
    disturb(of)
    happened = time.time()
    if requeued:
        until(of, lambda: restarts(of.job) == requeued and job_state(of.job) == "RUNNING")
        # what was set for the disturbance holds for the job
        subprocess.run(["scontrol", "update", f"jobid={of.job}", "TimeLimit=60"], check=True, timeout=60)
        happened = time.time()
    if disturb is kill_vllm:  # back with the newest weights
        until(
            of,
            lambda: (
                (engine := of.engine())
                and engine["pid"] != killed
                and engine["version"] == read_json(run / "policy" / "current.json")["version"]
            ),
        )
        back = time.time() - happened
    else:
        until(of, lambda: max(row["step"] for row in steps(run)) > trained and steps(run)[-1]["time"] > happened)
        back = next(row["time"] for row in steps(run) if row["time"] > happened and row["step"] > trained) - happened
    until(of, lambda: job_state(of.job) == "COMPLETED")
    check(run, asked)
    assert (len(begun(run)), restarts(of.job)) == (1 + attempts, requeued)
    assert repeated(run) <= again
    assert left_behind() <= of.before
    assert "restarted" in str(read_json(run / "status.json")["recoveries"]) or name != "SIGKILL of vLLM"
    assert bool(in_image) == any(IMAGES.glob("serve*.sif"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "recoveries.md").open("a") as table:
        table.write(
            f"| {name} | {start_up:.0f} | {back:.0f} | {repeated(run)} | {'images' if in_image else 'no images'} |\n"
        )


def test_two_nodes_serve_and_one_trains(cluster, policy, tmp_path):
    """Each session stays with its server, both serve, both get every update; one is killed, the other goes on
    meanwhile."""
    run = tmp_path / "run"
    job = submit(run, policy, "training.steps=6", "rollout.max_staleness=1", serve_nodes=2)
    of = Disturbed(cluster, run, job, left_behind())
    until(of, lambda: len(steps(run)) >= 2)
    engines = [read_json(run / "policy" / f"engine_{number}.json") for number in range(2)]
    assert len({engine["url"].rpartition(":")[0] for engine in engines}) == 2
    assert killed(engines[1]["pid"], os.killpg)
    until(of, lambda: job_state(job) == "COMPLETED")
    check(run, 6)
    logs = run / "logs" / "attempt_1"
    assert (logs / "vllm.log").exists() and (logs / "vllm_1.log").exists()
    assert ["vLLM restarted" in row["what"] for row in ledger.rows(run / "policy" / "recoveries.jsonl")][:1] == [True]
    assert read_json(run / "status.json")["attempt"] == 1


def left_behind() -> set[str]:
    """Shared-memory files, and mounts of images."""
    return {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")} | {
        line for line in Path("/proc/mounts").read_text().splitlines() if "fuse" in line
    }

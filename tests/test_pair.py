"""A run over two nodes of a real Slurm: one serves vLLM and runs the agents, the other trains."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster, job_state, why_not
from conftest import ROOT, metrics_of, pids_of, processes_of, run_program

from coderepairrl import ledger
from coderepairrl.files import read_json
from coderepairrl.job import Job

pytestmark = [pytest.mark.whole, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
SMALL = ["rollout.groups_per_step=3", "rollout.group_size=4", "rollout.limits.max_turns=4", "rollout.limits.max_completion_tokens=48", "rollout.tasks.train=12",
         "rollout.tasks.heldout=6", "rollout.server.kv_cache_mib=128", "rollout.server.start_timeout_s=900", "rollout.rewards.weights={random: 1.0}",
         "rollout.rewards.require_submission=false", "training.checkpoint_every=1"]
PATIENCE_S = 1800.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as cluster:
        yield cluster


def submit(run: Path, policy: Path, *overrides: str, serve_nodes: int = 1, train_nodes: int = 1, images: dict[str, str] | None = None) -> str:
    """The job's id. What a sbatch file does."""
    run.mkdir(parents=True)
    job = Job(program="scripts/train_grpo.py", arguments=[str(ROOT / "configs/quickstart.yaml"), f"run={run}", f"model={policy}", *SMALL, *overrides],
              run=str(run), code=str(ROOT), python=sys.executable, serve_nodes=serve_nodes, train_nodes=train_nodes, images=images or {})
    (run / "job.json").write_text(job.model_dump_json())
    result = subprocess.run(
        ["sbatch", "--parsable", f"--nodes={serve_nodes + train_nodes}", "--ntasks-per-node=1", "--cpus-per-task=2", "--mem=8000", "--requeue", "--open-mode=append",
         "--signal=USR2@60", f"--output={run}/slurm.out", "--wrap", f"srun --kill-on-bad-exit=1 {sys.executable} {ROOT}/slurm/job.py {run}/job.json"],
        capture_output=True, text=True, check=True, cwd=ROOT)
    return result.stdout.strip()


def wait(holds, job: str, run: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        state = job_state(job)
        assert state in ("RUNNING", "PENDING Resources", "PENDING None", "CONFIGURING", "COMPLETING", "COMPLETED") and time.monotonic() < deadline, \
            f"{state}\n{(run / 'slurm.out').read_text()[-3000:]}"
        time.sleep(0.1)


def check(run: Path, steps: int) -> None:
    assert read_json(run / "status.json")["state"] == "done"
    audit = run_program("analysis/audit.py", str(run))
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert sorted({row["step"] for row in metrics_of(run)}) == list(range(steps))
    assert read_json(run / "summary.json")["max_logprob_gap"] < 1e-4
    assert not processes_of(run)


def begun(cluster, policy, run: Path, steps: int) -> str:
    """The job's id, when its first step is trained: one node serves, the other trains."""
    job = submit(run, policy, f"training.steps={steps}")
    wait(lambda: (run / "rollouts" / "step_00000.trained.json").exists(), job, run)
    beats = [read_json(run / "heartbeats" / f"node_{node}.json") for node in range(2)]
    assert len({beat["host"] for beat in beats}) == len({beat["address"] for beat in beats}) == 2
    assert read_json(run / "policy" / "engine_0.json")["url"].startswith(f"http://{beats[0]['address']}:")
    return job


def test_two_nodes(cluster, policy, tmp_path):
    run = tmp_path / "run"
    job = begun(cluster, policy, run, steps=2)
    wait(lambda: job_state(job) == "COMPLETED", job, run)
    check(run, 2)
    assert read_json(run / "status.json")["attempt"] == 1


@pytest.mark.cluster
def test_a_killed_rank_costs_an_attempt(cluster, policy, tmp_path):
    """In images and with a checkpoint to go on from, scripts/test_slurm.sh does the same."""
    run = tmp_path / "run"
    job = begun(cluster, policy, run, steps=3)
    os.kill(ranks(run)[0], signal.SIGKILL)
    wait(lambda: job_state(job) == "COMPLETED", job, run)
    check(run, 3)
    assert read_json(run / "status.json")["attempt"] == 2
    ends = [row for row in ledger.rows(run / "attempts.jsonl") if "state" in row]
    assert [end["state"] for end in ends] == ["failed", "done"] and "SIGKILL" in ends[0]["reason"]
    steps = [row["step"] for row in ledger.rows(run / "policy" / "versions.jsonl")]
    assert sorted(set(steps)) == [0, 1, 2, 3]


def ranks(run: Path) -> list[int]:
    """Pids of the run's trainer ranks."""
    return [pid for pid, words in pids_of(run).items() if "role=train" in words and "torch.distributed.run" not in words and "-u" in words]


def test_attempts_without_progress_end_with_the_reason(cluster, policy, tmp_path):
    run = tmp_path / "run"
    job = submit(run, tmp_path / "no_model", "training.steps=3")
    deadline = time.monotonic() + PATIENCE_S
    while job_state(job) not in ("FAILED", "COMPLETED"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    said = (run / "slurm.out").read_text()
    assert job_state(job) == "FAILED" and "no model there" in said and said.count("no progress in 3 attempts in a row") == 1, said
    assert "no progress in 3 attempts in a row" in read_json(run / "status.json")["reason"]

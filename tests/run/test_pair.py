"""A run over two nodes of a real Slurm: one serves vLLM and runs the agents, the other trains."""

import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster, job_state, why_not
from pair_helpers import PATIENCE_S, check, ranks, submit

from coderepairrl.files import read_json
from coderepairrl.rollout import ledger

pytestmark = [pytest.mark.whole, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as cluster:
        yield cluster


def wait(holds, job: str, run: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        state = job_state(job)
        assert (
            state in ("RUNNING", "PENDING Resources", "PENDING None", "CONFIGURING", "COMPLETING", "COMPLETED")
            and time.monotonic() < deadline
        ), f"{state}\n{(run / 'slurm.out').read_text()[-3000:]}"
        time.sleep(0.1)


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


@pytest.mark.cluster
def test_attempts_without_progress_end_with_the_reason(cluster, policy, tmp_path):
    run = tmp_path / "run"
    job = submit(run, tmp_path / "no_model", "training.steps=3")
    deadline = time.monotonic() + PATIENCE_S
    while job_state(job) not in ("FAILED", "COMPLETED"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    said = (run / "slurm.out").read_text()
    assert (
        job_state(job) == "FAILED"
        and "no model there" in said
        and said.count("no progress in 3 attempts in a row") == 1
    ), said
    assert "no progress in 3 attempts in a row" in read_json(run / "status.json")["reason"]

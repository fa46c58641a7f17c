"""Launching more than once, and at once: claims, records, and Slurm as far as its answers go."""

import json
import multiprocessing
import os
import subprocess
import time

import pytest

from coderepairrl.cluster import slurm
from coderepairrl.cluster.plan import Submittable
from coderepairrl.cluster.submission import CLAIM_S, Record, claimed
from coderepairrl.errors import ConfigError, EngineError

# ---- claims and records


def _claim(job: Submittable, answers, all_have_tried) -> None:
    with claimed(job) as mine:
        answers.put(mine)
        all_have_tried.wait(60)


def test_of_many_launchers_at_once_one_has_the_claim(bench):
    job, context = bench.chain()[0], multiprocessing.get_context("fork")
    answers, all_have_tried = context.Queue(), context.Event()
    several = [context.Process(target=_claim, args=(job, answers, all_have_tried)) for _ in range(6)]
    for process in several:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in several) == [False] * 5 + [True]
    all_have_tried.set()
    for process in several:
        process.join()
    with claimed(job) as mine:
        assert mine, "the claim ends with its holder"
    assert list(job.launch.iterdir()) == []


def test_the_claim_of_a_dead_launcher_is_taken_over_and_that_of_a_live_one_is_not(bench):
    job = bench.chain()[0]
    dead = subprocess.Popen(["true"])
    dead.wait()
    claim = job.launch / "claim"
    claim.mkdir(parents=True)
    for owner, free in (
        ({"host": os.uname().nodename, "pid": dead.pid}, True),
        ({"host": os.uname().nodename, "pid": os.getpid()}, False),
        ({"host": "elsewhere", "pid": 1}, False),
    ):
        claim.mkdir(exist_ok=True)
        (claim / "owner.json").write_text(json.dumps(owner))
        with claimed(job) as mine:
            assert mine == free
    os.utime(claim, (time.time() - 2 * CLAIM_S,) * 2)
    with claimed(job) as mine:
        assert mine, "nobody is at work so long"


# ---- Slurm, as far as its answers go


def test_a_second_launch_submits_nothing_and_a_lost_record_is_found_in_the_queue(bench):
    path = bench.slurm(f"echo x >>{bench.folder}/calls; echo Submitted batch job $(wc -l <{bench.folder}/calls)")
    first = bench.launch(path=path)
    assert (
        first.returncode == 0 and "first  submitted: 1" in first.stdout and "second  submitted: 2_0 2_1" in first.stdout
    ), first.stdout + first.stderr
    run = bench.runs / "run_seed0"
    assert "#SBATCH --dependency=afterok:1" in (run / "second" / "launch" / "2_submission.sh").read_text()
    lines = [
        f"1|RUNNING|None|small-run_seed0-first|{run}",
        *(f"2_{i}|PENDING|Dependency|small-run_seed0-second|{run}/second" for i in (0, 1)),
    ]
    path = bench.slurm(f"echo x >>{bench.folder}/calls", "cat <<END\n" + "\n".join(lines) + "\nEND")
    again = bench.launch(path=path)
    assert "under way already: 1 running" in again.stdout and "under way already: 2_0 2_1 pending" in again.stdout
    (run / "launch" / "submitted.json").unlink()  # as if the launcher had died at the worst moment
    (run / "launch" / "1_submitted.pkl").unlink()
    found = bench.launch(path=path)
    assert (
        "first  submitted: 1\n" in found.stdout
        and Record.read(run).ids == ["1"]
        and (run / "launch" / "1_submitted.pkl").exists()
    )
    assert (bench.folder / "calls").read_text() == "x\nx\n"
    assert "pending (Dependency)" in bench.launch("--status", path=path).stdout
    assert (
        bench.launch("--cancel", path=path).returncode == 0
        and (bench.folder / "cancelled").read_text() == "2_0 2_1\n1\n"
    )


def test_what_failed_is_submitted_again_with_what_waits_for_it(bench):
    path = bench.slurm(f"echo x >>{bench.folder}/calls; echo Submitted batch job $(wc -l <{bench.folder}/calls)")
    bench.launch(path=path)  # and nothing in the queue, no result: dead
    table = bench.launch("--status", path=path)
    assert table.stdout.count(" failed ") == 3 and "ended without a word" in table.stdout
    assert (
        "first  failed" in (plain := bench.launch(path=path).stdout)
        and "second  not submitted: first did not end well" in plain
    )
    again = bench.launch("--resubmit", path=path)
    assert "first  submitted: 3" in again.stdout and "second  submitted: 4_0 4_1" in again.stdout
    assert "afterok:3" in (bench.runs / "run_seed0" / "second" / "launch" / "4_submission.sh").read_text()
    assert Record.read(bench.runs / "run_seed0" / "second").former == ["2_0", "2_1"]


def test_a_refusal_of_sbatch_is_one_line_with_a_remedy_and_leaves_no_claim(bench):
    path = bench.slurm(
        'echo "sbatch: error: Batch job submission failed: Invalid account or account/partition combination '
        'specified" >&2; exit 1'
    )
    done = bench.launch(path=path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: sbatch refuses small-run_seed0-first: Batch job submission failed: Invalid account" in done.stderr
    assert "sacctmgr show associations" in done.stderr
    assert (
        not (bench.runs / "run_seed0" / "launch" / "claim").exists() and Record.read(bench.runs / "run_seed0") is None
    )


def test_a_job_submitted_from_within_a_job_does_not_inherit_its_settings(bench, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    path = bench.slurm(f"env | grep ^SLURM_ >{bench.folder}/seen; echo Submitted batch job 1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert bench.launch(path=path).returncode == 0
    assert (bench.folder / "seen").read_text() == "SLURM_CONF=/etc/slurm.conf\n"


def test_a_slurm_that_does_not_answer_is_an_error_in_time(bench, monkeypatch):
    monkeypatch.setattr(slurm, "ANSWER_S", 0.3)
    with pytest.raises(EngineError, match="did not answer"):
        slurm.ask("sleep", "60")
    from coderepairrl.cluster import submission

    monkeypatch.setattr(submission, "ANSWER_S", 2.0)
    monkeypatch.setenv("PATH", bench.slurm("exec sleep 60"))
    with pytest.raises(EngineError, match="sbatch did not answer"):
        submission.Submission(bench.chain()[0], bench.plan()).submit([0], [])
    with pytest.raises(ConfigError, match="is not on this machine"):
        slurm.ask("no-such-program")


def test_status_without_slurm_says_what_is_missing(bench):
    run = bench.runs / "run_seed0"
    (run / "launch").mkdir(parents=True)
    (run / "heartbeats").mkdir()
    Record("slurm", ["17"], 0.0, "x", "y").write(run)
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "reward": 0.1, "pass_rate": 0.2}\n{"step": 1, "reward": 0.25, "pass_rate": 0.5}\n'
    )
    (run / "status.json").write_text('{"state": "failed", "step": 2, "reason": "the disk is full"}')
    (run / "heartbeats" / "node_0.json").write_text("{}")
    for file in ("status.json", "heartbeats/node_0.json"):
        os.utime(run / file, (time.time() - 7300,) * 2)
    done = bench.launch("--status", path="/nowhere")
    row = next(line for line in done.stdout.splitlines() if "run_seed0" in line and "17" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "run_seed0",
        "first",
        "17",
        "failed",
        "2",
        "0.250",
        "0.500",
        "2 h",
    ]
    assert "the disk is full" in done.stdout and "squeue is not on this machine" in done.stderr and done.returncode == 0

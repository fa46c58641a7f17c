"""What Slurm's programs say, and what is concluded from it."""

import pytest

from coderepairrl.cluster import slurm
from coderepairrl.cluster.submission import Record, states


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        (
            "sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
            "sbatch: error: fetch_config: DNS SRV lookup failed\n"
            "sbatch: fatal: Could not establish a configuration source",
            "Could not establish a configuration source: ",
            "set SLURM_CONF",
        ),
        (
            "sbatch: error: invalid partition specified: gpus\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            "invalid partition",
            "sinfo -s",
        ),
        ("squeue: error: Unable to contact slurm controller (connect failure)", "Unable to contact", "try again later"),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "Batch job submission failed",
            "no node has so many",
        ),
        ("", "failed without a word", "man sbatch"),
    ],
)
def test_what_slurm_says_is_told_with_a_remedy(text, cause, remedy):
    line = slurm.explained(text)
    assert line.startswith(cause) and remedy in line and "\n" not in line


def test_states_of_a_job_that_left_the_queue(tmp_path):
    run = tmp_path / "r"
    (run / "launch").mkdir(parents=True)
    Record("slurm", ["17"], 0.0, "x", "y").write(run)
    state = lambda *queue: states(run, [run], [slurm.Queued(*queue, folder=str(run))] if queue else [])[0]  # noqa: E731
    assert (
        state("17", "RUNNING", "None", "n").word == "live"
        and state("17", "PENDING", "Priority", "n").cause == "Priority"
    )
    assert (state("17", "NODE_FAIL", "None", "n").word, state("17", "NODE_FAIL", "None", "n").cause) == (
        "failed",
        "Slurm says NODE_FAIL",
    )
    (run / "launch" / "17_0_log.out").write_text(
        "step 1\nerror: vLLM ended: see its log\nsrun: error: node1: task 0: Exited with exit code 1\n"
    )
    assert state().cause == "vLLM ended: see its log"
    (run / "status.json").write_text('{"state": "done", "reason": ""}')
    assert state().word == "done"

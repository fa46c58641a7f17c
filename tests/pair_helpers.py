"""Shared by several tests: test_pair.py and others."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT, metrics_of, pids_of, processes_of, run_program

from coderepairrl.cluster.job import Job
from coderepairrl.files import read_json

SMALL = [
    "rollout.groups_per_step=3",
    "rollout.group_size=4",
    "rollout.limits.max_turns=4",
    "rollout.limits.max_completion_tokens=48",
    "rollout.tasks.train=12",
    "rollout.tasks.heldout=6",
    "rollout.server.kv_cache_mib=128",
    "rollout.server.start_timeout_s=900",
    "rollout.rewards.weights={random: 1.0}",
    "rollout.rewards.require_submission=false",
    "training.checkpoint_every=1",
]


PATIENCE_S = 1800.0


def submit(
    run: Path,
    policy: Path,
    *overrides: str,
    serve_nodes: int = 1,
    train_nodes: int = 1,
    images: dict[str, str] | None = None,
) -> str:
    """The job's id. What a sbatch file does."""
    run.mkdir(parents=True)
    job = Job(
        program="scripts/train_grpo.py",
        arguments=[str(ROOT / "configs/quickstart.yaml"), f"run={run}", f"model={policy}", *SMALL, *overrides],
        run=str(run),
        code=str(ROOT),
        python=sys.executable,
        serve_nodes=serve_nodes,
        train_nodes=train_nodes,
        images=images or {},
    )
    (run / "job.json").write_text(job.model_dump_json())
    result = subprocess.run(
        [
            "sbatch",
            "--parsable",
            f"--nodes={serve_nodes + train_nodes}",
            "--ntasks-per-node=1",
            "--cpus-per-task=2",
            "--mem=8000",
            "--requeue",
            "--open-mode=append",
            "--signal=USR2@60",
            f"--output={run}/slurm.out",
            "--wrap",
            f"srun --kill-on-bad-exit=1 {sys.executable} {ROOT}/slurm/job.py {run}/job.json",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return result.stdout.strip()


def check(run: Path, steps: int) -> None:
    assert read_json(run / "status.json")["state"] == "done"
    audit = run_program("analysis/audit.py", str(run))
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert sorted({row["step"] for row in metrics_of(run)}) == list(range(steps))
    assert read_json(run / "summary.json")["max_logprob_gap"] < 1e-4
    assert not processes_of(run)


def ranks(run: Path) -> list[int]:
    """Pids of the run's trainer ranks."""
    return [
        pid
        for pid, words in pids_of(run).items()
        if "role=train" in words and "torch.distributed.run" not in words and "-u" in words
    ]

"""The script that a dry run shows is the one that sbatch gets, on a machine without Slurm too."""

import os
import shutil
from pathlib import Path

import pytest

from coderepairrl.cluster.batch_script import batch_script

PARAMETERS = {"time": 9, "nodes": 1, "job_name": "x", "additional_parameters": {"partition": "main"}}
KEPT = '#!/bin/sh\ncp "$1" "$KEPT"\necho Submitted batch job 7\n'


@pytest.mark.parametrize("jobs", [1, 3])
def test_it_is_what_sbatch_gets(tmp_path, monkeypatch, jobs):
    from submitit import SlurmExecutor

    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(KEPT)
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "folder"
    shown = batch_script([os.getpid] * jobs, PARAMETERS, "python3", folder)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(tmp_path / "kept.sh"))
    executor = SlurmExecutor(folder, python="python3")
    executor.update_parameters(**PARAMETERS)
    executor.submit_array([os.getpid] * jobs) if jobs > 1 else executor.submit(os.getpid)
    assert shown == (tmp_path / "kept.sh").read_text()
    assert "#SBATCH --partition=main" in shown and ("--array" in shown) == (jobs > 1)


def test_nothing_is_left_and_no_tool_is_hidden(tmp_path):
    before = os.environ["PATH"], shutil.which("sbatch")
    batch_script([os.getpid], PARAMETERS, "python3", tmp_path / "folder")
    assert (os.environ["PATH"], shutil.which("sbatch")) == before and not Path(tmp_path / "folder").exists()

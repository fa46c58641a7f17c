"""A site, and what stands beside the launcher: the check of a site, plain sbatch, and sending what W&B logged
offline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from coderepairrl.cluster.job import Job
from coderepairrl.cluster.site import Nodes, Resources, SiteConfig, sbatch_parameters
from coderepairrl.config import load
from coderepairrl.errors import ConfigError


def test_a_time_limit_that_leaves_no_time_after_the_signal_is_refused():
    with pytest.raises(ConfigError, match="ask for more minutes"):
        sbatch_parameters(SiteConfig(signal_lead_s=300), Resources(minutes=5), "x", ROOT, ROOT)
    assert (
        sbatch_parameters(SiteConfig(requeue=False), Resources(nodes=Nodes(serve=3, train=2)), "x", ROOT, ROOT)["nodes"]
        == 5
    )


def test_check_site_counts_what_is_wrong(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(
        yaml.safe_dump(
            {
                "python": "/no/python",
                "binds": ["/no/folder"],
                "images": {"serve": "/no.sif"},
                "setup": ["false"],
                "accounting": False,
            }
        )
    )
    tools = tmp_path / "bin"  # no Slurm: without a configuration its programs ask the network for one, for minutes
    tools.mkdir()
    for name in ("bash", "sh", "env", "stat"):
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [sys.executable, "slurm/check_site.py", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": str(tools)},
        timeout=300,
    )
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert (
        done.returncode == len(wrong)
        and {"python:", "binds:", "images:", "setup:", "sbatch:"} <= {line.split()[1] for line in wrong}
        and done.stderr == ""
    )
    assert "ok     runs: mkdir and rename are atomic" in done.stdout.splitlines()


def test_offline_runs_are_sent_when_they_have_changed(tmp_path):
    old, new, other = (tmp_path / name / "wandb" / f"offline-run-{name}" for name in ("old", "new", "other"))
    for folder in (old, new, other):
        folder.mkdir(parents=True)
        (folder / "run-x.wandb").write_text("x")
        os.utime(folder / "run-x.wandb", (1000, 1000))
    (old / "run-x.wandb.synced").write_text("")  # since it was last written to
    (new / "run-x.wandb.synced").write_text("")
    os.utime(new / "run-x.wandb.synced", (500, 500))
    done = subprocess.run(
        ["bash", "scripts/sync_wandb.sh", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"WANDB": "/bin/echo"},
        capture_output=True,
        text=True,
    )
    assert (
        done.stdout.splitlines() == ["2 offline runs to send", f"sync --yes --include-synced {new} {other}"]
        and done.returncode == 0
    )
    missing = subprocess.run(
        ["bash", "scripts/sync_wandb.sh", str(tmp_path / "no")],
        cwd=ROOT,
        env=os.environ | {"WANDB": "/bin/echo"},
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 1 and missing.stderr.startswith("error: ")


def test_plain_sbatch_gets_the_same_job(tmp_path):
    command = [
        sys.executable,
        "slurm/write_job.py",
        "1",
        "2",
        "configs/quickstart.yaml",
        f"run={tmp_path}/r",
        "training.steps=3",
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0 and first.stdout.strip() == f"{tmp_path}/r/launch/job.json", first.stderr
    job = load(Job, first.stdout.strip())
    assert (job.serve_nodes, job.train_nodes, job.program, job.run) == (1, 2, "scripts/train_grpo.py", f"{tmp_path}/r")
    assert yaml.safe_load(Path(job.arguments[0]).read_text())["training"]["steps"] == 3
    again = subprocess.run(
        [*command[:-1], "training.steps=4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"SLURM_RESTART_COUNT": "1"},
    )
    assert again.stdout == first.stdout and yaml.safe_load(Path(job.arguments[0]).read_text())["training"]["steps"] == 3


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.sbatch")), ids=lambda path: path.stem)
def test_batch_files_are_bash_and_call_programs_that_exist(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    text = path.read_text()
    called = [word for word in text.split() if word.startswith(("scripts/", "slurm/")) and word.endswith(".py")]
    assert called and all((ROOT / name).is_file() for name in called) and "#SBATCH --ntasks-per-node=1" in text

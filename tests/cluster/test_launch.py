"""The launcher without a Slurm: what it would submit, what it freezes, jobs that really run through
submitit."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import submitit
import yaml
from conftest import ROOT
from launch_helpers import SMALL

from coderepairrl.cluster.plan import code_files, content_hash
from coderepairrl.cluster.site import SiteConfig
from coderepairrl.cluster.submission import Record
from coderepairrl.config import load
from coderepairrl.processes import proc


def said(run: Path) -> dict:
    return json.loads((run / "said.json").read_text())


# ---- what would be submitted


def test_a_dry_run_shows_script_and_resources_and_writes_nothing(bench):
    bench.site(
        {
            "partition": "main",
            "account": "me",
            "gpu_type": "h100",
            "max_minutes": 8,
            "scratch": "/local",
            "modules": ["cuda/12"],
            "setup": ["ulimit -n 4096"],
            "sbatch": {"licenses": "x"},
            "srun": ["--mpi=none"],
            "accounting": False,
        }
    )
    bench.grid["jobs"]["first"] |= {"nodes": {"serve": 2, "train": 1}, "gpus_per_node": 4}
    done = bench.launch("--dry-run")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("== run_seed0  ")[1:]
    folder, lines = bench.runs / "run_seed0", first.splitlines()
    assert lines[0] == "first: 3 nodes (2 serving, 1 training) 4 GPUs each, 8 min"
    for line in (
        "--nodes=3",
        "--ntasks-per-node=1",
        "--partition=main",
        "--account=me",
        "--gres=gpu:h100:4",
        "--time=8",
        "--mem=1024M",
        "--requeue",
        "--signal=USR2@180",
        "--open-mode=append",
        "--licenses=x",
        f"--chdir={folder}",
        "--job-name=small-run_seed0-first",
        f"--output={folder}/launch/%j_0_log.out",
    ):
        assert f"#SBATCH {line}" in lines
    order = [
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in ("module load cuda/12", "ulimit", "export TMPDIR=", "export PYTHONPATH=", "srun --unbuffered")
    ]
    assert order == sorted(order)
    assert "--kill-on-bad-exit=1 --cpus-per-task=1 --mpi=none" in lines[order[-1]] and lines[order[-1]].endswith(
        f"-u -m submitit.core._submit {folder}/launch"
    )
    assert (
        "#SBATCH --dependency='afterok:<first>'" in second
        and "#SBATCH --array=0-1%2" in second
        and "#SBATCH --kill-on-invalid-dep=yes" in second
    )
    assert "1 runs, 3 jobs; at most 0.7 node hours, 1.6 GPU hours" in second and not bench.runs.exists()


@pytest.mark.parametrize("name", ["plain", "a100", "h100", "local"])
def test_example_sites_make_scripts_that_bash_reads(name, bench):
    site = load(SiteConfig, ROOT / "configs" / "site" / f"{name}.yaml")
    bench.grid |= {"site": f"configs/site/{name}.yaml"}
    bench.grid["jobs"]["first"] |= {"nodes": {}, "gpus_per_node": 4, "memory_gb": None}
    text = bench.chain()[0].script(site, ["17"])
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    wanted = {
        "plain": ["--gres=gpu:4"],
        "a100": ["--gres=gpu:a100:4", "--constraint=a100_80", "--exclusive", "--mem=0"],
        "h100": ["--gpus-per-node=h100:4", "--qos=normal"],
        "local": [],
    }
    assert all(f"#SBATCH {option}" in text.splitlines() for option in wanted[name]) and ("--mem" in text) == (
        name == "a100"
    )


# ---- what is frozen


def test_the_hash_of_code_changes_with_every_byte_and_name(tmp_path):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result").write_text("no code")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("runs/\n")
    hashes = [content_hash(tmp_path, code_files(tmp_path))]
    for change in (
        lambda: (tmp_path / "a.py").write_text("2"),
        lambda: (tmp_path / "a.py").rename(tmp_path / "b.py"),
        lambda: (tmp_path / "b.py").chmod(0o755),
        lambda: (tmp_path / "untracked").write_text(""),
    ):
        change()
        hashes.append(content_hash(tmp_path, code_files(tmp_path)))
    assert len(set(hashes)) == len(hashes)
    (tmp_path / "runs" / "result").write_text("other")
    assert content_hash(tmp_path, code_files(tmp_path)) == hashes[-1] and "runs/result" not in code_files(tmp_path)
    shutil.rmtree(tmp_path / ".git")
    assert code_files(tmp_path) == [".gitignore", "b.py", "untracked"]  # without git, too


def test_a_training_configuration_is_frozen_resolved_with_paths_that_hold_elsewhere(bench):
    bench.grid["jobs"] = {
        "train": {
            "program": "scripts/train_grpo.py",
            "config": "configs/quickstart.yaml",
            "overrides": {"run": "{run}", "rollout.seed": "{seed}"},
        }
    }
    (job,) = bench.chain()
    (frozen,) = job.configs
    assert frozen["run"] == str(bench.runs / "run_seed0") and frozen["model"] == str(ROOT / "runs/policy_seed0/warm")
    assert frozen["rollout"]["seed"] == 0 and frozen["training"]["algorithm"]["clip_high"] == 0.28
    assert frozen["engine"]["weight_decay"] == 0.0  # a default, written out
    plan = bench.plan()
    assert plan._absolute(
        ["coderepairrl/tasks", "configs/quickstart.yaml", "Qwen/Qwen3-8B", "/a/b", "--x=a/b", "runs/not/yet"]
    ) == [
        "coderepairrl/tasks",
        "configs/quickstart.yaml",
        "Qwen/Qwen3-8B",
        "/a/b",
        "--x=a/b",
        str(ROOT / "runs/not/yet"),
    ]


# ---- jobs that run


def test_jobs_run_here_one_after_the_other_from_frozen_code_and_only_once(bench):
    bench.grid["seeds"] = [3]
    done = bench.launch("--local")
    assert done.returncode == 0, done.stdout + done.stderr
    (code,) = (bench.runs / "code").iterdir()
    run = bench.runs / "run_seed3"
    assert said(run) == {
        "number": 3,
        "here": str(code),
        "package": str(code / "coderepairrl" / "__init__.py"),
        "variable": "yes",
    }
    assert [said(run / "second" / f"shard_{shard}")["number"] for shard in (0, 1)] == [0, 1]
    assert (code / "revision.json").exists() and (code / SMALL).read_text() == (ROOT / SMALL).read_text()
    files = lambda: sorted(str(path) for path in bench.runs.rglob("*") if "__pycache__" not in path.parts)
    before = files()
    again = bench.launch("--local")
    assert again.returncode == 0 and "its log" not in again.stdout and files() == before
    table = bench.launch("--status").stdout
    assert table.count(" done ") == 3 and "failed" not in table


def test_a_job_that_fails_ends_its_chain_and_can_be_started_again(bench):
    done = bench.launch("--local", "jobs.first.overrides.fails=true", "seeds=[0,1]")
    assert (
        done.returncode == 1 and done.stdout.count("failed: it was told to fail") == 2 and "second" not in done.stdout
    )
    table = bench.launch("--status", "seeds=[0,1]")
    assert table.returncode == 0 and "it was told to fail: tell it something else; see" in table.stdout
    assert bench.launch("--local").returncode == 1, "what failed is not started again unasked"
    again = bench.launch("--local", "--resubmit")
    assert again.returncode == 0, again.stdout + again.stderr
    launch = bench.runs / "run_seed0" / "launch"
    assert yaml.safe_load((launch / "config_0.yaml").read_text())["fails"] and "fails" not in yaml.safe_load(
        (launch / "config.yaml").read_text()
    )
    record = Record.read(launch.parent)
    assert len(record.former) == 1 and record.former != record.ids


def test_two_launchers_at_once_start_one_job(bench):
    bench.grid["jobs"]["first"]["overrides"]["seconds"] = 3
    del bench.grid["jobs"]["second"]
    both = [
        subprocess.Popen(bench.command("--local"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    out = [launcher.communicate(timeout=120)[0] for launcher in both]
    logs = list((bench.runs / "run_seed0" / "launch").glob("*_log.out"))
    assert len(logs) == 1 and sum("its log" in text for text in out) == 1, out


def test_ctrl_c_ends_the_job_and_nothing_stays_behind(bench):
    bench.grid["jobs"]["first"]["overrides"]["seconds"] = 1000
    # a shell starts what runs in the background with SIGINT ignored, and tests may be run so
    launcher = subprocess.Popen(
        ["env", "--default-signal=INT", *bench.command("--local")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    launcher.stdout.readline()
    while not any(SMALL in line for line in commands_with(bench.folder)):
        assert launcher.poll() is None, launcher.stdout.read()
        time.sleep(0.1)
    os.killpg(launcher.pid, signal.SIGINT)
    assert "stopped: --local --resubmit goes on" in launcher.communicate(timeout=600)[0] and launcher.returncode == 1
    assert commands_with(bench.folder) == []


def commands_with(folder: Path) -> list[str]:
    """Of live processes that name the folder, less the launcher's own."""
    lines = [" ".join(proc.words(pid)) for pid in proc.pids()]
    return [line for line in lines if str(folder) in line and "launch.py" not in line]


def test_a_job_runs_in_submitits_debug_executor(bench):
    job = bench.chain()[0]
    bench.plan().freeze_code()
    job.freeze()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    try:
        submitit.AutoExecutor(folder=job.launch, cluster="debug").submit(job.jobs[0]).result()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert said(job.folder)["variable"] == "yes"

"""The launcher without a Slurm: what it would submit, what it freezes, jobs that really run through submitit, and ways
to be refused at its command line."""

import json
import multiprocessing
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

from coderepairrl.cluster import slurm
from coderepairrl.cluster.plan import Submittable, code_files, content_hash
from coderepairrl.cluster.site import SiteConfig
from coderepairrl.cluster.submission import CLAIM_S, Record, claimed
from coderepairrl.config import load
from coderepairrl.errors import CodeRepairError, ConfigError, EngineError
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
        'echo "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified" >&2; exit 1'
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


# ---- refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dryrun"], "did you mean --dry-run?"),
        (["--status", "--cancel"], "one at a time"),
        (["site=configs/site/plan.yaml"], "did you mean"),
        (["jobs.first.program=scripts/train.py"], "no file of the project"),
        (["jobs.first.config=configs/quikstart.yaml"], "quickstart.yaml"),
        (["seedz=[1]"], "did you mean 'seeds'?"),
        (["jobs.first.overrides.x=a{runs}"], "did you mean {run}?"),
    ],
)
def test_bad_input_is_one_line(bench, words, said):
    done = bench.launch("--dry-run", *words) if not words[0].startswith("--") else bench.launch(*words)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
        and said in done.stderr
    ), done.stderr
    assert not bench.runs.exists()


def test_a_misspelt_override_is_refused_at_launch(bench):
    train = {"program": "scripts/train_grpo.py", "config": "configs/quickstart.yaml", "overrides": {"run": "{run}"}}
    with pytest.raises(
        ConfigError, match=r"learning_rat_1_seed0, job train: .*'engine.learning_rat': did you mean 'learning_rate'"
    ) as error:
        bench.plan(jobs={"train": train}, product={"engine.learning_rat": [1]}).submittables()
    assert "\n" not in str(error.value)


def test_wandb_online_without_internet_is_refused_at_launch(bench):
    train = {
        "program": "scripts/train_grpo.py",
        "config": "configs/quickstart.yaml",
        "overrides": {"run": "{run}", "wandb": {"project": "p", "mode": "online"}},
    }
    with pytest.raises(ConfigError, match="sync_wandb.sh"):
        bench.plan(jobs={"train": train}).submittables()


def test_a_site_whose_parts_are_missing_is_refused(bench):
    for tree, said in (
        ({"python": "/no/python"}, "site.python"),
        ({"images": {"serve": "/no.sif"}}, "build.sh"),
        ({"partitoin": "x"}, "'partition'"),
    ):
        bench.site(tree)
        with pytest.raises(CodeRepairError, match=said):
            bench.plan().submittables()


def test_without_slurm_the_way_out_is_named(bench):
    done = bench.launch(path="/nowhere")
    assert (
        done.returncode == 1
        and "squeue is not on this machine" in done.stderr
        and "--local" in done.stderr
        and not bench.runs.exists()
    )


def test_a_missing_model_is_refused_before_anything_starts(bench):
    bench.grid["jobs"]["first"] = {
        "program": "scripts/train_grpo.py",
        "config": "configs/quickstart.yaml",
        "overrides": {"run": "{run}", "model": "runs/no_such_policy"},
    }
    done = bench.launch("--local")
    assert done.returncode == 1 and "no model there" in done.stderr and not bench.runs.exists()


# ---- what a plan is refused for (plan_checks.py)

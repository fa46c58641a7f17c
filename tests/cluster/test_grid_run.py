"""A grid through slurm/launch.py on a real Slurm: four quickstart runs on node pairs, in images where they are built; a
table and a picture of all.

Run by scripts/test_slurm.sh. Also: the example sites' scripts, as sbatch itself checks them.
"""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, out, why_not
from cluster_helpers import IMAGES, RESULTS
from conftest import ROOT, metrics_of, pids_of, run_program

from coderepairrl.files import read_json
from coderepairrl.processes import proc

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
STEPS, HELDOUT = 4, 60
PATIENCE_S = 1800.0


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    """The quickstart's policy after a third of its warm start: enough to repair something."""
    folder = tmp_path_factory.mktemp("warm")
    for program, config, *overrides in (
        ("make_policy.py", "policy/small.yaml", f"output={folder}"),
        (
            "train_sft.py",
            "sft/small.yaml",
            f"model={folder}/initial",
            f"output={folder}/warm",
            f"sources=[{{path: {folder}/drills.jsonl, steps: 200}}, "
            f"{{path: {folder}/demonstrations.jsonl, steps: 400}}]",
        ),
    ):
        result = run_program(f"scripts/{program}", f"configs/{config}", *overrides, timeout_s=900)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "warm"


def launch(*arguments: str) -> subprocess.CompletedProcess:
    return run_program("slurm/launch.py", *arguments, timeout_s=300)


def test_a_grid_of_four_runs_on_pairs(warm, tmp_path):
    images = {name: str(IMAGES / f"{name}.sif") for name in ("serve", "train") if (IMAGES / f"{name}.sif").exists()}
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"partition": "main", "signal_lead_s": 60, "accounting": False, "images": images}))
    shutil.rmtree(RESULTS / "quickstart_grid", ignore_errors=True)
    arguments = [
        "configs/grid/quickstart.yaml",
        f"site={site}",
        f"runs={RESULTS}",
        "jobs.train.minutes=30",
        f"jobs.train.overrides.model={warm}",
        f"jobs.train.overrides.training.steps={STEPS}",
        f"jobs.train.overrides.rollout.tasks.heldout={HELDOUT}",
    ]
    with Cluster(tmp_path / "slurm", nodes=2):
        submitted = launch(*arguments)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        jobs = out("squeue", "-h", "-o", "%i").split()
        assert len(jobs) == 4
        again = launch(*arguments)
        # nothing twice
        assert again.returncode == 0 and sorted(out("squeue", "-h", "-o", "%i").split()) == sorted(jobs), again.stdout
        runs = [path.parent for path in sorted((RESULTS / "quickstart_grid").glob("*/launch"))]
        assert len(runs) == 4
        deadline, seen = time.monotonic() + PATIENCE_S, {}
        while not all((read_json(run / "status.json") or {}).get("state") in ("done", "failed") for run in runs):
            assert time.monotonic() < deadline, launch(*arguments, "--status").stdout
            for run in runs:  # which image each role runs in, as the kernel knows it
                for pid, words in pids_of(run).items():
                    if "role=train" in words or "coderepairrl.inference.serve" in words:
                        seen.setdefault(run, set()).add(
                            ("train" if "role=train" in words else "serve", "apptainer" in proc.text(pid, "mountinfo"))
                        )
            time.sleep(2)
        status = launch(*arguments, "--status")
        print(status.stdout)
        assert status.stdout.count("done") == 4, status.stdout
    for run in runs:
        audit = run_program("analysis/audit.py", str(run))
        assert audit.returncode == 0, audit.stdout
        summary = read_json(run / "summary.json")
        assert (summary["steps"], summary["heldout_tasks"], summary["infrastructure_errors"]) == (
            STEPS,
            HELDOUT,
            0,
        ) and summary["max_logprob_gap"] < 1e-4
        beats = [read_json(run / "heartbeats" / f"node_{node}.json") for node in range(2)]
        assert len({beat["host"] for beat in beats}) == 2 and not pids_of(run)
        assert len(metrics_of(run)) == STEPS
        if images:
            assert ("serve", True) in seen[run] and ("train", True) in seen[run]
    # the seeds have their own tasks
    assert len({read_json(run / "summary.json")["pass_rate_before"] for run in runs}) > 1
    table = run_program("analysis/table.py", *map(str, runs))
    curves = run_program("analysis/curves.py", *map(str, runs), f"out={RESULTS}/grid.png")
    assert table.returncode == curves.returncode == 0, table.stderr + curves.stderr
    (RESULTS / "grid.txt").write_text(table.stdout)
    assert (RESULTS / "grid.png").stat().st_size > 10_000


@pytest.mark.parametrize("site", sorted((ROOT / "configs" / "site").glob("*.yaml")), ids=lambda path: path.stem)
def test_sbatch_takes_the_example_sites_scripts(site, tmp_path):
    """Each against nodes and partitions as the site describes them."""
    from coderepairrl.cluster.site import SiteConfig
    from coderepairrl.config import load

    config = load(SiteConfig, site)
    with Cluster(
        tmp_path / "slurm",
        nodes=2,
        gpus=8,
        gpu_type=config.gpu_type or "h100",
        partition=config.partition or "main",
        features=config.constraint or "",
    ) as cluster:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        dry = launch(
            "configs/grid/quickstart.yaml",
            f"site={site}",
            f"jobs.train.overrides.model={tmp_path / 'model'}",
            "--dry-run",
        )
        assert dry.returncode == 0, dry.stdout + dry.stderr
        script = tmp_path / "script.sh"
        script.write_text("#!/bin/bash\n" + dry.stdout.split("#!/bin/bash", 1)[1].split("\n== ")[0])
        test = subprocess.run(["sbatch", "--test-only", script], capture_output=True, text=True, timeout=60)
        assert test.returncode == 0 and "to start at" in test.stderr, test.stderr
        assert cluster.nodes == 2

"""A grid as a matrix: each policy is a point, each condition a job after its training; a policy that is not trained is
a point without that job."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coderepairrl.cluster.grid import GridConfig, expand
from coderepairrl.cluster.plan import Plan
from coderepairrl.config import load
from coderepairrl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["full", "simplified", "other"]
EVALUATE = {
    "program": "scripts/evaluate.py",
    "config": "e.yaml",
    "overrides": {"model": "{run}", "run": "{run}/evaluate_under_{under}", "turns": 9, "kept": 1},
    "after": "train",
}


def matrix(rows: list[str], columns: list[str], warm: str = "warm", **parts) -> GridConfig:
    train = {
        "program": "scripts/train_grpo.py",
        "config": "t.yaml",
        "overrides": {"run": "{run}", "seed": "{seed}"},
        "variants": rows,
    }
    evaluate = EVALUATE | {"under": {name: {"turns": NAMES.index(name)} for name in columns}}
    variants = {"base": {"evaluate:model": warm}} | {name: {"turns": NAMES.index(name)} for name in rows}
    return GridConfig.model_validate(
        {"name": "g", "variants": variants, "jobs": {"train": train, "evaluate": evaluate}} | parts
    )


some_names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


@given(
    some_names,
    some_names,
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    st.sampled_from(["warm", "warm{seed}"]),
)
def test_every_policy_is_evaluated_under_every_condition_in_a_folder_of_its_own(rows, columns, seeds, warm):
    """A policy that no seed makes another one of is evaluated once."""
    points = {point.name: point for point in expand(matrix(rows, columns, warm, seeds=seeds))}
    bases = {f"base_seed{seed}" for seed in (seeds if "{" in warm else [min(seeds)])}
    assert set(points) == {f"{row}_seed{seed}" for row in rows for seed in seeds} | bases
    for name, point in points.items():
        trains = [job for job in point.jobs if job.name == "train"]
        evaluations = point.jobs[len(trains) :]
        assert len(trains) == (not name.startswith("base")) and [job.under for job in evaluations] == columns
        for condition, job in zip(columns, evaluations, strict=True):
            overrides, _ = job.filled("/r", 0)
            assert overrides["turns"] == NAMES.index(condition) and overrides["kept"] == 1, "the condition wins"
            assert job.folder("/r") == overrides["run"] == f"/r/evaluate_under_{condition}"
            assert overrides["model"] == ("/r" if trains else warm.format(seed=job.seed))
            assert job.config.after == ("train" if trains else None), "it waits for what its point has"


def test_a_condition_that_is_added_changes_no_other_job():
    made = lambda columns: {
        (point.name, job.name): (job.filled("/r", 0), job.folder("/r"))
        for point in expand(matrix(["full"], columns))
        for job in point.jobs
    }
    before, after = made(["full"]), made(["other", "full", "simplified"])
    assert before.items() <= after.items() and len(after) == len(before) + 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda jobs: jobs["train"].update(variants=["ful"]), "there is no variant 'ful': did you mean full?"),
        (lambda jobs: jobs["evaluate"].update(variants=["full"]), "variants.base: no job is for it"),
        (lambda jobs: jobs["train"].update(variants=["base"]), "variants.full: turns is of the job train"),
        (lambda jobs: jobs["evaluate"].update(under={"a/b": {}}), "names a folder"),
        (lambda jobs: jobs["evaluate"].update(config=None, overrides={}), "overrides of which configuration"),
        (lambda jobs: jobs.update(later=EVALUATE | {"after": "evaluate"}), "that is one job a condition"),
        (lambda jobs: jobs.update(evaluate_under_full=EVALUATE), "two jobs are named evaluate_under_full"),
    ],
)
def test_what_does_not_fit_is_one_line(change, said):
    jobs = matrix(["full"], ["full"]).model_dump()["jobs"]
    change(jobs)
    with pytest.raises(ConfigError, match=said) as error:
        expand(matrix(["full"], ["full"], jobs=jobs))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["matrix", "scaffolds", "scaffolds_qwen3_8b"])
def test_the_grids_that_are_matrices_train_and_evaluate_under_the_same_conditions(name):
    plan = Plan(load(GridConfig, ROOT / f"configs/grid/{name}.yaml"))
    chains = {point.name: {job.planned.name: job for job in chain} for point, chain in plan.submittables()}
    for row, jobs in chains.items():
        condition = row.partition("_seed")[0]
        if "train" in jobs:
            trained, evaluated = (jobs[job].configs[0]["rollout"] for job in ("train", f"evaluate_under_{condition}"))
            assert trained["scaffold"] == evaluated["scaffold"]
            assert trained["limits"]["max_turns"] == evaluated["limits"]["max_turns"]


def test_one_command_evaluates_under_every_condition_and_another_prints_the_matrix(tmp_path):
    """Controls in the place of policies, so that the numbers are known and no model is asked."""
    few = {"rollout.tasks.heldout": 2, "rollout.sandbox.scratch": str(tmp_path)}
    evaluate = {
        "program": "scripts/evaluate.py",
        "config": "configs/eval/quickstart.yaml",
        "overrides": {"run": "{run}/evaluate_under_{under}"} | few,
        "under": {"one": {"rollout.tasks.draw": "one"}, "other": {"rollout.tasks.draw": "other"}},
    }
    variants = {name: {"evaluate:scaffold": {"name": name}} for name in ("empty", "gold")}
    grid = {"name": "g", "runs": str(tmp_path), "variants": variants, "jobs": {"evaluate": evaluate}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    run = lambda *words: subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    launched = run("slurm/launch.py", tmp_path / "grid.yaml", "--local")
    assert launched.returncode == 0 and launched.stdout.count("  done\n") == 4, launched.stdout + launched.stderr
    shown = run("analysis/matrix.py", tmp_path / "g", "baseline=empty")
    assert shown.returncode == 0, shown.stderr
    assert "under one" in shown.stdout and shown.stdout.count("+100.0 [") == 2 and (tmp_path / "g/matrix.png").exists()

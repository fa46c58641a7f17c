"""The table of scaffolds against numbers that can be worked out by hand, from folders as runs and evaluations leave
them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from analysis_helpers import evaluated
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "analysis"))
import scaffolds  # noqa: E402


def trained(run, scaffold, before, after, steps):
    """`steps`: (tokens sampled, pass rate) of each."""
    evaluated(run / "rollouts" / "eval_before.parquet", before)
    evaluated(run / "rollouts" / "eval_after.parquet", after)
    (run / "config.yaml").write_text(yaml.safe_dump({"training": {}, "rollout": {"scaffold": {"name": scaffold}}}))
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": number, "tokens_sampled": tokens, "pass_rate": rate}) + "\n"
            for number, (tokens, rate) in enumerate(steps)
        )
    )


def evaluation(run, model, scaffold, resolved):
    evaluated(run / "rollouts" / "eval_00000.parquet", resolved)
    (run / "config.yaml").write_text(
        yaml.safe_dump(
            {"chunk_tasks": 8, "model": str(model), "scaffold": None, "rollout": {"scaffold": {"name": scaffold}}}
        )
    )


@pytest.fixture
def grid(tmp_path):
    """Two seeds trained under terminal, one under aider, which samples twice as much a step."""
    for seed, after in enumerate(([[1, 1], [1, 0]], [[1, 1], [1, 1]])):
        trained(
            tmp_path / f"seed{seed}/terminal",
            "terminal",
            [[0, 0], [1, 0]],
            after,
            [(100, 0.0), (100, 0.5), (100, 1.0), (100, 0.6)],
        )
    trained(tmp_path / "seed0/aider", "aider", [[1, 0], [0, 0]], [[1, 1], [0, 0]], [(200, 0.1), (200, 0.3), (200, 0.5)])
    evaluation(tmp_path / "seed0/terminal_under_aider", tmp_path / "seed0/terminal", "aider", [[0, 0], [1, 0]])
    return tmp_path


def test_every_policy_under_every_scaffold(grid):
    found = scaffolds.read([grid])
    cells = {
        key: {task: sum(outcomes) / len(outcomes) for task, outcomes in scaffolds.together(seeds).items()}
        for key, seeds in found.cells.items()
    }
    assert cells == {
        ("not trained", "terminal"): {"task-0": 0.0, "task-1": 0.5},
        ("terminal", "terminal"): {"task-0": 1.0, "task-1": 0.75},
        ("not trained", "aider"): {"task-0": 0.5, "task-1": 0.0},
        ("aider", "aider"): {"task-0": 1.0, "task-1": 0.0},
        ("terminal", "aider"): {"task-0": 0.0, "task-1": 0.5},
    }
    mean, low, high = scaffolds.difference(found.cells["terminal", "terminal"], found.cells["not trained", "terminal"])
    assert mean == pytest.approx(0.625) and low < mean < high  # tasks: +1.0 and +0.25


def test_budgets_are_compared_where_the_cheapest_run_was_done(grid):
    found = scaffolds.read([grid])
    (aider,) = found.trainings["aider"]
    assert aider.tokens == [200, 400, 600]
    assert aider.at(400) == pytest.approx(0.2)  # the mean of its steps so far
    assert found.trainings["terminal"][0].at(400) == pytest.approx(0.7)  # of its last three
    rows = [list(column.cells) for column in scaffolds.budget(found).columns]
    assert rows[3] == ["600", "400"] and sorted(rows[0]) == ["aider", "terminal"] and set(rows[4]) == {"20.0%", "70.0%"}


def test_the_program_prints_and_draws_it(grid):
    done = subprocess.run(
        [sys.executable, "analysis/scaffolds.py", str(grid)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "trained under" in done.stdout and "87.5%" in done.stdout and imread(grid / "scaffolds.png").shape[0] > 300


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda folder: evaluation(folder / "other", folder / "elsewhere", "aider", [[0]]),
            "is no training run below the folders",
        ),
        (lambda folder: None, "no training run or evaluation with results below"),
    ],
)
def test_what_cannot_be_told_is_one_line(tmp_path, spoil, said):
    spoil(tmp_path)
    done = subprocess.run(
        [sys.executable, "analysis/scaffolds.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr

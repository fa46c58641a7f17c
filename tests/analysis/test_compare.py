"""analysis/compare.py, as it is typed, over folders as evaluations leave them."""

import subprocess
import sys

import pytest
from analysis_helpers import evaluated
from conftest import ROOT
from matplotlib.image import imread


def policy(folder, benchmarks):
    """benchmark -> outcomes of each task's episodes"""
    for name, resolved in benchmarks.items():
        evaluated(folder / name / "rollouts" / "eval_00000.parquet", resolved)
        (folder / name / "config.yaml").write_text("chunk_tasks: 16\n")
    return folder


def compare(*words):
    command = [sys.executable, str(ROOT / "analysis/compare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def both(tmp_path):
    few = [[1]] * 10 + [[0]] * 30
    more = [[1]] * 30 + [[0]] * 10
    return (
        policy(tmp_path / "base", {"verified": few, "java": few}),
        policy(tmp_path / "trained", {"verified": more, "java": few}),
    )


def test_policies_are_compared_on_each_benchmark_and_drawn(tmp_path, both):
    done = compare(*both, f"out={tmp_path / 'compare.png'}")
    assert done.returncode == 0, done.stderr
    verified = next(line for line in done.stdout.splitlines() if "verified" in line)
    java = next(line for line in done.stdout.splitlines() if "java" in line)
    assert "25.0%" in verified and "75.0%" in verified and "+50.0 [" in verified and "20, 0" in verified
    assert "1.9e-06" in verified and "3.8e-06" in verified, "McNemar's exact p, and Holm's for two"
    assert "+0.0 [" in java and "0, 0" in java
    assert imread(tmp_path / "compare.png").shape[0] > 100


def test_criteria_get_verdicts_and_a_missed_one_is_the_exit_code(tmp_path, both):
    path = tmp_path / "thesis.yaml"
    path.write_text("name: thesis\ncriteria: {a: {benchmark: verified, at_least: 0.05}, b: {benchmark: java}}\n")
    done = compare(*both, f"criteria={path}")
    assert done.returncode == 1 and "met" in done.stdout and "missed: no gain" in done.stdout
    assert "not registered when it was submitted" in done.stdout
    path.write_text("name: thesis\ncriteria: {a: {benchmark: verified, at_least: 0.05}}\n")
    assert compare(*both, f"criteria={path}").returncode == 0


def test_seeds_are_one_policy(tmp_path):
    for seed in (0, 1, 2):
        policy(tmp_path / f"base_seed{seed}", {"x": [[0], [1], [seed % 2]]})
        policy(tmp_path / f"new_seed{seed}", {"x": [[1], [1], [1]]})
    done = compare(*sorted(tmp_path.glob("base_seed*")), *sorted(tmp_path.glob("new_seed*")))
    assert done.returncode == 0 and "2, 0" in done.stdout and done.stdout.count("new") == 1, done.stderr


@pytest.mark.parametrize(
    "words, said", [(["a"], "BASELINE OTHER"), (["a", "b"], "a: no folder"), (["a", "b", "x=1"], "only")]
)
def test_bad_input_is_one_line(words, said):
    done = compare(*words)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_policies_without_anything_in_common_are_refused(tmp_path):
    done = compare(policy(tmp_path / "a", {"x": [[1]]}), policy(tmp_path / "b", {"y": [[1]]}))
    assert done.returncode == 1 and "no benchmark in common" in done.stderr

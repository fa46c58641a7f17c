"""The matrix of policies and conditions against numbers that can be worked out by hand, from folders as a grid leaves
them."""

import json
import sys

import pytest
from analysis_helpers import evaluated, program
from conftest import ROOT
from matplotlib.image import imread

sys.path.insert(0, str(ROOT / "analysis"))
import matrix  # noqa: E402

NONE, HALF, ALL = [[0]] * 40, [[1]] * 20 + [[0]] * 20, [[1]] * 40


def trained(run, steps=()):
    """`steps`: (tokens sampled, pass rate) of each."""
    run.mkdir(parents=True, exist_ok=True)
    rows = [{"step": i, "tokens_sampled": tokens, "pass_rate": rate} for i, (tokens, rate) in enumerate(steps)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def under(point, condition, resolved, name="eval_00000"):
    evaluated(point / f"evaluate_under_{condition}" / "rollouts" / f"{name}.parquet", resolved)


@pytest.fixture
def grid(tmp_path):
    """The full policy gains under full alone; the simplified one, of two seeds, under both."""
    for condition in ("full", "simplified"):
        under(tmp_path / "base_seed0", condition, NONE)
        under(tmp_path / "full_seed0", condition, ALL if condition == "full" else NONE)
        for seed, found in enumerate((HALF, ALL)):
            under(tmp_path / f"simplified_seed{seed}", condition, found)
    trained(tmp_path / "full_seed0", [(100, 0.0), (100, 0.5), (100, 1.0), (100, 0.6)])
    for seed in (0, 1):
        trained(tmp_path / f"simplified_seed{seed}", [(200, 0.1), (200, 0.3), (200, 0.5)])
    return tmp_path


def test_every_policy_under_every_condition_and_their_paired_differences(grid):
    found = matrix.read(matrix.policies_of(grid), "base", "resolved")
    assert (found.policies, found.conditions) == (["base", "full", "simplified"], ["full", "simplified"])
    rates = {key: matrix.rate(seeds).value for key, seeds in found.seeds.items()}
    assert rates == {
        ("base", "full"): 0.0,
        ("base", "simplified"): 0.0,
        ("full", "full"): 1.0,
        ("full", "simplified"): 0.0,
        ("simplified", "full"): 0.75,
        ("simplified", "simplified"): 0.75,
    }
    contrasts = {(one.policy, one.less, one.condition): one for one in found.contrasts()}
    assert {names: one.found.difference.value for names, one in contrasts.items()} == {
        ("full", "base", "full"): 1.0,
        ("full", "base", "simplified"): 0.0,
        ("simplified", "base", "full"): 0.75,
        ("simplified", "base", "simplified"): 0.75,
        ("full", "simplified", "full"): 0.25,
        ("simplified", "full", "simplified"): 0.75,
    }
    low, high = contrasts["simplified", "base", "full"].interval[1:]
    assert low < 0.55 and high > 0.95, "the seeds are drawn, too: their rates are 0.5 and 1.0"
    assert contrasts["full", "base", "simplified"].holm == 1.0
    low, high = contrasts["full", "base", "full"].interval[1:]
    assert low < high == 1.0, "of one seed, and tasks that all agree"
    assert contrasts["full", "base", "full"].holm == pytest.approx(6 * contrasts["full", "base", "full"].found.p)


def test_budgets_are_compared_where_the_cheapest_run_was_done(grid):
    runs = {name: matrix.spent(own) for name, own in matrix.policies_of(grid).items()}
    (full,) = runs["full"]
    assert full.tokens == [100, 200, 300, 400] and not runs["base"]
    assert full.at(400) == pytest.approx(0.7) and runs["simplified"][0].at(400) == pytest.approx(0.2)
    rows = [list(column.cells) for column in matrix.budget(runs).columns]
    assert rows[0] == ["full", "simplified"] and rows[3] == ["400", "600"] and rows[4] == ["70.0%", "20.0%"]


def test_the_program_prints_and_draws_it(grid):
    done = program(matrix, grid)
    assert done.returncode == 0, done.stderr
    assert "gain over base" in done.stdout and "+75.0 [" in done.stdout and "same condition" in done.stdout
    assert imread(grid / "matrix.png").shape[0] > 300


def test_a_grid_that_is_under_way_shows_what_is_there_and_other_measures_are_theirs(grid):
    trained(grid / "later_seed0")
    (grid / "later_seed0" / "rollouts").mkdir()
    under(grid / "base_seed0", "full", ALL, "eval_00000_greedy")
    under(grid / "full_seed0", "full", HALF, "eval_00000_greedy")
    done = program(matrix, grid, "measure=greedy")
    assert done.returncode == 0 and "later" in done.stdout and "-50.0 [" in done.stdout, done.stderr
    assert "75.0%" not in done.stdout.partition("budget")[0]


def test_benchmarks_are_conditions_too(tmp_path):
    for policy, found in (("zero_shot", NONE), ("trained", ALL)):
        evaluated(tmp_path / f"{policy}_seed0" / "verified" / "rollouts" / "eval_00000.parquet", found)
    done = program(matrix, tmp_path, "baseline=zero_shot")
    assert done.returncode == 0 and "under verified" in done.stdout and "+100.0 [" in done.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["base=x"], "only baseline=, measure=, out= can be said"),
        (["measure=luck"], "known are resolved, first_edit, greedy"),
        (["baseline=bse"], "there is no policy bse"),
        (["measure=first_edit"], "no policy has an evaluation with first_edit"),
    ],
)
def test_what_cannot_be_told_is_one_line(grid, words, said):
    done = program(matrix, grid, *words)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1

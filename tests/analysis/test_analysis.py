"""Pictures and tables of runs that are made by hand: what they count is compared with what was put in."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from analysis_helpers import ROOT, curves, panels, program, seeds, series, table
from matplotlib.image import imread

from coderepairrl.run import intervals
from coderepairrl.run.metrics import Metrics

# ---- runs


def finished(folder, seed=0, steps=8, settings=None, evaluated=(), **levels):
    """A folder with metrics.jsonl, summary.json and config.yaml; levels: name -> value at every step; evaluated: steps,
    beside training."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    values = {
        "pass_rate": 0.4,
        "reward": 0.4,
        "entropy": 0.2,
        "grad_norm": 0.3,
        "logprob_gap": 1e-5,
        "calls_per_episode": 4.0,
        "loss": 1e-9,
        "frac_reward_zero_std": 0.25,
        "outcome/submitted": 100,
        "outcome/turn_limit": 28,
        "wait_for_rollouts_s": 7.0,
        "train_s": 1.0,
        "update_s": 0.2,
        "step_s": 8.2,
    } | levels
    metrics = Metrics(folder / "metrics.jsonl")
    for step in range(steps):
        noise = {
            name: 1 + 0.1 * rng.random()
            for name, value in values.items()
            if isinstance(value, float) and name not in levels
        }
        metrics.log(step, {name: value * noise.get(name, 1) for name, value in values.items()})
    for step in evaluated:
        metrics.log(
            step,
            {
                "eval/pass_rate": 0.4 + 0.1 * seed,
                "eval/pass_rate_low": 0.3,
                "eval/pass_rate_high": 0.5,
                "eval/tasks": 200,
            },
        )
    metrics.close()
    summary = {
        "steps": steps,
        "episodes": 128 * steps,
        "weight_updates": steps,
        "max_logprob_gap": 1e-5,
        "tokens_sampled": 1000,
        "tokens_trained": 900,
        "infrastructure_errors": 0,
        "wall_s": {"train": 8.0},
        "heldout_tasks": 200,
    }
    for i, name in enumerate(("before", "after", "difference")):
        summary[f"pass_rate_{name}"] = (0.3 + 0.01 * seed, 0.5 + 0.03 * seed, 0.2 + 0.02 * seed)[i]
        summary[f"pass_rate_{name}_interval"] = [
            summary[f"pass_rate_{name}"] - 0.06,
            summary[f"pass_rate_{name}"] + 0.06,
        ]
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {
        "run": str(folder),
        "model": f"policy_seed{seed}",
        "rollout": {"seed": seed},
        "training": {"steps": steps} | (settings or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


# ---- intervals over seeds


def test_runs_of_one_name_up_to_the_seed_are_one_curve(tmp_path):
    names = ["a", "b_seed0", "a_seed1", "b_seed12", "a_seedling", "c/seed0", "c/seed1"]
    assert {
        name: [str(run) for run in runs] for name, runs in seeds.curves_of([Path(name) for name in names]).items()
    } == {
        "a": ["a", "a_seed1"],
        "b": ["b_seed0", "b_seed12"],
        "a_seedling": ["a_seedling"],
        "c": ["c/seed0", "c/seed1"],
    }
    with pytest.raises(ValueError, match="given twice"):
        seeds.curves_of([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_settings_that_differ_by_more_than_the_seed_are_named(tmp_path):
    runs = [
        finished(tmp_path / "a", 0),
        finished(tmp_path / "a_seed1", 1),
        finished(tmp_path / "a_seed2", 2, settings={"clip": {"high": 0.3}}),
    ]
    assert seeds.differences(runs[:2]) == [] and seeds.differences(runs) == ["training.clip.high (None, 0.3)"]


# ---- curves


def test_a_band_is_the_interval_and_stays_positive_on_a_logarithmic_axis():
    plain, rate, logarithmic = panels.Panel("", ("x",)), panels.PASS_RATE, panels.Panel("", ("x",), logarithmic=True)
    assert panels.band([1.0, 3.0], plain) == pytest.approx((2.0, 2.0 - 12.706, 2.0 + 12.706), abs=1e-3)
    assert panels.band([0.9, 1.0], rate) == intervals.mean_rate([0.9, 1.0])
    mean, low, high = panels.band([1e-6, 1e-4], logarithmic)
    assert mean == pytest.approx(1e-5) and 0 < low < mean < high and low * high == pytest.approx(mean * mean)
    for values in ([0.0, 1e-6, 1e-4], [math.nan, 1e-6, 1e-4]):
        assert panels.band(values, logarithmic) == pytest.approx((mean, low, high))
    assert panels.band([math.nan, 1.0, 3.0], plain) == panels.band([1.0, 3.0], plain)
    for panel, values in ((plain, [math.nan]), (rate, [math.nan] * 2), (logarithmic, [0.0, math.nan])):
        assert all(map(math.isnan, panels.band(values, panel)))


def test_a_step_with_nothing_to_measure_is_a_gap(tmp_path):
    """Also where an older run wrote NaN."""
    run = finished(tmp_path / "a", steps=4, entropy=1.0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("entropy", "pass_rate", "reward", "logprob_gap", "grad_norm", "frac_reward_zero_std"):
        del rows[1][name]
    rows[2] |= {"entropy": math.nan, "logprob_gap": math.inf, "grad_norm": math.nan}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, [(steps, means)], _ = drawn_lines([run], "entropy")
    assert steps == [0, 1, 2, 3] and np.isnan(means).tolist() == [False, True, True, False]
    shown = {key for panel in panels.PANELS if panel.drawn([series.read(run)]) for key in panel.keys}
    assert {"entropy", "logprob_gap", "grad_norm", "frac_reward_zero_std"} <= shown
    assert program(curves, run, finished(tmp_path / "a_seed1", 1, steps=4), f"out={tmp_path}/gaps.png").returncode == 0


def drawn_lines(runs, key):
    """(steps, means) of each curve as matplotlib holds them."""
    figure, axis = curves.plt.subplots()
    found = series.load(runs)
    panels.lines(axis, found, panels.Panel("", (key,)))
    data = [line.get_data() for line in axis.lines]
    curves.plt.close(figure)
    return (
        found,
        [(list(x), list(y)) for x, y in data],
        [collection.get_paths()[0].vertices for collection in axis.collections],
    )


def test_a_curve_is_the_mean_over_seeds_at_the_steps_that_all_have(tmp_path):
    runs = [
        finished(tmp_path / "a", 0, steps=6, entropy=1.0),
        finished(tmp_path / "b", 0, steps=3, entropy=9.0),
        finished(tmp_path / "a_seed1", 1, steps=4, entropy=3.0),
    ]
    found, lines, bands = drawn_lines(runs, "entropy")
    assert [curve.name for curve in found] == ["a", "b"] and lines == [
        ([0, 1, 2, 3], [2.0] * 4),
        ([0, 1, 2], [9.0] * 3),
    ]
    assert len(bands) == 1 and (bands[0][:, 1].min(), bands[0][:, 1].max()) == pytest.approx(
        (2 - 12.706, 2 + 12.706), abs=1e-3
    )


def test_panels_without_anything_to_see_are_left_out(tmp_path):
    with_kl, without = finished(tmp_path / "a", kl=0.1, staleness_mean=0.0), finished(tmp_path / "b")
    shown = [
        {key for panel in panels.PANELS if panel.drawn(list(map(series.read, runs))) for key in panel.keys}
        for runs in ([with_kl], [with_kl, without])
    ]
    assert (
        "kl" in shown[0]
        and "kl" not in shown[1]
        and not {"staleness_mean", "loss"} & (shown[0] | shown[1])
        and {"entropy", "logprob_gap"} <= shown[1]
    )


@pytest.mark.parametrize(
    "names", [["one"], ["a", "a_seed1", "a_seed2"], ["a", "b"], ["a", "a_seed1", "b_seed0", "b_seed1", "c"]]
)
def test_pictures_are_drawn_whole(tmp_path, names):
    runs = [finished(tmp_path / name, seed) for seed, name in enumerate(names)]
    (runs[-1] / "summary.json").unlink()  # one that is not finished
    done = program(curves, *runs, *([] if len(names) == 1 else [f"out={tmp_path}/all.png"]))
    path = runs[0] / "curves.png" if len(names) == 1 else tmp_path / "all.png"
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(path), "")
    picture = imread(path)
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and picture[..., :3].std() > 0.05
    assert not list(path.parent.glob("*.tmp.png"))


def test_evaluations_beside_training_are_points_with_their_intervals(tmp_path):
    one, other = finished(tmp_path / "a", evaluated=(0, 3, 5, 8)), finished(tmp_path / "a_seed1", 1, evaluated=(3, 7))
    # those before and after are the summary's
    for runs, steps, low in (([one], [3, 5], 0.3), ([one, other], [3], 0.0)):
        figure, axis = curves.plt.subplots()
        assert panels.evaluations(axis, series.load(runs)[0], "black")
        bars = [container.lines[2][0].get_segments()[0] for container in axis.containers]
        assert [bar[0][0] for bar in bars] == steps and all(bar[0][1] == pytest.approx(low, abs=1e-9) for bar in bars)
        curves.plt.close(figure)
    assert len(series.read(one).rows) == 8 and program(curves, one).returncode == 0


def test_a_run_of_one_step_and_one_with_a_slow_first_step(tmp_path):
    slow = finished(tmp_path / "slow", steps=12)
    rows = [json.loads(line) for line in (slow / "metrics.jsonl").read_text().splitlines()]
    rows[0] |= {"wait_for_rollouts_s": 500.0, "step_s": 501.2}
    (slow / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for run in (finished(tmp_path / "short", steps=1), slow):
        assert program(curves, run).returncode == 0
    figure, axis = curves.plt.subplots()
    top = panels.cut_at_usual(axis, range(12), [row["step_s"] for row in rows])
    assert 8 < top < 20 and [text.get_text() for text in axis.texts] == ["\N{UPWARDS ARROW}501 s"]
    curves.plt.close(figure)


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    run, empty = finished(tmp_path / "a"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "a_seed1").mkdir()
    (tmp_path / "a_seed1" / "metrics.jsonl").write_text("")
    for arguments, said in (
        ([run, empty], "no metrics.jsonl"),
        ([run, run], "given twice"),
        ([run, tmp_path / "a_seed1"], "no step that"),
        ([finished(tmp_path / name) for name in "bcdefgh"], "at most 6"),
    ):
        done = program(curves, *arguments)
        assert (
            done.returncode == 1
            and done.stderr.startswith("error: ")
            and said in done.stderr
            and done.stderr.count("\n") == 1
        ), done.stderr
    assert "python analysis/curves.py" in program(curves).stderr
    assert not list(tmp_path.rglob("*.png"))


def test_runs_that_are_no_repetitions_are_drawn_with_a_warning(tmp_path):
    done = program(curves, finished(tmp_path / "a"), finished(tmp_path / "a_seed1", settings={"clip": 1}))
    assert (
        done.returncode == 0
        and done.stderr == "warning: the runs of a differ by more than the seed: training.clip (None, 1)\n"
    )


# ---- table


def test_the_table_gives_the_mean_gain_over_seeds(tmp_path):
    runs = [finished(tmp_path / name, seed) for seed, name in enumerate(("a", "a_seed1", "a_seed2"))]
    lines = program(table, *runs).stdout.splitlines()
    assert any(intervals.percent(intervals.mean([0.2, 0.22, 0.24])) in line and "│ 3 " in line for line in lines), (
        "\n".join(lines)
    )
    assert "mean over seeds" not in program(table, runs[0]).stdout
    two = [
        {f"pass_rate_{name}": value for name, value in zip(("before", "after", "difference"), values)}
        for values in ((0.1, 0.9, 0.8), (0.2, 1.0, 0.8))
    ]
    cells = [list(column.cells)[0] for column in table.over_seeds({"a": two}).columns[2:]]
    # equal seeds say nothing about their spread
    assert cells == ["15.0% [0.0%, 78.5%]", "95.0% [31.5%, 100.0%]", "80.0%"]


def test_the_table_of_runs_without_evaluation_and_unfinished_ones(tmp_path):
    run, unfinished = finished(tmp_path / "a"), finished(tmp_path / "b")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(
        json.dumps({name: value for name, value in summary.items() if "pass_rate" not in name and "gap" not in name})
    )
    (unfinished / "summary.json").unlink()
    done = program(table, run, finished(tmp_path / "a_seed1"))
    assert (
        done.returncode == 0
        and "│ largest |logprob trainer - vLLM| │ -" in done.stdout
        and "│ repaired after                   │ -" in done.stdout
    )
    done = program(table, unfinished)
    assert done.returncode == 1 and "no summary.json" in done.stderr


@pytest.mark.parametrize("name", ["curves", "table"])
def test_the_command_line(tmp_path, name):
    run = finished(tmp_path / "a")
    for arguments, code in (([run], 0), ([], 1)):
        done = subprocess.run(
            [sys.executable, f"analysis/{name}.py", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert (f"python analysis/{name}.py" in done.stderr) == bool(code)

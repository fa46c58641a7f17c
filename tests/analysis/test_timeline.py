"""How much of a run its parts were busy, and at once."""

import json
import random

import numpy as np
import pytest
from analysis_helpers import program, timeline
from matplotlib.image import imread

from coderepairrl.rollout import trajectory_files
from coderepairrl.types import Call, Outcome, Trajectory

START = 1.7952e9  # the epoch's second at which the runs of these tests begin


def episode(group, number, split, started, generation_s, grading_s):
    call = Call(0, None, None, (1,), (2,), (-0.1,), (0,), "stop", False, 0.0, 0.1)
    stats = {"started_at": START + started, "generation_s": generation_s, "grading_s": grading_s}
    return Trajectory(
        f"{group}-{number}",
        group,
        "task",
        split,
        0,
        (call,),
        "",
        Outcome.SUBMITTED,
        "",
        None,
        {},
        0.0,
        generation_s + grading_s,
        stats=stats,
    )


def asynchronous(run, staleness=2, steps=10, groups=4, size=8, train_s=3.0, update_s=0.3, evaluate_s=6.0):
    """A run with the scheduler's own rule, in seconds that were not waited for: rollouts lead the trainer by
    `staleness` steps."""
    rng, admitted, free, metrics = random.Random(1), [evaluate_s] * (1 + staleness), evaluate_s, []
    for step in range(steps):
        members = [
            episode(
                f"a1-p{step * groups + g}",
                i,
                "train",
                admitted[step],
                rng.uniform(2, 4) + rng.expovariate(0.4),
                rng.uniform(0.1, 0.6),
            )
            for g in range(groups)
            for i in range(size)
        ]
        trajectory_files.write(run / "rollouts" / f"step_{step:05d}.parquet", members, {})
        ready = max(t.stats["started_at"] - START + t.seconds for t in members)
        began = max(free, ready)
        end = began + train_s + update_s
        metrics.append(
            {
                "step": step,
                "time": START + end,
                "step_s": end - free,
                "wait_for_rollouts_s": began - free,
                "train_s": train_s,
                "update_s": update_s,
            }
        )
        free = end
        admitted.append(end)
    for name, begin in (("before", 0.0), ("after", free)):
        trajectory_files.write(
            run / "rollouts" / f"eval_{name}.parquet",
            [episode(name, i, "heldout", begin, evaluate_s - 0.5 - 0.05 * i, 0.5) for i in range(40)],
            {},
        )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return run


# ---- timeline


def spans(rng, count):
    return [(begin, begin + rng.uniform(0, 2)) for begin in (rng.uniform(0, 20) for _ in range(count))]


def test_unions_intersections_and_counts_agree_with_a_grid():
    """At points that are in no edge, whatever the spans: overlapping, touching, empty."""
    rng = random.Random(0)
    for _ in range(50):
        a, b = spans(rng, 15) + [(3.0, 3.0), (4.0, 5.0), (5.0, 6.0)], spans(rng, 15)
        points = np.array([rng.uniform(-1, 23) for _ in range(300)])

        def inside(wanted, x):
            return sum(begin <= x < end for begin, end in wanted)

        union_a, union_b = timeline.union(a), timeline.union(b)
        both = timeline.intersection(union_a, union_b)
        assert all(x[1] < y[0] for x, y in zip(union_a, union_a[1:])) and all(begin < end for begin, end in union_a)
        for x, count in zip(points, timeline.running(a, points)):
            assert (
                count == inside(a, x)
                and inside(union_a, x) == (inside(a, x) > 0)
                and inside(both, x) == (inside(a, x) > 0 and inside(b, x) > 0)
            )


def test_a_synchronous_run_never_overlaps_and_an_asynchronous_one_does(tmp_path):
    results = {}
    for staleness in (0, 2):
        loaded = timeline.load(asynchronous(tmp_path / f"s{staleness}", staleness))
        training, waiting, update = (
            loaded.lanes[name].values() for name in ("training", "waiting for rollouts", "weight update")
        )
        begin, end = loaded.window
        assert begin == pytest.approx(6.0, abs=1e-3) and sum(e - b for b, e in training) == pytest.approx(
            30.0, abs=1e-3
        )
        # the trainer does one thing at a time, and always one of the three
        assert sum(loaded.share(lane) for lane in (training, waiting, update)) == pytest.approx(1.0, abs=1e-3)
        for lane in loaded.lanes["training"], loaded.lanes["weight update"]:
            assert list(lane) == list(range(10))
        assert all(
            loaded.lanes["training"][step][1] == pytest.approx(loaded.lanes["weight update"][step][0])
            for step in range(10)
        )
        results[staleness] = (loaded.share(loaded.generation(), training), loaded.share(waiting), end - begin)
    assert results[0][0] == pytest.approx(0.0, abs=1e-6) and results[2][0] > 0.2
    assert results[2][1] < results[0][1] and results[2][2] < results[0][2]


def test_shares_of_a_run_that_can_be_counted_by_hand(tmp_path):
    """Generation 2..6 and 7..9, training 5..8, waiting 2..5, update 8..10; held-out episodes all the time, which don't
    count."""
    trajectory_files.write(tmp_path / "rollouts" / "step_00000.parquet", [episode("a", 0, "train", 2.0, 4.0, 0.5)], {})
    trajectory_files.write(
        tmp_path / "rollouts" / "buffer" / "a1-p1.parquet", [episode("b", 0, "train", 7.0, 2.0, 0.5)], {}
    )
    trajectory_files.write(
        tmp_path / "rollouts" / "eval_before.parquet", [episode("c", 0, "heldout", 0.0, 10.0, 0.5)], {}
    )
    row = {"step": 0, "time": START + 10, "step_s": 8.0, "wait_for_rollouts_s": 3.0, "train_s": 3.0, "update_s": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    loaded = timeline.load(tmp_path)
    assert loaded.window == pytest.approx((2.0, 10.0)) and set(loaded.episodes) == {
        0,
        timeline.UNCONSUMED,
        timeline.EVALUATION,
    }
    assert loaded.share(loaded.generation(), loaded.lanes["training"].values()) == pytest.approx(2 / 8)
    assert loaded.share(loaded.lanes["waiting for rollouts"].values()) == pytest.approx(3 / 8)
    done = program(timeline, tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(tmp_path / "timeline.png"), "")
    assert imread(tmp_path / "timeline.png").shape[1] > 1500


def test_the_timeline_of_an_older_or_empty_run_is_one_line(tmp_path):
    old = asynchronous(tmp_path / "old", steps=2)
    path = old / "rollouts" / "step_00001.parquet"
    members, _ = trajectory_files.read(path)
    members[3].stats.pop("started_at")
    trajectory_files.write(path, members, {})
    only_evaluated = asynchronous(tmp_path / "evaluated", steps=1)
    (only_evaluated / "rollouts" / "step_00000.parquet").unlink()
    for run, said in (
        (old, "don't say when they started"),
        (only_evaluated, "no episodes for training"),
        (tmp_path, "no metrics.jsonl"),
    ):
        done = program(timeline, run)
        assert (
            done.returncode == 1
            and done.stderr.startswith("error: ")
            and said in done.stderr
            and done.stderr.count("\n") == 1
        ), done.stderr
    assert not list(tmp_path.rglob("*.png"))

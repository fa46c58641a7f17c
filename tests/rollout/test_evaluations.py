"""Held-out tasks beside training: when an evaluation begins, what it holds, how the trainer takes it in, which
checkpoints stay."""

import asyncio
import json

from books_helpers import MODULE
from hypothesis import given
from hypothesis import strategies as st
from rollout_helpers import TASKS, folder, rollout_of, train_along

from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.evaluations import EvaluationConfig, Evaluations, finished, has_tasks, missed, passes
from coderepairrl.rollout.groups import Groups
from coderepairrl.run.metrics import Metrics, read_evaluations, read_metrics
from coderepairrl.training import checkpoints

STEPS = 5


async def run(rollout, every, steps=STEPS, after_each=lambda step: None):
    async with rollout:
        await rollout.evaluate("before", updates=0)
        trainer = asyncio.create_task(train_along(rollout, after_each))
        await rollout.produce(steps, every)
        await rollout.evaluate("after", updates=steps)
        trainer.cancel()


def groups_of(folder) -> list[dict]:
    return [
        row for row in ledger.rows(folder / "ledger.jsonl") if row["event"] == "admitted" and row["split"] == "heldout"
    ]


def test_every_so_many_updates_beside_training(tmp_path):
    rollout = rollout_of(folder(tmp_path), evaluation={"tasks": 2})
    asyncio.run(run(rollout, every=3))
    rows = finished(tmp_path)
    assert [(row["name"], row["step"], row["tasks"], row["episodes"], row["pass_rate"]) for row in rows] == [
        ("before", 0, 2, 2, 1.0),
        ("step_00003", 3, 2, 2, 1.0),
        ("after", STEPS, 2, 2, 1.0),
    ]
    assert (
        {row["task"] for row in groups_of(tmp_path)}
        == set(read_json(tmp_path / "heldout.json"))
        == {task.task_id for task in TASKS["heldout"][:2]}
    )
    assert MODULE.audit(tmp_path) == []
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rollouts/eval_*")}
    again = rollout_of(tmp_path, attempt=2, evaluation={"tasks": 2})  # a later attempt does none of them again

    async def resumed():
        async with again:
            again.supervisor.serving = {"version": 3, "step": 3}
            async with asyncio.TaskGroup() as running:
                again.evaluations.begin_beside(running, 3)
            await again.evaluate("before", updates=0)

    asyncio.run(resumed())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("rollouts/eval_*")} == before and len(
        groups_of(tmp_path)
    ) == 6


def test_one_that_takes_long_holds_up_nothing_and_the_next_is_left_out(tmp_path, capsys, monkeypatch):
    """It ends when the last step has been trained. Its episodes take one of two places: training always has the
    other."""
    rollout = rollout_of(folder(tmp_path), concurrent_episodes=2, evaluation={"share": 0.5})
    episode, trained, held = Groups.episode, asyncio.Event(), []

    async def slow(self, group, *what):
        if "eval_step" in group:
            held.append(self._slots._value)
            await trained.wait()
        return await episode(self, group, *what)

    monkeypatch.setattr(Groups, "episode", slow)
    asyncio.run(run(rollout, every=1, after_each=lambda step: trained.set() if step + 1 == STEPS else None))
    assert [row["name"] for row in finished(tmp_path)] == ["before", "step_00001", "after"]
    assert capsys.readouterr().out.count("is not evaluated, the evaluation before is still running") == STEPS - 2
    assert len(held) == 3 and MODULE.audit(tmp_path) == []


def test_without_held_out_tasks_nothing_is_evaluated_and_the_run_goes_on(tmp_path):
    rollout = rollout_of(folder(tmp_path), TASKS | {"heldout": []})
    asyncio.run(run(rollout, every=1, steps=2))
    assert finished(tmp_path) == [] and not groups_of(tmp_path) and not has_tasks(tmp_path)
    assert sum(row["event"] == "trained" for row in ledger.rows(tmp_path / "ledger.jsonl")) == 4


# ---- what the trainer makes of them


def evaluated(run, step, rate, name=None, tasks=10):
    numbers = {
        "step": step,
        "versions": [step, step + 1],
        "tasks": tasks,
        "pass_rate": rate,
        "pass_rate_interval": rate if rate is None else [rate / 2, (1 + rate) / 2],
    }
    trajectory_files.write(
        run / "rollouts" / f"eval_{name or f'step_{step:05d}'}.parquet",
        [],
        {"evaluation": numbers, "outcomes": {"submitted": tasks}, "reward": rate, "seconds": 2.0},
    )


def checkpoint(run, step):
    (checkpoints.folder_of(run, step) / "policy").mkdir(parents=True)


def kept(run) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.glob("checkpoints/step_*"))


def test_it_is_logged_under_the_step_of_its_weights_once(tmp_path, capsys):
    run = folder(tmp_path)
    write_json(run / "heldout.json", ["a"])
    for attempt in range(2):
        metrics = Metrics(run / "metrics.jsonl")
        taken = Evaluations(run, metrics, every=5, keep=1)
        evaluated(run, 0, 0.3, "before")
        taken.take_in()
        metrics.log(7, {"loss": 0.5})
        evaluated(run, 5, 0.4)
        evaluated(run, 10, None, tasks=0)  # nothing that could be graded: no number
        taken.take_in()
        taken.take_in()
        metrics.close()
    assert [row["loss"] for row in read_metrics(run / "metrics.jsonl")] == [0.5]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 7, 5, 7]
    assert [
        (row["step"], row["eval/pass_rate"], row["eval/pass_rate_low"], row["eval/version_last"])
        for row in read_evaluations(run / "metrics.jsonl")
    ] == [(0, 0.3, 0.15, 1), (5, 0.4, 0.2, 6)]
    assert capsys.readouterr().out.splitlines() == [
        "step 0, held out: 30.0% [15.0%, 65.0%] of 10 tasks repaired, 2 s",
        "step 5, held out: 40.0% [20.0%, 70.0%] of 10 tasks repaired, 2 s",
    ]
    assert [(row["step"], row["pass_rate"]) for row in finished(run)] == [(0, 0.3), (5, 0.4), (10, None)]


def test_the_passes_of_an_evaluation():
    """The last is the evaluation itself: where its file is, the others' are, too."""
    names = lambda name, calls_model=True, **settings: [
        (one.name, one.sampling.temperature, one.samples, one.forced)
        for one in passes(name, EvaluationConfig(**settings), calls_model)
    ]
    assert names("after", samples=2) == [("after_greedy", 0.0, 1, False), ("after", 1.0, 2, False)]
    assert names("before", retry=True, temperature=0.7) == [
        ("before_greedy", 0.0, 1, False),
        ("before_retry", 0.7, 1, True),
        ("before", 0.7, 1, False),
    ]
    assert names("after", retry=True, greedy=False) == names("after", False, retry=True) == [("after", 1.0, 1, False)]
    assert names("before", temperature=0) == [("before", 0.0, 1, False)]  # it is greedy itself


def test_what_a_former_attempt_left_out_is_named(tmp_path):
    run = folder(tmp_path)
    evaluated(run, 4, 0.5)
    evaluated(run, 8, 0.5)
    assert missed(run, 2, 8) == []  # no held-out tasks: nothing is evaluated
    write_json(run / "heldout.json", ["a"])
    assert missed(run, 2, 8) == [2, 6] and missed(run, 2, 9) == [2, 6] and missed(run, 0, 9) == []


def test_the_best_and_those_whose_evaluation_is_to_come_stay(tmp_path):
    run = folder(tmp_path)
    write_json(run / "heldout.json", ["a"])
    taken = Evaluations(run, Metrics(run / "metrics.jsonl"), every=2, keep=2)

    def after(step, **rates):
        checkpoint(run, step)
        for name, rate in rates.items():
            evaluated(run, int(name[1:]), rate)
        taken.take_in()
        return kept(run)

    evaluated(run, 0, 0.9, "before")
    assert after(1) == [1] and not (run / "checkpoints" / "best.json").exists(), (
        "the weights of the beginning have no checkpoint"
    )
    assert after(2) == [1, 2]
    assert after(3) == [2, 3]
    assert after(4) == [2, 3, 4], "the evaluation of 2 is not over"
    assert after(5, s2=0.5) == [2, 4, 5]
    assert after(6, s4=0.5) == [2, 5, 6], "of equal ones the first"
    assert after(8) == [2, 6, 8]
    assert after(9, s8=0.6) == [8, 9], "6 was left out"
    checkpoint(run, 10)
    evaluated(run, 10, 0.2, "after")
    taken.take_in()
    assert kept(run) == [8, 9, 10]
    assert read_json(run / "checkpoints" / "best.json") == {
        "step": 8,
        "pass_rate": 0.6,
        "path": str(run / "checkpoints" / "step_00008" / "policy"),
    }


@given(
    st.lists(st.integers(1, 30), min_size=1, unique=True),
    st.integers(1, 4),
    st.integers(0, 30),
    st.sets(st.integers(1, 30)),
)
def test_what_is_pruned_is_needed_by_nobody(tmp_path_factory, steps, keep, served, awaited):
    run = folder(tmp_path_factory.mktemp("run"))
    for step in steps:
        checkpoint(run, step)
    (run / "checkpoints" / "step_00031.tmp").mkdir()
    write_json(run / "policy" / "current.json", {"path": str(checkpoints.folder_of(run, served) / "policy")})
    checkpoints.note_best(run, steps[0], 0.1)
    checkpoints.prune(run, keep, awaited.__contains__)
    assert set(kept(run)) == {steps[0], *sorted(steps)[-keep:], *({served, *awaited} & set(steps))}


def test_without_evaluations_the_newest_stay(tmp_path):
    run = folder(tmp_path)
    # it was asked for, but there are no tasks
    taken = Evaluations(run, Metrics(run / "metrics.jsonl"), every=1, keep=1)
    for step in (1, 2, 3):
        checkpoint(run, step)
        taken.take_in()
        assert kept(run) == [step]

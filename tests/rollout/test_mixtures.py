"""Several task sets, and several scaffolds, in one run: what is loaded, drawn, booked, counted, and gone on with."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from books_helpers import MODULE as audit
from books_helpers import trajectory
from conftest import metrics_of, run_program
from pydantic import TypeAdapter, ValidationError
from rollout_helpers import folder, train_along

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError
from coderepairrl.rollout import buffer, ledger, trajectory_files
from coderepairrl.rollout.evaluations import finished
from coderepairrl.rollout.rollout import Rollout
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.run import inputs
from coderepairrl.run.evaluate_config import EvaluateConfig
from coderepairrl.run.train_config import TrainConfig
from coderepairrl.scaffolds import ScaffoldConfig, make_scaffold, ready, refusal
from coderepairrl.scaffolds.terminal import Terminal
from coderepairrl.tasks import TasksConfig, jsonl, load_tasks
from coderepairrl.training.step_log import of_episodes
from coderepairrl.training.trainer import Judged, Waited
from coderepairrl.types import Outcome, Task

TERMINAL = {"name": "terminal", "system_prompt": "Repair the code."}
SETTINGS = {"scaffold": {"name": "gold"}, "groups_per_step": 4, "group_size": 2, "concurrent_episodes": 4}
SETS = {
    "easy": {"weight": 2.0, "tasks": {"name": "functions", "train": 3, "heldout": 0}},
    "late": {"tasks": {"name": "functions", "train": 0, "heldout": 2, "draw": "other"}},
    "held": {"tasks": {"name": "functions", "train": 0, "heldout": 3}},
}


def tasks_config(sets=SETS):
    return TypeAdapter(TasksConfig).validate_python({"name": "mixture", "sets": sets})


def two_sets():
    """Of training tasks, four each."""
    tasks = load_tasks(tasks_config({"a": {"tasks": {"name": "functions", "train": 8, "heldout": 2}}}))
    name = lambda own, set_name: [replace(task, metadata=task.metadata | {"set": set_name}) for task in own]
    return {
        "train": name(tasks["train"][:4], "a") + name(tasks["train"][4:], "b"),
        "heldout": name(tasks["heldout"][:1], "a") + name(tasks["heldout"][1:], "b"),
    }


def test_tasks_say_their_set_and_keep_their_ids():
    loaded = load_tasks(tasks_config())
    assert Counter(task.metadata["set"] for task in loaded["train"]) == {"easy": 3}
    assert Counter(task.metadata["set"] for task in loaded["heldout"]) == {"late": 2, "held": 3}
    alone = load_tasks(TypeAdapter(TasksConfig).validate_python(SETS["held"]["tasks"]))["heldout"]
    assert [task.task_id for task in loaded["heldout"] if task.metadata["set"] == "held"] == [t.task_id for t in alone]


@pytest.mark.parametrize(
    "sets, said",
    [
        ({"a": SETS["easy"], "b": SETS["easy"]}, "functions-train-0 is in a and in b"),
        ({}, "at least 1 item"),
        ({"a": SETS["easy"] | {"weight": 0}}, "greater than 0"),
        ({"a": {"tasks": {"name": "mixture", "sets": SETS}}}, "does not match any of the expected tags"),
    ],
)
def test_what_is_no_mixture_is_refused(sets, said):
    with pytest.raises((ConfigError, ValidationError), match=said):
        load_tasks(tasks_config(sets))


def test_a_run_draws_by_weight_books_set_by_set_and_a_resume_goes_on(tmp_path):
    """Two attempts, of which the first ends between two steps; gold repairs all, so every step's numbers are known."""
    run = folder(tmp_path)
    sets = {name: {"weight": weight, "tasks": {"name": "functions"}} for name, weight in (("a", 3.0), ("b", 1.0))}
    config = RolloutConfig.model_validate(SETTINGS | {"tasks": {"name": "mixture", "sets": sets}})

    async def attempt(number, steps):
        async with Rollout(config, run, None, number, two_sets(), trains=True) as own:
            if number == 1:
                await own.evaluate("before", updates=0)
            trained = len(list(run.glob("rollouts/*.trained.json")))
            own.supervisor.serving = {"version": trained, "step": trained}
            trainer = asyncio.create_task(train_along(own))
            await own.produce(steps)
            trainer.cancel()
            await asyncio.wait([trainer])
            return [own.order.at(position).task.task_id for position in range(12)]

    orders = [asyncio.run(attempt(1, 1)), asyncio.run(attempt(2, 3))]
    assert orders[0] == orders[1]
    rows = [row for row in ledger.rows(run / "ledger.jsonl") if row["event"] == "admitted" and "position" in row]
    assert [row["task"] for row in sorted(rows, key=lambda row: row["position"])] == orders[0]
    for step in range(3):
        trajectories, stats = trajectory_files.read(run / "rollouts" / f"step_{step:05d}.parquet")
        assert {name: own["groups"] for name, own in stats["sets"].items()} == {"a": 3, "b": 1}
        assert all(own["pass_rate"] == own["reward"] == 1.0 for own in stats["sets"].values())
        sets_of = {row["group"]: row["set"] for row in rows}
        assert all(t.task_set == sets_of[t.group_id] and t.scaffold == "" for t in trajectories)
    (evaluation,) = [row for row in finished(run) if row["name"] == "before"]
    assert {name: (own["tasks"], own["pass_rate"]) for name, own in evaluation["sets"].items()} == {
        "a": (1, 1.0),
        "b": (1, 1.0),
    }
    assert audit.audit(run) == []


def test_numbers_are_by_set_and_by_scaffold_and_of_one_set_there_are_none():
    plain = [trajectory("g", i, "train", float(i), (0,)) for i in range(2)]
    assert not buffer.statistics(plain, ["tests"]).keys() & {"sets", "scaffolds"}
    mixed = [
        replace(trajectory(f"g{i}", 0, "train", float(i == 1), (0,)), task_set="ab"[i % 2], scaffold="xyy"[i])
        for i in range(3)
    ]
    mixed.append(replace(mixed[0], group_id="g3", outcome=Outcome.INFRASTRUCTURE_ERROR, task_set="c"))
    stats = buffer.statistics(mixed, ["tests"])
    assert stats["sets"] == {
        "a": {"groups": 2, "reward": 0.0, "pass_rate": 0.0},
        "b": {"groups": 1, "reward": 1.0, "pass_rate": 1.0},
        "c": {"groups": 1},
    }
    assert stats["scaffolds"]["y"] == {"groups": 2, "reward": 0.5, "pass_rate": 0.5}
    counters = {"infrastructure_errors": 0, "engine_restarts": 0}
    row = of_episodes(Waited(mixed, stats | counters, 0.0), Judged({}, {}, 0, 4))
    assert row["sets/b/reward"] == 1.0 and row["scaffolds/y/groups"] == 2 and "sets/c/reward" not in row


def test_files_of_before_have_neither_and_are_read(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "step_00000.parquet"
    member = replace(trajectory("g", 0, "train", 1.0, (0,)), task_set="a", scaffold="x")
    trajectory_files.write(path, [member], {})
    assert trajectory_files.read(path)[0] == [member]
    pq.write_table(pq.read_table(path).drop_columns(["task_set", "scaffold"]), path)
    assert trajectory_files.read(path)[0] == [replace(member, task_set="", scaffold="")]


def test_weights_are_inputs_of_training_and_not_of_an_evaluation():
    rollout = {"tasks": {"name": "mixture", "sets": SETS}, "groups_per_step": 2, "group_size": 2}
    train = TrainConfig.model_validate(
        {"run": "r", "model": "m", "engine": {"learning_rate": 1.0}, "rollout": rollout, "training": {"steps": 1}}
    )
    tasks = load_tasks(train.rollout.tasks)
    now = inputs.of(train, inputs.TRAINING, tasks=tasks)
    assert now["rollout.tasks.sets.easy.weight"] == 2.0 and len(now["rollout.tasks.heldout"]) == 5
    evaluate = EvaluateConfig.model_validate({"run": "r", "rollout": rollout})
    assert not [
        key
        for key in inputs.of(evaluate, inputs.EVALUATION, tasks={"heldout": tasks["heldout"]})
        if key.startswith("rollout.tasks.") and key != "rollout.tasks.heldout"
    ]


def scaffold_config(**weights):
    scaffolds = {name: {"weight": weight, "scaffold": {"name": name}} for name, weight in weights.items()}
    return TypeAdapter(ScaffoldConfig).validate_python({"name": "mixture", "scaffolds": scaffolds})


def test_a_held_out_task_has_the_same_scaffold_in_every_evaluation():
    mixture = make_scaffold(scaffold_config(terminal=3.0, single_pass=1.0))
    tasks = load_tasks(tasks_config({"a": {"tasks": {"name": "functions", "train": 0, "heldout": 200}}}))["heldout"]
    names = [mixture.name_for(task) for task in tasks]
    assert 130 <= names.count("terminal") <= 170, "three quarters of 200, by a hash"
    assert names == [make_scaffold(scaffold_config(terminal=3.0, single_pass=1.0)).name_for(task) for task in tasks]
    assert isinstance(mixture.members["terminal"], Terminal) and mixture.without_tools


def test_a_task_that_one_program_of_a_mixture_cannot_be_given_is_left_out_and_all_find_the_gateway():
    """Of two programs, whose installations and sockets are for both."""
    own = {"name": "command", "argv": ["true"]}
    config = TypeAdapter(ScaffoldConfig).validate_python(
        {"name": "mixture", "scaffolds": {"a": {"scaffold": own}, "b": {"scaffold": own}, "c": {"scaffold": TERMINAL}}}
    )
    (task,) = load_tasks(tasks_config({"a": {"tasks": {"name": "functions", "train": 1, "heldout": 0}}}))["train"]

    async def main():
        mixture = make_scaffold(config)
        refuses = await refusal(mixture, EnvironmentsConfig())
        assert await refuses(task) == ""
        async with ready(mixture, EnvironmentsConfig()) as socket:
            assert socket.parent.is_dir()
        assert not socket.parent.exists()

        async def no(task: Task) -> str:
            return f"{task.task_id}: not for this one"

        mixture.members["b"].refuses = no
        return await (await refusal(mixture, EnvironmentsConfig()))(task)

    assert asyncio.run(main()) == f"{task.task_id}: not for this one"


@pytest.mark.parametrize("inner", [{"name": "gold"}, {"name": "retry", "agent": {"name": "terminal"}}])
def test_a_control_is_no_part_of_a_mixture(inner):
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        TypeAdapter(ScaffoldConfig).validate_python({"name": "mixture", "scaffolds": {"a": {"scaffold": inner}}})


@pytest.mark.whole
def test_a_training_run_of_two_sets_under_two_scaffolds(policy, tmp_path):
    """The real programs: steps, evaluations and books say which set and which scaffold; the books are right."""
    run = tmp_path / "run"
    small = {"name": "functions", "train": 6, "heldout": 3}
    sets = {"a": {"weight": 2.0, "tasks": small}, "b": {"tasks": {"name": "jsonl", "train": str(tmp_path / "b.jsonl")}}}
    other = load_tasks(TypeAdapter(TasksConfig).validate_python({"name": "functions", "train": 9, "heldout": 0}))
    jsonl.write(tmp_path / "b.jsonl", other["train"][6:])
    scaffolds = {
        "terminal": {"scaffold": TERMINAL},
        "text": {"scaffold": {"name": "terminal_text", "system_prompt": "Repair the code."}},
    }
    overrides = {
        "run": str(run),
        "model": str(policy),
        "rollout.tasks": {"name": "mixture", "sets": sets},
        "rollout.scaffold": {"name": "mixture", "scaffolds": scaffolds},
        "rollout.groups_per_step": 6,
        "rollout.group_size": 2,
        "rollout.limits.max_turns": 2,
        "rollout.evaluation": {"samples": 1},
        "rollout.server.kv_cache_mib": 128,
        "rollout.server.start_timeout_s": 900,
        "rollout.server.update_timeout_s": 600,
        "rollout.server.health_timeout_s": 600,
        "rollout.concurrent_episodes": 8,
        "rollout.rewards": {"weights": {"random": 1.0, "tests": 0.0}},
        "training.steps": 2,
        "training.evaluate_every": 0,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    done = run_program("scripts/train_grpo.py", "configs/quickstart.yaml", *words, timeout_s=1800.0)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in metrics_of(run):
        assert (row["sets/a/groups"], row["sets/b/groups"]) == (4, 2), "by weight"
        assert (row["scaffolds/terminal/groups"], row["scaffolds/text/groups"]) == (3, 3)
    evaluations = {row["name"]: row for row in finished(run)}
    assert {"before", "after"} <= evaluations.keys() and evaluations["after"]["sets"]["a"]["tasks"] == 3
    admitted = [row for row in ledger.rows(run / "ledger.jsonl") if row["event"] == "admitted" and "position" in row]
    assert Counter((row["set"], row["scaffold"]) for row in admitted) == {
        ("a", "terminal"): 4,
        ("a", "text"): 4,
        ("b", "terminal"): 2,
        ("b", "text"): 2,
    }
    assert run_program("analysis/audit.py", str(run)).returncode == 0

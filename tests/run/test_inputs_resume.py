"""A run that goes on: what may differ, what is recorded, and what an end left."""

import pytest
from conftest import ROOT
from inputs_helpers import model

from coderepairrl.config import load
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_json, write_json
from coderepairrl.rollout import ledger, trajectory_files
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.run import inputs, resume
from coderepairrl.types import Outcome, Trajectory


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(folder of a run with a step of rollouts, admit(overrides))."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from coderepairrl.run.train_config import TrainConfig

    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    policy = model(tmp_path / "model")
    admit = lambda *words: resume.admit(
        load(
            TrainConfig,
            ROOT / "configs/quickstart.yaml",
            [
                f"model={policy}",
                f"run={folder}",
                "rollout.tasks.train=3",
                "rollout.tasks.heldout=2",
                "training.steps=48",
                *words,
            ],
        ),
        folder,
    )
    return folder, admit


def test_a_resume_says_what_differs_goes_on_where_it_may_and_remembers(run):
    folder, admit = run
    admit("engine.learning_rate=0.1")
    assert admit("engine.learning_rate=0.2") == {}, "nothing was made yet"
    (folder / "rollouts" / "step_00000.parquet").write_text("")
    assert admit(
        "engine.learning_rate=0.2",
        "training.steps=30",
        "training.ranks=1",
        "role=train",
        "rollout.server.host=10.0.0.1",
    ) == {
        "training.steps": ["48", "30"],
        "training.ranks": ["2", "1"],
        "rollout.server.host": ["127.0.0.1", "10.0.0.1"],
    }
    same = ["engine.learning_rate=0.2", "training.steps=30"]
    for word, said in {
        "engine.learning_rate=0.3": "engine.learning_rate 0.2 -> 0.3: take another `run:` folder, or go on with "
        "what is changed: "
        "resume.allow=[engine.learning_rate]",
        "training.algorithm={name: dapo}": "training.algorithm.name grpo -> dapo",
        "rollout.scaffold.system_prompt=Fix it.": "'Repair the code.' -> 'Fix it.'",
        "rollout.tasks.train=2": "rollout.tasks.train 3 tasks",
        "rollout.tasks.seed=7": "resume.allow=[rollout.tasks.train]",
        "rollout.tasks.heldout=1": "rollout.tasks.heldout 2 tasks",
        "rollout.scaffold={name: aider}": "rollout.scaffold.name terminal -> aider",
        "resume.allow=[engine.learning_rat]": "did you mean 'engine.learning_rate'?",
    }.items():
        with pytest.raises(ConfigError) as error:
            admit(*same, word)
        assert said in str(error.value) and "\n" not in str(error.value)
    record = read_json(folder / "inputs.json")
    assert record["engine.learning_rate"] == 0.2 and record["training.steps"] == 30, "a refusal changes nothing"
    same += ["engine.learning_rate=0.3", "engine.weight_decay=0.1", "rollout.tasks.train=2"]
    assert admit(*same, "resume.allow=[engine, rollout.tasks]") == {
        "engine.learning_rate": ["0.2", "0.3"],
        "engine.weight_decay": ["0.0", "0.1"],
        "training.ranks": ["1", "2"],
        "rollout.server.host": ["10.0.0.1", "127.0.0.1"],
        "rollout.tasks.train": ["3 tasks (1 that are not so in the other: functions-train-2 ...)", "2 tasks"],
    }
    assert admit(*same) == {}, "what was allowed is what it is now"
    (folder / "inputs.json").unlink()
    with pytest.raises(ConfigError, match="former version"):
        admit()


def test_a_run_that_was_recorded_without_a_key_goes_on_and_then_has_it(run):
    folder, admit = run
    admit()
    (folder / "rollouts" / "step_00000.parquet").write_text("")
    whole, missing = (
        read_json(folder / "inputs.json"),
        ["training.algorithm.credit", "rollout.rewards.discount_per_call", "rollout.rendering"],
    )
    write_json(folder / "inputs.json", {key: value for key, value in whole.items() if not inputs.covered(key, missing)})
    with pytest.raises(
        ConfigError,
        match=r"other inputs: training.algorithm.credit episode -> turn: .*allow=\[training.algorithm.credit\]$",
    ):
        admit("training.algorithm.credit=turn")
    assert admit() == {} and read_json(folder / "inputs.json") == whole


def test_another_model_under_the_same_path_is_another_model(run, tmp_path):
    folder, admit = run
    admit()
    (folder / "checkpoints" / "step_00001").mkdir(parents=True)
    (tmp_path / "model" / "model.safetensors").write_text("other")
    with pytest.raises(ConfigError, match="model.weights .* -> .*/model "):
        admit()
    assert list(admit("resume.allow=[model]")) == ["model.weights"]


def test_a_finished_run_says_so_takes_more_steps_and_no_fewer(run, tmp_path):
    folder, admit = run
    admit("training.steps=20")
    write_json(folder / "summary.json", {"steps": 20})
    assert admit("training.steps=20") == {} and resume.finished(folder, 20)
    with pytest.raises(ConfigError, match="done already, with 20 steps: training.steps=10"):
        admit("training.steps=10")
    with pytest.raises(ConfigError, match="engine.learning_rate"):
        admit("training.steps=40", "engine.learning_rate=0.5")
    assert read_json(folder / "inputs.json")["training.steps"] == 20
    (tmp_path / "model" / "config.json").rename(tmp_path / "away")  # the model that a finished run began with may go
    assert admit("training.steps=20") == {}
    (tmp_path / "away").rename(tmp_path / "model" / "config.json")
    assert admit("training.steps=40") == {"training.steps": ["20", "40"]} and not resume.finished(folder, 40)


def test_what_an_end_left_is_kept_under_its_step_and_stays_in_the_books(tmp_path):
    episodes = [episode(f"a2-eval_after-{number}") for number in range(2)]
    digest = trajectory_files.write(tmp_path / "rollouts" / "eval_after.parquet", episodes, {"seconds": 1.0})
    books = Ledger(tmp_path / "ledger.jsonl")
    books.write("stored", "a1-eval_after-0", file="eval_after.parquet", sha256="of an attempt that was killed")
    books.close()
    write_json(tmp_path / "summary.json", {"steps": 20})
    for _ in range(2):
        resume.keep_end(tmp_path, 20)
    assert left(tmp_path) == ["eval_step_00020.parquet", "ledger.jsonl", "summary_step_00020.json"]
    rows = list(ledger.rows(tmp_path / "ledger.jsonl"))
    assert [(row["group"], row["file"], row["sha256"]) for row in rows[1:]] == [
        (group, "eval_step_00020.parquet", digest) for group in ("a2-eval_after-0", "a2-eval_after-1")
    ] and ledger.broken_link(rows) is None


def test_what_an_end_left_replaces_nothing(tmp_path):
    """A run that had gone further, was ended at 20 steps and gets more again."""
    for name in ("step_00020", "after_greedy", "after"):
        trajectory_files.write(tmp_path / "rollouts" / f"eval_{name}.parquet", [episode(f"a1-eval_{name}-0")], {})
    for name in ("summary_step_00020.json", "summary.json"):
        write_json(tmp_path / name, {"of": name})
    resume.keep_end(tmp_path, 20)
    assert left(tmp_path) == [
        "eval_step_00020.parquet",
        "eval_step_00020_2.parquet",
        "eval_step_00020_2_greedy.parquet",
        "ledger.jsonl",
        "summary_step_00020.json",
        "summary_step_00020_2.json",
    ]
    assert read_json(tmp_path / "summary_step_00020.json") == {"of": "summary_step_00020.json"}
    assert (
        trajectory_files.read(tmp_path / "rollouts" / "eval_step_00020_2.parquet")[0][0].group_id == "a1-eval_after-0"
    )


def left(folder):
    return sorted(path.name for path in folder.glob("**/*") if path.is_file())


def episode(group):
    return Trajectory(
        f"{group}-0", group, "task", "heldout", 0, (), "", Outcome.SUBMITTED, "", None, {}, 0.0, 1.0, (), {}
    )

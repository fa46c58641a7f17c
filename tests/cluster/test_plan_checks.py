"""What a plan is refused for before anything is submitted, and what it is not refused for."""

import json
import shutil
import sys

import pytest
from conftest import ROOT

from coderepairrl.cluster import plan_checks
from coderepairrl.cluster.plan import config_class
from coderepairrl.config import load
from coderepairrl.errors import ConfigError
from coderepairrl.files import read_json, write_json
from coderepairrl.run import inputs, resume

EVALUATE = {"program": "scripts/evaluate.py", "config": "configs/eval/quickstart.yaml"}
TRAIN = {"program": "scripts/train_grpo.py", "config": "configs/quickstart.yaml"}


@pytest.fixture
def checked(bench):
    """Checks a plan of these jobs; `model` and `trained` stand for a model's folder and for a training run's."""
    model, trained = bench.folder / "model", bench.folder / "trained"
    for folder in (model, trained / "checkpoints" / "step_00003" / "policy"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    def check(jobs: dict[str, dict], **grid) -> None:
        text = (
            json.dumps(jobs)
            .replace("<model>", str(model))
            .replace("<trained>", str(trained))
            .replace("<here>", str(bench.folder))
        )
        plan_checks.check(bench.plan(jobs=json.loads(text), **grid).submittables())

    return check


def job(kind: dict, **overrides) -> dict:
    return kind | {"overrides": {"run": "{run}"} | overrides}


WARM = {"program": "scripts/train_sft.py", "config": "configs/sft/small.yaml"}


@pytest.mark.parametrize(
    "jobs",
    [
        {"gold": job(EVALUATE, scaffold={"name": "gold"}, model="runs/no_such_run")},  # a control needs no model
        {"all": job(EVALUATE, model="<trained>")},
        {"all": job(EVALUATE, model="<trained>", shard="{shard}", shards="{shards}") | {"shards": 3}},
        {
            "train": job(TRAIN, model="<model>"),
            "evaluate": job(EVALUATE, model="{run}", run="{run}/evaluate") | {"after": "train"},
        },
        {
            "gold": job(EVALUATE, scaffold={"name": "gold"}),
            "empty": job(EVALUATE, run="{run}/empty", scaffold={"name": "empty"}) | {"after": "gold"},
        },
        {
            "warm": WARM
            | {"overrides": {"model": "<model>", "output": "<here>/{seed}/warm", "sources": [{"path": "<model>"}]}},
            "train": job(TRAIN, model="<here>/{seed}/warm") | {"after": "warm"},
        },
    ],
)
def test_what_is_there_or_will_be_starts(checked, jobs):
    checked(jobs)


@pytest.mark.parametrize(
    ("jobs", "grid", "said"),
    [
        ({"train": job(TRAIN, model="models/none")}, {}, "run_seed0, job train: .*/models/none: no model there"),
        ({"all": job(EVALUATE, model="runs/none")}, {}, "job all: .*/runs/none: no model there"),
        ({"train": job(TRAIN, model="<trained>")}, {}, "no model there"),  # a run's folder is no start of another
        ({"train": job(TRAIN, model="{run}/warm")}, {}, "no model there"),  # nobody makes it
        (
            {
                "train": job(TRAIN, model="<model>"),
                "evaluate": job(EVALUATE, model="<here>/none", run="{run}/e") | {"after": "train"},
            },
            {},
            "job evaluate: .*no model there",
        ),
        (
            {
                "warm": WARM
                | {"overrides": {"model": "<model>", "output": "{run}", "sources": [{"path": "data/none.jsonl"}]}}
            },
            {},
            "sources.0.path=data/none.jsonl: nothing is there",
        ),
        (
            {"theirs": job(EVALUATE, scaffold={"name": "predictions", "path": "none.jsonl"})},
            {},
            "scaffold.path=none.jsonl: nothing is there",
        ),
        (
            {"all": job(EVALUATE, model="<model>", **{"rollout.tasks": {"name": "jsonl", "heldout": "none.jsonl"}})},
            {},
            "rollout.tasks.heldout=none.jsonl: nothing",
        ),
        (
            {"train": job(TRAIN, model="<model>", run="<here>/x", **{"rollout.seed": "{seed}"})},
            {"seeds": [0, 1]},
            "run_seed1, job train: run_seed0, job train writes .*/x, too",
        ),
        (
            {"train": job(TRAIN, model="<model>", run="<here>/{seed}")},
            {"product": {"engine.learning_rate": [1, 2]}},
            "writes .*/0, too: name the folder by {run}",
        ),
        (
            {"train": job(TRAIN, model="<model>"), "evaluate": job(EVALUATE, model="{run}") | {"after": "train"}},
            {},
            "job evaluate: run_seed0, job train writes",
        ),
        ({"all": job(EVALUATE, model="<model>") | {"shards": 2}}, {}, "another of its shards writes"),
        ({"train": job(TRAIN, model="<model>")}, {"seeds": [0, 1]}, "nothing uses {seed}"),
    ],
)
def test_what_cannot_end_well_is_refused_in_one_line(checked, jobs, grid, said):
    with pytest.raises(ConfigError, match=said) as error:
        checked(jobs, **grid)
    assert "\n" not in str(error.value)


def test_a_folder_of_other_settings_is_refused_and_more_steps_are_work_to_do(checked, bench):
    own = {
        "model": "<model>",
        "rollout.tasks.train": 3,
        "rollout.tasks.heldout": 2,
        "training.steps": 48,
        "engine.learning_rate": 3e-4,
    }
    jobs = lambda **more: {"train": job(TRAIN, **own | more)}
    checked(jobs())
    bench.grid["jobs"] = json.loads(json.dumps(jobs()).replace("<model>", str(bench.folder / "model")))
    (submittable,) = bench.chain()
    submittable.freeze()
    run = submittable.runs[0]
    resume.admit(load(config_class("scripts/train_grpo.py"), run / "launch" / "config.yaml"), run)
    (run / "checkpoints" / "step_00048").mkdir(parents=True)
    (run / "summary.json").write_text('{"steps": 48}')
    checked(jobs(**{"training.ranks": 1, "wandb": {"project": "p"}}))
    missing = ["training.algorithm.credit", "rollout.rendering"]  # of before these keys
    record = {key: value for key, value in read_json(run / "inputs.json").items() if not inputs.covered(key, missing)}
    write_json(run / "inputs.json", record)
    checked(jobs())
    for more, said in (
        ({"training.algorithm.credit": "turn"}, "other settings: training.algorithm.credit episode -> turn: take"),
        ({"engine.learning_rate": 0.5}, "engine.learning_rate 0.0003 -> 0.5: take another `name:` of the grid"),
        ({"rollout.tasks.train": 2}, "rollout.tasks.train 3 tasks"),
        ({"model": "<trained>/checkpoints/step_00003/policy"}, "model.weights"),
    ):
        (bench.folder / "trained/checkpoints/step_00003/policy/model.safetensors").write_text("other")
        with pytest.raises(ConfigError, match=said):
            checked(jobs(**more))
    checked(jobs(**{"engine.learning_rate": 0.5, "resume": {"allow": ["engine.learning_rate"]}}))
    assert plan_checks.more_steps(submittable, 0) == ""
    bench.grid["jobs"]["train"]["overrides"]["training.steps"] = 60
    assert plan_checks.more_steps(bench.chain()[0], 0) == "done with 48 steps, training.steps=60 asks for more"


def test_a_warm_start_that_is_there_is_no_other_one(checked, bench):
    train_sft = sys.modules[config_class(WARM["program"]).__module__]
    rows = bench.folder / "rows.jsonl"
    rows.write_text("{}\n")
    jobs = lambda path=rows, **more: {
        "warm": WARM
        | {"overrides": {"model": "<model>", "output": "<here>/warm", "sources": [{"path": str(path)}]} | more}
    }
    overrides = json.loads(
        json.dumps(jobs()).replace("<model>", str(bench.folder / "model")).replace("<here>", str(bench.folder))
    )["warm"]["overrides"]
    config = load(
        train_sft.SFTConfig, ROOT / WARM["config"], [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    )
    (bench.folder / "warm").mkdir()
    write_json(train_sft.record_of(bench.folder / "warm"), train_sft.inputs_of(config))
    checked(jobs())
    shutil.copy(rows, moved := bench.folder / "moved.jsonl")
    checked(jobs(moved))
    moved.write_text("other\n")
    for refused, said in ((jobs(moved), "sources.0.path"), (jobs(seed=7), "seed 0 -> 7")):
        with pytest.raises(ConfigError, match=said):
            checked(refused)


def test_demonstrations_that_were_recorded_before_are_no_others(checked, bench):
    jobs = lambda **more: {
        "record": {
            "program": "scripts/record_demonstrations.py",
            "config": "configs/demonstrations/terminal.yaml",
            "overrides": {"output": "<here>/out", "model": "<model>"} | more,
        }
    }
    config = load(
        config_class("scripts/record_demonstrations.py"),
        ROOT / "configs/demonstrations/terminal.yaml",
        [f"model={bench.folder}/model"],
    )
    now = inputs.of(config, inputs.RECORDING)
    (bench.folder / "out").mkdir()
    (bench.folder / "out" / "step_00000.parquet").write_text("")
    write_json(
        bench.folder / "out" / "inputs.json",
        {key: value for key, value in now.items() if key != "expert.settings.p_habit"},
    )
    checked(jobs())
    with pytest.raises(ConfigError, match="other settings: expert.settings.p_habit 0.0 -> 0.5: take"):
        checked(jobs(**{"expert.settings.p_habit": 0.5}))

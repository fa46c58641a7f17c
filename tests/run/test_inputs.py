"""A result belongs to its inputs: each key that makes numbers is compared, what is only named by its content; others
are recorded."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from inputs_helpers import WHOLE, configuration, model

from coderepairrl.config import contents, load
from coderepairrl.errors import ConfigError
from coderepairrl.files import write_json
from coderepairrl.run import inputs
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.functions import load as functions
from coderepairrl.types import Task

TASKS = functions(FunctionsConfig(train=3, heldout=2))
# Free on purpose. Whoever adds a key needn't come here; whoever wants it free says so in inputs.py, and here.
FREE_IN_TRAINING = {
    "training.steps",
    "training.evaluate",
    "training.checkpoint_every",
    "training.export_every",
    "training.ranks",
    "training.threads",
    "training.devices",
    "training.micro_batch_tokens",
    "training.share_prefixes",
    "wandb",
    "rollout.evaluation.samples",
    "rollout.evaluation.temperature",
    "rollout.concurrent_episodes",
    "rollout.infrastructure_retries",
    "rollout.engine_wait_s",
    "engine.checkpointed_share",
    "engine.offload_activations",
    "engine.offload_optimizer",
    "engine.bucket_elements",
    "engine.sequence_ranks",
    "engine.leaf_modules.0",
    "engine.persistence_threshold",
    "rollout.server.host",
    "rollout.server.port",
    "rollout.server.threads",
    "rollout.server.devices",
    "rollout.server.kv_cache_mib",
    "rollout.server.max_num_seqs",
    "rollout.server.max_num_batched_tokens",
    "rollout.server.start_timeout_s",
    "rollout.server.update_timeout_s",
    "rollout.server.health_timeout_s",
    "rollout.server.max_restarts",
    "rollout.server.weight_backend",
    "rollout.gateway.host",
    "rollout.gateway.port",
    "rollout.gateway.processes",
    "rollout.environments.cache",
    "rollout.environments.mirrors.0",
    "rollout.environments.pythons.0",
    "rollout.environments.jars.0",
    "rollout.environments.tools.0",
    "rollout.environments.tools.1",
    "rollout.environments.timeout_s",
    "rollout.sandbox.scratch",
    "rollout.sandbox.overlay",
    "training.evaluate_every",
    "training.keep_checkpoints",
    "training.max_gap",
    "rollout.evaluation.tasks",
    "rollout.evaluation.share",
    "rollout.evaluation.greedy",
    "rollout.evaluation.retry",
    "rollout.evaluation.max_turns",
    "rollout.max_infrastructure_share",
    "rollout.try_environments",
    "rollout.server.probe_bound",
    "rollout.keep_test_output_mib",
}


def other(value: Any) -> Any:
    """Another value of its kind."""
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f"{value}x"


@pytest.mark.parametrize("program", WHOLE)
def test_each_key_that_is_changed_alone_is_refused_by_its_name_or_free_and_recorded(program, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "_content", lambda key, value: value)  # of paths: below
    free, config = WHOLE[program][2], configuration(program, monkeypatch)
    now = inputs.of(config, free)
    assert not inputs.compare(tmp_path / "inputs.json", now, free, made=False, remedy="")
    write_json(tmp_path / "inputs.json", now)
    compare = lambda changed: inputs.compare(
        tmp_path / "inputs.json", changed, free, made=True, remedy="take another `run:`"
    )
    assert compare(now) == {}, "the same is the same, also out of a file"
    went_on = set()
    for key, value in now.items():
        for changed in (now | {key: other(value)}, {name: held for name, held in now.items() if name != key}):
            if changed.get(key, []) == value or changed.get(key) == value:
                continue
            try:
                (recorded,) = compare(changed)
                assert recorded == key
                went_on.add(key)
            except ConfigError as error:
                assert (
                    f"{key} " in str(error)
                    and " -> " in str(error)
                    and "take another `run:`" in str(error)
                    and "\n" not in str(error)
                )
                assert key not in went_on
    with pytest.raises(ConfigError, match="new.key not set -> 3"):
        compare(now | {"new.key": 3})
    assert went_on == {key for key in now if inputs.covered(key, free)}
    if program == "scripts/train_grpo.py":
        assert went_on == FREE_IN_TRAINING
    assert (
        not {
            "engine.learning_rate",
            "rollout.limits.max_turns",
            "rollout.server.dtype",
            "rollout.sandbox.kind",
            "rollout.rewards.weights.tests",
            "rollout.scaffold.name",
            "system_prompt",
            "rollout.server.max_model_len",
        }
        & went_on
    )
    assert not {"run", "output", "out", "role"} & now.keys()


@pytest.mark.parametrize("program", WHOLE)
def test_what_is_free_is_there(program, monkeypatch):
    """So that a key that gets another name does not lose its freedom without a word."""
    tree = configuration(program, monkeypatch).model_dump(mode="json")
    for name in WHOLE[program][2]:
        place, sections = tree, name.split(".")
        for part in sections:
            assert part in (place or {}) or place is None, name  # None: a section that is not used here
            place = place and place[part]


def test_several_keys_are_one_line_and_an_allowed_one_goes_on(tmp_path):
    record = tmp_path / "inputs.json"
    before = {f"a.k{i}": i for i in range(9)} | {"prompt": "long " * 40 + "end", "list.0": 0.9, "list.1": None}
    write_json(record, before)
    changed = {key: value + 1 if isinstance(value, int) else value for key, value in before.items()} | {
        "prompt": "long " * 40 + "other end"
    }
    with pytest.raises(ConfigError) as error:
        inputs.compare(record, changed, (), made=True, remedy="mend it", allow=())
    assert (
        "a.k0 0 -> 1, a.k1 1 -> 2, a.k2 2 -> 3, a.k3 3 -> 4 and 6 more: mend it, or go on with what is changed: "
        "resume.allow=[a.k0,a.k1," in str(error.value)
    )
    assert len(str(error.value)) < 400
    with pytest.raises(ConfigError, match=r"prompt \.\.\.long long end' -> \.\.\.long long other end'"):
        inputs.compare(record, changed, (), made=True, remedy="", allow=["a"])
    found = inputs.compare(record, changed | {"list.1": 0.5}, ["list"], made=True, remedy="", allow=["a", "prompt"])
    assert found["a.k3"] == ["3", "4"] and found["list.1"] == ["not set", "0.5"] and len(found) == 11
    for wrong, said in (
        ("a.k77", "did you mean 'a.k"),
        ("promt", "did you mean 'prompt'?"),
        ("zzz", "write it as in the error"),
    ):
        with pytest.raises(ConfigError, match="resume.allow: there is no key") as error:
            inputs.compare(record, before, (), made=True, remedy="", allow=[wrong])
        assert said in str(error.value)
    record.unlink()
    with pytest.raises(ConfigError, match="holds results, but not what made them"):
        inputs.compare(record, before, (), made=True, remedy="take another `run:` folder")


# ---- what is only named


def test_a_model_is_its_bytes_not_its_place(tmp_path):
    one, copy = model(tmp_path / "one"), model(tmp_path / "copy", README__md="another word")
    assert not inputs.differences(contents.model(one), contents.model(copy))
    for name, files in {
        "weights": {"model__safetensors": "v"},
        "tokenizer_and_config": {"tokenizer__json": "u"},
    }.items():
        assert list(inputs.differences(contents.model(one), contents.model(model(tmp_path / name, **files)))) == [
            f"model.{name}"
        ]
    more = contents.model(model(tmp_path / "more", chat_template__jinja="x"))
    assert list(inputs.differences(contents.model(one), more)) == ["model.tokenizer_and_config"]
    run = tmp_path / "run" / "checkpoints"
    first = model(run / "step_00010" / "policy")
    assert contents.model_folder(str(run.parent)) == first
    second = model(run / "step_00020" / "policy", model__safetensors="trained on")
    model(run / "step_00030.tmp" / "policy")
    assert contents.model_folder(str(run.parent)) == second and contents.model_folder(one) == one
    found = inputs.differences(contents.model(first), contents.model(second))
    assert f"model.weights {first} (" in inputs.said(found) and f" -> {second} (" in inputs.said(found)
    with pytest.raises(ConfigError, match="no model there"):
        contents.model_folder(str(tmp_path / "nowhere"))


def test_a_task_is_all_that_it_says_and_what_its_base_holds(tmp_path):
    base = tmp_path / "base"
    (base / ".git").mkdir(parents=True)
    (base / "a.py").write_text("1")
    (base / "link").symlink_to("a.py")
    task = replace(TASKS["train"][0], environment=replace(TASKS["train"][0].environment, base=str(base)))

    def again() -> str:
        contents.tree.cache_clear()
        return contents.task(task)

    seen = [again()]
    (base / ".git" / "HEAD").write_text("history")
    os.utime(base / "a.py", (1, 1))
    assert again() == seen[0], "neither its date nor its history"
    for change in (
        lambda: (base / "a.py").write_text("2"),
        lambda: (base / "a.py").chmod(0o755),
        lambda: (base / "b.py").write_text(""),
        lambda: ((base / "link").unlink(), (base / "link").symlink_to("b.py")),
        lambda: (base / "b.py").rename(base / "c.py"),
    ):
        change()
        seen.append(again())
    assert len(set(seen)) == len(seen)
    for field in ("problem_statement", "oracle_patch", "bug_patch", "test_patch"):
        seen.append(contents.task(replace(task, **{field: "other"})))
    for field in ("files", "hidden_tests", "metadata"):
        seen.append(contents.task(replace(task, **{field: {"x": "y"}})))
    for field, value in (
        ("test_command", ("x",)),
        ("variables", {"A": "1"}),
        ("protected", ("y",)),
        ("test_timeout_s", 1.0),
        ("image", "docker://x"),
        ("lock", "z"),
    ):
        seen.append(contents.task(replace(task, environment=replace(task.environment, **{field: value}))))
    assert len(set(seen)) == len(seen)


def test_tasks_differ_by_content_number_and_order():
    tasks = lambda found: {"rollout.tasks.train": contents.tasks(found)}
    train: list[Task] = TASKS["train"]
    assert not inputs.differences(tasks(train), tasks(list(train)))
    for others, said in (
        (train[:2], "3 tasks (1 that are not so in the other: functions-train-2 ...) -> 2 tasks"),
        (train[::-1], "3 tasks (in another order)"),
        ([replace(train[0], oracle_patch=""), *train[1:]], "functions-train-0"),
    ):
        assert said in inputs.said(inputs.differences(tasks(train), json.loads(json.dumps(tasks(others)))))


def test_files_that_a_configuration_names_count_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    Path("good.jsonl").write_text("1")
    Path("my_own_reward.py").write_text("def f(task, diff, verdict): return 1.0\n")
    from evaluate import inputs_of

    from coderepairrl.run.evaluate_config import EvaluateConfig

    read = lambda *words: (
        contents.tree.cache_clear(),
        inputs_of(
            load(
                EvaluateConfig,
                ROOT / "configs/eval/quickstart.yaml",
                [
                    "scaffold={name: predictions, path: %s}" % (words[0] if words else "good.jsonl"),
                    "rollout.rewards.weights={tests: 1.0, my_own_reward.f: 0.5}",
                    *words[1:],
                ],
            ),
            TASKS["heldout"],
            None,
        ),
    )[1]
    before = read()
    Path("moved.jsonl").write_text("1")
    assert not inputs.differences(before, read("moved.jsonl")) and before["rollout.scaffold.name"] == "predictions"
    Path("bad.jsonl").write_text("2")
    assert list(inputs.differences(before, read("bad.jsonl"))) == ["rollout.scaffold.path"]
    assert list(inputs.differences(before, read("good.jsonl", "shards=3", "shard=1"))) == ["shards"]
    Path("my_own_reward.py").write_text("def f(task, diff, verdict): return 2.0\n")
    assert list(inputs.differences(before, read())) == ["rollout.rewards.code.my_own_reward.f"]
    Path("terminal").write_text("a file that is called like a setting")
    assert not isinstance(read()["rollout.server.dtype"], dict)

"""Configuration: every mistake is one line that names the place and the remedy; what was resolved reads back equal."""

import importlib
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from config_helpers import Leaf, Tree, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from coderepairrl.cluster.grid import GridConfig
from coderepairrl.cluster.plan import config_class
from coderepairrl.cluster.site import SiteConfig
from coderepairrl.config import Config, dump, load, read_yaml, yaml_core
from coderepairrl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TrainConfig = config_class("scripts/train_grpo.py")


@pytest.fixture
def write(tmp_path):
    def run(text, name="tree.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return run


@pytest.mark.parametrize(
    "text, where, near",
    [
        ("stepz: 4", "stepz", "steps"),
        ("leaf: {rat: 1}", "leaf.rat", "rate"),
        ("leaves: [{rate: 1}, {beta: [1, 2]}]", "leaves.1.beta", "betas"),
        ("named: {a: {wrod: red}}", "named.a.wrod", "word"),
        ("maybe: {rate_: 1}", "maybe.rate_", "rate"),
        ("maybe_leaves: [{rates: 1}]", "maybe_leaves.0.rates", "rate"),
        ("animal: {kind: cat, whisker: 2}", "animal.whisker", "whiskers"),
        ("animal: {kind: dog, bark: true}", "animal.bark", "barks"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_key_there(write, text, where, near):
    message = refusal(write(f"name: x\n{text}\n"))
    assert f"unknown key {where!r}" in message and f"did you mean {near!r}?" in message


def test_an_unknown_key_far_from_all_lists_what_is_known_there(write):
    message = refusal(write("name: x\nleaf: {qqqqqqqq: 1}\n"))
    assert "known here: rate, betas, word" in message


def test_an_unknown_key_of_a_plain_union_names_a_key_of_one_of_its_members(write):
    message = refusal(write("name: x\neither: {whisker: 1}\n"))
    assert "whisker" in message and ("'whiskers'" in message or "rate" in message)


def test_an_unknown_key_of_an_override_is_treated_alike(write):
    path = write("name: x\n")
    assert "did you mean 'steps'?" in refusal(path, "step=4")
    assert "did you mean 'rate'?" in refusal(path, "leaf.rat=4")


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write("name: x\n", "quickstart.yaml")
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in refusal(tmp_path / "quikstart.yaml")
    assert "no such file" in refusal(tmp_path / "nowhere" / "zzz.yaml")


@pytest.mark.parametrize(
    "text, cause",
    [
        ("a: [1,\nb: }", "not valid YAML"),
        ("", "holds no mapping"),
        ("- 1\n- 2\n", "holds no mapping"),
        ("just words\n", "holds no mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(write, text, cause):
    assert cause in refusal(write(text))


@pytest.mark.parametrize(
    "override, cause",
    [
        ("steps", "not of the form a.b=c"),
        ("=4", "not of the form a.b=c"),
        ("leaf.word=[1,", "not valid YAML"),
        ("name.first=4", "is a value, not a section"),
        ("leaves.0.rate=1", "is a value, not a section"),
    ],
)
def test_a_bad_override_says_what_a_good_one_looks_like(write, override, cause):
    assert cause in refusal(write("name: x\nleaves: [{rate: 1}]\n"), override)


@pytest.mark.parametrize(
    "text, where, got",
    [
        ("steps: many", "steps", "'many'"),
        ("steps: 0", "steps", "0"),
        ("leaf: {word: green}", "leaf.word", "'green'"),
        ("leaf: {betas: [1]}", "leaf.betas.1", ""),
    ],
)
def test_a_wrong_type_names_the_place_and_what_was_given(write, text, where, got):
    message = refusal(write(f"name: x\n{text}\n"))
    assert f"{where}: " in message and got in message


def test_a_missing_required_key_is_named(write):
    assert "name: Field required" in refusal(write("steps: 4\n"))


def test_overrides_win_over_the_file_and_the_last_of_them_wins(write):
    config = load(
        Tree,
        write("name: x\nleaf: {rate: 0.1}\n"),
        ["leaf.rate=0.2", "steps=7", "leaf.rate=3e-1", "maybe.word=blue", "weights={tests: 1}", "name='a=b'"],
    )
    assert (config.leaf.rate, config.steps, config.maybe.word, config.weights, config.name) == (
        0.3,
        7,
        "blue",
        {"tests": 1.0},
        "a=b",
    )


def test_a_base_is_merged_mapping_by_mapping_and_lists_are_replaced(write):
    write("name: far\nsteps: 9\nleaf: {rate: 0.1, word: blue}\nleaves: [{rate: 1}, {rate: 2}]\n", "far.yaml")
    write("base: ../far.yaml\nname: middle\n", "sub/middle.yaml")
    config = load(Tree, write("base: sub/middle.yaml\nleaf: {rate: 0.7}\nleaves: [{rate: 3}]\n"), ["leaf.betas=[0, 1]"])
    assert config == Tree(name="middle", steps=9, leaf=Leaf(rate=0.7, word="blue", betas=(0, 1)), leaves=[Leaf(rate=3)])


@pytest.mark.parametrize("bases", [["a"], ["b", "a"], ["b", "c", "a"]])
def test_a_circle_of_bases_is_found(write, bases):
    names = ["a", *bases]
    paths = [write(f"base: {base}.yaml\nname: x\n", f"{name}.yaml") for name, base in zip(names, bases)]
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(Tree, paths[0])


def test_two_files_may_share_a_base_that_is_missing_only_for_one(write):
    write("name: x\n", "shared.yaml")
    assert load(Tree, write("base: shared.yaml\n", "one.yaml")) == load(Tree, write("base: shared.yaml\n", "two.yaml"))
    with pytest.raises(ConfigError, match="share.yaml: no such file.*shared.yaml"):
        load(Tree, write("base: share.yaml\n", "three.yaml"))


def test_the_resolved_copy_reads_back_equal_and_whole(write, tmp_path):
    config = load(
        Tree,
        write(
            "name: 'null'\nleaves: [{rate: 1e-7}]\nnamed: {'1': {word: blue}}\nanimal: {kind: dog}\n"
            "weights: {tests: 0.1}\n"
        ),
    )
    dump(config, tmp_path / "resolved.yaml")
    assert load(Tree, tmp_path / "resolved.yaml") == config
    assert "betas" in (tmp_path / "resolved.yaml").read_text()  # defaults are written out too
    assert not list(tmp_path.glob("*.tmp"))


def test_a_configuration_cannot_be_changed_by_mistake(write):
    with pytest.raises(ValueError, match="frozen"):
        load(Tree, write("name: x\n")).steps = 5


CLASSES = {  # the first that a path begins with
    "bench/weights": ("bench_weights", "BenchConfig"),
    "bench/sandboxes": ("bench_sandboxes", "BenchConfig"),
    "bench/hostile": ("bench_hostile", "BenchConfig"),
    "bench/gateway_processes": ("bench_gateway_processes", "BenchConfig"),
    "bench/gateway": ("bench_gateway", "BenchConfig"),
    "bench/grading": ("bench_grading", "BenchConfig"),
    "bench/scaffolds": ("bench_scaffolds", "BenchConfig"),
    "bench/": ("bench_trainer", "BenchConfig"),
    "policy/": ("make_policy", "MakePolicyConfig"),
    "demonstrations/": ("record_demonstrations", "RecordConfig"),
    "exploitation/policy": ("make_policy", "MakePolicyConfig"),
    "exploitation/sft": ("train_sft", "SFTConfig"),
    "sft/": ("train_sft", "SFTConfig"),
    "eval/": ("evaluate", "EvaluateConfig"),
    "pretrained/demonstrations": ("prepare_demonstrations", "PrepareDemonstrationsConfig"),
    "pretrained/evaluate": ("evaluate", "EvaluateConfig"),
    "pretrained/sft": ("train_sft", "SFTConfig"),
    "tasks/": ("prepare_tasks", "PrepareConfig"),
    "site/": ("coderepairrl.cluster.site", "SiteConfig"),
    "criteria/": ("coderepairrl.run.criteria", "Criteria"),
    "grid/": ("coderepairrl.cluster.grid", "GridConfig"),
}


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_shipped_configuration_loads_with_its_class_and_survives_a_dump(path, tmp_path, monkeypatch):
    for folder in ("scripts", "benchmarks"):
        monkeypatch.syspath_prepend(ROOT / folder)
    below = str(path.relative_to(ROOT)).removeprefix("configs/")
    module, name = next(
        (where for fits, where in CLASSES.items() if below.startswith(fits)), ("train_grpo", "TrainConfig")
    )
    model = getattr(importlib.import_module(module), name)
    if path.parent.name == "scaffold":  # a part of one, to be named among the bases
        (tmp_path / "whole.yaml").write_text(f"base: [{ROOT}/configs/quickstart.yaml, {path}]\n")
        path = tmp_path / "whole.yaml"
    config = load(model, path)
    dump(config, tmp_path / "config.yaml")
    assert load(model, tmp_path / "config.yaml") == config


class Dog(Config):
    name: Literal["dog"] = "dog"
    barks: int = 1


class Cat(Config):
    name: Literal["cat"] = "cat"
    purrs: int = 1


class House(Config):
    pet: Dog | Cat = Field(Dog(), discriminator="name")
    owner: dict = {}
    deep: "Cellar | None" = None


class Cellar(Config):
    pet: Annotated[Dog | Cat, Field(discriminator="name")] = Dog()
    name: str = ""


def written(path, text):
    path.write_text(text)
    return path


def test_another_kind_takes_nothing_over_from_the_one_below(tmp_path):
    base = written(
        tmp_path / "base.yaml",
        "pet: {name: dog, barks: 7}\nowner: {name: a, age: 3}\ndeep: {name: x, pet: {name: dog, barks: 5}}",
    )
    assert load(House, written(tmp_path / "a.yaml", "base: base.yaml\npet: {name: cat}")).pet == Cat()
    assert load(House, written(tmp_path / "b.yaml", "base: base.yaml\npet: {name: dog}")).pet == Dog(barks=7)
    assert load(House, written(tmp_path / "c.yaml", "base: base.yaml\npet: {barks: 2}")).pet == Dog(barks=2)
    assert load(House, base, ["pet.name=cat", "pet.purrs=4"]).pet == Cat(purrs=4)
    assert load(House, base, ["pet.barks=9", "pet.name=dog"]).pet == Dog(barks=9)
    # a name that tells no kinds apart
    assert load(House, base, ["owner.name=b", "deep.name=y"]).owner == {"name": "b", "age": 3}
    assert load(House, base, ["deep.name=y"]).deep == Cellar(name="y", pet=Dog(barks=5))


def test_several_bases_later_ones_win_and_the_file_wins_over_all(tmp_path):
    written(tmp_path / "one.yaml", "pet: {name: dog, barks: 7}\nowner: {a: 1, b: 1, c: 1}")
    written(tmp_path / "two.yaml", "pet: {name: cat, purrs: 3}\nowner: {b: 2, c: 2}")
    found = load(House, written(tmp_path / "three.yaml", "base: [one.yaml, two.yaml]\nowner: {c: 3}"))
    assert found.pet == Cat(purrs=3) and found.owner == {"a": 1, "b": 2, "c": 3}
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(House, written(tmp_path / "four.yaml", "base: [one.yaml, four.yaml]"))


WORTHLESS = [
    None,
    True,
    -1,
    0,
    2.5,
    float("nan"),
    "x",
    "16:00",
    "3",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    {"name": "x"},
    {"name": [1]},
    {1: 2},
    10**400,
]


@settings(max_examples=40)
@given(st.data())
def test_whatever_stands_anywhere_is_taken_or_refused_in_one_line_with_its_place(tmp_path_factory, data):
    path = data.draw(st.sampled_from(["quickstart.yaml", "grid/thesis.yaml", "grid/scaffolds.yaml", "site/a100.yaml"]))
    model = {"grid": GridConfig, "site": SiteConfig}.get(path.split("/")[0], TrainConfig)
    tree = node = read_yaml(ROOT / "configs" / path)
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(st.sampled_from(WORTHLESS))
    changed = tmp_path_factory.getbasetemp() / "changed.yaml"
    changed.write_text(yaml_core.dump(tree))
    try:
        load(model, changed)
    except ConfigError as error:
        assert re.match(rf"{re.escape(str(changed))}:\d+: ", str(error)) and "\n" not in str(error)


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=-3",
        "training.steps=0",
        "training.checkpoint_every=0",
        "training.export_every=0",
        "training.ranks=0",
        "training.micro_batch_tokens=0",
        "training.threads=0",
        "training.algorithm.clip_low=1.5",
        "training.algorithm.clip_high=-0.1",
        "training.algorithm.correction_cap=0",
        "engine.lora.rank=0",
        "engine.lora.targets=[]",
        "engine.learning_rate=-1e-4",
        "engine.learning_rate=.inf",
        "engine.betas=[0.9, 1.0]",
        "engine.betas=[-0.1, 0.9]",
        "engine.checkpointed_share=1.1",
        "engine.sequence_ranks=3",
        "engine.warmup_steps=-1",
        "rollout.group_size=1",
        "rollout.group_size=0",
        "rollout.groups_per_step=0",
        "rollout.limits.max_turns=0",
        "rollout.limits.deadline_s=0",
        "rollout.evaluation.samples=0",
        "rollout.gateway.port=70000",
        "rollout.server.port=-1",
        "rollout.server.threads=0",
        "rollout.server.kv_cache_mib=0",
        "rollout.server.start_timeout_s=0",
        "rollout.tasks.train=-1",
        "rollout.scaffold.max_output_chars=0",
        "rollout.sandbox.memory_mib=0",
        "rollout.concurrent_episodes=0",
        "rollout.engine_wait_s=-1",
        "rollout.seed=-1",
    ],
)
def test_numbers_have_bounds_and_the_override_is_blamed(override):
    message = refusal(ROOT / "configs/quickstart.yaml", override, model=TrainConfig)
    assert message.startswith(f"override {override!r}: {override.split('=')[0]}")


def test_training_has_to_name_its_groups(write):
    path = write((ROOT / "configs/quickstart.yaml").read_text().replace("  groups_per_step: 32\n", ""))
    assert "rollout.groups_per_step: " in refusal(path, model=TrainConfig)


@pytest.mark.parametrize(
    "scaffold",
    ["{name: terminall}", "{name: terminal, max_output_chars: 0}", "{name: scripted, path: a, model: b, scaffold: {}}"],
)
def test_what_is_checked_by_a_class_within_is_one_line_too(write, scaffold):
    override = f"rollout.scaffold={{name: scripted, path: a, model: b, scaffold: {scaffold}}}"
    assert refusal(ROOT / "configs/quickstart.yaml", override, model=TrainConfig).startswith(
        f"override {override!r}: rollout.scaffold.scaffold."
    )

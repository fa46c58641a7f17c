"""A record of former days: of a key that it doesn't have the class's default counts; what it has counts as it was."""

import importlib
import json
import re
from pathlib import Path
from typing import Literal

import pytest
from conftest import ROOT
from inputs_helpers import WHOLE, configuration
from pydantic import Field

from coderepairrl.config import Config, load
from coderepairrl.config.composition import compose
from coderepairrl.errors import ConfigError
from coderepairrl.files import write_json
from coderepairrl.run import inputs
from coderepairrl.tasks.functions import FunctionsConfig
from coderepairrl.tasks.functions import load as functions


def without(record: dict, *names: str) -> dict:
    return {key: value for key, value in record.items() if not inputs.covered(key, names)}


class Section(Config):
    a: int = 1
    names: tuple[str, ...] = ("x",)


class One(Config):
    name: Literal["one"] = "one"
    size: int = 1


class Two(Config):
    name: Literal["two"] = "two"
    size: int = 2
    inner: Section = Section()


class Entry(Config):
    path: str
    weight: float = 1.0


class Whole(Config):
    must: int = 0
    count: int = 5
    section: Section = Section()
    off: Section | None = None
    on: Section | None = Section()
    kind: One | Two = Field(One(), discriminator="name")
    entries: list[Entry | Section] = []
    by_name: dict[str, Section] = {}


class Demanding(Whole):
    must: int


TWO, BOTH = {"kind": {"name": "two"}}, {"entries": [{"path": "p"}, {}]}


@pytest.mark.parametrize(
    ("today", "missing", "named"),
    [  # settings, what their record doesn't have, what is refused
        ({}, ["count"], []),
        ({"count": 3}, ["count"], ["count"]),
        ({"must": 0}, ["must"], ["must"]),
        ({}, ["section.a"], []),
        ({"section": {"a": 2}}, ["section.a"], ["section.a"]),
        ({}, ["section"], []),
        ({"section": {"a": 2}}, ["section"], ["section.a"]),
        ({}, ["section", "on", "kind", "count", "entries", "off"], []),
        ({}, ["section.names"], []),
        ({"section": {"names": ["y"]}}, ["section.names"], ["section.names.0"]),
        ({"section": {"names": ["x", "y"]}}, ["section.names"], ["section.names.1"]),
        ({"section": {"names": []}}, ["section.names"], ["section.names.0"]),
        ({"off": {}}, ["off.a"], []),
        ({"off": {"a": 2}}, ["off.a"], ["off.a"]),
        ({"off": {}}, ["off"], ["off.a", "off.names.0"]),
        ({}, ["on"], []),
        ({"on": None}, ["on"], ["on.a", "on.names.0"]),
        (TWO, ["kind.size", "kind.inner"], []),
        ({"kind": {"name": "two", "size": 1}}, ["kind.size"], ["kind.size"]),
        ({"kind": {"name": "two", "inner": {"a": 3}}}, ["kind.inner"], ["kind.inner.a"]),
        ({"kind": {"name": "one", "size": 3}}, ["kind.name"], []),
        (TWO, ["kind.name"], ["kind.name"]),
        (TWO, ["kind"], ["kind.name", "kind.size", "kind.inner.a", "kind.inner.names.0"]),
        (BOTH, ["entries.0.weight", "entries.1.names"], []),
        ({"entries": [{"path": "p", "weight": 2}]}, ["entries.0.weight"], ["entries.0.weight"]),
        (BOTH, ["entries.1"], ["entries.1.a", "entries.1.names.0"]),
        (BOTH, ["entries"], ["entries.0.path", "entries.0.weight", "entries.1.a", "entries.1.names.0"]),
        ({"by_name": {"n": {}}}, ["by_name.n.a"], []),
        ({"by_name": {"n": {}}}, ["by_name"], ["by_name.n.a", "by_name.n.names.0"]),
    ],
)
def test_a_key_that_is_not_recorded_counts_where_it_is_not_the_default(tmp_path, today, missing, named):
    config = (Demanding if "must" in today else Whole).model_validate(today)
    now, record = inputs.of(config), tmp_path / "inputs.json"
    assert set(missing) - {"must"} < {*Whole.model_fields} | {
        part for key in now for part in (key, key.rpartition(".")[0])
    }
    write_json(record, without(now, *missing))
    compare = lambda **more: inputs.compare(record, now, (), made=True, remedy="no", allow=(), **more)
    if not named:
        assert compare(config=config) == {}
        return
    with pytest.raises(ConfigError) as error:
        compare(config=config)
    assert str(error.value).endswith(f": resume.allow=[{','.join(named)}]")
    assert inputs.compare(record, now, (), made=True, remedy="", allow=named, config=config).keys() == set(named), (
        "so it may be allowed"
    )


@pytest.mark.parametrize(
    ("before", "today", "said"),
    [
        ({"count": 7}, {}, "count 7 -> 5"),
        ({"count": 7}, {"count": 7}, ""),  # a default that was another one
        ({"off": None}, {"off": {}}, "off.a not set -> 1, off.names.0 not set -> x"),
        ({"section": {"a": 1, "names": []}}, {}, "section.names.0 not set -> x"),
        ({"section": {"a": 1, "names": []}}, {"section": {"names": []}}, ""),
        ({"section": 3}, {}, "section.a not set -> 1, section.names.0 not set -> x, section 3 -> not set"),
        ({"gone": 3, "lost": {"a": 1}}, {}, "gone 3 -> not set, lost.a 1 -> not set"),
        ({"gone": None, "lost": []}, {}, ""),
        ({"kind": {"name": "one", "size": 1}}, TWO, "kind.name one -> two, kind.size 1 -> 2"),
        ({}, {"count": 4}, "count 5 -> 4"),
    ],
)
def test_what_is_recorded_counts_as_it_was(tmp_path, before, today, said):
    write_json(tmp_path / "inputs.json", inputs.flatten({"must": 0} | before))
    config = Whole.model_validate(today)
    compare = lambda: inputs.compare(
        tmp_path / "inputs.json", inputs.of(config), (), config=config, made=True, remedy="no"
    )
    if said:
        with pytest.raises(ConfigError, match=f"other inputs: {said}: no$"):
            compare()
    else:
        assert compare() == {}


def test_evaluations_of_before_empty_lists_were_recorded_are_under_the_same_inputs(tmp_path):
    record = tmp_path / "inputs.json"
    hashes = []
    for more in ({}, {"rollout.chat_template": []}, {"rollout.chat_template.thinking": False}):
        write_json(record, {"rollout.limits.max_turns": 3} | more)
        hashes.append(inputs.of_evaluation(record))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("program", WHOLE)
def test_a_record_without_a_key_goes_on_unless_the_file_sets_it(program, monkeypatch, tmp_path):
    free, config = WHOLE[program][2], configuration(program, monkeypatch)
    now, written = inputs.of(config, free), inputs.flatten(compose(type(config), ROOT / WHOLE[program][1], []).value)
    # lists and mappings are recorded whole
    for key in {re.sub(r"((\.\d+)+|(?<=weights)\..*)$", "", key) for key in now}:
        write_json(tmp_path / "inputs.json", without(now, key))
        found = inputs.compare(tmp_path / "inputs.json", now, free, config=config, made=True, remedy="", allow=[key])
        follows = key == "rollout.server.max_model_len"  # another key, not its class
        assert not found or follows or any(inputs.covered(name, [key]) for name in written)


MODEL, ROWS = {"m/config.json": "{}", "m/tokenizer.json": "t"}, {"rows.jsonl": "{}"}
# program -> (overrides, what is in its folder, its record, keys that are not in there, one that is not as it was, what
# it says)
DONE = {
    "scripts/evaluate.py": (
        ["scaffold=gold", "run=<here>/e", "rollout.tasks.heldout=1"],
        {"e_gold/summary.json": "{}", "e_gold/results.jsonl": "", "e_gold/environments.jsonl": ""},
        "e_gold/inputs.json",
        ["rollout.rewards.discount_per_call", "rollout.rendering"],
        "rollout.limits.max_turns=3",
        "tasks repaired",
    ),
    "scripts/train_sft.py": (
        ["model=<here>/m", "output=<here>/warm", "sources=[{path: <here>/rows.jsonl}]"],
        MODEL | ROWS | {"warm/config.json": "{}"},
        "warm.inputs.json",
        ["sources.0.kind", "engine.final_share", "seed"],
        "seed=1",
        "already there",
    ),
    "scripts/record_demonstrations.py": (
        ["model=<here>/m", "output=<here>/out"],
        MODEL | {"out/summary.json": "{}", "out/step_00000.parquet": ""},
        "out/inputs.json",
        ["expert.settings.p_habit", "rollout.rewards.discount_per_call"],
        "expert.settings.p_habit=0.5",
        "already there",
    ),
    "scripts/make_policy.py": (
        ["output=<here>/p", "policy.qk_norm_gain=1.7"],
        {f"p/{name}": "" for name in ("drills.jsonl", "demonstrations.jsonl", "initial/x")},
        "p/inputs.json",
        ["demonstrations.p_slip", "policy"],
        "demonstrations.p_slip=0.5",
        "policy: ",
    ),
    "scripts/prepare_tasks.py": (
        ["tasks={name: jsonl}", "out=<here>/t.jsonl", "sandbox.kind=local"],
        {"t.admission.jsonl": ""},
        "t.inputs.json",
        ["environments", "sandbox.image"],
        "sandbox.image=<here>",
        "0 of 0 admitted",
    ),
}


@pytest.mark.parametrize("program", DONE)
def test_a_program_goes_on_in_a_folder_that_was_recorded_without_a_key(program, monkeypatch, tmp_path, capsys):
    words, files, record, missing, other_word, says = json.loads(
        json.dumps(DONE[program]).replace("<here>", str(tmp_path))
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module, (name, path, free) = importlib.import_module(Path(program).stem), WHOLE[program]
    config = load(getattr(module, name), path, words)
    of = getattr(module, "inputs_of", lambda config: inputs.of(config, free))
    now = (
        of(config, functions(FunctionsConfig(train=1, heldout=1))["heldout"], None)
        if program == "scripts/evaluate.py"
        else of(config)
    )
    write_json(tmp_path / record, without(now, *missing))
    module.main([path, *words])
    assert says in capsys.readouterr().out
    write_json(tmp_path / record, without(now, *missing))
    with pytest.raises(SystemExit):
        module.main([path, *words, other_word])
    assert f"holds results of other inputs: {other_word.partition('=')[0]} " in capsys.readouterr().err

"""Supervised fine-tuning: what is learnt of a conversation, token-exact trajectories, what is held out, and the program
itself."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, once, run_program
from gateway_helpers import MOVING, PLAIN, QWEN3, SHELL, ids_by_character, tokenizer
from gateway_templates import NO_ANSWERS, NO_TOOLS, TEXT_OR_CALLS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from coderepairrl.demonstrations.expert import DemonstrationsConfig, generate
from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.models.loading import own_files
from coderepairrl.rollout import trajectory_files
from coderepairrl.run.metrics import read_metrics
from coderepairrl.scaffolds.terminal import TOOLS
from coderepairrl.sft import dataset
from coderepairrl.sft.conversations import LeftOut, from_chat
from coderepairrl.sft.source_config import ChatSource, TrajectoriesSource
from coderepairrl.training import batch
from coderepairrl.types import Call, Outcome, Trajectory, Verdict


@pytest.fixture(scope="module")
def demonstrations() -> list[dict]:
    """Conversations with tool calls; in some an assistant's message is not to be learnt."""
    rows = [
        {"messages": messages, "tools": TOOLS}
        for messages in generate(
            "demonstration", DemonstrationsConfig(episodes=120, p_slip=0.5), "Repair the code.", processes=1
        )
    ]
    assert any(not message.get("train", True) for row in rows for message in row["messages"])
    return rows


@pytest.fixture(scope="module")
def jsonl(demonstrations, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    return path


def prepared(source, folder, model, context_weight=0.0, longest=10_000):
    """(rows, what was left out)."""
    (left_out,) = dataset.prepare([source], folder, str(model), context_weight, longest, processes=1)
    (rows,), _ = dataset.load(folder, 1, 0.0)
    return rows, left_out


# what is learnt of a conversation


def test_ids_and_weights_are_those_of_the_template_with_its_own_mask(policy, demonstrations):
    """The template marks what the assistant says: an independent witness, also of the whole conversation's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    renderer = Renderer(tokenizer)
    for row in demonstrations:
        expected = tokenizer.apply_chat_template(
            row["messages"], tools=row["tools"], return_dict=True, return_assistant_tokens_mask=True
        )
        (made,) = from_chat(row, renderer, context_weight=0.25).rows
        count = len(made.token_ids)
        assert list(made.token_ids) == expected["input_ids"][:count] and not any(expected["assistant_masks"][count:])
        said = np.array(expected["assistant_masks"][:count])
        learnt = [i for i, message in enumerate(row["messages"]) if message["role"] == "assistant"]
        edges = np.flatnonzero(np.diff(said, prepend=0) == 1)
        for number, (start, stop) in enumerate(zip(edges, [*edges[1:], count], strict=True)):
            wanted = float(row["messages"][learnt[number]].get("train", True))
            assert all(made.weights[i] == (wanted if said[i] else 0.25) for i in range(start, stop))
        assert made.weights[0] == 0.0 and all(weight == 0.25 for weight in made.weights[1 : edges[0]])


CALL = {"id": "1", "type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}}
TEMPLATES = {"qwen3": QWEN3, "no end of turn": PLAIN, "moves the tools": MOVING}
MESSAGES = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "assistant", "tool"]), st.booleans()), min_size=1, max_size=8
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(shape=MESSAGES, tools=st.booleans(), context=st.sampled_from([0.0, 0.5]))
def test_every_turn_is_learnt_once_and_nothing_else_whatever_the_template_does(name, shape, tools, context):
    made = tokenizer(TEMPLATES[name])
    messages = [{"role": "user", "content": "word0 begins"}]
    for number, (role, trained) in enumerate(shape, 1):
        if role == messages[-1]["role"]:
            continue
        messages.append(
            {"role": role, "content": f"word{number} {role}"} | ({"train": trained} if role == "assistant" else {})
        )
    result = from_chat({"messages": messages, "tools": [SHELL] if tools else None}, Renderer(made), context)
    learnt = [message["content"] for message in messages if message.get("train")]
    if not learnt:
        assert result == LeftOut("no assistant's turn to learn")
        return
    spoken = [
        made.decode([i for i, weight in zip(row.token_ids, row.weights, strict=True) if weight == 1.0])
        for row in result.rows
    ]
    for message in messages:
        assert sum(text.count(message["content"]) for text in spoken) == (message["content"] in learnt)
    others = [
        i
        for row in result.rows
        for i, weight in zip(row.token_ids, row.weights, strict=True)
        if weight not in (0.0, 1.0)
    ]
    for message in messages:
        if message["role"] == "assistant":
            assert message["content"] not in made.decode(others)
    assert bool(others) == bool(context)


def test_reasoning_and_tool_calls_are_learnt_as_a_policy_would_sample_them():
    made = tokenizer(QWEN3)
    call = {"id": "1", "type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "reasoning_content": "first look", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "a.py"},
        {"role": "assistant", "content": "done"},
    ]
    (row,) = from_chat({"messages": messages, "tools": [SHELL]}, Renderer(made), 0.0).rows
    learnt = made.decode([i for i, weight in zip(row.token_ids, row.weights, strict=True) if weight])
    assert learnt == (
        '<think>\nfirst look\n</think>\n\n<tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n</tool_call><|im_end|>'
        "<think>\n\n</think>\n\ndone<|im_end|>"
    )
    as_object = json.loads(json.dumps(messages))
    as_object[1]["tool_calls"][0]["function"]["arguments"] = {"command": "ls"}
    assert from_chat({"messages": as_object, "tools": [SHELL]}, Renderer(made), 0.0).rows == (row,)


@pytest.mark.parametrize(
    "template, message, after, lost",
    [
        (NO_TOOLS, {"tool_calls": [CALL]}, [], "tool calls"),
        (NO_TOOLS, {"content": "look", "tool_calls": [CALL]}, [], "tool calls"),
        (
            NO_ANSWERS,
            {"tool_calls": [CALL]},
            [{"role": "tool", "tool_call_id": "1", "content": "a.py"}, {"role": "assistant", "content": "done"}],
            "tool answers",
        ),
        (TEXT_OR_CALLS, {"content": "look", "tool_calls": [CALL]}, [], "text"),
        (NO_TOOLS, {"content": "a", "reasoning_content": "hm"}, [], "reasoning"),
        (NO_TOOLS, {"content": "look"}, [], None),
        (TEXT_OR_CALLS, {"tool_calls": [CALL]}, [], None),
        (NO_ANSWERS, {"tool_calls": [CALL]}, [], None),
    ],
)
def test_what_the_template_drops_is_not_learnt_as_silence(template, message, after, lost, tmp_path):
    folder = tmp_path / "model"
    tokenizer(template).save_pretrained(folder)
    rows = [
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "fine"}]},
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", **message}, *after]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if lost is None:
        assert len(prepared(ChatSource(path=str(tmp_path / "rows.jsonl")), tmp_path / "rows", folder)[0]) == 2
        return
    with pytest.raises(
        ConfigError,
        match=f"rows.jsonl, line 2: the model's chat template leaves out {lost} of message 2 of {2 + len(after)}.*take it out",
    ):
        prepared(ChatSource(path=str(tmp_path / "rows.jsonl")), tmp_path / "rows", folder)


def test_parquet_of_structs_or_of_json_text_equals_jsonl(policy, demonstrations, jsonl, tmp_path):
    structs = [{"messages": row["messages"], "tools": row["tools"]} for row in demonstrations]
    pq.write_table(pa.Table.from_pylist(structs), tmp_path / "structs.parquet")
    pq.write_table(
        pa.Table.from_pylist([{name: json.dumps(value) for name, value in row.items()} for row in structs]),
        tmp_path / "text.parquet",
    )
    expected, _ = prepared(ChatSource(path=str(jsonl)), tmp_path / "rows", policy, 0.3)
    for name in ("structs", "text"):
        found, _ = prepared(ChatSource(path=str(tmp_path / f"{name}.parquet")), tmp_path / name, policy, 0.3)
        assert found.table.equals(expected.table) and len(found) == len(demonstrations)


def test_half_a_surrogate_pair_is_replaced_as_the_gateway_does(known_tokens, tmp_path):
    text = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "%s"}]}\n'
    (tmp_path / "pairs.jsonl").write_text(text % "\\ud83d\\ude42 ok" + text % "\\ud83d ok")
    rows, _ = prepared(ChatSource(path=str(tmp_path / "pairs.jsonl")), tmp_path / "rows", known_tokens)
    learnt = [
        tokenizer(QWEN3).decode([i for i, m in zip(rows[n][0].token_ids, rows[n][0].loss_mask, strict=True) if m])
        for n in range(2)
    ]
    assert [text.removeprefix("<think>\n\n</think>\n\n") for text in learnt] == [
        "🙂 ok<|im_end|>",
        "\ufffd ok<|im_end|>",
    ]


# trajectories


def trajectory(number: int, rng: random.Random, **changes) -> Trajectory:
    """Three calls: the second and the third both go on from the first, so there are two branches."""
    # no tokeniser would give these
    ids = lambda count: ids_by_character("".join(rng.choice("abcdef ") for _ in range(count)))
    sample = lambda index, parent, prompt: Call(
        index,
        parent,
        None if parent is None else "completion",
        prompt,
        made := ids(rng.randrange(1, 9)),
        (-0.5,) * len(made),
        (3,) * len(made),
        "stop",
        False,
        0.0,
        1.0,
    )
    first = sample(0, None, ids(5))
    others = [sample(index, 0, first.prompt_ids + first.completion_ids + ids(3)) for index in (1, 2)]
    verdict = Verdict(number % 2 == 0, "junit+canary", {}, {}, (), "", 1.0)
    return dataclasses.replace(
        Trajectory(
            f"t{number}",
            f"g{number // 4}",
            f"task{number // 4}",
            "train",
            0,
            (first, *others),
            "",
            Outcome.SUBMITTED,
            "",
            verdict,
            {},
            number / 10,
            1.0,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    rng, folder = random.Random(0), tmp_path_factory.mktemp("run") / "rollouts"
    trajectories = [trajectory(number, rng) for number in range(8)]
    trajectories += [
        trajectory(8, rng, outcome=Outcome.TURN_LIMIT),
        trajectory(9, rng, split="heldout", task_id="other"),
        trajectory(10, rng, outcome=Outcome.INFRASTRUCTURE_ERROR),
    ]
    trajectory_files.write(folder / "step_00000.parquet", trajectories[:5], {})
    trajectory_files.write(folder / "step_00001.parquet", trajectories[5:], {})
    trajectory_files.write(folder / "eval_after.parquet", [trajectory(11, rng)], {})
    return folder, trajectories


@pytest.fixture(scope="module")
def known_tokens(tmp_path_factory):
    """A folder with the tokenizer whose ids the trajectories have."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer(QWEN3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, range(9)),
        ({"min_reward": 0.35}, range(4, 9)),
        ({"resolved": True}, range(0, 9, 2)),
        ({"submitted": True}, range(8)),
        ({"split": "heldout"}, [9]),
        ({"resolved": True, "submitted": True, "min_reward": 0.5}, [6]),
    ],
)
def test_trajectories_are_learnt_as_sampled(recorded, known_tokens, tmp_path, changes, kept):
    folder, trajectories = recorded
    rows, left_out = prepared(
        TrajectoriesSource(kind="trajectories", path=str(folder), **changes), tmp_path / "rows", known_tokens
    )
    assert len(rows) == len(kept) and sum(left_out.values()) == len(trajectories) - len(kept)
    for number, at in enumerate(kept):
        expected = batch.samples(trajectories[at], [1.0] * len(trajectories[at].calls))
        assert [(s.token_ids, s.loss_mask, s.advantages) for s in rows[number]] == [
            (s.token_ids, s.loss_mask, s.advantages) for s in expected
        ]
        assert sum(sum(s.loss_mask) for s in rows[number]) == sum(
            len(call.completion_ids) for call in trajectories[at].calls
        )


def test_context_of_a_trajectory_weighs_in_its_first_branch_only(recorded, known_tokens, tmp_path):
    folder, trajectories = recorded
    rows, _ = prepared(
        TrajectoriesSource(kind="trajectories", path=str(folder)), tmp_path / "rows", known_tokens, context_weight=0.5
    )
    first, second = rows[0]
    calls = trajectories[0].calls
    sampled = set(range(len(calls[0].prompt_ids), len(calls[0].prompt_ids + calls[0].completion_ids))) | set(
        range(len(calls[1].prompt_ids), len(first.token_ids))
    )
    assert [i for i, weight in enumerate(first.advantages) if weight == 1.0] == sorted(sampled)
    assert [i for i, weight in enumerate(first.advantages) if weight == 0.5] == [
        i for i in range(1, len(first.token_ids)) if i not in sampled
    ]
    assert sum(second.advantages) == len(calls[2].completion_ids) and set(second.advantages) == {0.0, 1.0}


# what is held out, and what a step holds


def test_a_conversation_is_held_out_for_good(policy, demonstrations, jsonl, tmp_path):
    """Whatever else is in the file and in whatever order; with it all that begin alike."""
    keys = lambda rows: set(rows.keys)
    dataset.prepare([ChatSource(path=str(jsonl))], tmp_path / "all", str(policy), 0.0, 10_000, 1)
    (trained,), (held,) = dataset.load(tmp_path / "all", 1, 0.3)
    assert (
        len(trained) + len(held) == len(demonstrations)
        and not keys(trained) & keys(held)
        and 0.1 < len(held) / len(demonstrations) < 0.5
    )
    some = random.Random(1).sample(demonstrations, 60)
    answered = some[0] | {"messages": [*some[0]["messages"][:2], {"role": "assistant", "content": "another answer"}]}
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*some, answered]))
    dataset.prepare([ChatSource(path=str(tmp_path / "some.jsonl"))], tmp_path / "part", str(policy), 0.0, 10_000, 1)
    (fewer,), (held_again,) = dataset.load(tmp_path / "part", 1, 0.3)
    assert keys(held_again) < keys(held) and keys(fewer) < keys(trained)
    # both answers on one side
    assert (
        max([fewer.keys.count(key) for key in fewer.keys] + [held_again.keys.count(key) for key in held_again.keys])
        == 2
    )
    # what another file holds is not trained either
    dataset.prepare(
        [ChatSource(path=str(jsonl)), ChatSource(path=str(tmp_path / "some.jsonl"))],
        tmp_path / "both",
        str(policy),
        0.0,
        10_000,
        1,
    )
    (rest,), (other,) = dataset.load(tmp_path / "both", 1, 0.0)
    assert len(other) == 61 and not keys(rest) & keys(other) and keys(rest) | keys(other) == keys(trained) | keys(held)


def test_an_epoch_has_every_conversation_once_in_full_steps_of_mixed_lengths(policy, jsonl, demonstrations, tmp_path):
    rows, _ = prepared(ChatSource(path=str(jsonl)), tmp_path / "rows", policy)
    made = list(dataset.steps(rows, 1024, dataset.shuffled(len(rows), random.Random(0), endless=False)))
    ids = sorted(sample.token_ids for samples in made for sample in samples)
    assert ids == sorted(rows[i][0].token_ids for i in range(len(rows))) and len(ids) == len(demonstrations)
    lengths = [[len(sample.token_ids) for sample in samples] for samples in made]
    longest = max(map(max, lengths))
    assert all(1024 - longest < sum(step) <= 1024 for step in lengths[:-1]) and all(
        len(set(step)) > 1 for step in lengths[:-1]
    )
    assert made == list(dataset.steps(rows, 1024, dataset.shuffled(len(rows), random.Random(0), endless=False)))
    assert made != list(dataset.steps(rows, 1024, dataset.shuffled(len(rows), random.Random(1), endless=False)))
    # none fits: each is a step of its own
    assert all(len(samples) == 1 for samples in dataset.steps(rows, 10, range(len(rows))))


# bad input

MESSAGE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MESSAGE + "{oh\n", "bad.jsonl, line 2: .*: correct that conversation, or take it out"),
        (MESSAGE + "[]\n", "line 2: there is no list of messages"),
        (MESSAGE.replace("user", "robot"), "line 1: each message must be an object with a role of"),
        (MESSAGE.replace('"a"', "7"), "line 1: the content of a message must be a string"),
        (MESSAGE.replace("}]}", '}], "tools": ["ls"]}'), "line 1: each of tools must be an object"),
        (
            MESSAGE.replace('"role": "user", ', '"role": "assistant", "tool_calls": [3], '),
            "line 1: tool_calls of a message must be objects",
        ),
        (b"\xff\xfe\n", "bad.jsonl: not text in UTF-8"),
        (MESSAGE.replace("assistant", "user"), r"no conversation is left .*no assistant's turn to learn.*1"),
        (MESSAGE.replace('"b"', f'"{"b " * 9000}"'), "no conversation is left .*longer than micro_batch_tokens"),
    ],
)
def test_bad_conversations_are_named_in_one_line(text, said, policy, tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused([{"path": str(tmp_path / "bad.jsonl")}], said, policy, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"path": "tests/programs"}, r"no \*.jsonl or \*.parquet in this folder"),
        ({"kind": "trajectories", "path": "missing"}, "missing: no such file"),
        (
            {"kind": "trajectories", "path": "{run}", "min_reward": 9.0},
            "no conversation is left .*reward below min_reward",
        ),
        ({"kind": "trajectories", "path": "{text}"}, "text.parquet: not a Parquet file"),
        ({"path": "{text}"}, "text.parquet: not a Parquet file"),
        ({"kind": "trajectories", "path": "{foreign}"}, "schema version None instead of"),
    ],
)
def test_bad_sources_are_named_in_one_line(source, said, policy, recorded, tmp_path, monkeypatch):
    (tmp_path / "text.parquet").write_text("no Parquet\n")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    places = {
        "{run}": str(recorded[0]),
        "{text}": str(tmp_path / "text.parquet"),
        "{foreign}": str(tmp_path / "foreign.parquet"),
    }
    assert_refused([source | {"path": places.get(source["path"], source["path"])}], said, policy, tmp_path, monkeypatch)


def assert_refused(sources, said, policy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import train_sft

    config = train_sft.SFTConfig(
        model=str(policy), output=str(tmp_path / "out"), sources=sources, engine={"learning_rate": 1e-3}
    )
    with pytest.raises(CodeRepairError, match=said) as caught:
        train_sft.prepare(config, tmp_path / "out.rows")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: [{path: a, kind: video}]", "sources.0.kind: .*'video'.*chat, trajectories"),
        ("sources: [{path: a, stepz: 3}]", "unknown key 'sources.0.stepz': did you mean 'steps'"),
        ("sources: []", "sources: "),
        ("sources: [{path: a}]\nevaluation: {every: 3}", "evaluation: .*name either a share or sources"),
        ("sources: [{path: a}]\ncontext_weight: 2", "context_weight: "),
    ],
)
def test_a_wrong_configuration_is_explained(text, said, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from coderepairrl.config import load
    from coderepairrl.sft.sft_config import SFTConfig

    (tmp_path / "sft.yaml").write_text(f"model: m\noutput: o\nengine: {{learning_rate: 0.1}}\n{text}\n")
    with pytest.raises(ConfigError, match=said):
        load(SFTConfig, tmp_path / "sft.yaml")


# the program


def start(folder, policy, jsonl, name: str, ranks: int) -> subprocess.Popen:
    (folder / name).mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(
        json.dumps(
            {
                "model": str(policy),
                "output": str(folder / name / "policy"),
                "sources": [{"path": str(jsonl), "steps": 10}],
                "ranks": ranks,
                "seed": 3,
                "evaluation": {"share": 0.2, "every": 4},
                "batch_tokens": 1024,
                "context_weight": 0.25,
                "engine": {"learning_rate": 3e-3, "warmup_steps": 2},
            }
        )
    )
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "scripts/train_sft.py", str(folder / f"{name}.yaml")],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def runs(policy, jsonl, tmp_path_factory):
    """{ranks: folder}."""

    def make(folder):
        for ranks, name in ((1, "one"), (2, "two")):
            process = start(folder, policy, jsonl, name, ranks)
            assert process.wait(timeout=300) == 0 and "eval_loss" in (folder / f"{name}.log").read_text(), (
                folder / f"{name}.log"
            ).read_text()

    folder = once(tmp_path_factory, "sft_runs", make)
    return {1: folder / "one", 2: folder / "two"}


@pytest.mark.whole
def test_it_learns_and_says_so(runs):
    for folder in runs.values():
        rows = read_metrics(folder / "sft_metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(11))
        assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4, 8, 10]
        losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1.0
        assert rows[-1]["loss"] < rows[1]["loss"] - 1.0
        assert all({"grad_norm", "learning_rate", "num_tokens"} <= row.keys() for row in rows[1:])
        summary = json.loads((folder / "sft_summary.json").read_text())
        assert (
            summary["eval_loss"] == losses[-1]
            and summary["steps"] == 10
            and summary["num_tokens"] == rows[-1]["num_tokens"] <= 10 * 1024
        )
        assert summary["conversations_trained"] + summary["conversations_held_out"] == 120
        assert sorted(path.name for path in folder.iterdir()) == [
            "policy",
            "policy.inputs.json",
            "sft_metrics.jsonl",
            "sft_summary.json",
        ]


def test_two_ranks_do_what_one_does(runs):
    one, two = (read_metrics(runs[ranks] / "sft_metrics.jsonl") for ranks in (1, 2))
    for name in ("loss", "grad_norm", "eval_loss", "learning_rate", "num_tokens"):
        assert [row[name] for row in one if name in row] == pytest.approx(
            [row[name] for row in two if name in row], rel=2e-3
        ), name


def test_transformers_loads_the_policy_and_finds_the_same_loss(runs, policy, jsonl, tmp_path):
    dataset.prepare([ChatSource(path=str(jsonl))], tmp_path / "rows", str(policy), 0.25, 10_000, 1)
    _, (held,) = dataset.load(tmp_path / "rows", 1, 0.2)
    model = AutoModelForCausalLM.from_pretrained(runs[2] / "policy")
    loss, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(held)):
            (sample,) = held[i]
            ids, said = torch.tensor([sample.token_ids]), torch.tensor(sample.advantages[1:]) == 1.0
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            loss, count = loss - logprobs[said].sum().item(), count + said.sum().item()
    summary = json.loads((runs[2] / "sft_summary.json").read_text())
    assert loss / count == pytest.approx(summary["eval_loss"], abs=1e-4) and np.exp(loss / count) == pytest.approx(
        summary["eval_perplexity"], rel=1e-3
    )
    assert own_files(runs[2] / "policy") == own_files(policy)  # tokenizer, chat template and settings, to the byte


def test_a_finished_run_is_left_alone_and_a_mistake_starts_no_ranks(runs, jsonl):
    folder = runs[1].parent
    before = (runs[1] / "sft_summary.json").read_text()
    again = run_program("scripts/train_sft.py", str(folder / "one.yaml"))
    assert (
        again.returncode == 0
        and again.stdout.strip() == f"{runs[1] / 'policy'}: already there"
        and (runs[1] / "sft_summary.json").read_text() == before
    )
    other = run_program("scripts/train_sft.py", str(folder / "one.yaml"), "engine.learning_rate=0.5", "threads=2")
    assert (
        other.returncode == 1
        and "engine.learning_rate" in other.stderr
        and "-> 0.5: take another `output:`" in other.stderr
        and "threads" not in other.stderr
    )
    wrong = run_program(
        "scripts/train_sft.py",
        str(folder / "one.yaml"),
        f"output={folder / 'new'}",
        "sources=[{path: nowhere.jsonl, steps: 3}]",
    )
    assert (
        wrong.returncode == 1
        and wrong.stderr.splitlines()[-1].startswith("error: nowhere.jsonl: no such file")
        and "Traceback" not in wrong.stderr
    )
    assert not (folder / "new").exists()

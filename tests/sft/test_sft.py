"""Supervised fine-tuning: what is learnt of a conversation, what is held out, and what a step holds."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_helpers import MOVING, PLAIN, QWEN3, SHELL, tokenizer
from gateway_templates import NO_ANSWERS, NO_TOOLS, TEXT_OR_CALLS
from hypothesis import given, settings
from hypothesis import strategies as st
from sft_helpers import prepared
from transformers import AutoTokenizer

from coderepairrl.errors import ConfigError
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.sft import dataset
from coderepairrl.sft.conversations import LeftOut, from_chat
from coderepairrl.sft.source_config import ChatSource

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
        '<think>\nfirst look\n</think>\n\n<tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n'
        "</tool_call><|im_end|>"
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
        match=f"rows.jsonl, line 2: the model's chat template leaves out {lost} of message 2 of {2 + len(after)}.*take "
        "it out",
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

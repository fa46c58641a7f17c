"""Where conversations come from: trajectories as they were sampled, and what is wrong with a file."""

import dataclasses
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from gateway_helpers import QWEN3, ids_by_character, tokenizer
from sft_helpers import prepared

from coderepairrl.errors import CodeRepairError, ConfigError
from coderepairrl.rollout import trajectory_files
from coderepairrl.sft.source_config import ChatSource, TrajectoriesSource
from coderepairrl.training import batch
from coderepairrl.types import Call, Outcome, Trajectory, Verdict


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

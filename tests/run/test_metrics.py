"""metrics.jsonl, and W&B: the real library, offline. What it was given is read back from its own files."""

import json
import re
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from wandb.proto.wandb_internal_pb2 import Record

from coderepairrl.run.metrics import MAX_CELL, Metrics, WandbConfig, conversation, read_metrics, table
from coderepairrl.types import Call, Outcome, Trajectory

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
EVENTS = (
    {
        "kind": "call",
        "index": 0,
        "parent": None,
        "why_root": "no recorded turn in the history",
        "new_messages": [
            {"role": "system", "content": "Repair."},
            {"role": "user", "content": [{"type": "text", "text": "f(1) is 2 é"}, {"type": "image_url"}]},
        ],
        "message": {
            "role": "assistant",
            "content": None,
            "reasoning_content": "look first",
            "tool_calls": [{"function": {"name": "shell", "arguments": '{"command": "cat lib.py"}'}}],
        },
    },
    {"kind": "nudge", "index": 3},
    {
        "kind": "call",
        "index": 1,
        "parent": 0,
        "why_root": "",
        "new_messages": [{"role": "tool", "content": "def f"}],
        "message": {"role": "assistant", "content": "done"},
    },
    {
        "kind": "call",
        "index": 2,
        "parent": None,
        "why_root": "rewritten history",
        "new_messages": [{"role": "user", "content": "again"}],
        "message": {"role": "assistant", "content": ""},
    },
    {"kind": "closed", "reason": "submitted"},
)
SAID = """[system]
Repair.

[user]
f(1) is 2 é[image_url]

[assistant]
(thinks) look first
-> shell {"command": "cat lib.py"}

[tool]
def f

[assistant]
done

=== a new conversation (rewritten history)

[user]
again

[assistant]"""


def trajectory(number, **changes):
    call = Call(0, None, None, (1, 2), (3, 4, 5), (-0.1,) * 3, (0,) * 3, "stop", False, 0.0, 0.1)
    values = dict(
        trajectory_id=f"a1-p0-{number}",
        group_id="a1-p0",
        task_id="task-0",
        split="train",
        attempt=0,
        calls=(call, call),
        diff="-x\n+y\n",
        outcome=Outcome.SUBMITTED,
        outcome_detail="",
        verdict=None,
        rewards={"tests": 1.0, "mine.short": 0.5},
        reward=1.05,
        seconds=1.0,
        events=EVENTS,
    )
    return Trajectory(**values | changes)


@pytest.fixture
def wandb_offline(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def tables(run):
    """Each logged table as {"columns", "data"}, in the order of its attempts and steps."""
    found = [
        json.loads(path.read_text()) for path in sorted(run.glob("wandb/offline-run-*/files/media/table/*.table.json"))
    ]
    return sorted(found, key=lambda t: t["data"][0][0])


def logged(run):
    """What W&B's own records hold, attempt after attempt: (run-ID, [each logged step as a dict], [names whose x axis is
    `step`])."""
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        records = [Record.FromString(data) for data in framed(path.read_bytes())]
        history = [
            {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        axes = [
            record.metric.glob_name or record.metric.name
            for record in records
            if record.HasField("metric") and record.metric.step_metric == "step"
        ]
        yield path.stem, history, axes


def framed(data, block=32768):
    """Records of the LevelDB log format: [checksum 4, length 2, type 1: whole, first, middle, last] in blocks, after a
    header of 7 bytes."""
    place, held = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def test_lines_are_whole_at_once(tmp_path):
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl")
    metrics.log(0, {"loss": 1.5})
    metrics.log(1, {"loss": 0.5})
    # before close: nothing is buffered
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 1.5), (1, 0.5)] and all(
        row["time"] > 1e9 for row in rows
    )
    metrics.close()


@pytest.mark.parametrize("left", ["", '{"step": 1, "lo', '{"step": 1, "loss": 1.0}'])
def test_half_a_line_of_a_killed_attempt_spoils_nothing(tmp_path, left):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 2.0}\n' + left)
    metrics = Metrics(path)
    metrics.log(1, {"loss": 0.5})
    metrics.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(0, 2.0), (1, 0.5)]


def test_rows_are_read_once_a_step_in_order_and_under_todays_names(tmp_path):
    rows = [
        {"step": 0, "gradient_norm": 1.0, "reward/tests": 0.5, "reward": 0.4},
        {"step": 2, "grad_norm": 3.0},
        {"step": 1, "grad_norm": 9.0},
        {"step": 1, "grad_norm": 2.0},
        {"step": 3, "rewards/tests/mean": 0.1, "clipped_share": 0.2, "outcome/submitted": 4},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 0, "grad_norm": 1.0, "rewards/tests/mean": 0.5, "reward": 0.4},
        {"step": 1, "grad_norm": 2.0},
        {"step": 2, "grad_norm": 3.0},
        {"step": 3, "rewards/tests/mean": 0.1, "clip_ratio/region_mean": 0.2, "outcome/submitted": 4},
    ]


def test_a_conversation_is_readable_text():
    assert conversation(EVENTS) == SAID
    assert conversation(()) == ""


def test_a_tables_row_is_an_episode():
    columns, rows = table(
        7,
        [
            trajectory(0),
            trajectory(1, rewards={}, outcome=Outcome.INFRASTRUCTURE_ERROR, reward=0.0, diff="z" * (MAX_CELL + 5)),
        ],
    )
    assert columns == [
        "step",
        "trajectory",
        "task",
        "rewards/tests",
        "rewards/mine.short",
        "reward",
        "outcome",
        "calls",
        "tokens",
        "diff",
        "conversation",
    ]
    assert rows[0] == [7, "a1-p0-0", "task-0", 1.0, 0.5, 1.05, "submitted", 2, 6, "-x\n+y\n", SAID]
    assert rows[1][3:7] == [None, None, 0.0, "infrastructure_error"]
    assert rows[1][9].startswith("z" * 10) and "5 characters left out" in rows[1][9] and len(rows[1][9]) < MAX_CELL + 60


def test_wandb_gets_numbers_and_a_table_every_n_steps(tmp_path, wandb_offline):
    run = tmp_path / "run"
    metrics = Metrics(run / "metrics.jsonl", WandbConfig(project="test", table_every=2), {"training": {"steps": 5}})
    for step in range(5):
        metrics.log(step, {"loss": 1000.25 + step})
        metrics.log_trajectories(step, [trajectory(step, diff="\udcff" if step == 4 else "d")] if step != 2 else [])
    metrics.close()
    first, last = tables(run)
    assert [first["data"][0][0], last["data"][0][0]] == [0, 4] and first["columns"] == table(0, [trajectory(0)])[0]
    assert last["data"][0][9] == "?" and first["data"] == [
        [0, "a1-p0-0", "task-0", 1.0, 0.5, 1.05, "submitted", 2, 6, "d", SAID]
    ]
    for _ in range(200):  # W&B's own process writes, and may end after us on a busy machine
        [(_, history, axes)] = logged(run)
        if any("loss" in row for row in history):
            break
        time.sleep(0.1)
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [
        (step, 1000.25 + step) for step in range(5)
    ]
    assert [(row["step"], row["trajectories._type"]) for row in history if "trajectories._type" in row] == [
        (0, "table-file"),
        (4, "table-file"),
    ]
    assert "*" in axes
    assert len(read_metrics(run / "metrics.jsonl")) == 5


def test_a_later_attempt_goes_on_with_the_same_wandb_run(tmp_path, wandb_offline):
    """Also with steps that the killed attempt had logged already; a run folder of the same name elsewhere is another
    run."""
    for run, steps in (
        (tmp_path / "run", (0, 1, 2)),
        (tmp_path / "run", (1, 2, 3)),
        (tmp_path / "elsewhere" / "run", (0,)),
    ):
        metrics = Metrics(run / "metrics.jsonl", WandbConfig(project="test", table_every=0))
        for step in steps:
            metrics.log(step, {"loss": 7000.5 + step + 100 * steps[0]})
            metrics.log_trajectories(step, [trajectory(0)])
        metrics.close()
    (first, before, _), (second, after, _) = logged(tmp_path / "run")
    [(other, _, _)] = logged(tmp_path / "elsewhere" / "run")
    assert first == second != other
    assert [(row["step"], row["loss"]) for row in before] == [(0, 7000.5), (1, 7001.5), (2, 7002.5)]
    assert [(row["step"], row["loss"]) for row in after] == [(1, 7101.5), (2, 7102.5), (3, 7103.5)]
    assert not tables(tmp_path / "run")


def test_without_wandb_nothing_of_it_is_written(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(0, {"loss": 1.0})
    metrics.log_trajectories(0, [trajectory(0)])
    metrics.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_negative_table_every_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        WandbConfig(project="test", table_every=-1)


def documented(name):
    """Whether docs/metrics.md explains a name of metrics.jsonl: in backticks in a table's first column; NAME stands for
    any name."""
    first = [line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `")]
    patterns = [re.escape(known).replace("NAME", "[^/]+") for cell in first for known in re.findall(r"`([^`]+)`", cell)]
    return name in ("step", "time") or any(re.fullmatch(pattern, name) for pattern in patterns)


def test_names_of_a_step_are_documented_once():
    names = re.findall(
        r"`([^`]+)`", " ".join(line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `"))
    )
    assert len(names) == len(set(names)) and {"reward", "grad_norm", "rewards/NAME/mean"} <= set(names)
    assert (
        documented("rewards/my_rewards.short_diff/mean")
        and documented("outcome/turn_limit")
        and documented("clip_ratio/region_mean")
    )
    assert not documented("gradient_norm") and not documented("rewards/tests") and not documented("rewardsXtests/mean")

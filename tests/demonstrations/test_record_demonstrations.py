"""Demonstrations are recorded through the real gateway under the real scaffolds, and are what fine-tuning reads."""

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from coderepairrl.config import load
from coderepairrl.demonstrations.acts import Edit, Look, RunTests, Slip, Submit, lines_of, oracle_acts
from coderepairrl.demonstrations.dialects import SPEAKERS, commands, speak
from coderepairrl.demonstrations.expert import DemonstrationsConfig, demonstration_acts, generate
from coderepairrl.demonstrations.scripted_server import NOT_LEARNT, Line, ScriptedClient
from coderepairrl.errors import ConfigError, EngineError, TaskError
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.rollout import trajectory_files
from coderepairrl.scaffolds.aider import AiderConfig
from coderepairrl.scaffolds.codex import CodexConfig
from coderepairrl.scaffolds.controls import GoldConfig
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgentConfig
from coderepairrl.scaffolds.single_pass import SinglePassConfig, parse_blocks
from coderepairrl.scaffolds.terminal import TOOLS, TerminalConfig
from coderepairrl.scaffolds.terminal_text import TerminalTextConfig
from coderepairrl.sft.conversations import from_chat, from_trajectory
from coderepairrl.sft.source_config import TrajectoriesSource
from coderepairrl.tasks.functions import puzzles

SETTINGS = {"episodes": 16, "p_slip": 0.5}
SOURCE = TrajectoriesSource(kind="trajectories", path="x")


def record(
    folder: Path, policy: Path, *overrides: str, scaffold: dict, expert: dict | None = None, tasks: dict | None = None
) -> Path:
    """The folder of what scripts/record_demonstrations.py has recorded."""
    expert = expert or {"name": "functions", "settings": SETTINGS}
    config = folder / "record.yaml"
    rollout = {
        "tasks": tasks or {"name": "functions"},
        "scaffold": scaffold,
        "sandbox": {"scratch": str(folder)},
        "rewards": {"weights": {"patch": 1.0}},
        "groups_per_step": 1,
        "group_size": 1,
        "concurrent_episodes": 8,
    }
    config.write_text(
        json.dumps({"output": str(folder / "out"), "model": str(policy), "expert": expert, "rollout": rollout})
    )
    done = run_program("scripts/record_demonstrations.py", str(config), *overrides)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def read(folder: Path):
    return [
        trajectory for path in sorted(folder.glob("step_*.parquet")) for trajectory in trajectory_files.read(path)[0]
    ]


def test_under_terminal_they_are_the_computed_ones_token_by_token(policy, tmp_path):
    """The same ids, and the same weight of each in the loss, although these went through sandboxes and HTTP."""
    out = record(
        tmp_path, policy, "file_episodes=10", scaffold={"name": "terminal", "system_prompt": "Repair the code."}
    )
    renderer = Renderer(load_tokenizer(str(policy)))
    computed = [
        from_chat({"messages": messages, "tools": TOOLS}, renderer, 0.3)
        for messages in generate("demonstration", DemonstrationsConfig(**SETTINGS), "Repair the code.", processes=1)
    ]
    recorded = [from_trajectory(trajectory, SOURCE, 0.3) for trajectory in read(out)]
    assert len(computed) == len(recorded) == 16 and len(list(out.glob("step_*.parquet"))) == 2
    for ours, theirs in zip(computed, recorded, strict=True):
        assert [(tuple(row.token_ids), tuple(map(float, row.weights))) for row in ours.rows] == [
            (tuple(row.token_ids), tuple(map(float, row.weights))) for row in theirs.rows
        ]
    weights = {weight for conversation in recorded for row in conversation.rows for weight in map(float, row.weights)}
    assert weights == {0.0, 0.3, 1.0}
    slips = [call for trajectory in read(out) for call in trajectory.calls if NOT_LEARNT in call.policy_versions]
    assert slips and all(set(call.policy_versions) == {NOT_LEARNT} for call in slips)
    again = run_program("scripts/record_demonstrations.py", str(tmp_path / "record.yaml"), "file_episodes=10")
    assert again.returncode == 0 and "already there" in again.stdout
    other = run_program("scripts/record_demonstrations.py", str(tmp_path / "record.yaml"), "expert.settings.p_slip=0.1")
    assert (
        other.returncode == 1
        and "file_episodes 10 -> 256" in other.stderr
        and "expert.settings.p_slip 0.5 -> 0.1" in other.stderr
    )
    before = (out / "step_00000.parquet").read_bytes()
    (out / "summary.json").unlink()
    (out / "step_00001.parquet").unlink()
    # goes on after the first file
    record(tmp_path, policy, "file_episodes=10", scaffold={"name": "terminal", "system_prompt": "Repair the code."})
    assert (out / "step_00000.parquet").read_bytes() == before
    assert [t.calls[0].prompt_ids for t in read(out)] == [
        tuple(c.rows[0].token_ids[: len(t.calls[0].prompt_ids)]) for t, c in zip(read(out), computed, strict=True)
    ]


@pytest.mark.parametrize(
    "scaffold, calls",
    [
        ({"name": "aider", "edit_format": "diff"}, 2),
        ({"name": "aider", "edit_format": "udiff", "files": ["lib.py"]}, 1),
        ({"name": "aider", "edit_format": "whole"}, 2),
        ({"name": "single_pass"}, 1),
        ({"name": "terminal_text"}, 3),
        ({"name": "mini_swe_agent", "mode": "text"}, 3),
        ({"name": "mini_swe_agent", "mode": "tools"}, 3),
        ({"name": "codex"}, 3),
    ],
    ids=lambda value: (
        "-".join(str(part) for part in value.values() if isinstance(part, str)) if isinstance(value, dict) else ""
    ),
)
def test_under_every_scaffold_the_experts_repair_is_one(policy, tmp_path, scaffold, calls):
    """It always makes the right edit here, so every episode must be resolved: its words mean there what they mean to
    the agent."""
    settings = SETTINGS | {"episodes": 4, "p_right": 1.0, "p_slip": 0.3}
    out = record(
        tmp_path,
        policy,
        "rollout.rewards.weights={tests: 1.0}",
        "rollout.limits.max_total_tokens=65536",
        "rollout.limits.deadline_s=200",
        scaffold=scaffold,
        expert={"name": "functions", "settings": settings},
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == {} and summary["episodes"] == summary["resolved"] == 4, summary
    found = read(out)
    assert all(len(trajectory.calls) >= calls for trajectory in found)
    for trajectory in found:
        conversation = from_trajectory(trajectory, SOURCE, 0.0)
        learnt = sum(len(call.completion_ids) for call in trajectory.calls if NOT_LEARNT not in call.policy_versions)
        assert sum(sum(row.weights) for row in conversation.rows) == learnt


@pytest.mark.parametrize("name", ["aider", "codex", "mini_swe_agent", "single_pass", "terminal_text"])
def test_demonstrations_are_recorded_under_the_limits_that_training_has(name, monkeypatch):
    """Else a warm-started policy may have learnt what it is not let say."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from coderepairrl.demonstrations.record_config import RecordConfig
    from coderepairrl.run.train_config import TrainConfig

    recorded = load(RecordConfig, ROOT / f"configs/demonstrations/{name}.yaml", []).rollout.limits
    assert recorded == load(TrainConfig, ROOT / f"configs/quickstart_{name}.yaml", []).rollout.limits


def test_the_oracle_repairs_real_packages(policy, tmp_path):
    out = record(
        tmp_path,
        policy,
        "rollout.rewards.weights={tests: 1.0}",
        "rollout.limits.max_total_tokens=100000",
        scaffold={"name": "terminal"},
        expert={"name": "oracle"},
        tasks={"name": "real_packages", "train": 2, "heldout": 1},
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == {} and summary["episodes"] == summary["resolved"] == 2


def test_an_agent_that_hears_less_or_wants_more_than_the_expert_says_is_left_out(policy, tmp_path):
    """Three calls are allowed: longer demonstrations don't fit, and that is counted."""
    out = record(tmp_path, policy, "rollout.limits.max_turns=3", scaffold={"name": "terminal"})
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["episodes"] == len(read(out)) < 16
        and sum(summary["left_out"].values()) == 16 - summary["episodes"]
        and "turn_limit: 3 calls were made" in summary["left_out"]
    )
    shutil.rmtree(out)
    (tmp_path / "record.yaml").write_text((tmp_path / "record.yaml").read_text())
    none = run_program("scripts/record_demonstrations.py", str(tmp_path / "record.yaml"), "rollout.limits.max_turns=1")
    assert (
        none.returncode == 1 and "no demonstration could be recorded" in none.stderr and "Traceback" not in none.stderr
    )


def test_a_script_ends_where_it_ends():
    async def main():
        client = ScriptedClient()
        client.prepare("a", [Line((1, 2, 3)), Line((4,), NOT_LEARNT)])
        ask = lambda salt, most: client.generate(
            (9,), max_tokens=most, temperature=1.0, stop_token_ids=(), cache_salt=salt, request_id="r"
        )
        first, second = await ask("a", 2), await ask("a", 2)
        assert (first.token_ids, first.finish_reason, first.policy_versions) == ((1, 2), "length", (0, 0))
        assert (second.token_ids, second.finish_reason, second.policy_versions) == ((4,), "stop", (-1,))
        for salt in ("a", "b", None):
            with pytest.raises(EngineError):
                await ask(salt, 2)
        client.prepare("a", [Line((1,))])
        assert client.left("a") == 1 and client.left("a") == 0

    asyncio.run(main())


# ---- what is said


def test_an_edit_in_whole_lines_occurs_once_and_means_the_same():
    rng = random.Random(0)
    stream = puzzles("train", "lines")
    for _ in range(150):
        for act in demonstration_acts(next(stream), rng, DemonstrationsConfig(p_slip=0.3)):
            if isinstance(act, Edit):
                old, new = lines_of(act)
                assert ("\n" + act.before).count("\n" + old) == 1 and old.endswith("\n") and new.endswith("\n")
                assert ("\n" + act.before).replace("\n" + old, "\n" + new) == "\n" + act.after


@pytest.mark.parametrize(
    "before, old, new, lines",
    [
        ("a\nb\na\nc\n", "a\nc", "x\nc", ("a\nc\n", "x\nc\n")),
        ("x = 1\nif y:\n    x = 1\nz\n", "y:\n    x", "y:\n    w", ("if y:\n    x = 1\n", "if y:\n    w = 1\n")),
        ("p\nq\np\nq r\n", "q r", "q s", ("q r\n", "q s\n")),
        ("a\n\nb\n", "a\n\n", "c\n\n", ("a\n\n", "c\n\n")),
        ("a\n\f\nb\nc\n", "b", "d", ("b\n", "d\n")),
        ("one", "one", "two", ("one", "two")),
    ],
)
def test_whole_lines(before, old, new, lines):
    assert lines_of(Edit("f.py", before, old, new)) == lines


def test_single_pass_blocks_read_back_as_the_edit():
    acts = [
        Look("lib.py"),
        Slip(Edit("lib.py", "a\nb\n", "a", "c")),
        Edit("lib.py", "a\nb\n", "a", "c"),
        Edit("new/x.py", None, "", "y = 1\n"),
        Submit(),
    ]
    (turn,) = speak(SinglePassConfig(), acts)
    assert parse_blocks(turn.message["content"]) == [("lib.py", "a\n", "c\n"), ("new/x.py", "", "y = 1\n")]


def test_shell_commands_edit_any_text(tmp_path):
    import subprocess

    text = "x = a[0] * b.c ^ $d / e & f\\n - 'g'\nif x:\n\treturn \"h\"\n"
    for old, new in (
        ("a[0] * b.c", "a[1] / b.c & \\2"),
        ("^ $d", "| $e"),
        ("'g'", "'k'"),
        ("if x:\n\treturn", "if not x:\n\traise"),
        ("\\n", "\\t"),
    ):
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        (tmp_path / "f.py").write_text(text)
        edit = Edit("f.py", text, old, new)
        ((line, learnt),) = commands([edit])
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and (tmp_path / "f.py").read_text() == edit.after and learnt, (line, done.stderr)


@pytest.mark.parametrize("text, new", [("a\n\fb\nc\n", "x\n\fy"), ("a\n\fb\nc", "x\n\fy"), ("a\n\fb", "x\n\fy")])
def test_form_feeds_and_a_last_line_without_its_end_survive_a_patch(tmp_path, text, new):
    import subprocess

    (tmp_path / "f.py").write_text(text)
    edit = Edit("f.py", text, "a\n\fb", new)
    subprocess.run(["bash", "-c", commands([edit])[0][0]], cwd=tmp_path, check=True)
    assert (tmp_path / "f.py").read_text() == edit.after
    (whole,) = speak(AiderConfig(edit_format="whole", files=("f.py",)), [edit])
    (udiff,) = speak(AiderConfig(edit_format="udiff", files=("f.py",)), [edit])
    assert whole.message["content"].endswith("\n```\n") and "-a\n-\fb" in udiff.message["content"]


def test_what_was_left_out_is_counted_over_all_attempts_and_an_empty_file_is_tried_again(tmp_path, monkeypatch):
    import contextlib

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts")
    import record_demonstrations as program

    class Part(program.Recorder):
        asked: list[str] = []
        kept = {"b"}

        async def episode(self, name, task, turns, bar):
            self.asked.append(name)
            if name in self.kept:
                return name
            self.left_out["why"] += 1

    class Files:
        def write(path, kept, stats):
            path.write_text(json.dumps([kept, stats]))

        def read(path):
            return json.loads(path.read_text())

    class Served:
        def __init__(self, *arguments):
            pass

        async def start(self):
            pass

        stop = start

    async def wanted(config):
        return [(name, None, []) for name in "abcd"]

    for name, value in {
        "Recorder": Part,
        "trajectory_files": Files,
        "Gateway": Served,
        "demonstrations": wanted,
        "renderer_of": lambda *_: None,
        "check": str,
        "ready": lambda *_: contextlib.nullcontext(),
        "summary_of": lambda output: {},
    }.items():
        monkeypatch.setattr(program, name, value)
    config = program.RecordConfig(
        output=str(tmp_path),
        model="x",
        file_episodes=2,
        rollout={
            "tasks": {"name": "functions"},
            "scaffold": {"name": "terminal"},
            "groups_per_step": 1,
            "group_size": 1,
        },
    )
    assert asyncio.run(program.record(config, tmp_path))["left_out"] == {"why": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000.parquet"]
    Part.asked.clear()
    Part.kept.add("c")
    assert asyncio.run(program.record(config, tmp_path))["left_out"] == {"why": 2} and Part.asked == ["c", "d"]


def test_every_scaffold_with_a_model_of_its_own_has_a_speaker_and_controls_have_none():
    assert set(SPEAKERS) == {
        TerminalConfig,
        TerminalTextConfig,
        AiderConfig,
        MiniSweAgentConfig,
        CodexConfig,
        SinglePassConfig,
    }
    with pytest.raises(ConfigError, match="no demonstrator speaks"):
        speak(GoldConfig(), [])


def test_a_test_or_the_submission_ends_what_a_scaffold_without_a_loop_says():
    edit, other = Edit("lib.py", "a\nb\n", "a", "c"), Edit("lib.py", "a\nb\n", "b", "d")
    acts = [Look("lib.py"), edit, RunTests("t"), other, Submit()]
    assert "d" not in speak(SinglePassConfig(), acts)[0].message["content"].split("SEARCH")[1]
    assert [turn.message["content"] for turn in speak(AiderConfig(), acts)][0] == "lib.py" and len(
        speak(AiderConfig(files=("lib.py",)), acts)
    ) == 1


def test_an_oracle_that_no_edit_says_is_refused():
    task = next(puzzles("train", "oracle")).task
    acts = oracle_acts(task)
    assert isinstance(acts[0], Look) and isinstance(acts[-1], Submit) and acts[1].before == task.files["lib.py"]
    import dataclasses

    for patch, cause in (
        ("--- a/x.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "removed"),
        ("--- a/nowhere.py\n+++ b/nowhere.py\n@@ -1 +1 @@\n-a\n+b\n", "in no checkout"),
        ("--- a/lib.py\n+++ b/lib.py\n@@ -1 +1 @@\n-nothing\n+b\n", "0 times"),
    ):
        with pytest.raises(TaskError, match=cause):
            oracle_acts(dataclasses.replace(task, oracle_patch=patch))

"""The debugging tool's view: every token of the episode is on the screen once, and nothing that a model says steers the
terminal."""

import asyncio
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from gateway_helpers import END, Upstream, ids_by_character, ids_of, tokenizer
from rich.console import Console

from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.scaffolds.terminal import Terminal, TerminalConfig
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Call, Outcome, Trajectory, Verdict

ROOT = Path(__file__).resolve().parents[2]
PUZZLE = next(puzzles("heldout", "test"))
TASK = PUZZLE.task


@pytest.fixture(scope="module")
def run_one():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(ROOT / "scripts")
    import run_one

    yield run_one
    patch.undo()


def call(index, parent, part, prompt, text, logprob=-0.1, rerendered=False):
    ids = ids_by_character(text) + ids_of(END)
    return Call(index, parent, part, prompt, ids, (logprob,) * len(ids), (3,) * len(ids), "stop", rerendered, 0.0, 0.25)


def event(index, answers=(), tool=None, why=""):
    calls = (
        {"tool_calls": [{"id": "c00000000", "type": "function", "function": {"name": tool[0], "arguments": tool[1]}}]}
        if tool
        else {}
    )
    return {
        "kind": "call",
        "at_s": 0.1,
        "index": index,
        "why_root": why,
        "new_messages": [{"role": "tool", "content": a} for a in answers],
        "message": {"role": "assistant", "content": None} | calls,
    }


def episode():
    first = call(0, None, None, ids_of("the whole prompt"), "größer 日本 \x1b[2J")
    second = call(
        1, 0, "completion", first.prompt_ids + first.completion_ids + ids_of("only this is new"), "second", logprob=-3.0
    )
    third = call(2, None, None, ids_of("another root"), "third", rerendered=True)
    verdict = Verdict(
        False,
        "junit+canary",
        {"t::a": "passed", "t::b": "failed"},
        {"t::c": "passed"},
        ("test_lib.py: protected by the task's environment (test_*)",),
        "",
        0.4,
    )
    events = (
        event(0, tool=("shell", '{"command": "ls [bold]"}')),
        event(1, answers=["lib.py [red]x[/red]"]),
        event(2, why="no recorded turn in the history"),
        {"kind": "closed", "at_s": 0.5, "reason": "turn_limit", "detail": "3 calls were made"},
    )
    return Trajectory(
        "x",
        "x",
        TASK.task_id,
        "heldout",
        0,
        (first, second, third),
        TASK.oracle_patch,
        Outcome.TURN_LIMIT,
        "3 calls were made",
        verdict,
        {"tests": 0.0},
        0.0,
        1.0,
        events,
        {"generation_s": 0.5},
    )


def shown(run_one, trajectory, colour=False):
    screen = io.StringIO()
    console = Console(
        file=screen,
        width=200,
        highlight=False,
        soft_wrap=True,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    run_one.show(console, tokenizer(), TASK, trajectory)
    return screen.getvalue()


def test_an_episode_is_shown_with_calls_tokens_tools_diff_verdict_and_end(run_one):
    text = shown(run_one, episode())
    for part in (
        "the whole prompt",
        "größer 日本 ",
        'call    shell {"command": "ls [bold]"}',
        "answer  lib.py [red]x[/red]",
        "call 1: after the completion of call 0",
        "call 2: root (no recorded turn in the history)",
        "reason=turn_limit",
        "not resolved",
        "must pass now: 1 of 2",
        "failed   t::b",
        "must still pass: 1 of 1",
        "not applied: test_lib.py: protected by the task's environment (test_*)",
        "outcome   turn_limit: 3 calls were made",
        "reward    0",
        "version 3",
    ):
        assert part in text, part
    assert text.count("the whole prompt") == text.count("only this is new") == 1  # of a continuation only what is new
    assert all(line in text for line in TASK.oracle_patch.splitlines())


def test_an_episode_without_calls_and_verdict_is_shown_too(run_one):
    text = shown(
        run_one, replace(episode(), calls=(), events=(), diff="", verdict=None, outcome=Outcome.INFRASTRUCTURE_ERROR)
    )
    assert "no change" in text and "no test was run" in text and "infrastructure_error" in text


def test_what_the_tests_printed_is_shown_with_or_without_a_verdict(run_one):
    printed = "E   ModuleNotFoundError: No module named 'gone' [bold]\n\x1b[31m1 error"
    verdict = replace(episode().verdict, output=printed, output_file="runs/x/test_outputs/t/a.log")
    event = {"kind": "test_output", "at_s": 1.0, "tail": printed, "file": "runs/x/test_outputs/t/a.log"}
    for trajectory in (replace(episode(), verdict=verdict), replace(episode(), verdict=None, events=(event,))):
        text = shown(run_one, trajectory)
        assert (
            "No module named 'gone' [bold]\n\\x1b[31m1 error" in text
            and "all of it: runs/x/test_outputs/t/a.log" in text
        )
        assert text.count("ModuleNotFoundError") == 1
    assert "what the tests printed" not in shown(run_one, episode())


def test_what_a_model_samples_cannot_steer_the_terminal(run_one):
    assert "\x1b" not in shown(run_one, episode()) and r"\x1b[2J" in shown(run_one, episode())
    assert run_one.visible("a\tb\r\n\x07é日") == "a\\tb\\r\n\\x07é日"


def test_unlikely_tokens_are_redder_and_carry_their_probability(run_one):
    text = shown(run_one, episode(), colour=True)
    assert "⟨0.05⟩" in text and "⟨0.90⟩" not in text
    styles = [run_one.colour(logprob).color.triplet for logprob in (0.0, -0.5, -2.0, -4.0, -30.0)]
    assert (
        [s.green for s in styles] == sorted((s.green for s in styles), reverse=True)
        and styles[0] != styles[1]
        and styles[3] == styles[4]
    )


def test_pieces_are_the_text_and_characters_are_never_torn(run_one):
    for text in ("größer 日本語 🙂 x", "plain", "🙂"):
        ids = ids_by_character(text)
        made = run_one.pieces(tokenizer(), ids, [-0.5] * len(ids))
        assert "".join(piece for piece, _ in made) == text
        assert math.isclose(sum(logprob for _, logprob in made), -0.5 * len(ids))
        assert not any("\ufffd" in piece for piece, _ in made)
    torn = ids_of("🙂")[:1] if len(ids_of("🙂")) > 1 else ()
    # cut by a limit: shown as far as it goes
    assert len(run_one.pieces(tokenizer(), torn, [-1.0] * len(torn))) == len(torn)


@pytest.mark.parametrize(
    "split, number", [("test", "0"), ("train", "2"), ("train", "-1"), ("train", "x"), ("train", "")]
)
def test_a_task_that_is_not_there_is_named_before_anything_starts(run_one, split, number):
    tasks = {"train": [TASK, TASK], "heldout": []}
    assert run_one.pick(tasks, "train", "1") is TASK
    with pytest.raises(ConfigError, match=f"(split|task)={split if split == 'test' else number}: no such"):
        run_one.pick(tasks, split, number)


def test_a_missing_model_is_one_line(run_one, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_one.main([str(ROOT / "configs/quickstart.yaml"), f"model={tmp_path}", "task=1", "split=train"])
    assert end.value.code == 1 and f"error: {tmp_path}: no model there" in capsys.readouterr().err


async def scripted_episode(scratch, calls):
    """An episode through the real gateway, scaffold, sandbox and grader; the sampled text alone is scripted."""
    texts = iter(calls)
    upstream = Upstream(
        lambda prompt: (
            ids_by_character("<tool_call>\n%s\n</tool_call>" % json.dumps(next(texts))) + ids_of(END),
            "stop",
        )
    )
    client = VLLMClient(await upstream.start(), wait_s=1)
    gateway = Gateway(GatewayConfig(), [client], Renderer(tokenizer(), {}))
    await gateway.start()
    sandbox = SandboxConfig(scratch=scratch)
    try:
        async with aiohttp.ClientSession() as http:
            services = Services(
                gateway, Terminal(TerminalConfig()), sandbox, Grader(sandbox), RewardConfig(), SessionLimits(), http
            )
            return await run_episode(
                services,
                TASK,
                trajectory_id="x",
                group_id="x",
                split="heldout",
                attempt=0,
                sampling=SamplingConfig(),
                cache_salt="s",
            )
    finally:
        await gateway.stop()
        await client.close()
        await upstream.stop()


def test_a_real_episode_is_shown_whole(run_one, tmp_path):
    wrong, right = (source.split("\n")[PUZZLE.bug.line - 1] for source in (PUZZLE.broken, PUZZLE.program.source))
    edit = {"path": "lib.py", "old": wrong, "new": right}
    trajectory = asyncio.run(
        scripted_episode(
            str(tmp_path),
            [
                {"name": "shell", "arguments": {"command": "head -1 lib.py"}},
                {"name": "edit", "arguments": edit},
                {"name": "submit", "arguments": {}},
            ],
        )
    )
    assert (trajectory.outcome, trajectory.reward, trajectory.verdict.resolved, len(trajectory.calls)) == (
        Outcome.SUBMITTED,
        1.0,
        True,
        3,
    )
    text = shown(run_one, trajectory)
    for part in (
        TASK.problem_statement,
        'call    shell {"command": "head -1 lib.py"}',
        f"answer  {PUZZLE.broken.splitlines()[0]}",
        "answer  ok",
        "call    submit {}",
        "resolved",
        "outcome   submitted",
        "call 2: after the completion of call 1",
    ):
        assert part in text, part
    assert "not resolved" not in text and text.count("You repair the git repository") == 1
    whole = trajectory.calls[-1].prompt_ids + trajectory.calls[-1].completion_ids
    again = sum((run_one.new_tokens(trajectory.calls, call) + call.completion_ids for call in trajectory.calls), ())
    assert again == whole  # an append-only episode's tokens are on the screen exactly once

"""Agents that people use, as they are, on real tasks in real sandboxes through the real gateway; the model's words
alone are scripted.

They are installed from the package indexes on first use.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from agents_helpers import AGENTS, PUZZLE, Agent
from gateway_helpers import Upstream
from sandbox_helpers import needs_apptainer
from scaffold_helpers import LIMITS, episodes, running, tool_text

from coderepairrl.scaffolds import make_scaffold, process_scaffold
from coderepairrl.scaffolds.codex import CodexConfig, toml
from coderepairrl.scaffolds.mini_swe_agent import MiniSweAgentConfig
from coderepairrl.tasks import packages, releases
from coderepairrl.types import Outcome, Task, Trajectory

every = pytest.mark.parametrize("name", AGENTS)


def repair(agent: Agent, task: Task) -> list[str]:
    return [agent.shell("git status --short; ls"), agent.shell(f"git apply <<'EOF'\n{task.oracle_patch}EOF"), agent.end]


def mutation() -> Task:
    return next(
        task
        for split in packages.load(packages.RealPackagesConfig()).values()
        for task in split
        if "cachetools" in task.task_id
    )


def release_pair() -> Task:
    return releases.to_task(min((row for row in releases.read_rows(releases.SHIPPED)), key=lambda row: max(row.gold_s)))


@every
def test_an_agent_repairs_real_tasks_and_leaves_nothing_but_its_repair(name, tmp_path):
    agent = AGENTS[name]
    tasks = [PUZZLE, mutation(), release_pair()] if name in ("mini_swe_agent", "codex") else [PUZZLE]
    done = asyncio.run(
        episodes(make_scaffold(agent.config()), [(task, repair(agent, task)) for task in tasks], tmp_path)
    )
    for task, trajectory in zip(tasks, done, strict=True):
        assert (trajectory.outcome, trajectory.reward) == (Outcome.SUBMITTED, 1.0) and trajectory.verdict.resolved, (
            trajectory.outcome_detail,
            trajectory.diff,
        )
        changed = [line for line in trajectory.diff.splitlines() if line.startswith("diff --git")]
        assert changed == [line for line in task.oracle_patch.splitlines() if line.startswith("diff --git")]
        assert [(call.parent, call.parent_part) for call in trajectory.calls] == [
            (None, None),
            (0, "completion"),
            (1, "completion"),
        ]
    assert not list(tmp_path.glob("*/live/*"))


@every
def test_an_agent_stops_by_itself_when_the_gateway_closes_its_session(name, tmp_path, monkeypatch):
    """What it did before counts; no further call reaches the model."""
    monkeypatch.setattr(process_scaffold, "GRACE_S", 600.0)
    agent, upstream = AGENTS[name], Upstream()

    async def main():
        async with (
            asyncio.timeout(60),
            running(
                make_scaffold(agent.config()), tmp_path, upstream, LIMITS.model_copy(update={"max_turns": 2})
            ) as episode,
        ):
            return await episode(PUZZLE, repair(agent, PUZZLE))

    trajectory = asyncio.run(main())
    assert (
        trajectory.outcome == Outcome.TURN_LIMIT
        and len(trajectory.calls) == len(upstream.requests) == 2
        and trajectory.verdict.resolved
    )


def all_at_once(one: Callable) -> dict[str, Trajectory]:
    """one(name) is a coroutine; the agents have nothing in common but the machine."""

    async def main():
        async with asyncio.timeout(60):
            return dict(zip(AGENTS, await asyncio.gather(*map(one, AGENTS)), strict=True))

    return asyncio.run(main())


def test_agents_that_wait_for_their_model_stop_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(process_scaffold, "GRACE_S", 600.0)
    asked = Counter()

    async def one(name):
        upstream = Upstream()
        upstream.gate.clear()
        limits = LIMITS.model_copy(update={"deadline_s": 4.0})
        async with running(make_scaffold(AGENTS[name].config()), tmp_path, upstream, limits=limits) as episode:
            trajectory = await episode(PUZZLE, ["never said"])
        asked[name] = len(upstream.requests)
        return trajectory

    for name, trajectory in all_at_once(one).items():
        assert trajectory.outcome == Outcome.TIME_LIMIT and not trajectory.calls and asked[name] == 1, name


def test_a_model_that_is_gone_is_the_machines_failure(tmp_path):
    async def one(name):
        return (await episodes(make_scaffold(AGENTS[name].config()), [(PUZZLE, [AGENTS[name].shell("ls")])], tmp_path))[
            0
        ]

    for name, trajectory in all_at_once(one).items():
        assert (
            trajectory.outcome == Outcome.INFRASTRUCTURE_ERROR and trajectory.reward == 0 and trajectory.verdict is None
        ), name


@needs_apptainer
def test_in_apptainer(tmp_path):
    async def one(name):
        return (
            await episodes(
                make_scaffold(AGENTS[name].config()),
                [(PUZZLE, repair(AGENTS[name], PUZZLE))],
                tmp_path,
                kind="apptainer",
            )
        )[0]

    for name, trajectory in all_at_once(one).items():
        assert (trajectory.outcome, trajectory.reward) == (Outcome.SUBMITTED, 1.0), (name, trajectory.outcome_detail)


def test_mini_swe_agent_drops_a_malformed_answer_and_the_gateway_sees_it(tmp_path):
    """Its history goes on as if that answer had not been: the call after it continues the one before."""
    agent = AGENTS["mini_swe_agent"]
    texts = [agent.shell("ls"), "I will just think.", tool_text("python", code="1"), *repair(agent, PUZZLE)]
    [trajectory] = asyncio.run(episodes(make_scaffold(agent.config()), [(PUZZLE, texts)], tmp_path))
    assert trajectory.reward == 1.0 and len(trajectory.calls) == 6
    assert [call.parent for call in trajectory.calls] == [None, 0, 0, 0, 3, 4]
    events = [event for event in trajectory.events if event["kind"] == "call"]
    assert (
        "No tool calls found" in events[2]["new_messages"][-1]["content"]
        and "Unknown tool 'python'" in events[3]["new_messages"][-1]["content"]
    )


@pytest.mark.parametrize(
    "name, texts, said",
    [
        ("mini_swe_agent", ["I will", "just", "think."], "RepeatedFormatError"),
        ("mini_swe_agent_text", [("Too long", "length")] * 3, "RepeatedFormatError"),
        ("codex", [("Too long", "length")], "Incomplete response returned, reason: max_output_tokens"),
    ],
)
def test_an_agent_that_gives_up_has_not_submitted(name, texts, said, tmp_path):
    """The model's answers are no use to it: its failure, with its own words, and no call beyond those."""
    [trajectory] = asyncio.run(episodes(make_scaffold(AGENTS[name].config()), [(PUZZLE, texts)], tmp_path))
    assert (
        trajectory.outcome == Outcome.AGENT_ERROR
        and said in trajectory.outcome_detail
        and len(trajectory.calls) == len(texts)
    )


def test_a_limit_of_mini_swe_agents_own_is_no_submission(tmp_path):
    scaffold = make_scaffold(MiniSweAgentConfig(settings={"agent": {"step_limit": 1}}))
    [trajectory] = asyncio.run(episodes(scaffold, [(PUZZLE, [AGENTS["mini_swe_agent"].shell("ls")])], tmp_path))
    assert (
        trajectory.outcome == Outcome.AGENT_ERROR
        and "LimitsExceeded" in trajectory.outcome_detail
        and len(trajectory.calls) == 1
    )


def test_mini_swe_agents_prompts_are_its_own_unless_they_are_set(tmp_path):
    def prompt(config):
        [trajectory] = asyncio.run(
            episodes(make_scaffold(config), [(PUZZLE, [AGENTS["mini_swe_agent"].end])], tmp_path)
        )
        return [
            message["content"] for message in next(e for e in trajectory.events if e["kind"] == "call")["new_messages"]
        ]

    system, user = prompt(MiniSweAgentConfig())
    assert system == "You are a helpful assistant that can interact with a computer."
    assert user.startswith(f"Please solve this issue: {PUZZLE.problem_statement}\n")
    changed = MiniSweAgentConfig(
        settings={"agent": {"system_template": "Repair.", "instance_template": "{{task}} in {{cwd}}"}}
    )
    assert prompt(changed) == ["Repair.", f"{PUZZLE.problem_statement} in /repo"]


def test_codex_gets_its_own_words_or_ours_and_only_its_shell(tmp_path):
    upstream, config = Upstream(), CodexConfig(instructions='Repair "it".\\ \x01')

    async def main():
        async with running(make_scaffold(config), tmp_path, upstream) as episode:
            return await episode(PUZZLE, ["done"])

    trajectory = asyncio.run(main())
    call = next(event for event in trajectory.events if event["kind"] == "call")
    assert (
        call["new_messages"][0]["content"].startswith('Repair "it".\\ \x01')
        and call["new_messages"][-1]["content"] == PUZZLE.problem_statement
    )


def test_a_key_that_codex_does_not_know_is_named(tmp_path):
    [trajectory] = asyncio.run(episodes(make_scaffold(CodexConfig(settings={"modle": "x"})), [(PUZZLE, [])], tmp_path))
    assert trajectory.outcome == Outcome.AGENT_ERROR and "modle" in trajectory.outcome_detail


def test_toml_is_read_back_as_it_was():
    import tomllib

    tree = {"a": 'x"\\\n\t\x01é', "b": {"c.d": [1, 2.5, True], "é": {}}, "with space": False}
    assert tomllib.loads(toml(tree)) == tree

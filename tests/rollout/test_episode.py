"""Which outcome an episode gets, whatever breaks where.

The real gateway, sandbox and judge, an agent of one line, an engine that says a script.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest
from gateway_helpers import END, ids_of, tokenizer

from coderepairrl.demonstrations.scripted_server import Line, ScriptedClient
from coderepairrl.errors import ConfigError, EngineError, GatewayError, SandboxError, ScaffoldError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.sandboxes import Sandbox, SandboxConfig
from coderepairrl.sandboxes.checkout import Checkout
from coderepairrl.scaffolds import Endpoint
from coderepairrl.scaffolds.endpoint import chat
from coderepairrl.tasks.functions import puzzles
from coderepairrl.types import Outcome, Task, Trajectory

TASK = next(puzzles("train", "episode")).task
LIMITS = SessionLimits(max_turns=1, max_total_tokens=100_000, deadline_s=60)
Deed = Callable[[Sandbox, Endpoint], Awaitable[None]]


class Agent:
    """Repairs the task, then does what the test says."""

    calls_model = True

    def __init__(self, then: Deed):
        self.then = then

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        assert not await sandbox.apply(task.oracle_patch)
        await self.then(sandbox, endpoint)


def play(
    tmp_path,
    then: Deed,
    *,
    task: Task = TASK,
    lines: int = 1,
    max_turns: int = 1,
    kind: str = "bubblewrap",
    grading: SandboxConfig | None = None,
    **rewards,
) -> Trajectory:
    """One episode. `lines`: how often the engine answers before it breaks."""
    limits = LIMITS.model_copy(update={"max_turns": max_turns})
    sandbox = SandboxConfig(kind=kind, scratch=str(tmp_path / "scratch"))

    async def main() -> Trajectory:
        engine = ScriptedClient()
        engine.prepare("salt", [Line(ids_of("a word" + END))] * lines)
        gateway = Gateway(GatewayConfig(), [engine], Renderer(tokenizer(), {}))
        await gateway.start()
        try:
            async with aiohttp.ClientSession() as http:
                services = Services(
                    gateway, Agent(then), sandbox, Grader(grading or sandbox), RewardConfig(**rewards), limits, http
                )
                trajectory = await run_episode(
                    services,
                    task,
                    trajectory_id="t",
                    group_id="g",
                    split="train",
                    attempt=1,
                    sampling=SamplingConfig(),
                    cache_salt="salt",
                )
                assert not gateway._sessions  # closed, whatever happened
                return trajectory
        finally:
            await gateway.stop()

    return asyncio.run(main())


def breaks(error: Exception) -> Deed:
    async def deed(sandbox: Sandbox, endpoint: Endpoint) -> None:
        raise error

    return deed


async def nothing(sandbox: Sandbox, endpoint: Endpoint) -> None:
    """The agent is done."""


async def asks(sandbox: Sandbox, endpoint: Endpoint) -> None:
    await chat(endpoint, [{"role": "user", "content": "what now?"}])


async def asks_twice(sandbox: Sandbox, endpoint: Endpoint) -> None:
    await asks(sandbox, endpoint)
    assert await chat(endpoint, [{"role": "user", "content": "and then?"}]) is None


async def asks_twice_and_breaks(sandbox: Sandbox, endpoint: Endpoint) -> None:
    await asks_twice(sandbox, endpoint)
    raise ScaffoldError("an exception in the agent's own code")


async def cannot_connect(sandbox: Sandbox, endpoint: Endpoint) -> None:
    await asks(sandbox, replace(endpoint, base_url="http://127.0.0.1:9/v1"))


async def hears_a_refusal_as_its_own(sandbox: Sandbox, endpoint: Endpoint) -> None:
    """As process scaffolds do, which see an exit code and no more."""
    try:
        await asks(sandbox, endpoint)
    except GatewayError as error:
        raise ScaffoldError("exit code 1") from error


# what breaks -> how the detail begins. None of them is the agent's, though it had repaired the task already
MACHINE = {
    "the sandbox, under the agent": (breaks(SandboxError("no space")), "SandboxError: no space", {}),
    "vLLM, as the agent hears it": (breaks(EngineError("it is gone")), "EngineError: it is gone", {}),
    "the gateway": (breaks(GatewayError("no answer")), "GatewayError: no answer", {}),
    "the connection to the gateway": (cannot_connect, "ClientConnectorError: ", {}),
    "another error of the connection": (breaks(aiohttp.ServerDisconnectedError()), "ServerDisconnectedError: ", {}),
    "vLLM, said by the gateway": (asks, "", {"lines": 0}),
    "vLLM, behind an agent that breaks of it": (
        hears_a_refusal_as_its_own,
        "EngineError: the script is at its end",
        {"lines": 0},
    ),
    "the sandbox, before the agent": (
        nothing,
        "SandboxError: ",
        {"task": replace(TASK, environment=replace(TASK.environment, image="/no/such.sif")), "kind": "local"},
    ),
    "the sandbox, while it is graded": (nothing, "SandboxError: ", {"grading": SandboxConfig(scratch="/proc/none")}),
}


@pytest.mark.parametrize("what", MACHINE)
def test_a_broken_machine_is_never_the_agents(what, tmp_path):
    then, detail, options = MACHINE[what]
    trajectory = play(tmp_path, then, **options)
    assert (trajectory.outcome, trajectory.verdict, trajectory.rewards, trajectory.reward) == (
        Outcome.INFRASTRUCTURE_ERROR,
        None,
        {},
        0.0,
    )
    assert trajectory.outcome_detail.startswith(detail) and trajectory.outcome_detail


AGENT = {  # outcome, detail; graded like any other
    "it is done": (nothing, Outcome.SUBMITTED, ""),
    "it asked, and is done": (asks, Outcome.SUBMITTED, ""),
    "it broke": (
        breaks(ScaffoldError("an exception in the agent's own code")),
        Outcome.AGENT_ERROR,
        "an exception in the agent's own code",
    ),
    "it asked for more than it may": (asks_twice, Outcome.TURN_LIMIT, ""),
    "it broke when it could ask no more": (asks_twice_and_breaks, Outcome.TURN_LIMIT, ""),  # the gateway's word counts
}


@pytest.mark.parametrize("what", AGENT)
def test_an_agents_end_is_graded_by_what_it_left(what, tmp_path):
    then, outcome, detail = AGENT[what]
    trajectory = play(tmp_path, then)
    assert (trajectory.outcome, trajectory.reward, trajectory.rewards) == (
        outcome,
        1.0,
        {"tests": 1.0},
    ) and trajectory.verdict.resolved
    assert trajectory.outcome_detail.startswith(detail) and len(trajectory.calls) == (
        then in (asks, asks_twice, asks_twice_and_breaks)
    )
    (closed,) = [event for event in trajectory.events if event["kind"] == "closed"]  # the first reason stays
    assert closed["reason"] == (Outcome.TURN_LIMIT if outcome == Outcome.TURN_LIMIT else Outcome.SUBMITTED)
    demanding = play(tmp_path, then, require_submission=True)
    assert (demanding.outcome, demanding.reward) == (
        outcome,
        float(outcome == Outcome.SUBMITTED),
    ) and demanding.verdict.resolved


async def asks_and_asks_again(sandbox: Sandbox, endpoint: Endpoint) -> None:
    await asks(sandbox, endpoint)
    await chat(endpoint, [{"role": "user", "content": "and then?"}])


@pytest.mark.parametrize(
    ("then", "calls", "reward"), [(nothing, 0, 1.0), (asks, 1, 1.0), (asks_and_asks_again, 2, 0.5)]
)
def test_calls_after_the_first_cost_what_the_configuration_says(tmp_path, then, calls, reward):
    trajectory = play(tmp_path, then, lines=2, max_turns=2, discount_per_call=0.5)
    assert (len(trajectory.calls), trajectory.reward, trajectory.outcome) == (calls, reward, Outcome.SUBMITTED)
    assert trajectory.rewards == {"tests": 1.0} and trajectory.verdict.resolved


def test_an_environment_in_which_the_oracle_fails_too_says_nothing_about_the_agent(tmp_path):
    broken = replace(
        TASK,
        environment=replace(TASK.environment, test_command=("{python}", "-c", "raise SystemExit(3)", "{canary_path}")),
    )
    trajectory = play(tmp_path, nothing, task=broken)
    assert (trajectory.outcome, trajectory.verdict, trajectory.reward) == (Outcome.INFRASTRUCTURE_ERROR, None, 0.0)
    assert trajectory.outcome_detail.startswith("environment: ")


UNFORESEEN = [
    OSError(24, "Too many open files"),
    RecursionError("too deep"),
    MemoryError("none"),
    KeyError("x"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "half"),
    ZeroDivisionError("a bug"),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["the agent", "the diff", "the verdict"])
def test_what_nobody_foresaw_ends_its_episode_alone(tmp_path, monkeypatch, caplog, error, where):
    async def raises(*_, **__):
        raise error

    then = breaks(error) if where == "the agent" else nothing
    if where == "the diff":
        monkeypatch.setattr(Checkout, "diff", raises)
    if where == "the verdict":
        monkeypatch.setattr("coderepairrl.rollout.episode.compute", raises)
    trajectory = play(tmp_path, then)
    assert (trajectory.outcome, trajectory.verdict, trajectory.reward) == (Outcome.INFRASTRUCTURE_ERROR, None, 0.0)
    assert trajectory.outcome_detail == f"{type(error).__name__}: {error}"
    assert "Traceback" in caplog.text and type(error).__name__ in caplog.text  # where it was


def test_a_wrong_configuration_ends_the_run(tmp_path):
    with pytest.raises(ConfigError):
        play(tmp_path, breaks(ConfigError("no socket")))

"""Episode = task + sandbox + scaffold + gateway session + rewards -> Trajectory. The one place where they meet, and the
one `except`."""

import time
from dataclasses import dataclass, field, replace

import aiohttp

from coderepairrl.errors import ConfigError, EngineError, GatewayError, SandboxError, ScaffoldError, TaskError
from coderepairrl.gateway import Gateway, RemoteSession, SamplingConfig, Session, SessionLimits, Workers
from coderepairrl.rewards import Grader, RewardConfig, compute, discounted
from coderepairrl.rollout.infrastructure import Unforeseen
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.sandboxes.agent_edits import Edits
from coderepairrl.scaffolds import Endpoint, Scaffold
from coderepairrl.types import (
    HELD_OUT,
    LEFT_OUT,
    TASK_SET,
    TEST_OUTPUT,
    Outcome,
    Task,
    Trajectory,
    Verdict,
    VerdictKind,
)

FORESEEN = (SandboxError, TaskError, EngineError, GatewayError, aiohttp.ClientError)  # of machines and tasks


@dataclass(frozen=True)
class Services:
    """What all episodes of a process share."""

    gateway: Gateway | Workers
    scaffold: Scaffold
    sandbox: SandboxConfig
    grader: Grader
    rewards: RewardConfig
    limits: SessionLimits
    http: aiohttp.ClientSession
    unforeseen: Unforeseen = field(default_factory=Unforeseen)


@dataclass(frozen=True)
class Result:
    """What an episode came to."""

    outcome: Outcome
    detail: str = ""
    verdict: Verdict | None = None
    rewards: dict[str, float] = field(default_factory=dict)  # each part by its name
    reward: float = 0.0  # before calls cost anything

    @classmethod
    def of_machine(cls, detail: str) -> "Result":
        """Nothing is known of the agent, and nothing of it is judged."""
        return cls(Outcome.INFRASTRUCTURE_ERROR, detail)


class _Left:
    """What the agent leaves, noted as it comes: it stays when something breaks later."""

    def __init__(self) -> None:
        self.started, self.started_at = time.monotonic(), time.time()
        self.generated = self.started  # when the agent was done, by the same clock
        self.diff = ""
        self.seen: dict[str, float] = {}  # of its edits
        self.events: list[dict] = []  # beside the gateway's

    def times(self, finished: float) -> dict[str, float]:
        """started_at: seconds since the epoch; the others are durations."""
        generation_s, grading_s = self.generated - self.started, finished - self.generated
        return {"started_at": self.started_at, "generation_s": generation_s, "grading_s": grading_s}

    def note(self, kind: str, **what) -> None:
        self.events.append({"kind": kind, "at_s": time.monotonic() - self.started, **what})


async def run_episode(
    services: Services,
    task: Task,
    *,
    trajectory_id: str,
    group_id: str,
    split: str,
    attempt: int,
    sampling: SamplingConfig,
    cache_salt: str,
    scaffold: str = "",
) -> Trajectory:
    """Never raises for what agent, machine or task do: an agent's failure gets its reward, a broken machine or a wrong
    task INFRASTRUCTURE_ERROR. So does whatever this program did not foresee (the log has where), since what an agent
    does decides which of its lines run: one diff must not end a run, and many such errors do
    (RolloutConfig.max_infrastructure_share). But ConfigError, which is the user's; and GatewayError when the record is
    gone with a process of the gateway: these end the run. scaffold: its name in a mixture."""
    left = _Left()
    session = services.gateway.open_session(services.limits, sampling, cache_salt=cache_salt)
    try:
        result, edits = await _let_work(services, task, session, split, left)
        left.generated = time.monotonic()
        if result.outcome != Outcome.INFRASTRUCTURE_ERROR:
            result = await _judge(services, task, result, edits, left)
    except ConfigError:
        await services.gateway.close_session(session.key)
        raise
    except Exception as error:
        if not isinstance(error, FORESEEN):
            services.unforeseen.met(error, f"episode {trajectory_id} of {task.task_id}")
        result = Result.of_machine(f"{type(error).__name__}: {error}")
        left.generated = time.monotonic()
    session = await services.gateway.close_session(session.key)
    finished = time.monotonic()
    return Trajectory(
        trajectory_id=trajectory_id,
        group_id=group_id,
        task_id=task.task_id,
        split=split,
        attempt=attempt,
        calls=tuple(session.calls),
        diff=left.diff,
        outcome=result.outcome,
        outcome_detail=result.detail,
        verdict=result.verdict,
        rewards=result.rewards,
        # not before: only now all calls are recorded, and known here where the gateway has processes of its own
        reward=discounted(result.reward, len(session.calls), services.rewards.discount_per_call),
        seconds=finished - left.started,
        events=(*session.events, *left.events),
        stats=left.times(finished) | left.seen | {k: float(v) for k, v in session.counters.items()},
        task_set=task.metadata.get(TASK_SET, ""),
        scaffold=scaffold,
    )


async def _let_work(
    services: Services, task: Task, session: Session | RemoteSession, split: str, left: _Left
) -> tuple[Result, Edits]:
    """How the agent ended, judged by nobody yet: as the gateway says where it closed the session, else as the scaffold
    does."""
    async with start_sandbox(services.sandbox, task) as sandbox:
        edits = Edits(sandbox)
        watch = (edits.look,) if split == HELD_OUT else ()  # a look takes some 10 ms: training does without
        try:
            said = await services.scaffold.run(task, sandbox, Endpoint.of(session, services.http, *watch))
            result = Result(Outcome.SUBMITTED, said or "")
        except ScaffoldError as error:
            result = Result(Outcome.AGENT_ERROR, str(error))
        if session.close_reason is not None:
            result = Result(session.close_reason, session.close_detail)
        left.diff = await sandbox.diff()
        for path, why in sandbox.left_out.items():
            left.note(LEFT_OUT, path=path, why=why)
        edits.end(left.diff)
    return result, edits


async def _judge(services: Services, task: Task, ended: Result, edits: Edits, left: _Left) -> Result:
    """With verdict and rewards of what it left, however it ended; the environment's fault is the machine's."""
    verdict, rewards, reward = await compute(services.rewards, task, left.diff, services.grader)
    if services.rewards.require_submission and ended.outcome != Outcome.SUBMITTED:
        reward = 0.0
    left.seen = await _edits_seen(edits, task, left.diff, verdict, services.grader)
    if verdict is not None and verdict.kind == VerdictKind.ENVIRONMENT_ERROR:  # says nothing about the diff
        left.note(TEST_OUTPUT, tail=verdict.output, file=verdict.output_file)
        return Result.of_machine(f"environment: {verdict.message}")
    return replace(ended, verdict=verdict, rewards=rewards, reward=reward)


async def _edits_seen(edits: Edits, task: Task, diff: str, verdict: Verdict | None, grader: Grader) -> dict[str, float]:
    """{"edits": how many, "first_edit": 1.0 if the first one alone is the repair, "calls_at_last": made when the
    working tree came to be what is judged}; nothing of an agent that can't be watched, or that no test judges."""
    if not edits.calls or verdict is None:
        return {}
    first = next(iter(edits.diffs), "")
    judged = verdict if first == diff else await grader.grade(task, first)
    seen = {"edits": float(len(edits.diffs)), "calls_at_last": float(edits.calls_at_last)}
    if judged.kind != VerdictKind.ENVIRONMENT_ERROR:
        seen["first_edit"] = float(bool(first) and judged.resolved)
    return seen

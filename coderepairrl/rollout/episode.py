"""Episode = task + sandbox + scaffold + gateway session + rewards -> Trajectory. The one place where they meet, and the
one `except`."""

import logging
import time
from dataclasses import dataclass

import aiohttp

from coderepairrl.errors import ConfigError, EngineError, GatewayError, SandboxError, ScaffoldError, TaskError
from coderepairrl.gateway import Gateway, SamplingConfig, SessionLimits, Workers
from coderepairrl.rewards import Grader, RewardConfig, compute, discounted
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.sandboxes.agent_edits import Edits
from coderepairrl.scaffolds import Endpoint, Scaffold
from coderepairrl.types import HELD_OUT, LEFT_OUT, TEST_OUTPUT, Outcome, Task, Trajectory, Verdict, VerdictKind

log = logging.getLogger(__name__)


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
) -> Trajectory:
    """Never raises for what agent, machine or task do: an agent's failure gets its reward, a broken machine or a wrong
    task INFRASTRUCTURE_ERROR.
    So does whatever this program did not foresee (the log has where), since what an agent does decides which of its
    lines run: one diff must not end a run, and many such errors do (RolloutConfig.max_infrastructure_share). But
    ConfigError, which is the user's; and GatewayError when the record is gone with a process of the gateway: these end
    the run.

    The outcome is the gateway's close reason where it closed the session, else what became of the scaffold.
    """
    started, started_at = time.monotonic(), time.time()
    session = services.gateway.open_session(services.limits, sampling, cache_salt=cache_salt)
    outcome, detail, diff, verdict, parts, reward, seen = Outcome.SUBMITTED, "", "", None, {}, 0.0, {}
    further: list[dict] = []  # events beside the gateway's
    broke: Exception | None = None
    try:
        async with start_sandbox(services.sandbox, task) as sandbox:
            edits = Edits(sandbox)
            watch = (edits.look,) if split == HELD_OUT else ()  # a look takes some 10 ms: training does without
            try:
                detail = await services.scaffold.run(task, sandbox, Endpoint.of(session, services.http, *watch)) or ""
            except ScaffoldError as error:
                outcome, detail = Outcome.AGENT_ERROR, str(error)
            if session.close_reason is not None:
                outcome, detail = session.close_reason, session.close_detail
            diff = await sandbox.diff()
            further += [
                {"kind": LEFT_OUT, "at_s": time.monotonic() - started, "path": path, "why": why}
                for path, why in sandbox.left_out.items()
            ]
            edits.end(diff)
        generated = time.monotonic()
        if outcome != Outcome.INFRASTRUCTURE_ERROR:
            verdict, parts, reward = await compute(services.rewards, task, diff, services.grader)
            if services.rewards.require_submission and outcome != Outcome.SUBMITTED:
                reward = 0.0
            seen = await _edits_seen(edits, task, diff, verdict, services.grader)
            if verdict is not None and verdict.kind == VerdictKind.ENVIRONMENT_ERROR:  # says nothing about the diff
                further.append(
                    {
                        "kind": TEST_OUTPUT,
                        "at_s": time.monotonic() - started,
                        "tail": verdict.output,
                        "file": verdict.output_file,
                    }
                )
                outcome, detail, verdict, parts, reward = (
                    Outcome.INFRASTRUCTURE_ERROR,
                    f"environment: {verdict.message}",
                    None,
                    {},
                    0.0,
                )
    except (SandboxError, TaskError, EngineError, GatewayError, aiohttp.ClientError) as error:
        broke = error
    except ConfigError:
        await services.gateway.close_session(session.key)
        raise
    except Exception as error:
        log.exception(
            "episode %s of %s met what nobody foresaw: send this to the developers", trajectory_id, task.task_id
        )
        broke = error
    if broke is not None:
        outcome, detail, generated = Outcome.INFRASTRUCTURE_ERROR, f"{type(broke).__name__}: {broke}", time.monotonic()
        verdict, parts, reward = None, {}, 0.0
    session = await services.gateway.close_session(session.key)
    finished = time.monotonic()
    # not before: only now all calls are recorded, and known here where the gateway has processes of its own
    reward = discounted(reward, len(session.calls), services.rewards.discount_per_call)
    return Trajectory(
        trajectory_id=trajectory_id,
        group_id=group_id,
        task_id=task.task_id,
        split=split,
        attempt=attempt,
        calls=tuple(session.calls),
        diff=diff,
        outcome=outcome,
        outcome_detail=detail,
        verdict=verdict,
        rewards=parts,
        reward=reward,
        seconds=finished - started,
        events=(*session.events, *further),
        stats={"started_at": started_at, "generation_s": generated - started, "grading_s": finished - generated}
        | seen
        | {k: float(v) for k, v in session.counters.items()},
    )


async def _edits_seen(edits: Edits, task: Task, diff: str, verdict: Verdict | None, grader: Grader) -> dict[str, float]:
    """{"edits": how many, "first_edit": 1.0 if the first one alone is the repair, "calls_at_last": made when the
    working tree came to be what
    is judged}; nothing of an agent that can't be watched, or that no test judges."""
    if not edits.calls or verdict is None:
        return {}
    first = next(iter(edits.diffs), "")
    judged = verdict if first == diff else await grader.grade(task, first)
    known = judged.kind != VerdictKind.ENVIRONMENT_ERROR
    return {"edits": float(len(edits.diffs)), "calls_at_last": float(edits.calls_at_last)} | (
        {"first_edit": float(bool(first) and judged.resolved)} if known else {}
    )

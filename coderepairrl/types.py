"""The words of the project as frozen dataclasses. Data flows one way through them:

Task -> (sandbox, scaffold, gateway) -> Call -> Trajectory -> Verdict and rewards -> Sample -> trainer.

Legend: T tokens of a row. Times are seconds, sizes bytes unless the name says otherwise.
"""
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Environment:
    """What a task runs in: an immutable folder, an interpreter, the trusted test command.

    `test_command` is argv; the grader replaces the placeholders
      {python}         the interpreter
      {junit}          folder (inside the sandbox) into which JUnit XML must be written; any number of *.xml files
      {tests}          becomes zero or more arguments: `Task.test_selection`
      {canary_path}    the canary test's path in the checkout, {canary_module} its dotted module name
    """
    name: str
    base: str | None  # folder on the host, copied into every sandbox; None: the checkout is Task.files alone
    python: str  # absolute path of the interpreter, the same inside and outside the sandbox
    test_command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)  # environment variables in the sandbox
    protected: tuple[str, ...] = ()  # globs of paths that the agent's diff may not change at grading
    test_timeout_s: float = 60.0


@dataclass(frozen=True)
class Task:
    """One thing to repair. Paths are relative to the checkout, with forward slashes."""
    task_id: str
    problem_statement: str
    environment: Environment
    files: dict[str, str]  # laid over environment.base: together they are the base commit (the bug is in them)
    hidden_tests: dict[str, str]  # laid over the patched checkout in the grading sandbox only
    test_selection: tuple[str, ...]  # arguments of the test command: what to run
    fail_to_pass: tuple[str, ...]  # JUnit ids "classname::name"
    pass_to_pass: tuple[str, ...]
    oracle_patch: str  # unified diff with a/ b/ prefixes against the base commit
    metadata: dict[str, str] = field(default_factory=dict)


class Outcome(StrEnum):
    """Why an episode ended. Decided by the gateway and the runner, never by the agent's exit code or output."""
    SUBMITTED = "submitted"
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"
    TIME_LIMIT = "time_limit"
    AGENT_ERROR = "agent_error"
    INFRASTRUCTURE_ERROR = "infrastructure_error"


@dataclass(frozen=True)
class Call:
    """One model call, token-exact.

    `parent` is the index (in Trajectory.calls) of the call whose prompt+completion this prompt extends; None is a root.
    `parent_part`: "completion" when the prompt starts with the parent's prompt_ids + completion_ids, "prompt" when it
    starts with the parent's prompt_ids only (the client dropped the assistant's turn).
    """
    index: int
    parent: int | None
    parent_part: str | None
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the sampled tokens, under the distribution that was sampled
    policy_versions: tuple[int, ...]  # one a sampled token
    finish_reason: str  # stop | length
    rerendered: bool  # a root although the session had calls before: the history could not be continued token-exactly
    started_s: float  # since the session was opened
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What the grading sandbox found. `evidence` is the level: "junit+canary", or "none" when the tests gave no report."""
    resolved: bool
    evidence: str
    fail_to_pass: dict[str, str]  # id -> passed | failed | error | skipped | missing
    pass_to_pass: dict[str, str]
    dropped_paths: tuple[str, ...]  # parts of the diff that were protected, and not applied
    message: str  # empty, or why the report cannot be trusted ("canary passed", "no report", "time limit" ...)
    seconds: float


@dataclass(frozen=True)
class Trajectory:
    """All calls of one episode, its final diff, its outcome, its rewards."""
    trajectory_id: str
    group_id: str
    task_id: str
    split: str  # train | heldout
    attempt: int  # how many infrastructure failures of this episode came before it
    calls: tuple[Call, ...]
    diff: str
    outcome: Outcome
    outcome_detail: str
    verdict: Verdict | None
    rewards: dict[str, float]  # each part by its name
    reward: float  # the weighted sum
    seconds: float
    events: tuple[dict, ...] = ()  # what scripts/run_one.py shows: {"kind": "call"|"command"|..., ...}
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One branch of a trajectory as a training row. Every tuple has length T; loss_mask marks sampled tokens.

    A sampled token that two branches share is marked in the first branch only, so each is trained exactly once.
    Where loss_mask is 0, behaviour_logprobs and advantages are 0.0 and policy_versions is -1.
    """
    group_id: str
    trajectory_id: str
    branch_id: int
    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    policy_versions: tuple[int, ...]

"""The words of the project as frozen dataclasses. Data flows one way through them:

Task -> (sandbox, scaffold, gateway) -> Call -> Trajectory -> Verdict and rewards -> Sample -> trainer.

Legend: T tokens of a row. Times are seconds, sizes bytes unless the name says otherwise.
"""

from dataclasses import dataclass, field
from enum import StrEnum

TEST_OUTPUT = "test_output"  # the kind of event that has what the tests printed in a run that became no verdict
LEFT_OUT = "left_out"  # the kind of event that names, with the reason, what the agent did and its diff cannot hold
HELD_OUT = "heldout"  # the split that is evaluated and never trained
TASK_SET = "set"  # the key of a task's metadata that names its set in a mixture


@dataclass(frozen=True)
class Recipe:
    """How an environment is built once, with network, into an immutable folder: environments.build(recipe) ->
    Environment's base and python.

    Exact pins are installed without dependencies; where a row has only a date, `requirements` are resolved as of that
    day (`exclude_newer`)
    and the result is frozen. Nothing has network after the build.
    """

    source: str  # "git:OWNER/NAME" (from the configured mirror) or "sdist:NAME==VERSION"
    revision: str  # base commit; of a source distribution its sha256
    python: str  # "3.9"; empty: none, and nothing is installed: the checkout is compiled by the test command
    pins: tuple[str, ...] = ()  # "name==version", complete: no dependency is added
    # where there are no pins: resolved as of `exclude_newer`; files of the checkout as "-r path", extras as ".[test]",
    # the kinds of environments/requirement_files.py
    requirements: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()  # "name==version": what of `requirements` is taken if nothing else contradicts
    prepare: tuple[str, ...] = ()  # shell commands in the checkout before its requirements are read
    exclude_newer: str | None = None  # ISO date and time
    build: tuple[str, ...] = ()  # shell commands in the checkout, with the environment's interpreter first on PATH
    keep: tuple[str, ...] = ()  # of a source distribution: the top-level entries that are unpacked; empty: all
    left_out: tuple[str, ...] = ()  # what its publishers' specification has more; the record says so
    withheld: tuple[str, ...] = ()  # files that are taken out of the checkout and become hidden tests


@dataclass(frozen=True)
class Environment:
    """What a task runs in: an immutable folder, an interpreter, the trusted test command.

    As a loader gives it, `recipe` or `image` says how to come by `base` and `python`, which are None and empty until it
    is built.

    `test_command` is argv; the grader replaces the placeholders
      {python}         the interpreter
      {junit}          folder (inside the sandbox) into which JUnit XML must be written; any number of *.xml files
      {tests}          becomes zero or more arguments: `Task.test_selection`
      {canary_path}    the canary test's path in the checkout, {canary_module} its dotted module name
      {tool:NAME}      the folder of that tool of `tools`
    """

    name: str
    base: str | None  # folder on the host, copied into every sandbox; None: the checkout is Task.files alone
    # absolute path of the interpreter, the same inside and outside the sandbox; empty: it has none
    python: str
    test_command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)  # environment variables in the sandbox
    protected: tuple[str, ...] = ()  # globs of paths that the agent's diff may not change at grading
    test_timeout_s: float = 60.0
    # where the runner writes no JUnit XML: its output's parser, by swebench's name; ids are then that parser's
    log_parser: str | None = None
    recipe: Recipe | None = None
    # "docker://..." or the path of a SIF or of an unpacked root folder; the command then runs in it
    image: str | None = None
    workdir: str = "/repo"  # where a command finds the checkout; images have it where they were built
    lock: str = ""  # content hash of what was built: pins, interpreter, source, or the image's digest
    language: str = "python"  # of its tests (grading/languages/)
    # "jdk:17", "junit:4.13.2" (environments/tools.py), and where they are, which is filled in when it is built
    tools: tuple[str, ...] = ()
    tool_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One thing to repair. Paths are relative to the checkout, with forward slashes."""

    task_id: str
    problem_statement: str
    environment: Environment
    files: dict[str, str]  # laid over environment.base: together they are the base commit (the bug is in them)
    hidden_tests: dict[str, str]  # laid over the patched checkout in the grading sandbox only
    test_selection: tuple[str, ...]  # arguments of the test command: what to run
    # as the row writes them: pytest node ids, JUnit ids "classname::name", or the log parser's names
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    oracle_patch: str  # unified diff with a/ b/ prefixes against the base commit
    metadata: dict[str, str] = field(default_factory=dict)
    # Diffs against environment.base, which tasks.build.build_task turns into `files` and `hidden_tests`. Once it is
    # built the first is empty and the
    # second holds only what is more than texts (modes, links, binary files, deletions), applied in the grading sandbox
    # before the hidden tests.
    bug_patch: str = ""
    test_patch: str = ""


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


class VerdictKind(StrEnum):
    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"  # Verdict says which tests fail
    DOES_NOT_APPLY = "does_not_apply"
    TAMPERED = "tampered"
    ENVIRONMENT_ERROR = "environment_error"  # the environment's fault, not the diff's: masked, never a reward


@dataclass(frozen=True)
class Verdict:
    """What the grading sandbox found. `evidence` is the level: "junit+canary", "log+canary", "junit", "log", or "none"
    when there is no report that can be trusted."""

    resolved: bool
    evidence: str
    fail_to_pass: dict[str, str]  # id -> passed | xfailed | failed | error | skipped | missing
    pass_to_pass: dict[str, str]
    dropped_paths: tuple[str, ...]  # parts of the diff that were not applied, "path: why"
    message: str  # empty, or why the report cannot be trusted ("canary passed", "no report", "time limit" ...)
    seconds: float
    kind: VerdictKind = VerdictKind.UNRESOLVED
    # as SWE-bench counts it, which is laxer: `resolved` asks for the canary, for no tampering, for no missing test
    resolved_swebench: bool = False
    tampered: tuple[str, ...] = ()  # what the diff touched of the judge's own
    # unless resolved: the last lines of what the test command printed, for people: it may quote hidden tests
    output: str = ""
    output_file: str = ""  # in which all of it is kept, where it is (rollout.keep_test_output_mib)


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
    task_set: str = ""  # of a mixture of task sets
    scaffold: str = ""  # of a mixture of scaffolds

    @property
    def sampled_tokens(self) -> int:
        """Of all of its calls: each was sampled once, whatever branches share it."""
        return sum(len(call.completion_ids) for call in self.calls)

    @property
    def policy_versions(self) -> set[int]:
        """Of the weights that sampled any of them."""
        return {version for call in self.calls for version in call.policy_versions}

    @property
    def dropped_paths(self) -> tuple[str, ...]:
        """What the agent did and the judge did not see: "path: why", of its diff and of the diff's sections that were
        not applied."""
        of_diff = (f"{event['path']}: {event['why']}" for event in self.events if event["kind"] == LEFT_OUT)
        return (*of_diff, *(self.verdict.dropped_paths if self.verdict else ()))

    @property
    def test_output(self) -> tuple[str, str]:
        """(the last lines of what the test command printed, the file with all of it); empty where it resolved or none
        ran."""
        if self.verdict is not None:
            return self.verdict.output, self.verdict.output_file
        return next(((event["tail"], event["file"]) for event in self.events if event["kind"] == TEST_OUTPUT), ("", ""))


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

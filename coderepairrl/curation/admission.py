"""Admission of a task: before it costs a rollout, it is shown that it can be solved and that its tests always say the
same.

    decision = await validate(task, environments_config, sandbox_config)

The environment is built; the tests run three times without a repair and three times with the oracle patch, each run in
a fresh sandbox by the same judge as in training. Refused is a task whose environment cannot be built, whose results
differ between runs, which the empty diff resolves, which the oracle patch does not resolve, or that names no test to
keep passing (but those whose loader says that they may have none). Of a benchmark that does not say which tests must
pass that is measured first.
"""

import time
from dataclasses import dataclass, replace

from coderepairrl.config import contents
from coderepairrl.curation.measuring import measured
from coderepairrl.environments import BuildError, EnvironmentsConfig, instead
from coderepairrl.errors import TaskError
from coderepairrl.grading.counting import NAMED, why_unresolved
from coderepairrl.grading.grader import grade
from coderepairrl.grading.published import as_diff
from coderepairrl.sandboxes import SandboxConfig, start_sandbox
from coderepairrl.tasks.building import build_task
from coderepairrl.tasks.programs import WITHOUT_TESTS_TO_KEEP
from coderepairrl.types import Task, Verdict

REPEATS = 3
UNRESOLVED = "the oracle patch does not resolve it"


@dataclass(frozen=True)
class Decision:
    """What was found, as a row of the admission record. `reason` is empty for an admitted task, else one of a few
    phrases; `detail` says more, also what the build did instead of what its recipe says."""

    task_id: str
    fingerprint: str  # of the task as it was loaded, with its base folder: another row of the same id is validated anew
    repo: str
    reason: str
    detail: str = ""
    lock: str = ""
    python: str = ""
    evidence: str = ""
    build_s: float = 0.0
    base_s: tuple[float, ...] = ()  # of the runs without a repair, and with the oracle patch
    gold_s: tuple[float, ...] = ()
    flaky: tuple[str, ...] = ()  # tests whose status differed between equal runs
    # where the benchmark has no lists of tests: as they were measured
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    without_pass_to_pass: str = ""  # why there may be none
    # of a refused task: the last lines of what its tests printed, under the oracle patch if that failed
    output: str = ""

    @property
    def admitted(self) -> bool:
        return not self.reason


async def validate(
    task: Task, environments: EnvironmentsConfig, sandbox: SandboxConfig, repeats: int = REPEATS
) -> Decision:
    """Raises SandboxError when the machine fails: that decides nothing."""
    repo = task.metadata.get("repo") or task.metadata.get("package", "")
    alone = task.metadata.get(WITHOUT_TESTS_TO_KEEP, "")
    decision = Decision(task.task_id, contents.task(task), repo, "", without_pass_to_pass=alone)
    nothing_kept = replace(decision, reason="no PASS_TO_PASS", detail="nothing would show that the rest still works")
    if task.fail_to_pass and not task.pass_to_pass and not alone:
        return nothing_kept
    began = time.monotonic()
    try:
        built = await build_task(task, environments)
        decision = replace(decision, lock=built.environment.lock, build_s=round(time.monotonic() - began, 1))
        if not built.oracle_patch.strip():
            return replace(decision, reason="no oracle patch")
        decision = replace(decision, python=await _python_version(built, sandbox))
        if not built.fail_to_pass:
            built = await measured(built, sandbox)
            decision = replace(decision, fail_to_pass=built.fail_to_pass, pass_to_pass=built.pass_to_pass)
            if not built.pass_to_pass and not alone:
                return nothing_kept
        base = [await grade(built, "", sandbox) for _ in range(repeats)]
        decision = replace(decision, base_s=_seconds(base), flaky=differing(base))
        # as an agent's: what its diff loses, none can repair
        oracle, applied = await as_diff(built, built.oracle_patch, sandbox)
        if applied.problem:
            return replace(decision, reason=UNRESOLVED, detail=f"it does not apply: {applied.problem}")
        gold = [await grade(built, oracle, sandbox) for _ in range(repeats)]
    except BuildError as error:
        return replace(decision, reason="environment cannot be built", detail=str(error))
    except TaskError as error:
        return replace(decision, reason="the row is wrong", detail=str(error))
    decision = replace(
        decision,
        gold_s=_seconds(gold),
        flaky=tuple(sorted({*decision.flaky, *differing(gold)})),
        evidence=gold[0].evidence,
    )
    reason, detail = _judge(base, gold, decision.flaky, applied.left_out)
    parts = (detail, instead(built.environment))
    printed = next((verdict.output for verdict in (*gold, *base) if verdict.output), "") if reason else ""
    return replace(decision, reason=reason, detail="; ".join(part for part in parts if part), output=printed)


def differing(verdicts: list[Verdict]) -> tuple[str, ...]:
    """The tests whose status is not the same in all verdicts."""
    statuses = [verdict.fail_to_pass | verdict.pass_to_pass for verdict in verdicts]
    return tuple(sorted({test for found in statuses for test in found if found[test] != statuses[0].get(test)}))


def _judge(base: list[Verdict], gold: list[Verdict], flaky: tuple[str, ...], lost: dict[str, str]) -> tuple[str, str]:
    """(reason, detail); two empty strings admit."""
    if flaky:
        return "flaky", f"{len(flaky)} tests differ between equal runs: {', '.join(flaky[:NAMED])}"
    if len({verdict.kind for verdict in base}) > 1 or len({verdict.kind for verdict in gold}) > 1:
        return "flaky", f"verdicts differ between equal runs: {[str(v.kind) for v in (*base, *gold)]}"
    if base[0].resolved:
        return "the empty diff resolves it", ""
    if not gold[0].resolved:
        return UNRESOLVED, why_unresolved(gold[0], lost)
    return "", ""


def _seconds(verdicts: list[Verdict]) -> tuple[float, ...]:
    return tuple(round(verdict.seconds, 2) for verdict in verdicts)


async def _python_version(task: Task, config: SandboxConfig) -> str:
    """As the sandbox's interpreter says; empty where there is none, as in images of other languages."""
    if not task.environment.python:
        return ""
    async with start_sandbox(config, task) as sandbox:
        result = await sandbox.run([task.environment.python, "-c", "import platform; print(platform.python_version())"])
    return result.output.strip() if result.exit_code == 0 else ""

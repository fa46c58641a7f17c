"""The judge: hidden tests in a fresh sandbox, and what their runs mean. docs/threat_model.md says what each rule is for.

    verdict = await Grader(sandbox_config).grade(task, diff)

1. One run (judge.py). A diff that does not apply, a report that is no evidence, failing tests: not resolved.
2. No evidence at all: the oracle's own patch is run. If that gives none either, the environment is to blame, not the diff.
   If it gives some only without the canary, the task's own files keep the canary from failing, and all its diffs are judged without.
   A test may fail by chance: what speaks against a task counts for its further diffs only once two runs have said the same.
3. A run that passes, of a diff that could bend the judge (scan.py) or judged by its log or without the canary: the same again with the
   tests turned round (sabotage.py). Tests that still pass, and fail so under the oracle's patch, were not decided by the code: tampered.
"""
import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import replace

from coderepairrl.errors import TaskError
from coderepairrl.rewards import counting
from coderepairrl.rewards.build import Build
from coderepairrl.rewards.judge import FAILED, TIME_LIMIT, Keep, Run, execute, takes_canary, without_canary
from coderepairrl.rewards.output import Outputs
from coderepairrl.rewards.protected import Selection, select
from coderepairrl.rewards.published import as_diff
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Task, Verdict, VerdictKind

log = logging.getLogger(__name__)
ROUNDS = 4  # of what the scan is certain of: tossing a coin in each run wins once in 2 ** (2 * ROUNDS)
_NOT_FAILED = ("passed", "xfailed", "skipped")


async def grade(task: Task, diff: str, sandbox_config: SandboxConfig) -> Verdict:
    """Raises SandboxError for infrastructure trouble, TaskError for a wrong task; whatever the diff does gives a Verdict."""
    return await Grader(sandbox_config).grade(task, diff)


def reward(task: Task, diff: str, verdict: Verdict | None) -> float:
    """1 when every hidden test that must pass does."""
    return float(verdict is not None and verdict.resolved)


class Grader:
    """`grade` with a memory: the same applied patch of the same task is run once, also when asked for concurrently.

    Valid because a verdict depends on nothing else: each run has a fresh sandbox without network, fixed variables and the
    environment's fixed command. Not remembered: time limits, which depend on the machine's load, and errors.
    `runs` counts diffs that were executed, `hits` answers without, `checks` further runs: counter-checks and the oracle's.
    `outputs`: where all that test commands print is kept; None: nowhere.
    """

    def __init__(self, sandbox_config: SandboxConfig, remembered: int = 10_000, outputs: Outputs | None = None):
        self.config, self.remembered, self.runs, self.hits, self.checks = sandbox_config, remembered, 0, 0, 0
        self.outputs = outputs
        self.builds: dict[tuple[str, str], Build] = {}  # of bare checkouts and oracles (build.py)
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Task[Verdict]] = {}
        self._waiting: dict[tuple[str, str], int] = {}
        self._oracles: OrderedDict[tuple[str, bool, bool], Run] = OrderedDict()
        self._locks: dict[tuple, asyncio.Lock] = {}
        self._spoilt: set[str] = set()  # tasks whose own files keep the canary from failing

    async def grade(self, task: Task, diff: str) -> Verdict:
        selection = await _select(task, diff)
        key = (task.task_id, hashlib.sha256(selection.applied.encode(errors="surrogatepass")).hexdigest())
        if key in self._verdicts:
            self.hits += 1
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
        else:
            verdict = await self._join(key, task, selection)
        return _marked(verdict, selection)

    async def _join(self, key: tuple[str, str], task: Task, selection: Selection) -> Verdict:
        """Waits for the one run of `key`; the last waiter that is cancelled cancels the run."""
        if key in self._running:
            self.hits += 1
        else:
            self.runs += 1
            self._running[key] = asyncio.create_task(self._judge(task, selection))
        run = self._running[key]
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            verdict = await asyncio.shield(run)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._running[key]
                if not run.done():
                    run.cancel()
                    await asyncio.wait([run])
        if not verdict.message.startswith(TIME_LIMIT):
            _remember(self._verdicts, key, verdict, self.remembered)
        return verdict

    async def _judge(self, task: Task, selection: Selection) -> Verdict:
        """What the applied part of a diff comes to; `_marked` adds what the rest says."""
        started = time.monotonic()
        task, run = await self._run(task, selection)
        kind, message, touched, strict = VerdictKind.UNRESOLVED, run.problem, (), False
        if run.does_not_apply:
            kind = VerdictKind.DOES_NOT_APPLY
        elif run.bent and not ((oracle := await self._oracle(task)).bent or oracle.timed_out):
            kind, touched = VerdictKind.TAMPERED, (run.bent,)
        elif run.evidence == "none":
            if (oracle := await self._oracle(task)).evidence == "none":
                kind = VerdictKind.ENVIRONMENT_ERROR
                message = oracle.problem if oracle.timed_out else f"{message}; nor do the tests of the oracle's patch: {oracle.problem}"
        elif counting.resolved_swebench(run):
            strict = counting.resolved(run, await self._oracle(task) if counting.excused(run) else None)
            if strict and (selection.marks.possible or run.evidence != "junit+canary"):
                kind, message = await self._counter_check(task, selection)
                strict, touched = kind == VerdictKind.RESOLVED, (message,) if kind == VerdictKind.TAMPERED else ()
            elif strict:
                kind = VerdictKind.RESOLVED
        return Verdict(strict, run.evidence, run.to_pass, run.to_keep, (), message, time.monotonic() - started, kind,
                       counting.resolved_swebench(run), touched, "" if kind == VerdictKind.RESOLVED else run.tail, run.file)

    async def _execute(self, task: Task, selection: Selection, name: str = "", sabotaged: bool = False) -> Run:
        """`name`: of the run's file of output; "" is the diff's."""
        name = name or hashlib.sha256(selection.applied.encode(errors="surrogatepass")).hexdigest()[:12]
        name += ".turned_round" * sabotaged + ".without_canary" * (not takes_canary(task))
        return await execute(task, selection, self.config, sabotaged, Keep(self.outputs, name) if self.outputs else None)

    async def _run(self, task: Task, selection: Selection) -> tuple[Task, Run]:
        """The first run, and the task as it was run: without its canary where that proves nothing of this task."""
        if not takes_canary(task) and task.environment.log_parser is None:
            raise TaskError(f"task {task.task_id}: its test command takes no canary test: add {{canary_path}} or {{canary_module}} to it")
        if task.task_id not in self._spoilt:
            run = await self._execute(task, selection)
            if not (takes_canary(task) and _doubtful(run) and await self._spoils_canary(task)):
                return task, run
            self.checks += 1
        bare = without_canary(task)
        return bare, await self._execute(bare, selection)

    async def _spoils_canary(self, task: Task) -> bool:
        """Whether the oracle's own run is worth more without the canary, each of the two runs twice: the mark is for the
        rest of the run. The diff that is judged has no say in it."""
        given, bare = await self._oracle(task), without_canary(task)
        if given.timed_out or _worth(given) == (True, True) or _worth(await self._oracle(bare)) <= _worth(given):
            return False
        async with self._locks.setdefault((task.task_id, "mark"), asyncio.Lock()):
            if task.task_id in self._spoilt:
                return True
            # a run with the canary that is worth less was repeated before it was remembered
            proven = _key(task) in self._oracles and await self._repeats(bare)
            if proven:
                self._spoilt.add(task.task_id)
                log.warning("task %s: its project's own settings keep the canary from failing: the counter-check "
                            "judges its diffs", task.task_id)
        return proven

    async def _repeats(self, task: Task) -> bool:
        """Whether the oracle's run that is remembered comes out the same again; one that doesn't is forgotten."""
        before = self._oracles.get(_key(task))
        if before is not None and _agree(before, await self._run_oracle(task)):
            return True
        self._oracles.pop(_key(task), None)
        return False

    async def _counter_check(self, task: Task, selection: Selection) -> tuple[VerdictKind, str]:
        """(RESOLVED, or what the diff is instead; why). What the scan is certain of is checked ROUNDS times."""
        certain = selection.marks.certain
        for turn in range(ROUNDS if certain else 1):
            if turn:
                self.checks += 1
                again = await self._execute(task, selection)
                if not counting.resolved_swebench(again) and not again.timed_out:
                    return VerdictKind.TAMPERED, "its tests do not pass again"
            self.checks += 1
            if (found := await self._turned(task, selection)) is not None:
                return found
        return VerdictKind.RESOLVED, ""

    async def _turned(self, task: Task, selection: Selection) -> tuple[VerdictKind, str] | None:
        """What a run with the tests turned round says; None: all is as it must be. Without a canary, one has to fail."""
        proof_due = task.task_id in self._spoilt and not takes_canary(task)
        run = await self._execute(task, selection, sabotaged=True)
        suspects = {test for test in run.must_fail if run.to_pass[test] in _NOT_FAILED}
        unproven = proof_due and not _fails_turned(run)
        if run.evidence != "none" and not suspects and not unproven:
            return None
        if not run.must_fail:
            return _unchecked(selection, proof_due)
        if run.timed_out:
            return VerdictKind.ENVIRONMENT_ERROR, f"{run.problem}, when turned round only"
        if task.oracle_patch:  # tests that stay as they are when turned round, or break the run, prove nothing
            oracle = await self._oracle(task, sabotaged=True)
            if oracle.evidence == "none" or proof_due and not _fails_turned(oracle):
                return _unchecked(selection, proof_due)
            suspects -= {test for test, status in oracle.to_pass.items() if status in _NOT_FAILED}
        if run.evidence == "none":
            return VerdictKind.TAMPERED, f"no evidence when the tests are turned round: {run.problem}"
        if suspects:
            return VerdictKind.TAMPERED, f"passes {', '.join(sorted(suspects)[:3])} also where it must fail"
        return (VerdictKind.TAMPERED, "no test fails where all of them must") if unproven else None

    async def _oracle(self, task: Task, sabotaged: bool = False) -> Run:
        """The run of the oracle's patch, of the bare checkout where the task has none. It is remembered if it is as it must
        be, else once a second run has said the same; of two that differ the better one is the answer."""
        key = _key(task, sabotaged)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._oracles:
                return self._oracles[key]
            run = await self._run_oracle(task, sabotaged)
            if run.timed_out:
                return run
            if not _as_it_must(run, sabotaged):
                again = await self._run_oracle(task, sabotaged)
                if not _agree(run, again):
                    log.warning("task %s: two runs of the oracle's patch differ: %s; %s", task.task_id, _described(run), _described(again))
                    return max(run, again, key=lambda one: (_as_it_must(one, sabotaged), _worth(one)))
            _remember(self._oracles, key, run, self.remembered)
        return run

    async def _run_oracle(self, task: Task, sabotaged: bool = False) -> Run:
        self.checks += 1
        patch = task.oracle_patch
        if patch.strip():
            diff, applied = await as_diff(task, patch, self.config)
            patch = patch if applied.problem else diff
        return await self._execute(task, await _select(task, patch), "oracle", sabotaged)


def _key(task: Task, sabotaged: bool = False) -> tuple[str, bool, bool]:
    return task.task_id, sabotaged, takes_canary(task)


def _as_it_must(run: Run, sabotaged: bool) -> bool:
    """Whether an oracle's run is one: it resolves; of tests that are turned round none passes."""
    if sabotaged:
        return run.evidence != "none" and not any(run.to_pass[test] in _NOT_FAILED for test in run.must_fail)
    return _worth(run) == (True, True)


def _agree(run: Run, again: Run) -> bool:
    return (run.evidence, run.to_pass, run.to_keep, bool(run.bent), run.timed_out) == (
        again.evidence, again.to_pass, again.to_keep, bool(again.bent), again.timed_out)


def _described(run: Run) -> str:
    bad = [f"{test} {status}" for test, status in (run.to_pass | run.to_keep).items() if status != "passed"]
    return run.problem or ", ".join(bad[:5]) or "all pass"


def _doubtful(run: Run) -> bool:
    """Whether the canary itself may be why a run proves nothing: a test of FAIL_TO_PASS that fails is answer enough."""
    if run.does_not_apply or run.timed_out:
        return False
    answered = counting.resolved_swebench(run) or any(status in FAILED for status in run.to_pass.values())
    return run.evidence == "none" or not answered


def _worth(run: Run) -> tuple[bool, bool]:
    return run.evidence != "none", counting.resolved_swebench(run)


def _fails_turned(run: Run) -> bool:
    return any(run.to_pass[test] in FAILED for test in run.must_fail)


def _unchecked(selection: Selection, proof_due: bool) -> tuple[VerdictKind, str]:
    """No test could be turned round: what the scan is certain of decides, and without a canary nothing is proven."""
    if selection.marks.certain:
        return VerdictKind.TAMPERED, f"{selection.marks.certain[0]}, and no test can be turned round"
    if proof_due:
        return VerdictKind.ENVIRONMENT_ERROR, ("neither the canary nor a test turned round can fail here, so no pass is proven: "
                                               "give a test command under which the project's own settings run the canary")
    return VerdictKind.RESOLVED, ""


def _marked(verdict: Verdict, selection: Selection) -> Verdict:
    """With what was left out of the diff, and what the scan found in all of it. Never turns `resolved` round: execution has decided."""
    touched = tuple(dict.fromkeys((*verdict.tampered, *selection.touched)))
    kind = VerdictKind.TAMPERED if touched and verdict.kind == VerdictKind.UNRESOLVED else verdict.kind
    return replace(verdict, dropped_paths=selection.dropped_paths, tampered=touched, kind=kind)


def _remember(memory: OrderedDict, key: tuple, value: Verdict | Run, most: int) -> None:
    memory[key] = value
    while len(memory) > most:
        memory.popitem(last=False)


async def _select(task: Task, diff: str) -> Selection:
    installed = await asyncio.to_thread(interpreter, task.environment.python, task.environment.image)
    return await asyncio.to_thread(select, task, diff, installed.modules, loaded=installed.loaded)

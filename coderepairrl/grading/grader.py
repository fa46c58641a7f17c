"""The judge: hidden tests in a fresh sandbox, and what their runs mean. docs/threat_model.md says what each rule is
for.

    verdict = await Grader(sandbox_config).grade(task, diff)

1. One run (judge.py). A diff that does not apply, a report that is no evidence, failing tests: not resolved.
2. No evidence at all: the oracle's own patch is run. If that gives none either, the environment is to blame, not the
diff.
   If it gives some only without the canary, the task's own files keep the canary from failing, and all its diffs are
   judged without.
   A test may fail by chance: what speaks against a task counts for its further diffs only once two runs have said the
   same.
3. A run that passes: the same again with some tests turned (counter_check.py). Tests that still pass, and fail so under
   the oracle's patch, were not decided by the code: tampered. Where cores are free, this begins beside the first run.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import replace

from coderepairrl.errors import TaskError
from coderepairrl.grading import counter_check, counting
from coderepairrl.grading.canary import takes_canary, without_canary
from coderepairrl.grading.free_cores import is_free
from coderepairrl.grading.ids import function_of
from coderepairrl.grading.judge import FAILED, TIME_LIMIT, Keep, Run, execute
from coderepairrl.grading.output import Outputs
from coderepairrl.grading.protected import Selection, select
from coderepairrl.grading.published import as_diff
from coderepairrl.grading.validation.build_runs import Build
from coderepairrl.grading.variants import Variant, has_read
from coderepairrl.sandboxes import SandboxConfig
from coderepairrl.sandboxes.interpreter import interpreter
from coderepairrl.types import Task, Verdict, VerdictKind

log = logging.getLogger(__name__)
ORACLES = 10_000  # runs of oracles' patches that are remembered
ROUNDS = 4  # of what the scan is certain of: tossing a coin in each run wins once in 2 ** (2 * ROUNDS)


async def grade(task: Task, diff: str, sandbox_config: SandboxConfig) -> Verdict:
    """Raises SandboxError for infrastructure trouble, TaskError for a wrong task; whatever the diff does gives a
    Verdict."""
    return await Grader(sandbox_config).grade(task, diff)


class Grader:
    """`grade` with a memory: the same applied patch of the same task is run once, also when asked for concurrently.

    Valid because a verdict depends on nothing else: each run has a fresh sandbox without network, fixed variables and
    the environment's fixed command. Not remembered: time limits, which depend on the machine's load, and errors.
    `remembered`: of how many patches at most; 0: each request is executed, for whoever asks whether verdicts differ.
    `runs` counts diffs that were executed, `hits` answers without, `checks` further runs: counter-checks and the
    oracle's.
    `outputs`: where all that test commands print is kept; None: nowhere.
    """

    def __init__(self, sandbox_config: SandboxConfig, remembered: int = 10_000, outputs: Outputs | None = None):
        self.config, self.remembered, self.outputs = sandbox_config, remembered, outputs
        self.runs = self.hits = self.checks = self._executing = 0
        self.builds: dict[tuple[str, str], Build] = {}  # of bare checkouts and oracles (validation/)
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Task[Verdict]] = {}
        self._waiting: dict[tuple[str, str], int] = {}
        self._oracles: OrderedDict[tuple, Run] = OrderedDict()
        self._locks: dict[tuple, asyncio.Lock] = {}
        self._secret = secrets.token_hex(16)  # what is turned, nobody can know
        # (task, whether with its canary) -> variants of its tests that tell nothing
        self._silent: dict[tuple[str, bool], set[int]] = {}
        self._spoilt: set[str] = set()  # tasks whose own files keep the canary from failing

    async def grade(self, task: Task, diff: str) -> Verdict:
        if not task.fail_to_pass:
            raise TaskError(
                f"task {task.task_id} names no test that must pass: prepare the set (scripts/prepare_tasks.py measures "
                "them), and take the file that this writes"
            )
        selection = await selected(task, diff)
        key = (task.task_id, hashlib.sha256(selection.applied.encode(errors="surrogatepass")).hexdigest())
        if not self.remembered:
            self.runs += 1
            verdict = await self._judge(task, selection)
        elif key in self._verdicts:
            self.hits += 1
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
        else:
            verdict = await self._join(key, task, selection)
        return _marked(verdict, selection)

    def forget_verdicts(self) -> None:
        """What is known of the tasks themselves (oracles' runs, variants that tell nothing) stays."""
        self._verdicts.clear()

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
        first = asyncio.ensure_future(self._run(task, selection))
        likely = without_canary(task) if task.task_id in self._spoilt else task  # that `first` will say it ran
        check = asyncio.ensure_future(self._counter_check(likely, selection, first))
        try:
            return await self._weigh(likely, selection, first, check)
        finally:
            first.cancel()
            check.cancel()
            # of a check that is not asked for, errors, too, are of no interest
            await asyncio.gather(first, check, return_exceptions=True)

    async def _weigh(self, likely: Task, selection: Selection, first: asyncio.Future, check: asyncio.Future) -> Verdict:
        started = time.monotonic()
        task, run = await first
        kind, message = VerdictKind.UNRESOLVED, run.problem
        touched, strict = (), False
        if run.does_not_apply:
            kind = VerdictKind.DOES_NOT_APPLY
        elif run.bent and not ((oracle := await self._oracle(task)).bent or oracle.timed_out):
            kind, touched = VerdictKind.TAMPERED, (run.bent,)
        elif run.evidence == "none":
            if (oracle := await self._oracle(task)).evidence == "none":
                kind = VerdictKind.ENVIRONMENT_ERROR
                message = (
                    oracle.problem
                    if oracle.timed_out
                    else f"{message}; nor do the tests of the oracle's patch: {oracle.problem}"
                )
        elif counting.resolved_swebench(run):
            strict = counting.resolved(run, await self._oracle(task) if counting.excused(run) else None)
            if strict:
                kind, message = await (
                    check if _key(task) == _key(likely) else self._counter_check(task, selection, first)
                )
                strict, touched = kind == VerdictKind.RESOLVED, (message,) if kind == VerdictKind.TAMPERED else ()
        return Verdict(
            strict,
            run.evidence,
            run.to_pass,
            run.to_keep,
            (),
            message,
            time.monotonic() - started,
            kind,
            counting.resolved_swebench(run),
            touched,
            "" if kind == VerdictKind.RESOLVED else run.tail,
            run.file,
        )

    async def _execute(self, task: Task, selection: Selection, name: str = "", variant: Variant | None = None) -> Run:
        """`name`: of the run's file of output; "" is the diff's."""
        name = name or hashlib.sha256(selection.applied.encode(errors="surrogatepass")).hexdigest()[:12]
        name += ".turned" * (variant is not None) + ".without_canary" * (not takes_canary(task))
        keep = Keep(self.outputs, name) if self.outputs else None
        self._executing += 1
        try:
            return await execute(task, selection, self.config, variant, keep)
        finally:
            self._executing -= 1

    async def _run(self, task: Task, selection: Selection) -> tuple[Task, Run]:
        """The first run, and the task as it was run: without its canary where that proves nothing of this task."""
        if not takes_canary(task) and task.environment.log_parser is None:
            raise TaskError(
                f"task {task.task_id}: its test command takes no canary test: add {{canary_path}} or {{canary_module}} "
                "to it"
            )
        if task.task_id not in self._spoilt:
            run = await self._execute(task, selection)
            if not (takes_canary(task) and _doubtful(run) and await self._spoils_canary(task)):
                return task, run
            self.checks += 1
        bare = without_canary(task)
        return bare, await self._execute(bare, selection)

    async def _spoils_canary(self, task: Task) -> bool:
        """Whether the oracle's own run is worth more without the canary, each of the two runs twice: the mark is for
        the
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
                log.warning(
                    "task %s: its project's own settings keep the canary from failing: the counter-check "
                    "judges its diffs",
                    task.task_id,
                )
        return proven

    async def _repeats(self, task: Task) -> bool:
        """Whether the oracle's run that is remembered comes out the same again; one that doesn't is forgotten."""
        before = self._oracles.get(_key(task))
        if before is not None and _agree(before, await self._run_oracle(task)):
            return True
        self._oracles.pop(_key(task), None)
        return False

    async def _counter_check(self, task: Task, selection: Selection, first: asyncio.Future) -> tuple[VerdictKind, str]:
        """(RESOLVED, or what the diff is instead; why) of a diff that passes its first run; where a core is free, begun
        before that is known. More rounds where the scan is certain of something or sees a comparison of the diff's own,
        and where it thinks something possible and one test alone decides: one round would let a coin win once in four.
        """
        marks = selection.marks
        alone = len({function_of(test) for test in task.fail_to_pass}) == 1
        rounds = ROUNDS if marks.certain or marks.compares else 2 if marks.possible and alone else 1

        async def turn_comes() -> None:
            if not (first.done() or selection.applied and is_free(self._executing)):
                await asyncio.wait([first])

        async def of_diff(variant: Variant | None) -> Run:
            await turn_comes()
            self.checks += 1
            return await self._execute(task, selection, variant=variant)

        async def of_oracle(variant: Variant) -> Run:
            await turn_comes()
            return await self._oracle(task, variant)

        read = takes_canary(task) and await asyncio.to_thread(has_read, task)
        runs = counter_check.Runs(of_diff, of_oracle if task.oracle_patch.strip() else None, read)
        found = await counter_check.check(
            task, runs, self._secret, rounds, self._silent.setdefault((task.task_id, takes_canary(task)), set())
        )
        proof_due = task.task_id in self._spoilt and not takes_canary(task)
        kind, why = _unchecked(proof_due) if found is None else found
        # the runs can be told apart by whoever knows what is tested
        if kind == VerdictKind.RESOLVED and marks.withheld:
            return (
                VerdictKind.TAMPERED,
                f"its tests pass, but {marks.withheld[0]}, and no repair of this task needs that",
            )
        return kind, why

    async def _oracle(self, task: Task, variant: Variant | None = None) -> Run:
        """The run of the oracle's patch, of the bare checkout where the task has none. It is remembered if it is as it
        must
        be, else once a second run has said the same; of two that differ the better one is the answer."""
        key = _key(task, variant)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._oracles:
                return self._oracles[key]
            run = await self._run_oracle(task, variant)
            if run.timed_out:
                return run
            if not _as_it_must(run, variant):
                again = await self._run_oracle(task, variant)
                if not _agree(run, again):
                    log.warning(
                        "task %s: two runs of the oracle's patch differ: %s; %s",
                        task.task_id,
                        _described(run),
                        _described(again),
                    )
                    return max(run, again, key=lambda one: (_as_it_must(one, variant), _worth(one)))
            _remember(self._oracles, key, run, ORACLES)
        return run

    async def _run_oracle(self, task: Task, variant: Variant | None = None) -> Run:
        self.checks += 1
        patch = task.oracle_patch
        if patch.strip():
            diff, applied = await as_diff(task, patch, self.config)
            patch = patch if applied.problem else diff
        return await self._execute(task, await selected(task, patch), "oracle", variant)


def _key(task: Task, variant: Variant | None = None) -> tuple:
    return task.task_id, variant and (variant.which, variant.number), takes_canary(task)


def _as_it_must(run: Run, variant: Variant | None) -> bool:
    """Whether an oracle's run is one: it resolves; with turned tests, of which some may tell nothing, it gives
    evidence."""
    return run.evidence != "none" if variant else _worth(run) == (True, True)


def _agree(run: Run, again: Run) -> bool:
    return (run.evidence, run.to_pass, run.to_keep, bool(run.bent), run.timed_out) == (
        again.evidence,
        again.to_pass,
        again.to_keep,
        bool(again.bent),
        again.timed_out,
    )


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


def _unchecked(proof_due: bool) -> tuple[VerdictKind, str]:
    """Nothing was proven by turned tests; where no canary was either, nothing is proven at all."""
    if proof_due:
        return VerdictKind.ENVIRONMENT_ERROR, (
            "neither the canary nor a turned test can fail here, so no pass is proven: "
            "give a test command under which the project's own settings run the canary"
        )
    return VerdictKind.RESOLVED, ""


def _marked(verdict: Verdict, selection: Selection) -> Verdict:
    """With what was left out of the diff, and what the scan found in all of it. Never turns `resolved` round: execution
    has decided."""
    touched = tuple(dict.fromkeys((*verdict.tampered, *selection.touched)))
    kind = VerdictKind.TAMPERED if touched and verdict.kind == VerdictKind.UNRESOLVED else verdict.kind
    return replace(verdict, dropped_paths=selection.dropped_paths, tampered=touched, kind=kind)


def _remember(memory: OrderedDict, key: tuple, value: Verdict | Run, most: int) -> None:
    memory[key] = value
    while len(memory) > most:
        memory.popitem(last=False)


async def selected(task: Task, diff: str) -> Selection:
    """What of a diff is applied, with the task's own interpreter asked for what it has installed."""
    installed = await asyncio.to_thread(interpreter, task.environment.python, task.environment.image)
    return await asyncio.to_thread(select, task, diff, installed.modules, loaded=installed.loaded)

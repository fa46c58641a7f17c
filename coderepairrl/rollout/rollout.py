"""The rollout process: vLLM under supervision, the gateway, groups of episodes, grading. One asyncio loop.

It writes rollouts/step_*.parquet (one file a training step) and rollouts/eval_*.parquet, and keeps the books of both
(books.py);
the trainer answers with rollouts/step_*.trained.json, and new weights arrive under running episodes. How far rollouts
run ahead of
the trainer is admission.py's matter. Episodes outlive vLLM: while it is restarted their calls wait, then go on.
"""

import asyncio
import random
import secrets
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from coderepairrl.config import Config
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import ConfigError, EngineError, TaskError
from coderepairrl.gateway import (
    GatewayConfig,
    RenderingConfig,
    SamplingConfig,
    SessionLimits,
    TrainedSamplingConfig,
    make_gateway,
    renderer_of,
)
from coderepairrl.grading.output import Outputs
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.inference.supervisor import POLL_S, NoServer, Supervisor, follow_others
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.rollout.buffer import Books, sampled_tokens
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.rollout.evaluations import EvaluationConfig, Pass, is_done, missed, name_of, note_tasks, passes
from coderepairrl.rollout.infrastructure import InfrastructureErrors, detail_of, refuse_broken
from coderepairrl.rollout.scheduler import Admission
from coderepairrl.rollout.standstill import Standstill
from coderepairrl.run import context, inputs, skill
from coderepairrl.run.attempt import Place, stop_asked
from coderepairrl.run.trial import try_environments
from coderepairrl.sandboxes import SandboxConfig, check
from coderepairrl.scaffolds import Scaffold, ScaffoldConfig, make_scaffold, ready
from coderepairrl.scaffolds.retry import Retry
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks import TasksConfig, load_tasks
from coderepairrl.tasks.building import build_all
from coderepairrl.types import HELD_OUT, Outcome, Task, Trajectory
from coderepairrl.weights.probe import unproven_versions


class RolloutConfig(Config):
    """Everything that makes episodes: tasks, agent, sandbox, vLLM, limits, rewards."""

    tasks: TasksConfig  # what is to be repaired
    scaffold: ScaffoldConfig = TerminalConfig()  # the agent
    # of tasks whose environments are built: from where, into which cache
    environments: EnvironmentsConfig = EnvironmentsConfig()
    sandbox: SandboxConfig = SandboxConfig()
    server: ServerConfig = ServerConfig()
    gateway: GatewayConfig = GatewayConfig()
    limits: SessionLimits = SessionLimits()
    sampling: TrainedSamplingConfig = TrainedSamplingConfig()
    rewards: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    rendering: RenderingConfig = RenderingConfig()
    chat_template: dict = {}  # arguments of the chat template, the same in training and evaluation
    groups_per_step: PositiveInt = 1  # tasks of one training step; training has to name it
    group_size: PositiveInt = 1  # episodes of each of them; training needs two, to tell better from worse
    # updates that a trained token's weights may be behind the trainer's; 0: on-policy
    max_staleness: int = Field(0, ge=0, le=8)
    # groups without reward variance that another task may replace, a training step (DAPO, arXiv:2503.14476)
    max_refills: int = Field(0, ge=0)
    concurrent_episodes: PositiveInt = 256  # at once, at most
    infrastructure_retries: NonNegativeInt = 2  # of an episode that a broken machine ended
    # of the last 64 episodes that may end as infrastructure errors: with more the run stops
    max_infrastructure_share: float = Field(0.5, ge=0, le=1)
    try_environments: bool = True  # before the first step: the oracle's patch must resolve a task of each environment
    # of what each test command prints, kept in RUN/test_outputs, half of it from the end; 0: the last lines are all
    keep_test_output_mib: NonNegativeInt = 0
    engine_wait_s: PositiveFloat = 600.0  # how long a model call waits for a vLLM that is away
    seed: NonNegativeInt = 0  # of the order of tasks

    _follow = model_validator(mode="before")(context.follow)

    @field_validator("limits")
    @classmethod
    def _fits(cls, limits: SessionLimits, info: ValidationInfo) -> SessionLimits:
        if "server" in info.data:
            context.check(limits.max_total_tokens, info.data["server"].max_model_len)
        return limits


@dataclass(frozen=True)
class Way:
    """What training and the passes of an evaluation differ in."""

    sampling: SamplingConfig
    limits: SessionLimits
    scaffold: Scaffold


class Rollout:
    """Use as `async with Rollout(config, run, model, attempt) as rollout`. model: folder of the tokenizer; weights are
    those of policy/current.json.

    `tasks`: split -> tasks, unless they are to be loaded. A scaffold that calls no model needs none, and no vLLM is
    started.
    `trains`: for a training run, which has no use for an environment that is broken. Raises ConfigError where there is
    nothing to train on.
    """

    def __init__(
        self,
        config: RolloutConfig,
        run: Path,
        model: str | None,
        attempt: int,
        tasks: dict[str, list[Task]] | None = None,
        trains: bool = False,
    ):
        self.config, self.run, self._trains = config, run, trains
        self._model, self._attempt = model, attempt
        self.tasks = load_tasks(config.tasks) if tasks is None else tasks
        if trains and not self.tasks["train"]:
            raise ConfigError("no training tasks: load some (rollout.tasks)")
        kept = config.keep_test_output_mib
        self.grader = Grader(config.sandbox, outputs=Outputs(run / "test_outputs", kept << 20) if kept else None)
        self._scaffold = make_scaffold(config.scaffold, self.grader)
        self._training = Way(config.sampling, config.limits, self._scaffold)
        self._broken = InfrastructureErrors(run, config.max_infrastructure_share)
        self._beside: asyncio.Task | None = None  # the latest evaluation beside training
        self._looked_at = 0  # updates in the weights for which an evaluation was begun, or left out
        self._salt = f"{secrets.token_hex(4)}-{attempt}"  # KV cache of an older attempt is never reused
        self._slots = asyncio.Semaphore(config.concurrent_episodes)

    async def __aenter__(self) -> "Rollout":
        config = self.config
        await asyncio.to_thread(check, config.sandbox)
        for split, tasks in self.tasks.items():
            self.tasks[split], failures = await build_all(tasks, config.environments)
            if failures:
                raise TaskError(
                    f"{len(failures)} of {len(tasks)} tasks have no environment, the first: "
                    f"{next(iter(failures.values()))}; "
                    "admit those that have one: scripts/prepare_tasks.py"
                )
        server = Server(config.server, self.run, self.run / "logs" / f"attempt_{self._attempt}" / "vllm.log")
        model, processes = (self._model, config.gateway.processes) if self._scaffold.calls_model else (None, 1)
        renderer = partial(
            renderer_of, model, config.rendering, config.chat_template, getattr(self._scaffold, "without_tools", "")
        )
        self._held = AsyncExitStack()  # what the scaffold needs while episodes run
        socket = await self._held.enter_async_context(ready(self._scaffold, config.environments))
        urls = [server.url] * Place.here().serve_nodes  # the others' addresses come from their files
        try:
            self.gateway = make_gateway(
                config.gateway.model_copy(update={"processes": processes}), urls, config.engine_wait_s, renderer, socket
            )
        except BaseException:
            await self._held.aclose()
            raise
        self.supervisor = (
            Supervisor(server, self.gateway.clients[0].pause, self.gateway.clients[0].resume)
            if self._scaffold.calls_model
            else NoServer(server)
        )
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )
        self.books = Books(
            self.run,
            Admission(config.groups_per_step, config.max_staleness, config.max_refills),
            self._attempt,
            list(config.rewards.weights),
        )
        try:
            await self.gateway.start()
            if self._trains:
                note_tasks(self.run, self.heldout)
            await self._start_engine()
        except BaseException:
            await self._close()
            raise
        self._watch = asyncio.create_task(self._watch_servers())
        self._standstill = self._held.enter_context(Standstill())
        self._services = Services(
            self.gateway, self._scaffold, config.sandbox, self.grader, config.rewards, config.limits, self._http
        )
        return self

    async def _start_engine(self) -> None:
        """While vLLM starts, which takes longer, a training run's environments are tried."""
        try:
            async with asyncio.TaskGroup() as starting:
                starting.create_task(self.supervisor.start(self.books.admission.next_step))
                if self._trains and self.config.try_environments:
                    tasks = [*self.tasks["train"], *self.heldout]
                    starting.create_task(try_environments(tasks, self.grader, self.config.rewards, self.run))
        except BaseExceptionGroup as error:
            raise _first(error) from None

    async def __aexit__(self, *_) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._close()

    async def _close(self) -> None:
        await self.gateway.stop()
        await self._held.aclose()
        await self._http.close()
        for client in self.gateway.clients:
            await client.close()
        await self.supervisor.server.stop()
        self.books.close()

    async def _watch_servers(self) -> None:
        watching = [
            asyncio.ensure_future(work)
            for work in (
                self.supervisor.watch(),
                follow_others(self.supervisor, self.gateway.clients),
                self.gateway.watch(),
            )
        ]
        try:
            await asyncio.gather(*watching)  # the error of any is the run's
        finally:
            for work in watching:
                work.cancel()
            await asyncio.wait(watching)

    async def _guarded(self, work):
        """The result of `work`, unless vLLM can't be kept alive: then the supervisor's error. Of several errors at
        once, the first."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():  # vLLM is gone for good, or we are cancelled: sandboxes go before the gateway
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            self._watch.result()  # raises
        if (error := task.exception()) is not None:
            raise _first(error)
        return task.result()

    async def episode(self, task: Task, split: str) -> Trajectory:
        """One episode of one task, in no ledger and no file: for looking at it (scripts/run_one.py)."""
        way = self._training if split == "train" else self._held_out(self.config.evaluation)
        return await self._guarded(self._episode("run_one", task, "run_one", split, 0, way))

    @property
    def heldout(self) -> list[Task]:
        """Those that are evaluated."""
        return self.tasks.get("heldout", [])[: self.config.evaluation.tasks]

    def task_at(self, position: int) -> Task:
        """The training split in a new order each epoch; depends on seed and position alone."""
        epoch, place = divmod(position, len(self.tasks["train"]))
        order = random.Random(f"{self.config.seed}-{epoch}").sample(
            range(len(self.tasks["train"])), len(self.tasks["train"])
        )
        return self.tasks["train"][order[place]]

    async def produce(self, steps: int, evaluate_every: int = 0) -> None:
        """Runs groups and writes the steps' files until the trainer has trained them all; every so many updates an
        evaluation beside them (0: none).
        EngineError when the machine ends too many episodes."""
        if lost := missed(self.run, evaluate_every, self.supervisor.serving["step"]):
            print(
                f"no evaluation beside training, and none to come, at steps {', '.join(map(str, lost[:20]))}"
                f"{' ...' if len(lost) > 20 else ''}: left out, not asked for then, or cut off by the end of an "
                "attempt",
                flush=True,
            )
        await self._guarded(self._produce(steps, evaluate_every))

    async def _produce(self, steps: int, evaluate_every: int) -> None:
        """The same loop for synchronous and asynchronous runs: admission decides how far it runs ahead."""
        async with asyncio.TaskGroup() as running:
            while self.books.booked < steps:
                serving = self.supervisor.serving
                stopping = stop_asked(self.run, self._attempt)  # what runs may still finish; nothing new begins
                if (
                    evaluate_every
                    and serving["step"] % evaluate_every == 0
                    and 0 < serving["step"] < steps
                    and not stopping
                ):
                    self._evaluate_beside(running, serving["step"])
                while (
                    not stopping
                    and (position := self.books.admission.next_position(serving["step"], steps)) is not None
                ):
                    task = self.task_at(position)
                    group = self.books.admit(position, task, serving["version"], self.config.group_size)
                    running.create_task(self._train_group(group, task))
                while stats := self.books.store_step(self._counters()):
                    self._standstill.begin()
                    print(
                        f"step {self.books.admission.next_step - 1}: {stats['tokens']} tokens, {stats['seconds']:.1f} "
                        "s; "
                        f"groups running or ahead: {len(self.books.admission.live)}; vLLM has the weights of step "
                        f"{serving['step']}",
                        flush=True,
                    )
                self.books.book_training()
                await asyncio.sleep(POLL_S)

    async def _train_group(self, group: str, task: Task) -> None:
        self.books.finish(group, await self._group(group, task, "train", self.config.group_size, self._training))

    def _evaluate_beside(self, running: asyncio.TaskGroup, updates: int) -> None:
        """Begins the evaluation of the weights that serve now. While the one before is still running it is left out:
        when that is over, these
        weights are gone, and a number under their name would be another's."""
        if self._looked_at == updates:
            return
        self._looked_at = updates
        if not self.heldout or is_done(self.run, name_of(updates)):
            return
        if self._beside is None or self._beside.done():
            self._beside = running.create_task(self._evaluate(name_of(updates), updates, self.config.evaluation.share))
        else:
            print(
                f"step {updates} is not evaluated, the evaluation before is still running: take a larger "
                "training.evaluate_every, "
                "or fewer rollout.evaluation.tasks",
                flush=True,
            )

    async def evaluate(self, name: str, updates: int) -> None:
        """Held-out tasks under the weights of so many updates, unless there are none or a former attempt has done it;
        nothing of it is ever trained."""
        if self.heldout and not is_done(self.run, name):
            await self._guarded(self._evaluate(name, updates))

    async def _evaluate(self, name: str, updates: int, share: float | None = None) -> None:
        """share: of the places for episodes that it may take; None: it is alone."""
        while self.supervisor.serving["step"] < updates:
            await asyncio.sleep(POLL_S)
        places = asyncio.Semaphore(max(1, int(share * self.config.concurrent_episodes))) if share else nullcontext()
        own = passes(name, self.config.evaluation, self._scaffold.calls_model)
        async with asyncio.TaskGroup() as running:
            jobs = [running.create_task(self._pass(one, places)) for one in own]
        done = {one.name: job.result() for one, job in zip(own, jobs, strict=True)}
        if self._sampled_unproven(name, done, beside=share is not None):
            return
        for one, members in done.items():
            stats = {"evaluation": {"step": updates} | self._numbers(done, name)} if one == name else {}
            self.books.store_evaluation(
                one, members, self._counters() | stats | {"inputs": inputs.of_evaluation(self.run / inputs.RECORD)}
            )
        if self._trains:  # elsewhere it is one part of many
            refuse_broken(f"evaluation {name}", [detail_of(t) for t in _all(done[name])])

    def _held_out(self, sampling: SamplingConfig, forced: bool = False) -> Way:
        turns = self.config.evaluation.max_turns or self.config.limits.max_turns
        return Way(
            sampling,
            self.config.limits.model_copy(update={"max_turns": turns}),
            Retry(self._scaffold, self.grader) if forced else self._scaffold,
        )

    async def _pass(self, own: Pass, places) -> dict[str, list[Trajectory]]:
        """Group -> its episodes. places: for so many at a time."""
        version = self.supervisor.serving["version"]
        groups = {
            self.books.admit_evaluation(own.name, i, task, version, own.samples): task
            for i, task in enumerate(self.heldout)
        }
        way = self._held_out(own.sampling, own.forced)
        async with asyncio.TaskGroup() as running:
            jobs = {
                group: running.create_task(self._group(group, task, HELD_OUT, own.samples, way, places))
                for group, task in groups.items()
            }
        return {group: job.result() for group, job in jobs.items()}

    def _sampled_unproven(self, name: str, done: dict[str, dict[str, list[Trajectory]]], beside: bool) -> bool:
        """Whether weights that failed their probe have sampled a part of it: beside training, which goes on without it,
        it is
        dropped. EngineError elsewhere."""
        sampled_under = {
            version
            for members in done.values()
            for t in _all(members)
            for call in t.calls
            for version in call.policy_versions
        }
        wrong = unproven_versions(self.run) & sampled_under
        if wrong and not beside:
            raise EngineError(
                f"the evaluation {name!r} was sampled in part under version {min(wrong)}, whose weights "
                "failed their probe: the same command evaluates again"
            )
        if wrong:
            for members in done.values():
                self.books.drop_evaluation(members)
            print(
                f"the evaluation {name!r} is dropped: version {min(wrong)}, which failed its probe, sampled a part of "
                "it",
                flush=True,
            )
        return bool(wrong)

    @staticmethod
    def _numbers(done: dict[str, dict[str, list[Trajectory]]], name: str) -> dict:
        """Of the evaluation of that name: stats["evaluation"], but for the step."""
        own, greedy = _all(done[name]), _all(done.get(f"{name}_greedy", {}))
        versions = sorted({version for t in own for call in t.calls for version in call.policy_versions})
        return (
            {"versions": versions}
            | skill.numbers(skill.episodes(own))
            | skill.rate("greedy", skill.resolved(skill.episodes(greedy)))
        )

    async def _group(
        self, group: str, task: Task, split: str, size: int, way: Way, places=nullcontext()
    ) -> list[Trajectory]:
        """places: of which each episode takes one, beside those of all."""

        async def one(number: int) -> Trajectory:
            async with places, self._slots:
                return await self._with_retries(group, task, number, split, way)

        async with asyncio.TaskGroup() as running:
            jobs = [running.create_task(one(number)) for number in range(size)]
        return [job.result() for job in jobs]

    async def _with_retries(self, group: str, task: Task, number: int, split: str, way: Way) -> Trajectory:
        for attempt in range(self.config.infrastructure_retries + 1):
            trajectory = await self._episode(group, task, f"{group}-{number}", split, attempt, way)
            if trajectory.outcome != Outcome.INFRASTRUCTURE_ERROR:
                break
            self._broken.tried(trajectory.outcome_detail)
            last = attempt == self.config.infrastructure_retries
            self.books.ledger.write(
                "infrastructure_error",
                group,
                trajectory=trajectory.trajectory_id,
                attempt=attempt,
                detail=trajectory.outcome_detail,
                tokens=0 if last else sampled_tokens([trajectory]),
            )  # the last attempt's tokens are in the file, and masked
        self._broken.ended(trajectory)
        return trajectory

    async def _episode(
        self, group: str, task: Task, trajectory_id: str, split: str, attempt: int, way: Way
    ) -> Trajectory:
        services = replace(self._services, scaffold=way.scaffold, limits=way.limits)
        return await run_episode(
            services,
            task,
            trajectory_id=trajectory_id,
            group_id=group,
            split=split,
            attempt=attempt,
            sampling=way.sampling,
            cache_salt=f"{self._salt}-{self.supervisor.serving['version']}",
        )  # nor that of an older policy, by a new episode

    def _counters(self) -> dict:
        """Over the whole attempt, for the stats of the file that is written now."""
        serving = self.supervisor.serving
        return {
            "version": serving["version"],
            "infrastructure_errors": self._broken.count,
            "infrastructure": self._broken.said(),
            "engine_restarts": self.supervisor.restarts,
            "gateway": self.gateway.counters,
            "gradings_run": self.grader.runs,
            "gradings_remembered": self.grader.hits,
            "updates": serving["step"],
            "loop_standstill_s": round(self._standstill.longest_s, 3),
        }


def _all(members: dict[str, list[Trajectory]]) -> list[Trajectory]:
    return [trajectory for own in members.values() for trajectory in own]


def _first(error: BaseException) -> BaseException:
    """Of several errors at once."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

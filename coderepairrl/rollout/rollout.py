"""The rollout process: vLLM under supervision, the gateway, groups of episodes, grading. One asyncio loop.

It writes rollouts/step_*.parquet (one file a training step) and rollouts/eval_*.parquet, and keeps the books of both
(buffer.py); the trainer answers with rollouts/step_*.trained.json, and new weights arrive under running episodes. How
far rollouts run ahead of the trainer is scheduler.py's matter. Episodes outlive vLLM: while it is restarted their calls
wait, then go on.
"""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cached_property, partial
from pathlib import Path

import aiohttp

from coderepairrl.errors import ConfigError, TaskError
from coderepairrl.gateway import Gateway, Workers, make_gateway, renderer_of
from coderepairrl.gateway.external import gateway_before
from coderepairrl.grading.output import Outputs
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ExternalServerConfig, ServerConfig
from coderepairrl.inference.supervisor import POLL_S, NoServer, Supervisor, follow_others
from coderepairrl.processes import cause
from coderepairrl.rewards import Grader
from coderepairrl.rollout.buffer import Books
from coderepairrl.rollout.episode import Services
from coderepairrl.rollout.evaluations import missed, note_tasks
from coderepairrl.rollout.fitting import fitting
from coderepairrl.rollout.groups import Groups, Way
from coderepairrl.rollout.held_out import HeldOut
from coderepairrl.rollout.infrastructure import InfrastructureErrors
from coderepairrl.rollout.order import Drawn, Order
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.rollout.scheduler import Admission
from coderepairrl.rollout.standstill import Standstill
from coderepairrl.run.attempt import Place, stop_asked
from coderepairrl.run.trial import try_environments
from coderepairrl.sandboxes import check
from coderepairrl.scaffolds import ScaffoldMixture, make_scaffold, ready
from coderepairrl.tasks import load_tasks
from coderepairrl.types import Task, Trajectory


class Rollout:
    """Use as `async with Rollout(config, run, model, attempt) as rollout`. model: folder of the tokenizer; weights are
    those of policy/current.json.

    tasks: split -> tasks, unless they are to be loaded. A scaffold that calls no model needs none, and no vLLM is
    started. trains: for a training run, which has no use for an environment that is broken. Raises ConfigError where
    there is nothing to train on.
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
        if not self._scaffold.calls_model:
            self.grader.remembered = 0  # a control asks what the judge says each time
        self._training = Way(config.sampling, config.limits, self._scaffold)
        self._broken = InfrastructureErrors(run, config.max_infrastructure_share)

    async def __aenter__(self) -> "Rollout":
        config = self.config
        await asyncio.to_thread(check, config.sandbox)
        self.tasks, self.refused = await fitting(self.tasks, self._scaffold, config.environments)
        own = config.server if isinstance(config.server, ServerConfig) else ServerConfig()
        server = Server(own, self.run, self.run / "logs" / f"attempt_{self._attempt}" / "vllm.log")
        self._held = AsyncExitStack()  # what the scaffold needs while episodes run
        socket = await self._held.enter_async_context(ready(self._scaffold, config.environments))
        try:
            self.gateway = self._make_gateway(server, socket)
        except BaseException:
            await self._held.aclose()
            raise
        self.supervisor = (
            Supervisor(server, self.gateway.clients[0].pause, self.gateway.clients[0].resume)
            if self._scaffold.calls_model and own is config.server
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
        services = Services(
            self.gateway,
            self._scaffold,
            config.sandbox,
            self.grader,
            config.rewards,
            config.limits,
            self._http,
            self._broken.unforeseen,
        )
        salt = f"{secrets.token_hex(4)}-{self._attempt}"
        self.groups = Groups(config, services, self.supervisor, self.books.ledger, self._broken, salt)
        self.evaluations = HeldOut(
            config, self.run, self.heldout, self.groups, self.books, self._counters, self._trains
        )
        return self

    def _make_gateway(self, server: Server, socket: Path | None) -> Gateway | Workers:
        config = self.config
        if isinstance(config.server, ExternalServerConfig):
            return gateway_before(config.server, config.gateway, config.engine_wait_s, socket)
        model, processes = (self._model, config.gateway.processes) if self._scaffold.calls_model else (None, 1)
        renderer = partial(
            renderer_of, model, config.rendering, config.chat_template, getattr(self._scaffold, "without_tools", "")
        )
        urls = [server.url] * Place.here().serve_nodes  # the others' addresses come from their files
        return make_gateway(
            config.gateway.model_copy(update={"processes": processes}), urls, config.engine_wait_s, renderer, socket
        )

    async def _start_engine(self) -> None:
        """While vLLM starts, which takes longer, a training run's environments are tried."""
        try:
            async with asyncio.TaskGroup() as starting:
                starting.create_task(self.supervisor.start(self.books.admission.next_step))
                if self._trains and self.config.try_environments:
                    tasks = [*self.tasks["train"], *self.heldout]
                    starting.create_task(try_environments(tasks, self.grader, self.config.rewards, self.run))
        except BaseExceptionGroup as error:
            raise cause.first_of_group(error) from None

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
            raise cause.first_of_group(error)
        return task.result()

    async def episode(self, task: Task, split: str) -> Trajectory:
        """One episode of one task, in no ledger and no file: for looking at it (scripts/run_one.py). Raises TaskError
        where the agent can't be given the task."""
        if task.task_id in self.refused:
            raise TaskError(self.refused[task.task_id])
        way = self._training if split == "train" else self.evaluations.way(self.config.evaluation, task)
        return await self._guarded(self.groups.episode("run_one", task, "run_one", split, 0, way))

    @property
    def heldout(self) -> list[Task]:
        """Those that are evaluated."""
        return self.tasks.get("heldout", [])[: self.config.evaluation.tasks]

    @cached_property
    def order(self) -> Order:
        """Of training, once it is known which tasks are left."""
        mixed, scaffold = self.config.tasks, self._scaffold
        weights = {name: share.weight for name, share in mixed.sets.items()} if mixed.name == "mixture" else {}
        return Order(
            self.tasks["train"],
            self.config.seed,
            weights,
            scaffold.weights if isinstance(scaffold, ScaffoldMixture) else {},
        )

    async def produce(self, steps: int, evaluate_every: int = 0) -> None:
        """Runs groups and writes the steps' files until the trainer has trained them all; every so many updates an
        evaluation beside them (0: none). EngineError when the machine ends too many episodes."""
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
                updates = serving["step"]
                if not stop_asked(self.run, self._attempt):  # what runs may still finish; nothing new begins
                    if evaluate_every and 0 < updates < steps and updates % evaluate_every == 0:
                        self.evaluations.begin_beside(running, updates)
                    self._begin_groups(running, serving, steps)
                self._store_steps(updates)
                self.books.book_training()
                await asyncio.sleep(POLL_S)

    def _begin_groups(self, running: asyncio.TaskGroup, serving: dict, steps: int) -> None:
        while (position := self.books.admission.next_position(serving["step"], steps)) is not None:
            drawn = self.order.at(position)
            size = self.config.group_size
            group = self.books.admit(position, drawn.task, serving["version"], size, drawn.scaffold)
            running.create_task(self._train_group(group, drawn))

    def _store_steps(self, updates: int) -> None:
        while stats := self.books.store_step(self._counters()):
            self._standstill.begin()
            admission = self.books.admission
            print(
                f"step {admission.next_step - 1}: {stats['tokens']} tokens, {stats['seconds']:.1f} s; "
                f"groups running or ahead: {len(admission.live)}; vLLM has the weights of step {updates}",
                flush=True,
            )

    async def _train_group(self, group: str, drawn: Drawn) -> None:
        size, way = self.config.group_size, self._training.under(drawn.scaffold)
        self.books.finish(group, await self.groups.run(group, drawn.task, "train", size, way))

    async def evaluate(self, name: str, updates: int, tasks: Sequence[Task] | None = None) -> None:
        """Held-out tasks (None: all) under the weights of so many updates, unless there are none or a former attempt
        has done it; nothing of it is ever trained."""
        if self.evaluations.is_to_do(name):
            await self._guarded(self.evaluations.evaluate(name, updates, tasks=tasks))

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

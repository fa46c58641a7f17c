"""The rollout process: vLLM under supervision, the gateway, groups of episodes, grading, and the ledger. One asyncio loop.

It writes rollouts/step_*.parquet (one file a training step) and rollouts/eval_*.parquet; the trainer answers with
rollouts/step_*.trained.json. Episodes outlive vLLM: while it is restarted their calls wait, then go on.
"""
import asyncio
import json
import random
import secrets
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import aiohttp
from tqdm import tqdm
from transformers import AutoTokenizer

from coderepairrl import store
from coderepairrl.config import Config
from coderepairrl.episode import Services, run_episode
from coderepairrl.errors import ConfigError
from coderepairrl.gateway import Gateway, GatewayConfig, Renderer, SamplingConfig, SessionLimits, VLLMClient
from coderepairrl.ledger import Ledger
from coderepairrl.policy import Server, ServerConfig, Supervisor, read_json
from coderepairrl.rewards import Grader, RewardConfig
from coderepairrl.sandboxes import SandboxConfig, check
from coderepairrl.scaffolds import make_scaffold
from coderepairrl.scaffolds.terminal import TerminalConfig
from coderepairrl.tasks import TasksConfig, load_tasks
from coderepairrl.types import Outcome, Task, Trajectory


class EvaluationConfig(Config):
    samples: int = 1  # episodes a task
    temperature: float = 1.0


class RolloutConfig(Config):
    tasks: TasksConfig
    scaffold: TerminalConfig = TerminalConfig()
    sandbox: SandboxConfig = SandboxConfig()
    server: ServerConfig = ServerConfig()
    gateway: GatewayConfig = GatewayConfig()
    limits: SessionLimits = SessionLimits()
    sampling: SamplingConfig = SamplingConfig()
    rewards: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    chat_template: dict = {}  # arguments of the chat template, the same in training and evaluation
    groups_per_step: int
    group_size: int
    concurrent_episodes: int = 256
    infrastructure_retries: int = 2
    engine_wait_s: float = 600.0  # how long a model call waits for a vLLM that is away
    seed: int = 0


def sampled_tokens(trajectory: Trajectory) -> int:
    return sum(len(call.completion_ids) for call in trajectory.calls)


class Rollout:
    """Use as `async with Rollout(config, run, model, version, attempt) as rollout`."""

    def __init__(self, config: RolloutConfig, run: Path, model: str, version: int, attempt: int):
        self.config, self.run, self.version = config, run, version
        self._model, self._attempt = model, attempt
        self.tasks = load_tasks(config.tasks)
        self.ledger = Ledger(run / "ledger.jsonl")
        self.grader = Grader(config.sandbox)
        self.infrastructure_errors = 0
        self._salt = secrets.token_hex(4)  # KV cache of an older attempt or policy is never reused

    async def __aenter__(self) -> "Rollout":
        config = self.config
        await asyncio.to_thread(check, config.sandbox)
        tokenizer = AutoTokenizer.from_pretrained(self._model)
        server = Server(config.server, self.run, self.run / "logs" / f"attempt_{self._attempt}" / "vllm.log")
        self.client = VLLMClient(server.url, config.engine_wait_s, self.version)
        self.gateway = Gateway(config.gateway, self.client, Renderer(tokenizer, config.chat_template))
        self.supervisor = Supervisor(server, self.client.pause, self._release)
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))
        await self.gateway.start()
        try:
            await self.supervisor.start(self._model, self.version)
        except BaseException:
            await self._close()
            raise
        self._watch = asyncio.create_task(self.supervisor.watch())
        self._services = Services(self.gateway, make_scaffold(config.scaffold), config.sandbox, self.grader, config.rewards, config.limits, self._http)
        return self

    async def __aexit__(self, *_) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._close()

    async def _close(self) -> None:
        await self.gateway.stop()
        await self._http.close()
        await self.client.close()
        await self.supervisor.server.stop()
        self.ledger.close()

    def _release(self, version: int) -> None:
        self.client.initial_version = version
        self.client.resume()

    async def _guarded(self, work):
        """The result of `work`, unless vLLM can't be kept alive: then the supervisor's error."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():  # vLLM is gone for good, or we are cancelled: sandboxes go before the gateway
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            self._watch.result()  # raises
        return task.result()

    async def episode(self, task: Task, split: str) -> Trajectory:
        """One episode of one task, in no ledger and no file: for looking at it (scripts/run_one.py)."""
        sampling = self.config.sampling if split == "train" else SamplingConfig(temperature=self.config.evaluation.temperature)
        return await self._guarded(run_episode(
            self._services, task, trajectory_id="run_one", group_id="run_one", split=split, attempt=0, sampling=sampling,
            cache_salt=f"{self._salt}-{self.version}"))

    def tasks_of(self, step: int) -> list[Task]:
        """The step's tasks: the training split in a new order each epoch; depends on seed and step alone."""
        train, count = self.tasks["train"], self.config.groups_per_step
        if len(train) < count:
            raise ConfigError(f"{len(train)} training tasks for {count} groups a step: load more tasks, or lower groups_per_step")
        per_epoch = len(train) // count
        epoch, place = divmod(step, per_epoch)
        order = random.Random(f"{self.config.seed}-{epoch}").sample(range(len(train)), len(train))
        return [train[i] for i in order[place * count : (place + 1) * count]]

    async def collect(self, step: int) -> None:
        """Runs the groups of one training step and writes their file."""
        started = time.monotonic()
        groups = [(f"a{self._attempt}-s{step}-{i}", task) for i, task in enumerate(self.tasks_of(step))]
        sampling = self.config.sampling
        trajectories = await self._guarded(self._run_groups(groups, self.config.group_size, "train", sampling, f"step {step}"))
        self._store(f"step_{step:05d}", groups, trajectories, time.monotonic() - started)

    async def evaluate(self, name: str) -> None:
        """Held-out tasks; nothing of it is ever trained."""
        started = time.monotonic()
        groups = [(f"a{self._attempt}-eval_{name}-{i}", task) for i, task in enumerate(self.tasks["heldout"])]
        sampling = SamplingConfig(temperature=self.config.evaluation.temperature)
        trajectories = await self._guarded(self._run_groups(groups, self.config.evaluation.samples, "heldout", sampling, f"held-out tasks {name}"))
        self._store(f"eval_{name}", groups, trajectories, time.monotonic() - started)

    async def _run_groups(self, groups: list[tuple[str, Task]], size: int, split: str, sampling: SamplingConfig, title: str) -> list[Trajectory]:
        slots = asyncio.Semaphore(self.config.concurrent_episodes)
        with tqdm(total=len(groups) * size, desc=title, unit="episode", leave=False) as bar:
            async def episode(group: str, task: Task, number: int) -> Trajectory:
                async with slots:
                    trajectory = await self._with_retries(group, task, number, split, sampling)
                bar.update()
                return trajectory
            async with asyncio.TaskGroup() as running:
                jobs = []
                for group, task in groups:
                    self.ledger.write("admitted", group, task=task.task_id, split=split, version=self.version, episodes=size)
                    jobs += [running.create_task(episode(group, task, number)) for number in range(size)]
        return [job.result() for job in jobs]

    async def _with_retries(self, group: str, task: Task, number: int, split: str, sampling: SamplingConfig) -> Trajectory:
        for attempt in range(self.config.infrastructure_retries + 1):
            trajectory = await run_episode(
                self._services, task, trajectory_id=f"{group}-{number}", group_id=group, split=split, attempt=attempt, sampling=sampling,
                cache_salt=f"{self._salt}-{self.version}")
            if trajectory.outcome != Outcome.INFRASTRUCTURE_ERROR:
                break
            self.infrastructure_errors += 1
            last = attempt == self.config.infrastructure_retries
            self.ledger.write("infrastructure_error", group, trajectory=trajectory.trajectory_id, attempt=attempt, detail=trajectory.outcome_detail,
                              tokens=0 if last else sampled_tokens(trajectory))  # the last attempt's tokens are in the file, and masked
        return trajectory

    def _store(self, name: str, groups: list[tuple[str, Task]], trajectories: list[Trajectory], seconds: float) -> None:
        outcomes = Counter(str(t.outcome) for t in trajectories)
        counted = [t for t in trajectories if t.outcome != Outcome.INFRASTRUCTURE_ERROR]
        stats = {
            "seconds": seconds, "version": self.version, "reward": fmean(t.reward for t in counted) if counted else 0.0,
            "pass_rate": fmean(bool(t.verdict and t.verdict.resolved) for t in counted) if counted else 0.0,
            "outcomes": outcomes, "parts": {part: fmean(t.rewards[part] for t in counted) for part in self.config.rewards.weights} if counted else {},
            "calls": fmean(len(t.calls) for t in trajectories), "tokens": sum(map(sampled_tokens, trajectories)),
            "generation_s": fmean(t.stats["generation_s"] for t in trajectories), "grading_s": fmean(t.stats["grading_s"] for t in trajectories),
            "infrastructure_errors": self.infrastructure_errors, "engine_restarts": self.supervisor.restarts, "gateway": self.gateway.counters,
            "gradings_run": self.grader.runs, "gradings_remembered": self.grader.hits}
        path = self.run / "rollouts" / f"{name}.parquet"
        digest = store.write_temporary(path, trajectories, stats)
        for group, _ in groups:
            members = [t for t in trajectories if t.group_id == group]
            self.ledger.write("finished", group, outcomes=[str(t.outcome) for t in members], sampled=sum(map(sampled_tokens, members)))
            self.ledger.write("graded", group, rewards=[t.reward for t in members], file=path.name, sha256=digest)
            if members[0].split == "heldout":
                self.ledger.write("dropped", group, reason="evaluation", tokens=sum(map(sampled_tokens, members)))
        store.publish(path)  # last: a file that the trainer or a later attempt sees is in the books

    async def await_update(self, step: int) -> None:
        """Waits until the trainer has trained the step and its weights are live (restarts vLLM where the update failed), and books it."""
        answer, restarts = self.run / "rollouts" / f"step_{step:05d}.trained.json", self.supervisor.restarts
        while not answer.exists():
            await self._guarded(asyncio.sleep(0.02))
        report = json.loads(answer.read_text())
        current = read_json(self.run / "policy" / "current.json")
        if not current["live"] or self.supervisor.restarts != restarts:  # a server that came back meanwhile may have loaded the older export
            await self._guarded(self.supervisor.ensure(current["version"]))
        self.version = current["version"]
        for group, tokens in report["groups"].items():
            self.ledger.write("trained", group, step=step, trained=tokens["trained"], masked=tokens["masked"])

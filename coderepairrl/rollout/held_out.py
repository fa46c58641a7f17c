"""The rollout process's part in an evaluation (evaluations.py): its episodes, beside training or alone; its file."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from coderepairrl.errors import EngineError
from coderepairrl.gateway import SamplingConfig
from coderepairrl.inference.supervisor import POLL_S
from coderepairrl.rollout.buffer import MIXTURES, Books
from coderepairrl.rollout.evaluations import Pass, is_done, name_of, passes
from coderepairrl.rollout.groups import Groups, Way
from coderepairrl.rollout.infrastructure import detail_of, refuse_broken
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.run import inputs, skill
from coderepairrl.scaffolds import ScaffoldMixture
from coderepairrl.scaffolds.retry import Retry
from coderepairrl.types import HELD_OUT, Task, Trajectory
from coderepairrl.weights.probe import unproven_versions

Members = dict[str, list[Trajectory]]  # group -> its episodes


class HeldOut:
    """Evaluates `tasks`, of a run that trains or of one that only evaluates.

    counters: of the whole attempt, for the stats of a file that is written.
    """

    def __init__(
        self,
        config: RolloutConfig,
        run: Path,
        tasks: Sequence[Task],
        groups: Groups,
        books: Books,
        counters: Callable[[], dict],
        trains: bool,
    ):
        self.tasks = tasks
        self._config, self._run, self._groups, self._books = config, run, groups, books
        self._counters, self._trains = counters, trains
        self._beside: asyncio.Task | None = None  # the latest evaluation beside training
        self._looked_at = 0  # updates in the weights for which an evaluation was begun, or left out

    def begin_beside(self, running: asyncio.TaskGroup, updates: int) -> None:
        """Begins the evaluation of the weights that serve now. While the one before is still running it is left out:
        when that is over, these weights are gone, and a number under their name would be another's."""
        if self._looked_at == updates:
            return
        self._looked_at = updates
        if not self.is_to_do(name_of(updates)):
            return
        if self._beside is None or self._beside.done():
            self._beside = running.create_task(self.evaluate(name_of(updates), updates, self._config.evaluation.share))
        else:
            print(
                f"step {updates} is not evaluated, the evaluation before is still running: take a larger "
                "training.evaluate_every, or fewer rollout.evaluation.tasks",
                flush=True,
            )

    def is_to_do(self, name: str) -> bool:
        return bool(self.tasks) and not is_done(self._run, name)

    async def evaluate(
        self, name: str, updates: int, share: float | None = None, tasks: Sequence[Task] | None = None
    ) -> None:
        """Under the weights of so many updates. share: of the places for episodes that it may take; None: it is
        alone. tasks: a part of them; None: all."""
        while self._groups.supervisor.serving["step"] < updates:
            await asyncio.sleep(POLL_S)
        most = self._config.concurrent_episodes
        places = asyncio.Semaphore(max(1, int(share * most))) if share else nullcontext()
        own = passes(name, self._config.evaluation, self._groups.services.scaffold.calls_model)
        async with asyncio.TaskGroup() as running:
            jobs = [running.create_task(self._pass(one, self.tasks if tasks is None else tasks, places)) for one in own]
        done = {one.name: job.result() for one, job in zip(own, jobs, strict=True)}
        if self._sampled_unproven(name, done, beside=share is not None):
            return
        for one, members in done.items():
            stats = {"evaluation": {"step": updates} | _numbers(done, name)} if one == name else {}
            used = {"inputs": inputs.of_evaluation(self._run / inputs.RECORD)}
            self._books.store_evaluation(one, members, self._counters() | stats | used)
        if self._trains:  # elsewhere it is one part of many
            refuse_broken(f"evaluation {name}", [detail_of(t) for t in _all(done[name])])

    def way(self, sampling: SamplingConfig, task: Task, forced: bool = False) -> Way:
        """Of a task: in a mixture of scaffolds, each has one. forced: to go on after a submission that fails."""
        turns = self._config.evaluation.max_turns or self._config.limits.max_turns
        services = self._groups.services
        way = Way(sampling, self._config.limits.model_copy(update={"max_turns": turns}), services.scaffold)
        if isinstance(services.scaffold, ScaffoldMixture):
            way = way.under(services.scaffold.name_for(task))
        return replace(way, scaffold=Retry(way.scaffold, services.grader)) if forced else way

    async def _pass(self, own: Pass, tasks: Sequence[Task], places: AbstractAsyncContextManager) -> Members:
        """places: for so many episodes at a time."""
        version = self._groups.supervisor.serving["version"]
        groups = {
            self._books.admit_evaluation(own.name, i, task, version, own.samples): task for i, task in enumerate(tasks)
        }
        ways = {group: self.way(own.sampling, task, own.forced) for group, task in groups.items()}
        async with asyncio.TaskGroup() as running:
            jobs = {
                group: running.create_task(self._groups.run(group, task, HELD_OUT, own.samples, ways[group], places))
                for group, task in groups.items()
            }
        return {group: job.result() for group, job in jobs.items()}

    def _sampled_unproven(self, name: str, done: dict[str, Members], beside: bool) -> bool:
        """Whether weights that failed their probe have sampled a part of it: beside training, which goes on without it,
        it is dropped. EngineError elsewhere."""
        wrong = unproven_versions(self._run) & _versions(t for members in done.values() for t in _all(members))
        if not wrong:
            return False
        if not beside:
            raise EngineError(
                f"the evaluation {name!r} was sampled in part under version {min(wrong)}, whose weights "
                "failed their probe: the same command evaluates again"
            )
        for members in done.values():
            self._books.drop_evaluation(members)
        print(
            f"the evaluation {name!r} is dropped: version {min(wrong)}, which failed its probe, sampled a part of it",
            flush=True,
        )
        return True


def _numbers(done: dict[str, Members], name: str) -> dict:
    """Of the evaluation of that name: stats["evaluation"], but for the step."""
    own, greedy = _all(done[name]), _all(done.get(f"{name}_greedy", {}))
    found = {"versions": sorted(_versions(own))} | _skill(own, greedy)
    for mixture, one in MIXTURES.items():
        parts = sorted({getattr(t, one) for t in own} - {""})
        of = lambda members, part, one=one: [t for t in members if getattr(t, one) == part]
        found |= {mixture: {part: _skill(of(own, part), of(greedy, part)) for part in parts}} if parts else {}
    return found


def _skill(own: Sequence[Trajectory], greedy: Sequence[Trajectory]) -> dict:
    return skill.numbers(skill.episodes(own)) | skill.rate("greedy", skill.resolved(skill.episodes(greedy)))


def _all(members: Members) -> list[Trajectory]:
    return [trajectory for own in members.values() for trajectory in own]


def _versions(trajectories: Iterable[Trajectory]) -> set[int]:
    return set().union(*(t.policy_versions for t in trajectories))

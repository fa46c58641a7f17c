"""Groups of episodes: so many at once, and each again when the machine broke."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace

from coderepairrl.gateway import SamplingConfig, SessionLimits
from coderepairrl.inference.supervisor import NoServer, Supervisor
from coderepairrl.rollout.episode import Services, run_episode
from coderepairrl.rollout.infrastructure import InfrastructureErrors
from coderepairrl.rollout.ledger import Ledger
from coderepairrl.rollout.rollout_config import RolloutConfig
from coderepairrl.scaffolds import Scaffold, ScaffoldMixture
from coderepairrl.types import Outcome, Task, Trajectory


@dataclass(frozen=True)
class Way:
    """What training and the passes of an evaluation differ in."""

    sampling: SamplingConfig
    limits: SessionLimits
    scaffold: Scaffold
    named: str = ""  # its name in a mixture, which trajectories, ledger and metrics say

    def under(self, name: str) -> "Way":
        """With this one of a mixture of scaffolds; "" where there is none."""
        if not name:
            return self
        assert isinstance(self.scaffold, ScaffoldMixture)
        return replace(self, scaffold=self.scaffold.members[name], named=name)


class Groups:
    """Of one attempt. salt: of the KV cache, so that an older attempt's is never reused."""

    def __init__(
        self,
        config: RolloutConfig,
        services: Services,
        supervisor: Supervisor | NoServer,
        ledger: Ledger,
        errors: InfrastructureErrors,
        salt: str,
    ):
        self.services, self.supervisor = services, supervisor
        self._retries, self._salt = config.infrastructure_retries, salt
        self._ledger, self._errors = ledger, errors
        self._slots = asyncio.Semaphore(config.concurrent_episodes)

    async def run(
        self,
        group: str,
        task: Task,
        split: str,
        size: int,
        way: Way,
        places: AbstractAsyncContextManager = nullcontext(),
    ) -> list[Trajectory]:
        """places: of which each episode takes one, beside those of all. EngineError when too many episodes end as
        infrastructure errors."""

        async def one(number: int) -> Trajectory:
            async with places, self._slots:
                return await self._with_retries(group, task, number, split, way)

        async with asyncio.TaskGroup() as running:
            jobs = [running.create_task(one(number)) for number in range(size)]
        return [job.result() for job in jobs]

    async def _with_retries(self, group: str, task: Task, number: int, split: str, way: Way) -> Trajectory:
        for attempt in range(self._retries + 1):
            trajectory = await self.episode(group, task, f"{group}-{number}", split, attempt, way)
            if trajectory.outcome != Outcome.INFRASTRUCTURE_ERROR:
                break
            self._errors.tried(trajectory.outcome_detail)
            # the last attempt's tokens are in the file, and masked
            tokens = 0 if attempt == self._retries else trajectory.sampled_tokens
            self._ledger.write(
                "infrastructure_error",
                group,
                trajectory=trajectory.trajectory_id,
                attempt=attempt,
                detail=trajectory.outcome_detail,
                tokens=tokens,
            )
        self._errors.ended(trajectory)
        return trajectory

    async def episode(
        self, group: str, task: Task, trajectory_id: str, split: str, attempt: int, way: Way
    ) -> Trajectory:
        """One try, whatever becomes of it; in no ledger."""
        return await run_episode(
            replace(self.services, scaffold=way.scaffold, limits=way.limits),
            task,
            trajectory_id=trajectory_id,
            group_id=group,
            split=split,
            attempt=attempt,
            scaffold=way.named,
            sampling=way.sampling,
            # nor is the cache of an older policy reused, by a new episode
            cache_salt=f"{self._salt}-{self.supervisor.serving['version']}",
        )

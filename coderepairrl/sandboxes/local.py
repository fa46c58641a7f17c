"""The sandbox that isolates nothing: the user's own machine, files and network. For machines without bubblewrap, and
only by
name. Limits per process and the time limit hold; a process that leaves its group outlives its command."""

import functools
import logging
import shutil
from pathlib import Path

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.checkout import Checkout
from coderepairrl.sandboxes.protocol import CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.running import spawn, supervise
from coderepairrl.sandboxes.templates import SandboxFolder, Store
from coderepairrl.types import Task

log = logging.getLogger(__name__)


class LocalSandbox(Checkout):
    network = True

    @staticmethod
    def check(config: SandboxConfig, root: Path) -> None:
        """Nothing to check: the shared tools were."""

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "LocalSandbox":
        _warn_once()
        if task.environment.image:
            raise SandboxError(
                f"environment {task.environment.name} is an image: kind 'local' runs in none: set sandbox.kind to "
                "apptainer or bubblewrap"
            )
        return cls(config, task, await store.copy(task, owner=None, overlay=False))

    def __init__(self, config: SandboxConfig, task: Task, live: SandboxFolder):
        super().__init__(config, task, live, owner=None, inside=str(live.folder / "checkout"))

    def _inside(self, shared: Path) -> str:
        return str(shared)

    async def _execute(self, argv: list[str], timeout_s: float, variables: dict[str, str | None]) -> CommandResult:
        c = self.config
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        limits = [
            shutil.which("prlimit"),
            f"--data={c.memory_mib << 20}",
            f"--fsize={c.file_size_mib << 20}",
            "--core=0",
            "--",
        ]
        process = await spawn(
            [*limits, *argv],
            environment=command_variables(self.task.environment, str(home), variables),
            cwd=str(self.root),
        )
        return await supervise(
            process, timeout_s=timeout_s, output_bytes=c.output_kib << 10, watched=[self._disk_overused]
        )


@functools.cache
def _warn_once() -> None:
    log.warning("sandbox kind 'local' isolates nothing: agents and tests run as you, on your files, with your network")

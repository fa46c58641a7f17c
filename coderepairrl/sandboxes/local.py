"""The sandbox that isolates nothing: the user's own machine, files and network. For machines without bubblewrap, and only by
name. Limits per process and the time limit hold; a process that leaves its group outlives its command."""
import functools
import logging
import shutil
from pathlib import Path

from coderepairrl.sandboxes.base import CommandResult, SandboxConfig, command_variables
from coderepairrl.sandboxes.process import spawn, supervise
from coderepairrl.sandboxes.workspace import Checkout, Store
from coderepairrl.types import Task

log = logging.getLogger(__name__)


class LocalSandbox(Checkout):
    @staticmethod
    def check(config: SandboxConfig, root: Path) -> None:
        """Nothing to check: the shared tools were."""

    @classmethod
    async def start(cls, config: SandboxConfig, store: Store, task: Task) -> "LocalSandbox":
        _warn_once()
        return cls(config, task, await store.copy(task, owner=None), owner=None)

    def __init__(self, config: SandboxConfig, task: Task, folder: Path, owner: int | None):
        super().__init__(config, task, folder, owner, inside=str(folder / "checkout"))

    def _inside(self, shared: Path) -> str:
        return str(shared)

    async def _execute(self, argv: list[str], timeout_s: float, variables: dict[str, str]) -> CommandResult:
        c = self.config
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        limits = [shutil.which("prlimit"), f"--data={c.memory_mib << 20}", f"--fsize={c.file_size_mib << 20}", "--core=0", "--"]
        process = await spawn([*limits, *argv], environment=command_variables(self.task.environment, str(home)) | variables, cwd=str(self.root))
        return await supervise(process, timeout_s=timeout_s, output_bytes=c.output_kib << 10)


@functools.cache
def _warn_once() -> None:
    log.warning("sandbox kind 'local' isolates nothing: agents and tests run as you, on your files, with your network")

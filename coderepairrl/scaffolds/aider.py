"""aider 0.86.2 (aider-chat): RepoMap, its edit formats, its loop, as they are shipped; aider_driver.py says what is
switched off and why.

Aider rewrites its history: files that are added and edits that are made change what comes before. Each such call is a
new root of the tree of calls.
It runs through a fork server (fork_server.py), which has imported it once; in the sandbox that isolates nothing, as a
process of its own.
"""

import asyncio
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from coderepairrl.config import Config
from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.errors import CodeRepairError, GatewayError, SandboxError
from coderepairrl.lines import one_line
from coderepairrl.processes import cause
from coderepairrl.sandboxes import CommandResult, Sandbox, seccomp
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.scaffolds.inside import aider_driver, fork_client, fork_server
from coderepairrl.scaffolds.installation import Installation, lock
from coderepairrl.scaffolds.process_scaffold import TAIL_CHARS, AgentPlace, Command, ProcessScaffold
from coderepairrl.scaffolds.repo_map import IN_HOME, RepoMapCache
from coderepairrl.types import Task

MAP_S = 600.0  # for RepoMap to read a large checkout
START_S = 120.0  # for the fork server's imports, on a busy machine
VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "AIDER_ANALYTICS": "false",
    "BROWSER": "/bin/true",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "200",
}


class AiderConfig(Config):
    """aider, unmodified, in a process of its own."""

    name: Literal["aider"] = "aider"
    edit_format: Literal["diff", "whole", "udiff"] = "diff"  # in which the model writes its changes
    # in the chat from the start; else the model asks for those that it wants to change, as RepoMap shows them
    files: tuple[str, ...] = ()
    map_tokens: int = Field(1024, ge=0)  # of RepoMap; 0: none
    map_multiplier: int = Field(2, ge=1)  # of map_tokens, while no file is in the chat
    # further model calls for files that were asked for and edits that did not apply
    max_reflections: int = Field(3, ge=0)
    # of the message: a problem statement that began with / or ! would be a command
    opening: str = "Resolve this issue:"
    # aider's own, by the name of aider's attribute: main_system, system_reminder, example_messages ...
    prompts: dict[str, str | list[dict[str, str]]] = {}
    # where aider repeats the format's rules: at the end of the last message, or as a message of their own
    reminder: Literal["user", "sys"] = "user"
    fork_server: bool = True  # episodes are forked from one process that has aider imported; false: each starts its own


class Aider(ProcessScaffold):
    installation = Installation("aider", lock("aider.txt"))

    def __init__(self, config: AiderConfig):
        self.config = config
        self.server: ForkServer | None = None
        self.repo_map: RepoMapCache | None = None

    async def prepare(self, config: EnvironmentsConfig) -> None:
        await super().prepare(config)
        self.repo_map = RepoMapCache()
        if self.config.fork_server:
            self.server = ForkServer(self.installed.python)
            await self.server.start()

    async def close(self) -> None:
        if self.server is not None:
            await self.server.stop()
        if self.repo_map is not None:
            self.repo_map.close()

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        if self.server is not None:
            await self.server.keep()
        await super().run(task, sandbox, endpoint)

    async def before(self, task: Task, sandbox: Sandbox, home: Path, command: Command) -> None:
        # the few files of an embedded task are read faster than copied
        if self.config.map_tokens and task.environment.base is not None:
            await self.repo_map.give(task, home, partial(self._read_all, sandbox, command))

    async def _read_all(self, sandbox: Sandbox, command: Command) -> None:
        """RepoMap reads the whole checkout into its cache; nothing of the agent runs yet."""
        home = os.path.dirname(command.argv[-1])
        result = await sandbox.run(
            [*command.argv[:-1], f"{home}/map.json"], timeout_s=MAP_S, variables={"HOME": home} | command.variables
        )
        if result.exit_code:
            raise self.failed(result)

    def failed(self, result: CommandResult) -> CodeRepairError:
        """A model that could not be asked, and a fork that could not start, are no failures of the agent."""
        said = one_line(result.output[-TAIL_CHARS:])
        if result.exit_code == aider_driver.NO_ANSWER:
            return GatewayError(f"aider got no answer from the gateway: {said}")
        if result.exit_code == fork_server.BROKEN and self.server is not None:
            return SandboxError(f"aider could not be started: {said}")
        return super().failed(result)

    def command(self, task: Task, place: AgentPlace) -> Command:
        job = self.config.model_dump(exclude={"name", "opening", "fork_server"}) | {
            "workdir": place.workdir,
            "cache": f"{place.home}/{IN_HOME}",
            "message": f"{self.config.opening}\n\n{task.problem_statement}",
        }
        variables = VARIABLES | {"OPENAI_API_BASE": place.base_url}
        files = {"job.json": json.dumps(job), "map.json": json.dumps(job | {"message": None})}
        if self.server is None or not place.isolated:
            return Command(
                [place.python, "-s", "-P", f"{place.home}/driver.py", f"{place.home}/job.json"],
                variables,
                files | {"driver.py": Path(aider_driver.__file__).read_text()},
            )
        return Command(
            [place.python, "-I", "-S", f"{place.home}/client.py", str(self.server.socket), f"{place.home}/job.json"],
            variables,
            files | {"client.py": Path(fork_client.__file__).read_text()},
            shown=(str(self.server.socket.parent),),
        )


class ForkServer:
    """The process, and the folder of its socket. It ends with this program, however that ends: its standard input is
    then closed."""

    def __init__(self, python: str):
        self.python = python
        self._starting = asyncio.Lock()

    async def keep(self) -> None:
        """Starts another where the process has ended: what killed it, an operator or the machine, is no task's
        failure."""
        async with self._starting:
            if self.process.returncode is not None:
                await self.stop()
                await self.start()

    async def start(self) -> None:
        """Seconds. Raises SandboxError when it does not come up."""
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="coderepairrl-aider-")
            os.chmod(self._folder.name, 0o755)  # it is shown to sandboxes, which run as another user
            self.socket = Path(self._folder.name, "socket")
            environment = VARIABLES | {
                "PATH": os.environ["PATH"],
                "HOME": self._folder.name,
                "LANG": "C.UTF-8",
                "OPENAI_API_KEY": "none",
            }
            rules = Path(self._folder.name, "filter")
            rules.write_bytes(seccomp.program())
            self._log = open(Path(self._folder.name, "log"), "w+b")
            self.process = await asyncio.create_subprocess_exec(
                self.python,
                "-s",
                "-P",
                fork_server.__file__,
                str(self.socket),
                aider_driver.__file__,
                str(rules),
                env=environment,
                cwd="/",
                start_new_session=True,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log,
            )
        except OSError as error:  # between episodes, too: `keep`
            raise SandboxError(
                f"aider's fork server could not be started ({error}): free processes, memory, file descriptors or space"
            ) from error
        try:
            said = await asyncio.wait_for(self.process.stdout.readline(), START_S)
        except TimeoutError:
            said = b""
        if said != b"ready\n":
            self._log.seek(0)
            why = cause.of_text(self._log.read().decode(errors="replace"))
            await self.stop()
            raise SandboxError(
                f"aider's fork server does not start ({why or 'no word from it'}): look at the cause, or set "
                "scaffold.fork_server=false"
            )

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self._log.close()
        self._folder.cleanup()

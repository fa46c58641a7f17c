"""Agents that are programs: started inside the task's sandbox, which has no network but the gateway's socket.

A subclass says what is started (`command`) and what must be installed for it (`installation`); the rest is the same for
all. The agent works in the checkout. Its home is a folder beside it, so that nothing of it is in the diff. A small
relay, relay.py, makes the socket 127.0.0.1:PORT for it.

How it ends: the agent exits; or the gateway closes the session, at which agents stop by themselves, and one that
doesn't is killed; or the episode is cancelled. Each time the sandbox ends everything that the agent has started. The
limits are the gateway's and the sandbox's; there are no others.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from coderepairrl.environments import EnvironmentsConfig
from coderepairrl.environments.copies import find
from coderepairrl.errors import CodeRepairError, ConfigError, ScaffoldError
from coderepairrl.lines import one_line
from coderepairrl.sandboxes import CommandResult, Sandbox
from coderepairrl.scaffolds.endpoint import Endpoint
from coderepairrl.scaffolds.inside import relay
from coderepairrl.scaffolds.installation import Installation, Installed, install
from coderepairrl.types import Task

PORT = 61001  # inside a sandbox: above the ports that programs are given by the kernel
MODEL = "policy"  # the gateway takes any name
GRACE_S = 5.0  # for an agent to end by itself once its session is closed
POLL_S = 0.25  # between two looks at whether the session is closed
LONGEST_S = 24 * 3600.0  # of an agent whose session has no deadline; where it has one, the gateway closes it
TAIL_CHARS = 600  # of its output, in the error


@dataclass(frozen=True)
class AgentPlace:
    """What an agent is told. All paths are those that it sees."""

    base_url: str  # ends with /v1
    api_key: str
    model: str
    workdir: str  # the checkout, its working directory
    home: str  # its own folder, empty but for `Command.files`
    installed: Installed
    isolated: bool = True  # False in the sandbox kind that isolates nothing

    @property
    def python(self) -> str:
        """Of its installation."""
        return self.installed.python


@dataclass(frozen=True)
class Command:
    argv: list[str]
    # besides the sandbox's own, HOME, OPENAI_BASE_URL and OPENAI_API_KEY
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # path below its home -> text, written before it starts
    shown: tuple[str, ...] = ()  # more files and folders of this machine that it sees, read-only, at the same path


class ProcessScaffold(ABC):
    """One object for all episodes. `prepare` once, before the first."""

    calls_model = True
    installation: Installation

    @abstractmethod
    def command(self, task: Task, place: AgentPlace) -> Command:
        """What is started for one episode."""

    async def prepare(self, config: EnvironmentsConfig) -> None:
        """What episodes need. Raises BuildError."""
        await self.install(config)

    async def install(self, config: EnvironmentsConfig) -> None:
        """What is not installed yet. Raises BuildError."""
        self.installed = await install(self.installation, config)

    async def refuses(self, task: Task) -> str:
        """Why the agent can't be given this task: its own environment, which it needs and can read, holds the task's
        project in some version, so that a repair could be copied. "" where it doesn't. To be installed before."""
        if task.environment.base is None:  # no checkout, no project
            return ""
        found = await asyncio.to_thread(find, task.environment.base, (str(self.installed.folder),))
        if not found:
            return ""
        return (
            f"{task.task_id}: the environment of scaffold {self.installation.name} holds {found[0]}, which is the "
            "project in another version, so that the agent could copy the repair: use another scaffold for this task, "
            "such as terminal, which has no environment of its own"
        )

    async def close(self) -> None:
        """After the last episode."""

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Endpoint) -> None:
        home, inside = sandbox.share("agent")
        # of the sandbox kind that isolates nothing: agents on one machine can't all have one port
        direct = sandbox.network
        base_url = endpoint.base_url if direct else f"http://127.0.0.1:{PORT}/v1"
        command = self.command(
            task, AgentPlace(base_url, endpoint.api_key, MODEL, sandbox.inside, inside, self.installed, not direct)
        )
        argv, shown = command.argv, [*self.installed.shown, *command.shown]
        if not direct:
            if endpoint.socket_path is None:
                raise ConfigError(
                    "an agent that is a program needs a gateway with a socket: give Gateway a socket_path"
                )
            shown.append(str(endpoint.socket_path.parent))
            argv = [
                self.installed.python,
                "-I",
                "-S",
                f"{inside}/relay.py",
                str(endpoint.socket_path),
                str(PORT),
                "--",
                *argv,
            ]
            await asyncio.to_thread(_write, home, {"relay.py": Path(relay.__file__).read_text()})
        await asyncio.to_thread(_write, home, command.files)
        for path in shown:
            sandbox.show(path)
        variables = {
            "HOME": inside,
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": endpoint.api_key,
        } | command.variables
        await self.before(task, sandbox, home, command)
        result = await _until_closed(sandbox.run(argv, timeout_s=LONGEST_S, variables=variables), endpoint)
        if result is not None and result.exit_code and not endpoint.closed():
            raise self.failed(result)

    async def before(self, task: Task, sandbox: Sandbox, home: Path, command: Command) -> None:
        """What is done in the sandbox before the agent starts, when its home is written."""

    def failed(self, result: CommandResult) -> CodeRepairError:
        """What an exit code that is not 0 means."""
        return ScaffoldError(
            f"the agent ended with exit code {result.exit_code}: {one_line(result.output[-TAIL_CHARS:])}"
        )


def _write(folder: Path, files: dict[str, str]) -> None:
    """Readable for the sandbox's user; its folders are writable for it."""
    for name, text in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            if not (folder / parent).exists():
                (folder / parent).mkdir()
                (folder / parent).chmod(0o777)
        path.write_text(text)
        path.chmod(0o666)


async def _until_closed(work, endpoint: Endpoint) -> CommandResult | None:
    """The result, or None where the session was closed and the agent did not end by itself. Nothing of it runs
    afterwards."""
    running = asyncio.ensure_future(work)
    try:
        while not endpoint.closed():
            if (await asyncio.wait([running], timeout=POLL_S))[0]:
                return running.result()
        if (await asyncio.wait([running], timeout=GRACE_S))[0]:
            return running.result()
        running.cancel()
        await asyncio.wait([running])
        # which raises where the sandbox could not be ended: it may still write
        return None if running.cancelled() else running.result()
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait([running])

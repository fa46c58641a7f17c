"""Running one process: bounded output, a deadline, a watchdog, and nothing left behind when it is cancelled."""

import asyncio
import functools
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from coderepairrl.errors import SandboxError
from coderepairrl.sandboxes.protocol import CommandResult

WATCH_INTERVAL_S = 0.5
WATCHERS = 8  # threads that look at limits
DRAIN_S = 2.0  # how long output may take to end once every process of the command was killed
END_S = 30.0  # how long the kernel may take to end a killed pid namespace


class HeadTail:
    """Keeps the first and the last half of `limit` bytes of a stream of any length."""

    def __init__(self, limit: int):
        self.half, self.head, self.tail, self.total = limit // 2, bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 4 * self.half + 65536:  # trimmed rarely, so that a long stream costs linear time
            del self.tail[: -self.half]

    def text(self) -> str:
        tail = self.tail[-self.half :]
        cut = self.total - len(self.head) - len(tail)
        middle = f"\n[... {cut} bytes cut ...]\n" if cut else ""
        return self.head.decode(errors="replace") + middle + tail.decode(errors="replace")


class Pipe:
    """Its two ends; `given` when what writes to it has the one: a block ends with both closed."""

    def __enter__(self) -> "Pipe":
        self.read_end, self.write_end = os.pipe()
        return self

    def given(self) -> None:
        os.close(self.write_end)
        self.write_end = -1

    def __exit__(self, *_) -> None:
        os.close(self.read_end)
        if self.write_end >= 0:
            os.close(self.write_end)


async def spawn(
    argv: list[str],
    *,
    environment: dict[str, str],
    cwd: str,
    stdin: int = asyncio.subprocess.DEVNULL,
    pass_fds: tuple[int, ...] = (),
) -> asyncio.subprocess.Process:
    """Own session, stderr in stdout. Raises SandboxError when the machine cannot start a process."""
    return await _start(
        argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        cwd=cwd,
        pass_fds=pass_fds,
    )


async def _start(argv: list[str], **keywords) -> asyncio.subprocess.Process:
    """A process in a session of its own. A cancellation meanwhile kills its whole group: asyncio by itself would kill
    the leader only,
    and a child that bubblewrap has just forked would wait for it for ever."""
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*argv, start_new_session=True, **keywords))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if starting.exception() is None:
            kill_group(starting.result().pid)
            await starting.result().wait()
        raise
    except OSError as error:
        raise SandboxError(
            f"{argv[0]} could not be started ({error}): free processes, memory or file descriptors"
        ) from error


async def supervise(
    process: asyncio.subprocess.Process,
    *,
    timeout_s: float,
    output_bytes: int,
    watched: Sequence[Callable[[], str]] = (),
    end: Callable[[int], None] | None = None,
) -> CommandResult:
    """Waits for `process`; kills its whole process group at the deadline, on cancellation, when one of `watched` names
    a reason, and when its leader ends before its children do. The caller answers for children that left the group.
    `watched` are asked in threads, each by itself: what one looks at may be large, and this program's loop stands for
    no agent's sake. `end(pid)` takes the kill's place; the process must end by it."""
    started = time.monotonic()
    output = HeadTail(output_bytes)
    reader = asyncio.create_task(_read(process, output))
    timed_out, reason = False, ""
    ended = asyncio.ensure_future(process.wait())
    watching = [asyncio.create_task(_watch(look)) for look in watched]
    try:
        done, _ = await asyncio.wait([ended, *watching], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        timed_out = not done
        if ended not in done:
            reason = next((look.result() for look in watching if look in done), "")
    finally:
        for look in watching:
            look.cancel()
        (end or kill_group)(process.pid)
        await ended
        if watching:
            await asyncio.wait(watching)  # its thread looks at what its caller is about to close and to remove
        await asyncio.wait([reader], timeout=DRAIN_S)
        reader.cancel()  # of no effect unless a child outside the group still holds the pipe
    text, exit_code = output.text(), process.returncode
    if timed_out:
        text, exit_code = text + f"\n[killed: time limit of {timeout_s:g} s]\n", 124
    elif reason:
        text, exit_code = text + f"\n[killed: {reason}]\n", 137
    return CommandResult(exit_code if exit_code >= 0 else 128 - exit_code, text, timed_out, time.monotonic() - started)


async def _watch(look: Callable[[], str]) -> str:
    """Asks until there is a reason."""
    while True:
        await asyncio.sleep(WATCH_INTERVAL_S)
        if reason := await in_thread(look, pool=_watchers()):
            return reason


@functools.cache
def _watchers() -> ThreadPoolExecutor:
    """Threads of their own: what else this program does in threads, for other sandboxes, delays no limit."""
    return ThreadPoolExecutor(WATCHERS, "watch")


def kill_group(leader: int) -> None:
    """SIGKILL to the session that `spawn` made; its leader's pid is its group's id."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:  # all of it ended by itself
        return


async def capture(
    argv: list[str], *, environment: dict[str, str], cwd: str, stdin: bytes = b""
) -> tuple[int, bytes, bytes]:
    """A trusted helper (git, cp) to its end: (exit code, stdout, stderr)."""
    process = await _start(
        argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=cwd,
    )
    try:
        out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            kill_group(process.pid)
            await process.wait()
    return process.returncode, out, err


async def in_thread(function: Callable, *arguments, pool: ThreadPoolExecutor | None = None):
    """Like asyncio.to_thread, but a cancellation waits for the thread: what it writes must not come after the
    clean-up."""
    work = asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def gone(pid: int) -> None:
    """Returns when `pid` has ended. For the first process of a pid namespace that means: every process in it has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _read(process: asyncio.subprocess.Process, output: HeadTail) -> None:
    while data := await process.stdout.read(1 << 16):
        output.add(data)

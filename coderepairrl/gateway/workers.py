"""The gateway in several processes, for more calls a second than one core reads and tokenises.

A session lives in one of them, the one with the fewest sessions when it was opened; its address is its agent's. The
processes share nothing: each has its sockets, its tokenizer and its clients of vLLM. The rollout process opens and
closes sessions over a pipe to each and hears when one closed. A process that ends early is the end of the run, as the
rollout process itself would be.
"""

import asyncio
import atexit
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coderepairrl.errors import GatewayError
from coderepairrl.gateway.gateway import SHUTDOWN_S, Gateway, GatewayConfig, new_key
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.session_limits import SamplingConfig, SessionLimits
from coderepairrl.gateway.vllm_client import VLLMClient
from coderepairrl.gateway.worker import serve, whole
from coderepairrl.types import Call, Outcome

START_S = 120.0  # until a process listens: it imports transformers and reads a tokenizer, from a slow disk it may be
END_S = SHUTDOWN_S + 8.0  # for answers that are being written, then it is killed


def make_gateway(
    config: GatewayConfig,
    urls: Sequence[str],
    wait_s: float,
    make_renderer: Callable[[], Renderer | None],
    socket_path: Path | None = None,
) -> "Gateway | Workers":
    """Before the vLLM servers at `urls`. make_renderer is called in each process: a function that can be pickled, if
    there are several."""
    if config.processes > 1:
        return Workers(config, urls, wait_s, make_renderer, socket_path)
    return Gateway(config, [VLLMClient(url, wait_s) for url in urls], make_renderer(), socket_path)


class RemoteSession:
    """A session in another process: while it is open, whether it was closed; what it recorded, when it has been closed
    here."""

    def __init__(
        self,
        key: str,
        base_url: str,
        socket_path: Path | None,
        listen: Callable[[], None],
        calls_begun: Callable[[], Awaitable[int]],
    ):
        self.key, self.base_url, self.socket_path = key, base_url, socket_path
        self.calls_begun = calls_begun  # while it is open; raises GatewayError when the process is gone
        self.close_detail = ""
        self.calls: Sequence[Call] = ()
        self.events: Sequence[dict] = ()
        self.counters: Counter[str] = Counter()
        self._listen, self._close_reason = listen, None

    @property
    def close_reason(self) -> Outcome | None:
        """What an agent was told is known here: its process says it to the pipe first."""
        if self._close_reason is None:
            self._listen()
        return self._close_reason

    def was_closed(self, reason: Outcome, detail: str) -> None:
        self._close_reason, self.close_detail = reason, detail


@dataclass(frozen=True)
class RemoteClient:
    """One vLLM server, as the clients of all processes see it: for its supervisor."""

    number: int
    tell: Callable[[tuple], None]

    def pause(self) -> None:
        self.tell(("pause", self.number))

    def resume(self, version: int | None = None, url: str | None = None) -> None:
        self.tell(("resume", self.number, version, url))

    async def close(self) -> None:
        """Each process closes its own."""


class Workers:
    """What Gateway offers, done by `config.processes` processes. A fixed port is the first one's, the others have the
    next ones.

    `counters` has those of closed sessions. watch() ends with the GatewayError of a process that ended.
    """

    def __init__(
        self,
        config: GatewayConfig,
        urls: Sequence[str],
        wait_s: float,
        make_renderer: Callable[[], Renderer],
        socket_path: Path | None = None,
    ):
        self.clients = [RemoteClient(number, self._tell_all) for number in range(len(urls))]
        self.counters: Counter[str] = Counter()
        self._workers = []
        for number in range(config.processes):
            own = config.model_copy(update={"port": config.port and config.port + number})
            socket = socket_path and socket_path.with_name(f"{socket_path.name}-{number}")
            self._workers.append(
                _Worker(number, partial(serve, own, tuple(urls), wait_s, make_renderer, socket), self.counters)
            )
        self._homes: dict[str, _Worker] = {}  # of open sessions

    async def start(self) -> None:
        """Raises GatewayError."""
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self._homes.clear()

    async def watch(self) -> None:
        await asyncio.gather(*(asyncio.shield(worker.ended) for worker in self._workers))

    def open_session(
        self, limits: SessionLimits, sampling: SamplingConfig, key: str | None = None, cache_salt: str | None = None
    ) -> RemoteSession:
        """As Gateway's. Raises GatewayError, also when a process is gone."""
        key = key or new_key()
        if any(key in worker.sessions for worker in self._workers):
            raise GatewayError("a session with this key is open: give each its own, or none")
        worker = min(self._workers, key=lambda worker: len(worker.sessions))
        worker.tell(("open", limits, sampling, key, cache_salt))
        self._homes[key] = worker
        worker.sessions[key] = RemoteSession(
            key, worker.base_url, worker.socket_path, worker.listen, partial(worker.ask, "count", "counted", key)
        )
        return worker.sessions[key]

    async def close_session(self, key: str) -> RemoteSession:
        """As Gateway's. Raises GatewayError when the record is gone with its process."""
        return await self._homes.pop(key).close_session(key)

    def _tell_all(self, message: tuple) -> None:
        for worker in self._workers:
            worker.tell(message)


class _Worker:
    """One process, seen from the rollout process."""

    def __init__(self, number: int, serve: Callable[[Connection], None], counters: Counter[str]):
        self.number = number
        self.sessions: dict[str, RemoteSession] = {}
        self.base_url, self.socket_path = "", None
        self._serve, self._counters = serve, counters
        self._asked: dict[tuple[str, str], asyncio.Future] = {}  # kind and key of the answer
        self._process = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # whoever watches or waits hears of it
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._listening: asyncio.Future[None] = self._loop.create_future()
        self._pipe, theirs = get_context("spawn").Pipe()
        with theirs:
            process = get_context("spawn").Process(target=self._serve, args=(theirs,), name=f"gateway-{self.number}")
            process.start()
        self._process = process
        atexit.register(self._pipe.close)  # before multiprocessing waits for its processes: this one waits for the pipe
        self._loop.add_reader(self._pipe.fileno(), self.listen)  # which may have read what this call is for
        done, _ = await asyncio.wait(
            {self._listening, self.ended}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise GatewayError(
                f"gateway process {self.number} did not listen after {START_S:.0f} s: see whether its disk or its "
                "processor is overloaded"
            )
        if self._listening.done():
            self._listening.result()
        else:
            self.ended.result()

    def tell(self, message: tuple) -> None:
        """Raises GatewayError when the process is gone."""
        if self.ended.done():
            self.ended.result()  # raises
        try:
            self._pipe.send(message)
        except OSError:
            self._lost()
            self.ended.result()

    async def close_session(self, key: str) -> RemoteSession:
        """Raises GatewayError when the process is gone, and the record with it."""
        try:
            return await self.ask("close", "record", key)
        finally:
            self.sessions.pop(key, None)

    async def ask(self, kind: str, answer: str, key: str) -> Any:
        """What its process answers about a session. Raises GatewayError when the process is gone."""
        asked = self._asked[answer, key] = self._loop.create_future()
        try:
            self.tell((kind, key))
            await asyncio.wait({asked, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self.ended.result()
            return asked.result()
        finally:
            del self._asked[answer, key]

    def listen(self) -> None:
        """Reads what has come, without waiting for more."""
        while not self.ended.done() and self._pipe.poll():
            self._read()

    def _read(self) -> None:
        try:
            kind, *rest = self._pipe.recv()
        except (EOFError, OSError):
            self._lost()
            return
        if kind == "listening":
            self.base_url, self.socket_path = rest
            self._listening.set_result(None)
        elif kind == "failed":
            self._listening.set_exception(rest[0])
        elif kind == "closed":
            key, reason, detail = rest
            if key in self.sessions:
                self.sessions[key].was_closed(reason, detail)
        elif kind == "counted":
            self._answered(kind, *rest)
        elif kind == "record":
            key, reason, detail, calls, events, counters = rest
            self._counters.update(counters)
            if key not in self.sessions:  # who closed it was cancelled meanwhile
                return
            session = self.sessions[key]
            session.was_closed(reason, detail)
            session.calls, session.events, session.counters = whole(calls), events, counters
            self._answered(kind, key, session)

    def _answered(self, kind: str, key: str, answer: Any) -> None:
        asked = self._asked.get((kind, key))
        if asked is not None and not asked.done():  # else who asked was cancelled meanwhile
            asked.set_result(answer)

    def _lost(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        if self.ended.done():
            return
        self._process.join(1.0)  # its end of the pipe is closed: it ends right now
        self.ended.set_exception(
            GatewayError(
                f"gateway process {self.number} ended (exit code {self._process.exitcode}) and what its "
                f"{len(self.sessions)} "
                "sessions recorded is lost: see the log; -9 may be the memory limit, then ask for more"
            )
        )

    async def stop(self) -> None:
        """The closed pipe tells it; may be called twice."""
        if self._process is None:
            return
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            atexit.unregister(self._pipe.close)
        if not self.ended.done():
            self.ended.set_exception(GatewayError("the gateway has stopped: open no more sessions"))
        await asyncio.to_thread(self._process.join, END_S)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._process.close()
        self._process = None

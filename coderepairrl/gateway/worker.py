"""One process of the gateway in several (workers.py): sessions are opened and closed over a pipe.

<- open, count, close (of a session); pause, resume (of a vLLM server)
-> listening or failed, once; closed, when a session closed itself; counted, its calls so far; record,
   what a session recorded
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from aiohttp import web

from coderepairrl.errors import CodeRepairError
from coderepairrl.gateway.call_tree import kept
from coderepairrl.gateway.gateway import Gateway, GatewayConfig
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.session import Session
from coderepairrl.gateway.vllm_client import VLLMClient
from coderepairrl.processes import logs
from coderepairrl.types import Call


def brief(calls: Sequence[Call]) -> list[Call]:
    """Less what a prompt repeats of its parent's call: it need not go through the pipe, nor lie in memory twice behind
    it."""
    return [replace(call, prompt_ids=call.prompt_ids[len(_repeated(calls, call)) :]) for call in calls]


def whole(calls: Sequence[Call]) -> list[Call]:
    """The calls again of which `brief` made these."""
    made: list[Call] = []
    for call in calls:  # a parent comes before its children
        made.append(replace(call, prompt_ids=_repeated(made, call) + call.prompt_ids))
    return made


def _repeated(calls: Sequence[Call], call: Call) -> tuple[int, ...]:
    return () if call.parent is None else kept(calls[call.parent], call.parent_part)


def serve(
    config: GatewayConfig,
    urls: tuple[str, ...],
    wait_s: float,
    make_renderer: Callable[[], Renderer],
    socket_path: Path | None,
    pipe: Connection,
) -> None:
    """The process. It ends with the rollout process, however that ends: then its pipe is closed."""
    logs.to_stderr()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # they are for the rollout process, which may still need what is recorded here
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(
        _run(
            pipe, lambda: _Server(config, [VLLMClient(url, wait_s) for url in urls], make_renderer(), socket_path, pipe)
        )
    )


async def _run(pipe: Connection, make: Callable[[], "_Server"]) -> None:
    try:
        server = make()
        pipe.send(("listening", await server.start(), server.socket_path))
    except CodeRepairError as error:  # the user's to mend: said by the program, in its one line
        pipe.send(("failed", error))
        return
    await server.serve()


class _Server(Gateway):
    """A gateway whose sessions are opened and closed over a pipe. Any error of ours ends the process: who waits for it
    hears of that."""

    def __init__(
        self,
        config: GatewayConfig,
        clients: Sequence[VLLMClient],
        renderer: Renderer,
        socket_path: Path | None,
        pipe: Connection,
    ):
        super().__init__(config, clients, renderer, socket_path)
        self._pipe, self._end, self._closing = pipe, asyncio.get_running_loop().create_future(), set()
        # this process reads on while a long record waits for its reader: else both could wait for each other
        self._sender = ThreadPoolExecutor(1)
        self._said: Future | None = None  # the last word that a session was closed

    async def serve(self) -> None:
        """Until the rollout process is gone, or wants this one to go."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._read)
        try:
            await self._end
        finally:
            loop.remove_reader(self._pipe.fileno())
            self._pipe.close()  # first: what is being sent now has nobody to wait for
            await self.stop()
            for client in self.clients:
                await client.close()

    def _session_of(self, http: web.Request) -> Session:
        try:
            return super()._session_of(http)
        except web.HTTPUnauthorized:  # its agent got the key after the pipe did: it may not have been read yet
            self._read()
            return super()._session_of(http)

    async def _answer(self, dialect: ModuleType, http: web.Request) -> web.StreamResponse:
        """An agent that is told of the end may end at once: by then the rollout process must be able to know why."""
        try:
            return await super()._answer(dialect, http)
        finally:
            if self._said is not None and not self._said.done():
                await asyncio.wait([asyncio.wrap_future(self._said)])

    def _read(self) -> None:
        try:
            while not self._end.done() and self._pipe.poll():
                kind, *rest = self._pipe.recv()
                if kind == "open":
                    session = self.open_session(*rest)
                    session.on_close = partial(self._say_closed, session.key)
                    if session.close_reason is not None:  # its deadline was over before it began
                        self._say_closed(session.key)
                elif kind == "count":
                    self._send("counted", rest[0], self._sessions[rest[0]].begun)
                elif kind == "close":
                    task = asyncio.get_running_loop().create_task(self._close(rest[0]))
                    self._closing.add(task)
                    task.add_done_callback(self._closed)
                elif kind == "pause":
                    self.clients[rest[0]].pause()
                elif kind == "resume":
                    self.clients[rest[0]].resume(*rest[1:])
        except (EOFError, OSError):
            self._finish()
        except Exception as error:
            self._finish(error)

    def _say_closed(self, key: str) -> None:
        session = self._sessions.get(key)
        if session is not None:  # else it is being closed by the rollout process, which gets the record
            self._said = self._send("closed", key, session.close_reason, session.close_detail)

    async def _close(self, key: str) -> None:
        session = await self.close_session(key)
        self._send(
            "record",
            key,
            session.close_reason,
            session.close_detail,
            brief(session.calls),
            session.events,
            session.counters,
        )

    def _closed(self, task: asyncio.Task) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception():
            self._finish(task.exception())

    def _send(self, *message) -> Future:
        sent = self._sender.submit(self._pipe.send, message)
        sent.add_done_callback(partial(self._sent, asyncio.get_running_loop()))
        return sent

    def _sent(self, loop: asyncio.AbstractEventLoop, sent: Future) -> None:
        """In the sender's thread. A closed pipe is no error: the rollout process is gone, and the pipe's other
        direction says so, too."""
        error = sent.exception()
        if error is not None and not isinstance(error, OSError):
            loop.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: BaseException | None = None) -> None:
        if not self._end.done() and error is not None:
            self._end.set_exception(error)
        elif not self._end.done():
            self._end.set_result(None)

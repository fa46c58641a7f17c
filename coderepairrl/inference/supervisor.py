"""Keeps vLLM alive with the newest weights, and follows the servers that other nodes keep alive.

The folder `policy/` of a run is where trainer and rollout meet:
    v000003/            an export, a Hugging Face folder
    current.json        {"version": 3, "step": 3, "path": ".../v000003", "path_version": 3, "live": true}: written by
                        the trainer when an update is over. step: updates that the weights contain. live false: the
                        update failed (`reason`), and vLLM has to be restarted. path_version: the version that lies at
                        `path`, where that isn't the newest. tried: pids of the servers that it was sent to. proven
                        true: the trainer writes probe.json, against which every server is held that starts
    versions.jsonl      {"version": 3, "step": 3}, a row for every version of the run, before it is sent: written by the
                        trainer
    probe.json          what the newest versions compute, written by the trainer, as is
    unproven.jsonl      versions that did not compute that (probe.py)
    engine_0.json       {"url", "pid", "version"}: a server that is ready, with the weights that it was started with, or
                        was brought up to at its start; of server 0 written by the rollout process, of the others by the
                        node that has them
    export_wanted.json  {"version": 3}: written by whoever can't start vLLM before the trainer has exported this version
    recoveries.jsonl    {"time": ..., "what": ...}: a row for every restart of vLLM, with its cause
"""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from coderepairrl.errors import EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.gateway.vllm_client import VLLMClient
from coderepairrl.gateway.workers import RemoteClient
from coderepairrl.inference.server import Server, ready_file
from coderepairrl.inference.server_config import ServerConfig

POLL_S = 0.02  # between two looks at the trainer's files
HEALTH_EVERY_S = 5.0
BROUGHT_UP_POLL_S = 0.2


class NoServer:
    """In a Supervisor's place where nothing calls a model: no server is started, and none is missed."""

    def __init__(self, server: Server):
        self.server, self.restarts = server, 0
        self.serving: dict[str, Any] = {"version": 0, "step": 0}

    async def start(self, updates: int = 0) -> None:
        """Nothing to wait for."""

    async def watch(self) -> None:
        await asyncio.Event().wait()


class Supervisor:
    """Keeps one server alive, with the newest weights: restarts it when it ended, stopped answering, or missed an
    update.

    `hold` is called before and `release(version)` after a restart, so that the gateway's requests wait in between.
    serving: what current.json said of the weights that the server has; it lags behind while an update is being
    repaired.
    """

    def __init__(self, server: Server, hold, release):
        self.server, self.hold, self.release = server, hold, release
        self.restarts = 0
        self.serving: dict[str, Any] = {}
        self._policy = server.run / "policy"

    async def start(self, updates: int = 0) -> None:
        """First waits for weights of so many updates: a resumed trainer repeats what it has the files for, and nothing
        is sampled before."""
        self.hold()
        while self._current()["step"] < updates:
            await asyncio.sleep(POLL_S)
        await self._load()

    async def _load(self) -> None:
        while True:
            current = await self._exported()
            try:
                await self.server.start(current["path"], current["version"])
                break
            except EngineError:
                if self._current()["version"] == current["version"]:
                    raise  # else the trainer has gone on, and may have removed the older export under the server's feet
        self.serving = await self._brought_up(current)
        self.release(self.serving["version"])

    async def _brought_up(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """What the server has: as loaded, or, where the trainer has gone on meanwhile, newer weights, which it sends as
        soon as it waits for rollouts.

        A trainer that doesn't is given up after a while; watch() then sees older weights than there should be, and
        restarts the server.
        """
        if self._current()["version"] == loaded["version"]:
            return loaded
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            for _ in range(int(self.server.config.start_timeout_s / BROUGHT_UP_POLL_S)):
                current = self._current()
                answer = await self._ask(http, "weight_info", self.server.config.update_timeout_s)
                if answer and json.loads(answer)["weight_version"] == str(current["version"]) and current["live"]:
                    self.server.announce(current["version"])
                    return current
                if self.server.process.returncode is not None or self._failed(current):
                    break
                await asyncio.sleep(BROUGHT_UP_POLL_S)
        return loaded

    async def watch(self) -> None:
        """Runs until cancelled; an EngineError ends it."""
        # a connection that is kept is closed by vLLM after 5 s, and the next request on it would fail
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            # beside the loop: a server that hangs must not hide that an update failed
            look = asyncio.create_task(self._silence(http))
            try:
                while True:
                    problem = await self._problem(http) or (look.result() if look.done() else None)
                    if problem or look.done():
                        look.cancel()
                        if problem:
                            await self._restart(problem)
                        look = asyncio.create_task(self._silence(http))
                    await asyncio.sleep(POLL_S)
            finally:
                look.cancel()

    async def _silence(self, http: aiohttp.ClientSession) -> str | None:
        """After a while, one look at whether the server still answers."""
        await asyncio.sleep(HEALTH_EVERY_S)
        patience_s = self.server.config.health_timeout_s
        healthy = await self._ask(http, "health", patience_s) is not None
        return (
            None
            if healthy or self.server.process.returncode is not None
            else f"it did not say within {patience_s:.0f} s that it is well"
        )

    async def _problem(self, http: aiohttp.ClientSession) -> str | None:
        code, current = self.server.process.returncode, self._current()
        if code is not None:
            return f"it {self.server.ended()}"
        if current["version"] == self.serving["version"] and not self._failed(current):
            return None
        if not current["live"]:
            return f"weight update {current['version']} failed: {current.get('reason') or 'see trainer.log'}"
        # a server that was restarted between the end of the update and the writing of current.json has older weights
        answer = await self._ask(http, "weight_info", self.server.config.update_timeout_s)
        has = answer and json.loads(answer)["weight_version"]
        if has != str(current["version"]):
            return f"it has weights {has} instead of {current['version']}"
        self.serving = current
        return None

    def _failed(self, current: dict[str, Any]) -> bool:
        """Whether the newest weights were sent to this very server, in vain; it has then stopped sampling."""
        return not current["live"] and self.server.process.pid in current.get("tried", ())

    async def _ask(self, http: aiohttp.ClientSession, path: str, timeout_s: float) -> str | None:
        """The answer's text, None when there is none in time or it is an error."""
        try:
            async with http.get(
                f"{self.server.url}/{path}", timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as response:
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None  # the caller restarts the server, and says why

    async def _restart(self, problem: str) -> None:
        self.hold()
        self.restarts += 1
        with (self._policy / "recoveries.jsonl").open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "what": f"vLLM restarted: {problem}"}) + "\n")
        if self.restarts > self.server.config.max_restarts:
            raise EngineError(
                f"vLLM had to be restarted more than {self.server.config.max_restarts} times, at last because: "
                f"{problem}; see {self.server.log}"
            )
        await self.server.stop()
        await self._load()

    def _current(self) -> dict[str, Any]:
        """What the trainer wrote last, which is there before vLLM starts. Raises EngineError where it is gone."""
        path = self._policy / "current.json"
        if (found := read_json(path)) is None:
            raise EngineError(f"{path} is gone: somebody removed it; start the same command again")
        return found

    async def _exported(self) -> dict[str, Any]:
        """What current.json says once the weights of its version lie at its path; the trainer, who may not have
        exported them, is asked to."""
        wanted = self._policy / "export_wanted.json"
        try:
            async with asyncio.timeout(self.server.config.start_timeout_s):
                while (current := self._current()).get("path_version", current["version"]) != current["version"]:
                    if read_json(wanted) != {"version": current["version"]}:
                        write_json(wanted, {"version": current["version"]})
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise EngineError(
                f"vLLM can't be restarted: the trainer did not export weights {current['version']} "
                f"in {self.server.config.start_timeout_s:.0f} s: see trainer.log, or raise server.start_timeout_s"
            ) from None
        wanted.unlink(missing_ok=True)
        return current


async def follow_others(ours: Supervisor | NoServer, clients: Sequence[VLLMClient | RemoteClient]) -> None:
    """Servers on other nodes: each is used while its file is there, from when it has the weights that ours serves.

    clients: one a server of the run, ours first. Runs until cancelled.
    """
    others = {number: client for number, client in enumerate(clients) if number}
    running: dict[int, dict | None] = dict.fromkeys(others)
    for client in others.values():
        client.pause()
    while True:
        for number, client in others.items():
            server = read_json(ready_file(ours.server.run, number))
            if server is None and running[number]:
                client.pause()
            elif server and server != running[number]:
                if server["version"] != ours.serving["version"]:
                    continue
                client.resume(server["version"], server["url"])
            running[number] = server
        await asyncio.sleep(POLL_S)


async def serve(config: ServerConfig, run: Path, log: Path, number: int) -> None:
    """A further server on a node of its own, kept alive until this task is cancelled. The rollout process finds it by
    its file."""
    server = Server(config, run, log, number)
    supervisor = Supervisor(server, hold=lambda: None, release=lambda version: None)
    try:
        await supervisor.start()
        await supervisor.watch()
    finally:
        await server.stop()

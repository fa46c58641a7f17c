"""Shared by the tests of vLLM's life: a small server, its supervisor, and a trainer that answers it."""

import asyncio
import sys
from pathlib import Path

import requests

from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.inference.supervisor import Supervisor
from coderepairrl.rollout import ledger

KILLED = (
    "it ended with code -9: ended by SIGKILL, from outside: where nobody sent it, the kernel did, for want of memory"
)
PROGRAM = Path(__file__).with_name("programs") / "small_server.py"


class SmallServer(Server):
    """Real processes, ports and signals; only the program is small."""

    def _command(self, model: str) -> list[str]:
        (self.run / "started").open("a").write(model + "\n")
        return [sys.executable, str(PROGRAM), str(self.port), model]


class Run:
    """A run folder with exports, a trainer's files, and a supervisor that notes what it holds and releases."""

    def __init__(self, folder: Path, **config):
        self.folder = folder
        (folder / "policy").mkdir()
        self.calls: list = []
        server = SmallServer(
            ServerConfig(**{"start_timeout_s": 60.0, "update_timeout_s": 10.0} | config), folder, folder / "vllm.log"
        )
        self.supervisor = Supervisor(server, lambda: self.calls.append("hold"), self.calls.append)
        self.publish(0)

    def publish(self, version: int, **fields) -> None:
        self.export(version)
        write_json(
            self.folder / "policy" / "current.json",
            {"version": version, "step": version, "path": self.path(version), "live": True} | fields,
        )

    def export(self, version: int) -> None:
        Path(self.path(version)).mkdir(exist_ok=True)

    def path(self, version: int) -> str:
        return str(self.folder / "policy" / f"v{version:06d}")

    def update(self, version: int) -> None:
        """A trainer's live update."""
        requests.post(
            f"{self.supervisor.server.url}/update_weight_version", json={"new_version": str(version)}, timeout=10
        ).raise_for_status()
        self.publish(version)

    @property
    def pid(self) -> int:
        return read_json(self.folder / "policy" / "engine_0.json")["pid"]

    def started(self) -> list[str]:
        return [Path(line).name for line in (self.folder / "started").read_text().splitlines()]

    def recoveries(self) -> list[str]:
        return [row["what"] for row in ledger.rows(self.folder / "policy" / "recoveries.jsonl")]

    async def until(self, holds) -> None:
        async with asyncio.timeout(60):
            while not holds():
                if self.watch.done():
                    self.watch.result()
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> "Run":
        await self.supervisor.start()
        self.watch = asyncio.create_task(self.supervisor.watch())
        return self

    async def __aexit__(self, *_) -> None:
        self.watch.cancel()
        await asyncio.wait([self.watch])
        await self.supervisor.server.stop()

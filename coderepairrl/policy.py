"""The vLLM server's life: start, health, restart with the newest weights.

The folder `policy/` of a run is where trainer and rollout meet:
    v000003/        an export, a Hugging Face folder
    current.json    {"version": 3, "path": ".../v000003", "live": true}: written by the trainer when the update is over; live false:
                    the update failed, and vLLM has to be restarted from `path`
    engine.json     {"url": ..., "pid": ...}: written by the rollout process whenever a server is ready
"""
import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Literal

import aiohttp

from coderepairrl.config import Config
from coderepairrl.errors import EngineError
from coderepairrl.launch import ends_with_parent


class ServerConfig(Config):
    port: int = 0  # 0: any free one
    max_model_len: int = 2048
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    kv_cache_mib: int | None = None  # required on CPU
    extra_arguments: list[str] = []
    threads: int = 2  # on CPU
    start_timeout_s: float = 300.0
    update_timeout_s: float = 60.0
    max_restarts: int = 5


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def read_json(path: Path) -> Any | None:
    """None when the file is not there (yet)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def free_port(wanted: int) -> int:
    """Raises EngineError when the wanted port is in use."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise EngineError(f"port {wanted} is in use: set server.port to another, or to 0 for any free one") from error
        return probe.getsockname()[1]


class Server:
    """One `vllm serve` process in its own process group."""

    def __init__(self, config: ServerConfig, run: Path, log: Path):
        self.config, self.run, self.log = config, run, log
        self.port = free_port(config.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0

    def _command(self, model: str) -> list[str]:
        config = self.config
        command = [sys.executable, "-m", "coderepairrl.serve", "serve", model, "--host", "127.0.0.1", "--port", str(self.port),
                   "--served-model-name", "policy", "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs",
                   "--dtype", config.dtype, "--max-model-len", str(config.max_model_len), "--max-num-seqs", str(config.max_num_seqs),
                   "--max-num-batched-tokens", str(config.max_num_batched_tokens), "--enable-scale-out", "--disable-uvicorn-access-log",
                   "--weight-transfer-config", json.dumps({"backend": "gloo"}),
                   "--worker-extension-cls", "coderepairrl.weight_transfer.WorkerExtension"]
        if config.kv_cache_mib:
            command += ["--enforce-eager", "--kv-cache-memory-bytes", f"{config.kv_cache_mib}M", "--distributed-executor-backend", "uni"]
        return command + config.extra_arguments

    async def start(self, model: str) -> None:
        """Returns when the server answers. Raises EngineError with the end of its log when it doesn't come up."""
        environment = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
            "OMP_NUM_THREADS": str(self.config.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if self.config.kv_cache_mib:  # on CPU vLLM insists on a worker process of its own unless told so: it costs a third of the speed
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *ends_with_parent(signal.SIGKILL), *self._command(model), env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.starts += 1
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await self._ready()
        except TimeoutError:
            await self.stop()
            raise EngineError(f"vLLM was not ready after {self.config.start_timeout_s:.0f} s: see {self.log}, or raise server.start_timeout_s") from None
        write_json(self.run / "policy" / "engine.json", {"url": self.url, "pid": self.process.pid})

    async def _ready(self) -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                if self.process.returncode is not None:
                    raise EngineError(f"vLLM ended with code {self.process.returncode} before it was ready: {self._last_error()}; see {self.log}")
                try:
                    async with http.get(self.url + "/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientConnectionError, TimeoutError):
                    pass  # not listening yet: that is what is being waited for
                await asyncio.sleep(0.2)

    def _last_error(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if "Error" in line]
        return lines[-1][-300:] if lines else "no error in its log"

    async def stop(self) -> None:
        """Ends the server and all of its processes, by their group."""
        if self.process is None:
            return
        (self.run / "policy" / "engine.json").unlink(missing_ok=True)
        for sent, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, sent)
            except ProcessLookupError:
                break  # the whole group is gone
            try:
                async with asyncio.timeout(patience_s):
                    await self.process.wait()
            except TimeoutError:
                continue
        await self.process.wait()
        self.process = None


class Supervisor:
    """Keeps one server alive: restarts it from the newest export when it ends or when the trainer says that an update failed.

    `hold` is called before and `release(version)` after a restart, so that the gateway's requests wait in between.
    """

    def __init__(self, server: Server, hold, release):
        self.server, self.hold, self.release = server, hold, release
        self.restarts = 0
        self._loaded: int | None = None  # version that the newest start gave the server; live updates come on top of it
        self._lock = asyncio.Lock()

    async def start(self, model: str, version: int) -> None:
        self.hold()
        write_json(self.server.run / "policy" / "current.json", {"version": version, "path": model, "live": True})
        await self.server.start(model)
        self._loaded = version
        self.release(version)

    async def ensure(self, version: int) -> None:
        """Restarts the server, unless its newest start has loaded this version already."""
        async with self._lock:
            if self._loaded != version:
                await self._restart()

    async def watch(self) -> None:
        """Runs until cancelled, and restarts a server that has ended; an EngineError ends it."""
        while True:
            process = self.server.process
            await process.wait()
            async with self._lock:
                if self.server.process is process:  # else it was ended on purpose, and another runs in its place
                    await self._restart()

    async def _restart(self) -> None:
        """With the newest export, whose version the next tokens carry."""
        self.hold()
        self.restarts += 1
        if self.restarts > self.server.config.max_restarts:
            raise EngineError(f"vLLM had to be restarted more than {self.server.config.max_restarts} times: see {self.server.log}")
        await self.server.stop()
        current = read_json(self.server.run / "policy" / "current.json")
        await self.server.start(current["path"])
        self._loaded = current["version"]
        self.release(self._loaded)

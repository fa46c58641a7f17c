"""One vLLM server: its command line, its start until it is proven, its end."""

import asyncio
import getpass
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import aiohttp

from coderepairrl.errors import EngineError
from coderepairrl.files import ROOT, read_json, write_json
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.processes import cause, proc
from coderepairrl.processes.containers import in_image
from coderepairrl.processes.starting import ends_with_parent, held_port
from coderepairrl.run.attempt import Place
from coderepairrl.weights import probe


def ready_file(run: Path, number: int) -> Path:
    """Of server `number` of the run, while it is ready: {"url", "pid", "version"}."""
    return run / "policy" / f"engine_{number}.json"


class Server:
    """One `vllm serve` process in its own process group: server `number` of the run."""

    def __init__(self, config: ServerConfig, run: Path, log: Path, number: int = 0):
        self.config, self.run, self.log = config, run, log
        self.ready_file = ready_file(run, number)
        self._held = held_port(config.host, config.port)
        self.port = self._held.getsockname()[1]
        self.url = f"http://{config.host}:{self.port}"
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self._began_at = 0  # byte of the log, which holds what former starts said, too
        self._shared_memory: set[str] = set()
        # what it leaves in there when it is killed: sockets, rendezvous files
        self._temporary: tempfile.TemporaryDirectory | None = None

    def _command(self, model: str) -> list[str]:
        config = self.config
        command = [
            sys.executable,
            "-m",
            "coderepairrl.inference.serve",
            "serve",
            model,
            "--host",
            config.host,
            "--port",
            str(self.port),
            "--served-model-name",
            "policy",
            "--generation-config",
            "vllm",
            "--logprobs-mode",
            "processed_logprobs",
            "--dtype",
            config.dtype,
            "--max-model-len",
            str(config.max_model_len),
            "--max-num-seqs",
            str(config.max_num_seqs),
            "--max-num-batched-tokens",
            str(config.max_num_batched_tokens),
            "--enable-scale-out",
            "--disable-uvicorn-access-log",
            "--scheduling-policy",
            "priority",  # all requests have the same, but the probe
            "--weight-transfer-config",
            json.dumps({"backend": config.transfer_backend}),
        ]
        if config.transfer_backend == "gloo":  # ours; vLLM has the other
            command += ["--worker-extension-cls", "coderepairrl.weights.receiver.WorkerExtension"]
        if config.kv_cache_mib:
            command += [
                "--enforce-eager",
                "--kv-cache-memory-bytes",
                f"{config.kv_cache_mib}M",
                "--distributed-executor-backend",
                "uni",
            ]
        return command + config.extra_arguments

    def _in_image(self, model: str) -> list[str]:
        place = Place.here()
        return in_image(
            place.images.get("serve"),
            self._command(model),
            binds=[ROOT, self.run.resolve(), Path(model).resolve()],
            options=place.container_options,
        )

    async def start(self, model: str, version: int = 0) -> None:
        """Returns when the server answers, and has shown that it computes what the trainer does.

        `version`: of the weights in the folder `model`. Raises EngineError with the end of its log when it doesn't come
        up.
        """
        await self._launch(model)
        await self._until_ready()
        self._shared_memory = shared_memory_of(self.process.pid)
        if (read_json(self.run / "policy" / "current.json") or {}).get("proven"):
            try:
                await self._prove(version)
            except EngineError:
                await self.stop()
                raise
        self.announce(version)

    async def _launch(self, model: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)
        with self.log.open("ab") as log:
            self._began_at = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                *ends_with_parent(signal.SIGKILL),
                *self._in_image(model),
                env=self._environment(self._temporary.name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1

    def _environment(self, temporary: str) -> dict[str, str]:
        """What it starts with: what the user has set wins over the first, not over the others."""
        defaults = {
            "VLLM_LOGGING_LEVEL": "WARNING",
            # torch's own choice, which compiled kernels stay in
            "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}",
            # preprocessing torch's headers, which only a kernel that isn't in the cache is compiled with, takes seconds
            # at every start
            "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        }
        ours = {
            "TMPDIR": temporary,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.config.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        # on CPU vLLM insists on a worker process of its own unless told so: it costs a third of the speed
        if self.config.kv_cache_mib:
            ours["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if self.config.devices is not None:
            ours["CUDA_VISIBLE_DEVICES"] = self.config.devices
        return defaults | os.environ | ours

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await self._answers()
        except TimeoutError:
            await self.stop()
            raise EngineError(
                f"vLLM was not ready after {self.config.start_timeout_s:.0f} s: see {self.log}, or raise "
                "server.start_timeout_s"
            ) from None

    async def _prove(self, version: int) -> None:
        """Nothing is sampled before."""
        expected = await probe.awaited(self.run, version, self.config.start_timeout_s)
        try:
            await asyncio.to_thread(expected.prove, self.url, self.config.update_timeout_s)
        except EngineError as error:
            raise EngineError(
                f"{error}; it has just loaded them from disk, so trainer and vLLM compute this model "
                f"differently (server.extra_arguments? dtypes?): see {self.log}"
            ) from error

    def announce(self, version: int) -> None:
        write_json(self.ready_file, {"url": self.url, "pid": self.process.pid, "version": version})

    async def _answers(self) -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                if self.process.returncode is not None:
                    raise EngineError(f"vLLM was not ready before it {self.ended()}; see {self.log}")
                try:
                    async with http.get(self.url + "/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientConnectionError, TimeoutError):
                    pass  # not listening yet: that is what is being waited for
                await asyncio.sleep(0.2)

    def ended(self) -> str:
        """With which exit code, and why."""
        code = self.process.returncode
        return f"ended with code {code}: {cause.of_log(self.log, self._began_at, code)}"

    async def stop(self) -> None:
        """Ends the server and all of its processes, by their group."""
        if self.process is None:
            return
        self.ready_file.unlink(missing_ok=True)
        self._shared_memory |= shared_memory_of(self.process.pid)
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
        try:
            # the engine, too: a killed process needs a moment to give its memory back
            async with asyncio.timeout(10.0):
                while lives_in_group(self.process.pid):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise EngineError(
                "a vLLM that was killed did not end within 10 s: the machine is overloaded, or a disk hangs"
            ) from None
        self.process = None
        for file in self._shared_memory:  # a server that was killed can't remove them
            Path(file).unlink(missing_ok=True)
        self._shared_memory = set()
        self._temporary.cleanup()


def lives_in_group(group: int) -> bool:
    """Whether a process of the group still runs; what has ended, and only waits to be seen by its parent, does not."""
    return any(proc.group_of(pid) == group for pid in proc.pids())


def shared_memory_of(pid: int) -> set[str]:
    """Files in /dev/shm that a process and those below it have mapped. By inode: a semaphore gets its name after it is
    mapped, and is listed there as deleted."""
    lines = [line for each in proc.tree(pid) for line in proc.text(each, "maps").split("\n")]
    mapped = {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
    return {file.path for file in os.scandir("/dev/shm") if file.inode() in mapped}

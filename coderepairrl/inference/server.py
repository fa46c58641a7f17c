"""The vLLM server's life: start, health, restart with the newest weights.

The folder `policy/` of a run is where trainer and rollout meet:
    v000003/        an export, a Hugging Face folder
    current.json    {"version": 3, "step": 3, "path": ".../v000003", "path_version": 3, "live": true}: written by the
                    trainer when an
                    update is over. step: updates that the weights contain. live false: the update failed (`reason`),
                    and vLLM has
                    to be restarted. path_version: the version that lies at `path`, where that isn't the newest. tried:
                    pids of the servers that it was sent to. proven true: the trainer writes probe.json, against which
                    every server is held that starts
    versions.jsonl  {"version": 3, "step": 3}, a row for every version of the run, before it is sent: written by the
                    trainer
    probe.json      what the newest versions compute, written by the trainer, as is
    unproven.jsonl  versions that did not compute that (probe.py)
    engine_0.json   {"url", "pid", "version"}: a server that is ready, with the weights that it was started with, or was
                    brought up to at its
                    start; of server 0 written by the rollout process, of the others by the node that has them
    export_wanted.json  {"version": 3}: written by whoever can't start vLLM before the trainer has exported this version
    recoveries.jsonl    {"time": ..., "what": ...}: a row for every restart of vLLM, with its cause
"""

import asyncio
import getpass
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import aiohttp
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from coderepairrl.config import Config, Port
from coderepairrl.errors import EngineError
from coderepairrl.files import ROOT, read_json, write_json
from coderepairrl.processes import cause, proc
from coderepairrl.processes.containers import in_image
from coderepairrl.processes.starting import ends_with_parent, has_gpu, held_port
from coderepairrl.run.attempt import Place
from coderepairrl.weights import probe

POLL_S = 0.02  # between two looks at the trainer's files
HEALTH_EVERY_S = 5.0
BROUGHT_UP_POLL_S = 0.2
OWN_OPTIONS = {  # of vLLM -> where their values come from
    "--model": "model",
    "--host": "server.host",
    "--port": "server.port",
    "--max-model-len": "server.max_model_len",
    "--max-num-seqs": "server.max_num_seqs",
    "--max-num-batched-tokens": "server.max_num_batched_tokens",
    "--dtype": "server.dtype",
    "--weight-transfer-config": "server.weight_backend",
}
OWN_OPTIONS |= dict.fromkeys(
    ("--served-model-name", "--generation-config", "--logprobs-mode", "--worker-extension-cls", "--scheduling-policy"),
    "it depends on it",
)


class ServerConfig(Config):
    """vLLM, as it is served."""

    host: str = "127.0.0.1"  # where it listens; a job over several nodes sets it to its node's address
    port: Port = 0  # 0: any free one
    max_model_len: PositiveInt = 2048  # tokens of a context, prompt and completion
    max_num_seqs: PositiveInt = 256  # requests that are computed at once
    max_num_batched_tokens: PositiveInt = 8192  # tokens of one of its steps
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of weights and activations
    kv_cache_mib: PositiveInt | None = None  # memory of the KV cache; required on CPU; null: what vLLM finds free
    extra_arguments: list[str] = []  # further ones of `vllm serve`
    threads: PositiveInt = 2  # on CPU
    start_timeout_s: PositiveFloat = 300.0  # from its start until it is ready
    update_timeout_s: PositiveFloat = 60.0  # of a weight update: then it has failed
    # what carries weight updates; null: NCCL where vLLM runs on GPUs
    weight_backend: Literal["gloo", "nccl"] | None = None
    devices: str | None = None  # the GPUs of the server, as in CUDA_VISIBLE_DEVICES; null: all that this process sees
    health_timeout_s: PositiveFloat = 60.0  # a server that takes longer to answer /health is restarted
    max_restarts: NonNegativeInt = 5  # of vLLM in one attempt; after one more the run ends
    probe_bound: PositiveFloat | None = None  # nats: mean |trainer - vLLM| of the probe's logprobs (a single one: ten
    # times that) which a server may have after an update. None: 2e-4 where both compute in float32 on CPUs, else 0.2

    @field_validator("extra_arguments")
    @classmethod
    def _one_source(cls, arguments: list[str]) -> list[str]:
        """What another key says is not said twice: vLLM takes the last, this program the first. An option's beginning
        is one to vLLM."""
        for argument in arguments:
            option = argument.partition("=")[0].replace("_", "-")
            owned = next(
                (o for o in OWN_OPTIONS if o == option or len(option) > len("--m") and o.startswith(option)), None
            )
            if owned:
                raise ValueError(
                    f"{argument} is set by this program ({OWN_OPTIONS[owned]}): leave it out of extra_arguments"
                )
        return arguments

    @property
    def transfer_backend(self) -> Literal["gloo", "nccl"]:
        return self.weight_backend or ("nccl" if self._on_gpu else "gloo")

    @property
    def _on_gpu(self) -> bool:
        return has_gpu() and not self.kv_cache_mib  # the CPU build serves on a machine with GPUs, too

    def largest_gap(self, exact: bool) -> float:
        """The probe's bound. `exact`: the trainer computes in float32; on GPUs vLLM's kernels round float32 to TF32."""
        if self.probe_bound is not None:
            return self.probe_bound
        return 2e-4 if exact and self.dtype == "float32" and not self._on_gpu else 0.2


class Server:
    """One `vllm serve` process in its own process group: server `number` of the run."""

    def __init__(self, config: ServerConfig, run: Path, log: Path, number: int = 0):
        self.config, self.run, self.log = config, run, log
        self.ready_file = run / "policy" / f"engine_{number}.json"
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
        self._temporary = tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)
        # torch's own choice, which compiled kernels stay in
        kernels = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
        # preprocessing torch's headers, which only a kernel that isn't in the cache is compiled with, takes seconds at
        # every start
        defaults = {
            "VLLM_LOGGING_LEVEL": "WARNING",
            "TORCHINDUCTOR_CACHE_DIR": kernels,
            "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        }
        environment = (
            defaults
            | os.environ
            | {
                "TMPDIR": self._temporary.name,
                "VLLM_SERVER_DEV_MODE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": str(self.config.threads),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        )
        # on CPU vLLM insists on a worker process of its own unless told so: it costs a third of the speed
        if self.config.kv_cache_mib:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if self.config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices
        with self.log.open("ab") as log:
            self._began_at = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                *ends_with_parent(signal.SIGKILL),
                *self._in_image(model),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await self._ready()
        except TimeoutError:
            await self.stop()
            raise EngineError(
                f"vLLM was not ready after {self.config.start_timeout_s:.0f} s: see {self.log}, or raise "
                "server.start_timeout_s"
            ) from None
        self._shared_memory = shared_memory_of(self.process.pid)
        if (read_json(self.run / "policy" / "current.json") or {}).get("proven"):
            try:
                await self._prove(version)
            except EngineError:
                await self.stop()
                raise
        self.announce(version)

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

    async def _ready(self) -> None:
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
        return read_json(self._policy / "current.json")

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

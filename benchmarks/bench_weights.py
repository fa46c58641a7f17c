"""For how long does vLLM stand still at a weight update, and what does the proof that it has the weights cost? By model
size and number of serving GPUs; and: what if it dies in the middle?

    python benchmarks/bench_weights.py                                          on CPU: a tiny model over gloo
    python benchmarks/bench_weights.py configs/bench/weights_gpu.yaml [a.b=c ...]  on GPUs: NCCL, Qwen3 shapes
    python benchmarks/bench_weights.py configs/bench/weights_gpu.yaml 'shapes=[qwen3-8b]' kill=true

A ZeRO-3 engine with weights drawn at random sends them into 1..k servers that were started with others (`--load-format
dummy`).
kill=true: vLLM is killed (SIGKILL) when half of the weights are on their way; shown is that the trainer notices, that
its GPU still
computes, that a vLLM started from the export has the same weights as one that got them live, and that the next update
works.
Writes OUTPUT/weights.json (kills.json); each server's log, and the ranks', lie in OUTPUT/SHAPE/.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Literal

import requests
from pydantic import Field, PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.files import read_json, write_json
from coderepairrl.inference.server import Server
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.models.shapes import SHAPES, write_model
from coderepairrl.processes import cause
from coderepairrl.processes.starting import ends_with_parent, has_gpu, ranks_command, ranks_environment
from coderepairrl.run.program import program
from coderepairrl.training.engine_config import EngineConfig

DEFAULT = "configs/bench/weights.yaml"
DUMMY = ["--load-format", "dummy"]


class BenchConfig(Config):
    output: str  # the folder that is written
    shapes: list[str] = Field(min_length=1)  # of coderepairrl/models/shapes.py
    ranks: PositiveInt  # that send
    serving: list[PositiveInt] = Field(min_length=1)  # numbers of servers, each on one GPU
    updates: PositiveInt = 5  # that are measured; one before them makes the communicator
    kill: bool = False  # instead: kill vLLM in the middle of an update
    engine: EngineConfig
    server: ServerConfig
    role: Literal["all", "ranks"] = "all"  # ranks: what this program starts
    shape: str = ""  # of role=ranks


def visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


# ---- the ranks


def wait_for_server(run: Path, not_pid: int = 0) -> tuple[str, int]:
    """(url, pid) of the server that is ready. The parent ends this process when none will be."""
    while not (server := read_json(run / "policy" / "engine_0.json")) or server["pid"] == not_pid:
        time.sleep(0.05)
    return server["url"], server["pid"]


def measure(config: BenchConfig, folder: Path) -> list[dict]:
    """Rows on rank 0: one for each number of servers."""
    import torch

    from coderepairrl.training.engine import Engine
    from coderepairrl.weights import WeightSender, probe
    from coderepairrl.weights.publisher import micro_batch

    engine = Engine(folder / "model", config.engine)
    row = probe.token_ids(engine.module.model.config.vocab_size, config.server.max_model_len)
    bound = config.server.largest_gap(exact=config.engine.dtype == "float32")
    servers = [wait_for_server(folder / f"server_{i}") for i in range(max(config.serving))]
    if engine.rank == 0:
        sender = WeightSender(
            config.server.transfer_backend,
            getattr(torch, config.server.dtype),
            engine.device,
            config.server.update_timeout_s,
        )
    rows, version = [], 0
    for count in config.serving:
        updates, passes = [], []
        for version in range(version + 1, version + 2 + config.updates):
            engine.sum([1.0])  # all ranks begin together
            began = time.monotonic()
            logprobs = engine.scores(micro_batch(row).to(engine.device)).tolist()
            passes.append(time.monotonic() - began)
            if engine.rank == 0:
                proof = probe.Probe(version, row, tuple(logprobs), bound)
                updates.append(sender.send(servers[:count], version, engine.layout(), engine.buckets(), proof))
            else:
                for _ in engine.buckets():
                    pass
        if engine.rank == 0:
            first, *warm = updates
            paused = [update.paused_s for update in warm]
            rows.append(
                {
                    "servers": count,
                    "bytes": first.bytes,
                    "init_s": first.connect_s,
                    "first_paused_s": first.paused_s,
                    "paused_s": paused,
                    "median_paused_s": median(paused),
                    "gb_per_s": first.bytes / 1e9 / median(paused),
                    "forward_ms": 1000 * median(passes[1:]),
                    "answer_ms": 1000 * median(update.proof_s for update in warm),
                    "gap_mean": max(update.gap.mean for update in updates),
                    "gap_largest": max(update.gap.largest for update in updates),
                }
            )
            sender.close()
            for url, _ in servers[:count]:  # else it would keep the old communicator beside the next one
                requests.post(f"{url}/shutdown_weight_transfer_engine", timeout=60).raise_for_status()
    engine.close()
    return rows


def interrupted(buckets: Iterator, elements: int, act) -> Iterator:
    """`act` is called when half of the elements have been yielded."""
    seen, acted = 0, False
    for bucket in buckets:
        yield bucket
        seen += sum(tensor.numel() for _, tensor in bucket)
        if not acted and seen >= elements / 2:
            acted = True
            act()


def checksums(url: str) -> dict[str, str]:
    """SHA-256 of every tensor that vLLM holds."""
    answer = requests.post(f"{url}/weight_checker", json={"action": "checksum"}, timeout=300)
    answer.raise_for_status()
    return answer.json()["checksums"]


def still_computes(engine) -> bool:
    """Kernels run and ranks reach each other."""
    import torch

    ones = torch.ones(1024, 1024, device=engine.device)
    return engine.sum([(ones @ ones).sum().item() / 2**30])[0] == engine.world_size


def kill(config: BenchConfig, folder: Path) -> list[dict]:
    """A row on rank 0: three updates, of which vLLM does not survive the second."""
    import torch

    from coderepairrl.training.engine import Engine
    from coderepairrl.weights.publisher import Publisher

    run = folder / "server_0"
    engine = Engine(folder / "model", config.engine)
    publisher = Publisher(engine, run, config.server, 0, export_every=10**9)
    _, pid = wait_for_server(run)
    publisher.publish()
    first = publisher.sent
    elements = sum(torch.Size(shape).numel() for _, _, shape in engine.layout())
    whole_buckets = engine.buckets

    def once() -> Iterator:
        engine.buckets = whole_buckets  # the export that follows goes over them, too
        return interrupted(whole_buckets(), elements, lambda: engine.rank or os.killpg(pid, signal.SIGKILL))

    engine.buckets = once
    publisher.publish()
    current, computes = read_json(run / "policy" / "current.json"), still_computes(engine)
    row = {
        "killed_update_s": publisher.send_s,
        "export_s": publisher.seconds - publisher.send_s,
        "live": current["live"],
        "reason": current["reason"],
        "still_computes": computes,
    }
    url, _ = wait_for_server(run, not_pid=pid)
    loaded = checksums(url) if engine.rank == 0 else {}
    publisher.publish()
    if engine.rank == 0:
        row |= {
            "first_update": bool(first),
            "next_update": bool(publisher.sent),
            "equal_to_export": checksums(url) == loaded,
            "next_paused_s": publisher.sent.paused_s if publisher.sent else None,
            "next_init_s": publisher.sent.connect_s if publisher.sent else None,
        }
    engine.close()
    return [row]


def hardware() -> dict:
    import torch

    if not torch.cuda.is_available():
        return {"cores": os.cpu_count(), "torch": torch.__version__}
    return {
        "gpu": torch.cuda.get_device_name(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "torch": torch.__version__,
    }


def ranks(config: BenchConfig) -> None:
    folder = Path(config.output) / config.shape
    rows = (kill if config.kill else measure)(config, folder)
    if os.environ["RANK"] == "0":
        write_json(
            folder / "rows.json",
            {"hardware": hardware(), "rows": [{"shape": config.shape, "ranks": config.ranks} | row for row in rows]},
        )


# ---- the program that starts servers and ranks, and restarts a server as the rollout process does


async def serve(config: BenchConfig, folder: Path, gpus: list[str], servers: list[Server]) -> None:
    """Starts as many as are needed; in the kill scenario also what the killed one is replaced by. Appends to `servers`,
    which the caller ends."""
    dummy = [*config.server.extra_arguments, *DUMMY]
    for number in range(max(config.serving)):
        run = folder / f"server_{number}"
        (run / "policy").mkdir(parents=True)
        write_json(
            run / "policy" / "current.json",
            {"version": 0, "step": 0, "path": str(folder / "model"), "path_version": 0, "live": True},
        )
        devices = {"devices": gpus[config.ranks + number]} if gpus else {}
        servers.append(
            Server(config.server.model_copy(update=devices | {"extra_arguments": dummy}), run, run / "vllm.log")
        )
    await asyncio.gather(*(server.start(str(folder / "model")) for server in servers))
    if config.kill:
        killed = servers[0]
        await killed.process.wait()
        while (current := read_json(killed.run / "policy" / "current.json"))["live"]:
            await asyncio.sleep(0.05)
        await killed.stop()
        real = killed.config.model_copy(update={"extra_arguments": config.server.extra_arguments})
        servers.append(Server(real, killed.run, killed.run / "vllm_restarted.log"))
        await servers[-1].start(current["path"])


async def bench(config: BenchConfig, shape: str, arguments: list[str]) -> dict:
    """What the ranks measured."""
    folder, gpus = Path(config.output) / shape, visible_gpus() if has_gpu() else []
    if gpus and len(gpus) < config.ranks + max(config.serving):
        raise ConfigError(
            f"{len(gpus)} GPUs for {config.ranks} ranks and {max(config.serving)} servers: lower ranks or serving"
        )
    shutil.rmtree(folder, ignore_errors=True)
    write_model(shape, folder / "model")
    environment = ranks_environment(1) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[: config.ranks])} if gpus else {})
    servers: list[Server] = []
    with (folder / "ranks.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *ends_with_parent(signal.SIGTERM),
            *ranks_command(config.ranks, [sys.argv[0], *arguments, "role=ranks", f"shape={shape}"]),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    serving, measuring = asyncio.create_task(serve(config, folder, gpus, servers)), asyncio.create_task(process.wait())
    try:
        await asyncio.wait({serving, measuring}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()  # raises if a server did not come up
        if await measuring:
            why = cause.of_log(folder / "ranks.log", code=process.returncode)
            raise EngineError(f"the ranks ended with code {process.returncode}: {why}; see {folder / 'ranks.log'}")
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
        await asyncio.gather(*(server.stop() for server in servers))
    return read_json(folder / "rows.json")


def line(row: dict) -> str:
    if "killed_update_s" in row:
        words = {
            "noticed after": f"{row['killed_update_s']:.2f} s",
            "reason": row["reason"],
            "GPU still computes": row["still_computes"],
            "export": f"{row['export_s']:.1f} s",
            "next update": row["next_update"],
            "equal to the export": row["equal_to_export"],
        }
        return f"{row['shape']:>10}  vLLM killed in mid-transfer: " + ", ".join(
            f"{name}: {value}" for name, value in words.items()
        )
    probe_ms = row["forward_ms"] + row["answer_ms"]
    return (
        f"{row['shape']:>10}  {row['bytes'] / 1e9:6.2f} GB  {row['ranks']} ranks  {row['servers']} servers  init "
        f"{row['init_s']:5.2f} s  "
        f"pause {row['median_paused_s']:6.3f} s ({min(row['paused_s']):.3f} to {max(row['paused_s']):.3f})  "
        f"{row['gb_per_s']:6.1f} GB/s  "
        f"probe {probe_ms:.0f} ms (trainer {row['forward_ms']:.0f}, vLLM {row['answer_ms']:.0f}), "
        f"{probe_ms / 1000 / row['median_paused_s']:.2f} of the pause; gap mean {row['gap_mean']:.1g}, "
        f"largest {row['gap_largest']:.1g}"
    )


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    if config.role == "ranks":
        return ranks(config)
    if unknown := set(config.shapes) - set(SHAPES):
        raise ConfigError(f"unknown shape {min(unknown)!r}: known are {', '.join(SHAPES)}")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    results = {"command": [sys.argv[0], *arguments], "rows": []}
    for shape in config.shapes:
        found = asyncio.run(bench(config, shape, arguments))
        results |= {"hardware": found["hardware"], "rows": results["rows"] + found["rows"]}
        for row in found["rows"]:
            print(line(row), flush=True)
        write_json(Path(config.output) / ("kills.json" if config.kill else "weights.json"), results)
    print(f"{config.output}: {json.dumps(results['hardware'])}")


if __name__ == "__main__":
    main(sys.argv[1:] or [DEFAULT])

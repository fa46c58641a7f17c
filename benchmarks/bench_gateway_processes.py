"""Calls a second that the gateway serves in one process and in several, as fast as agents can ask, in one run.

    python benchmarks/bench_gateway_processes.py configs/bench/gateway_processes.yaml
    python benchmarks/bench_gateway_processes.py configs/bench/gateway_processes.yaml 'processes=[1, 2]' loaders=1

The upstream answers at once. Agents are in processes of their own; each has one conversation at a time, whose history
grows from
`history_tokens`, and asks again as soon as it is answered: the rate is what the gateway can, if agents and upstream are
not at
their end (the cores of the busiest are shown: below one).
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import aiohttp
import psutil
from bench_gateway_load import CONTENT, Conversation, Texts, quantile, row
from bench_gateway_servers import SAID, null_upstream, server
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.gateway import GatewayConfig, Renderer, SamplingConfig, SessionLimits, make_gateway
from coderepairrl.models.small_policy import SmallPolicyConfig, initial_model, save, train_tokenizer
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.run.program import program
from coderepairrl.scaffolds.terminal import TOOLS

LIMITS = SessionLimits(max_turns=1000, max_total_tokens=100_000)


class BenchConfig(Config):
    processes: tuple[PositiveInt, ...] = (1, 2, 4)  # of the gateway
    rounds: PositiveInt = 3  # over all of them
    seconds: PositiveFloat = 10.0  # of each measurement
    warm_s: NonNegativeFloat = 5.0  # before it: first calls, which read a history whole
    agents: PositiveInt = 64  # at once, of all loaders together
    loaders: PositiveInt = 4  # processes that are agents
    upstreams: PositiveInt = 2  # processes that answer instead of vLLM
    history_tokens: PositiveInt = 3000  # at a conversation's start
    turns: PositiveInt = 20  # then it begins again, in a new session
    most: PositiveInt = 5000  # calls a second that sessions are prepared for


def renderer(model: Path) -> Renderer:
    return Renderer(load_tokenizer(model), {})


def agents(
    config: BenchConfig, model: Path, sessions: list[tuple[str, str]], begin: float
) -> tuple[list[float], float]:
    """A loader's process. (seconds that each answer took, its CPU seconds), both of the time that is measured."""
    texts, left, latencies, end = Texts(model), list(sessions), [], begin + config.seconds

    async def one(http: aiohttp.ClientSession) -> None:
        while left:
            base_url, key = left.pop()
            conversation = Conversation(texts, config.history_tokens, 60)
            for _ in range(config.turns):
                started = time.time()
                if started > end:
                    return
                async with http.post(
                    base_url + "/chat/completions", data=conversation.body(), headers={"Authorization": f"Bearer {key}"}
                ) as response:
                    if response.status != 200:
                        raise RuntimeError(f"the gateway answered {response.status}: {await response.text()}")
                    await response.read()
                conversation.answered()
                if begin < time.time() < end:
                    latencies.append(time.time() - started)
        raise RuntimeError(f"all {len(sessions)} sessions were used up before the end: raise `most`")

    async def main() -> float:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
            asyncio.TaskGroup() as running,
        ):
            for _ in range(config.agents // config.loaders):
                running.create_task(one(http))
            await asyncio.sleep(begin - time.time())
            cpu = time.process_time()
            await asyncio.sleep(end - time.time())
            return time.process_time() - cpu

    return latencies, asyncio.run(main())


async def measure(
    config: BenchConfig, model: Path, urls: list[str], processes: int, pool: ProcessPoolExecutor
) -> tuple[float, ...]:
    """(calls a second, median and p99 latency in ms, the gateway's CPU-ms a call, cores of the busiest loader)."""
    others = set(psutil.Process().children())
    gateway = make_gateway(GatewayConfig(processes=processes), urls, 30.0, partial(renderer, model))
    await gateway.start()
    try:
        serving = set(psutil.Process().children()) - others if processes > 1 else {psutil.Process()}
        number = config.agents // config.loaders + int(
            config.most * (config.warm_s + config.seconds) / config.turns / config.loaders
        )
        opened = [
            [gateway.open_session(LIMITS, SamplingConfig()) for _ in range(number)] for _ in range(config.loaders)
        ]
        begin = time.time() + config.warm_s
        jobs = [
            asyncio.get_running_loop().run_in_executor(
                pool, agents, config, model, [(session.base_url, session.key) for session in sessions], begin
            )
            for sessions in opened
        ]
        await asyncio.sleep(begin - time.time())
        cpu = sum(sum(process.cpu_times()[:2]) for process in serving)
        await asyncio.sleep(config.seconds)
        cpu = sum(sum(process.cpu_times()[:2]) for process in serving) - cpu
        results = await asyncio.gather(*jobs)
    finally:
        await gateway.stop()
        for client in gateway.clients:
            await client.close()
    latencies = [latency for those, _ in results for latency in those]
    if not latencies:
        raise RuntimeError(f"no call was answered in the {config.seconds} s: give it more warm_s, or fewer agents")
    return (
        len(latencies) / config.seconds,
        *(1e3 * quantile(latencies, share) for share in (0.5, 0.99)),
        1e3 * cpu / len(latencies),
        max(spent for _, spent in results) / config.seconds,
    )


async def bench(config: BenchConfig, model: Path) -> None:
    tokenizer = load_tokenizer(model)
    said = tuple(tokenizer.encode(SAID, add_special_tokens=False)) + (tokenizer.eos_token_id,)
    rates: dict[int, list[float]] = {processes: [] for processes in config.processes}
    row("gateway", "processes", "calls/s", "median ms", "p99 ms", "CPU-ms/call", "loader cores", "upstreams'")
    with ExitStack() as held:
        upstreams = [
            held.enter_context(
                server(null_upstream, said, frozenset(tokenizer.all_special_ids), tokenizer.eos_token_id)
            )
            for _ in range(config.upstreams)
        ]
        pool = held.enter_context(ProcessPoolExecutor(config.loaders, get_context("spawn")))
        for number in range(config.rounds):
            for processes in config.processes:
                before = max(upstream.cpu_s() for upstream in upstreams)
                rate, *rest = await measure(config, model, [upstream.url for upstream in upstreams], processes, pool)
                busiest = (max(upstream.cpu_s() for upstream in upstreams) - before) / (config.seconds + config.warm_s)
                rates[processes].append(rate)
                row(
                    f"round {number + 1}",
                    processes,
                    f"{rate:.0f}",
                    *(f"{value:.2f}" for value in rest),
                    f"{busiest:.2f}",
                )
    base = statistics.median(rates[config.processes[0]])
    for processes, measured in rates.items():
        row("median", processes, f"{statistics.median(measured):.0f}", f"x {statistics.median(measured) / base:.2f}")


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        model = Path(folder, "model")
        tokenizer = train_tokenizer([CONTENT, json.dumps(TOOLS)], 8192, 70_000)
        save(initial_model(tokenizer, SmallPolicyConfig(context=70_000)), tokenizer, model)
        asyncio.run(bench(config, model))


if __name__ == "__main__":
    main(sys.argv[1:])

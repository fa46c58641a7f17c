"""What the gateway costs, beside a null upstream, a null proxy and vLLM itself, all in one run.

    python benchmarks/bench_gateway.py configs/bench/gateway.yaml
    python benchmarks/bench_gateway.py configs/bench/gateway.yaml parts='[calls, growth]'
    python benchmarks/bench_gateway.py configs/bench/gateway.yaml parts='[throughput]' model=runs/quickstart/policy

    calls        agents with histories of 3k to 5k tokens; calls arrive at random times, whatever was answered (open
                 loop), and a latency counts from its arrival. Added latency is over the null upstream addressed
                 directly, CPU is the server's own. A conversation's first call, which is read and tokenised whole, is
                 shown apart
    growth       one conversation to 128 turns and 64k tokens: what a turn costs as the history grows, and how much of
                 it is tokenising
    soak         2,000 sessions, 300 at once, whose clients hang up and try again at random: nothing lost, nothing
                 crossed, memory back
    throughput   a real vLLM kept full, addressed directly and through the gateway in turns

The null proxy passes bodies on and looks at nothing: what any HTTP server in Python costs. Exit code 1 when the soak
finds a fault.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import aiohttp
from bench_gateway_load import CONTENT, Conversation, Target, Texts, quantile, row
from bench_gateway_servers import SAID, gateway, null_proxy, null_upstream, server
from bench_gateway_soak import soak
from pydantic import PositiveFloat, PositiveInt

from coderepairrl.config import Config, load
from coderepairrl.errors import ConfigError
from coderepairrl.inference.server import Server as VLLM
from coderepairrl.inference.server_config import ServerConfig
from coderepairrl.models.small_policy import SmallPolicyConfig, initial_model, save, train_tokenizer
from coderepairrl.run.program import program
from coderepairrl.scaffolds.terminal import TOOLS


class BenchConfig(Config):
    # what is measured
    parts: tuple[Literal["calls", "growth", "soak", "throughput"], ...] = ("calls", "growth", "soak", "throughput")
    # a folder with tokenizer and weights; null: one is made, with a tokenizer of 8,192 tokens and random weights
    model: str | None = None
    seconds: PositiveFloat = 15.0  # of each measurement of `calls`
    # agents -> calls a second, of all of them together
    sessions: dict[PositiveInt, PositiveFloat] = {1: 20.0, 16: 50.0, 64: 100.0, 256: 150.0}
    turns: PositiveInt = 20  # of a conversation in `calls`
    history_tokens: PositiveInt = 3000  # at its start
    growth_turns: PositiveInt = 128  # of the conversation in `growth`
    growth_tokens: PositiveInt = 64_000  # at its end
    soak_sessions: PositiveInt = 2000  # of `soak`
    soak_at_once: PositiveInt = 300  # of them at once
    rounds: PositiveInt = 3  # of `throughput`
    in_flight: PositiveInt = 64  # calls at once in `throughput`
    tokens: PositiveInt = 128  # sampled a call in `throughput`
    vllm: ServerConfig = ServerConfig(dtype="float32", kv_cache_mib=512, max_model_len=4096)  # of `throughput`


async def open_loop(
    target: Target, texts: Texts, config: BenchConfig, agents: int, rate: float
) -> tuple[list[float], float, float]:
    """(latencies in seconds, CPU seconds a call, CPU seconds of a conversation's first call, which reads all of it)."""
    ready: deque = deque()
    for _ in range(agents + int(rate * config.seconds / (config.turns - 1) * 1.2) + 5):
        conversation = Conversation(texts, config.history_tokens, 60)
        ready.append((conversation, *await target.open()))
    cpu = target.server.cpu_s()
    for conversation, url, headers in ready:
        await target.call(url, headers, conversation.body())
        conversation.answered()
    first = (target.server.cpu_s() - cpu) / len(ready)
    opened, free, latencies = list(ready), asyncio.Semaphore(agents), []

    async def arrive() -> None:
        arrived = time.perf_counter()
        async with free:
            conversation, url, headers = ready.popleft()
            await target.call(url, headers, conversation.body())
            latencies.append(time.perf_counter() - arrived)
            conversation.answered()
            if conversation.turns < config.turns:
                # so many agents at a time; the rest follow on them
                ready.insert(agents - 1, (conversation, url, headers))

    cpu, started, calls = target.server.cpu_s(), time.perf_counter(), []
    due = started
    while due < started + config.seconds:
        await asyncio.sleep(due - time.perf_counter())
        calls.append(asyncio.create_task(arrive()))
        due += random.expovariate(rate)
    await asyncio.gather(*calls)
    cpu = (target.server.cpu_s() - cpu) / len(calls)
    for _, _, headers in opened:
        await target.close(headers)
    return latencies, cpu, first


async def calls(config: BenchConfig, texts: Texts, targets: list[Target]) -> None:
    row(
        "calls, milliseconds",
        "sessions",
        "calls/s",
        "CPU first",
        "CPU/call",
        "median",
        "p99",
        "added median",
        "added p99",
    )
    for agents, rate in config.sessions.items():
        bare: list[float] = []
        for target in targets:
            latencies, cpu, first = await open_loop(target, texts, config, agents, rate)
            bare = bare or latencies
            added = [quantile(latencies, share) - quantile(bare, share) for share in (0.5, 0.99)]
            row(
                target.name,
                agents,
                f"{rate:g}",
                *(
                    f"{1e3 * value:.2f}"
                    for value in (first, cpu, quantile(latencies, 0.5), quantile(latencies, 0.99), *added)
                ),
            )


async def growth(config: BenchConfig, texts: Texts, targets: list[Target]) -> None:
    row("growth, milliseconds a turn", "turns", "tokens", "CPU", "CPU - proxy", "tokenising", "characters")
    said = len(texts.tokenizer.encode(SAID, add_special_tokens=False))
    per_turn = config.growth_tokens // config.growth_turns - said - 8
    costs: dict[str, list[tuple[float, float, float]]] = {}
    for target in targets[1:]:
        random.seed(0)
        conversation = Conversation(texts, 600, per_turn)
        url, headers = await target.open()
        costs[target.name] = spent = []
        for _ in range(config.growth_turns):
            body = conversation.body()
            before, cpu = await tokenised(target), target.server.cpu_s()
            await target.call(url, headers, body)
            cpu = target.server.cpu_s() - cpu
            after = await tokenised(target)
            spent.append((cpu, after[0] - before[0], after[1] - before[1]))
            conversation.answered()
        await target.close(headers)
    size = max(1, config.growth_turns // 8)
    for first in range(0, config.growth_turns, size):
        cpu, tokenising, characters = (
            statistics.median(values) for values in zip(*costs["gateway"][first : first + size])
        )
        proxy = statistics.median(cost for cost, _, _ in costs["null proxy"][first : first + size])
        tokens = (first + size // 2) * config.growth_tokens // config.growth_turns
        row(
            "gateway",
            f"{first + 1}-{first + size}",
            tokens,
            *(f"{1e3 * value:.2f}" for value in (cpu, cpu - proxy, tokenising)),
            f"{characters:.0f}",
        )


async def tokenised(target: Target) -> tuple[float, float]:
    """(seconds, characters) so far; of the null proxy none."""
    if target.name != "gateway":
        return 0.0, 0.0
    async with target.http.get(target.server.url + "/spent") as response:
        spent = await response.json()
    return spent["tokenising_s"], spent["characters"]


async def throughput(config: BenchConfig, texts: Texts, through: Target, vllm: VLLM) -> None:
    """Sampled tokens a second with so many calls in flight, in turns: direct, gateway, direct, gateway ..."""
    http, renderer_ids = (
        through.http,
        texts.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)[
            "input_ids"
        ],
    )

    async def direct() -> int:
        prompt = [*texts.tokenizer.encode(texts.piece(900), add_special_tokens=False), *renderer_ids]
        body = {
            "token_ids": prompt,
            "sampling_params": {
                "max_tokens": config.tokens,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": -1,
                "logprobs": 0,
            },
        }
        async with http.post(vllm.url + "/inference/v1/generate", json=body) as response:
            return len((await response.json())["choices"][0]["token_ids"])

    async def via_gateway() -> int:
        url, headers = await through.open(f"?tokens={config.tokens}")
        body = json.dumps({"messages": [{"role": "user", "content": texts.piece(900)}]}).encode()
        await through.call(url, headers, body)
        return (await through.close(headers, "?calls=1"))["calls"][0]["tokens"]

    async def measure(one) -> float:
        tokens, started, left = 0, time.perf_counter(), iter(range(config.in_flight * 6))

        async def worker() -> None:
            nonlocal tokens
            for _ in left:
                sampled = await one()  # in a line of its own: `tokens += await ...` would read the sum before it waits
                tokens += sampled

        await asyncio.gather(*(worker() for _ in range(config.in_flight)))
        return tokens / (time.perf_counter() - started)

    row("throughput, sampled tokens/s", "round", "direct", "gateway", "share")
    await measure(via_gateway)  # warm
    rates = []
    for number in range(config.rounds):
        rates.append((await measure(direct), await measure(via_gateway)))
        row("vLLM", number + 1, *(f"{rate:.0f}" for rate in rates[-1]), f"{rates[-1][1] / rates[-1][0]:.3f}")
    bare, ours = (statistics.median(side) for side in zip(*rates))
    row("vLLM, median", "", f"{bare:.0f}", f"{ours:.0f}", f"{ours / bare:.3f}")


async def bench(config: BenchConfig, model: Path, folder: Path) -> bool:
    texts, clean = Texts(model), True
    tokenizer = texts.tokenizer
    said = tuple(tokenizer.encode(SAID, add_special_tokens=False)) + (tokenizer.eos_token_id,)
    with ExitStack() as servers:
        upstream = servers.enter_context(
            server(null_upstream, said, frozenset(tokenizer.all_special_ids), tokenizer.eos_token_id)
        )
        proxy = servers.enter_context(server(null_proxy, upstream.url))
        ours = servers.enter_context(server(gateway, upstream.url, model))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300)
        ) as http:
            targets = [
                Target(name, measured, http)
                for name, measured in (("null upstream", upstream), ("null proxy", proxy), ("gateway", ours))
            ]
            if "calls" in config.parts:
                await calls(config, texts, targets)
            if "growth" in config.parts:
                await growth(config, texts, targets)
            if "soak" in config.parts:
                with server(gateway, upstream.url + "/echo", model) as echoing:
                    clean = await soak(
                        config.soak_sessions, config.soak_at_once, Target("gateway", echoing, http), upstream
                    )
            if "throughput" in config.parts:
                (folder / "policy").mkdir()
                vllm = VLLM(config.vllm, folder, folder / "vllm.log")
                await vllm.start(str(model))
                try:
                    with server(gateway, vllm.url, model) as before_vllm:
                        await throughput(config, texts, Target("gateway", before_vllm, http), vllm)
                finally:
                    await vllm.stop()
    return clean


@program(BenchConfig)
def main(arguments: list[str]) -> None:
    config = load(BenchConfig, arguments[0], arguments[1:])
    if config.model and not (Path(config.model) / "tokenizer.json").exists():
        raise ConfigError(f"{config.model}: no tokenizer.json there: name a model's folder, or none, and one is made")
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        model = Path(config.model or f"{folder}/model")
        if not config.model:
            tokenizer = train_tokenizer([CONTENT, json.dumps(TOOLS)], 8192, 70_000)
            save(initial_model(tokenizer, SmallPolicyConfig(context=70_000)), tokenizer, model)
        clean = asyncio.run(bench(config, model, Path(folder)))
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
